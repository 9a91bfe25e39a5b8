//! Putting a new key in the place of an old one: the new slot is added and tried before the old one goes.

use repository::description::DescriptionError;
use repository::keys::{KeyError, Slot};
use repository::{Repository, RepositoryError, Secret};

use crate::failpoint;

/// Why a key was not replaced. The old one opens the repository as before.
#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    /// There is no slot of this id.
    #[error("there is no key {slot}")]
    Unknown {
        /// The id.
        slot: String,
    },
    /// The new slot did not come back from the storage as it was written.
    #[error("the new key {slot} was not there when it was tried")]
    NotThere {
        /// The new slot.
        slot: String,
    },
    /// The new slot does not open.
    #[error("the new key did not open the repository when it was tried")]
    Unopened(#[source] KeyError),
    /// The new slot holds another repository's keys.
    #[error(transparent)]
    Foreign(#[from] DescriptionError),
    /// The repository could not be read or written.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
}

/// Adds `new`, opens it with `secret` as the storage gives it back, and removes the slot `old`.
///
/// There is a slot at every moment: whoever dies in between leaves both, and `old` can be replaced again or removed.
pub async fn rotate(
    repository: &Repository,
    old: &str,
    new: &Slot,
    secret: &Secret,
) -> Result<(), RotationError> {
    let (slots, unreadable) = repository.slots().await?;
    if !slots.iter().map(|slot| &slot.id).chain(&unreadable).any(|id| id == old) {
        return Err(RotationError::Unknown { slot: old.to_owned() });
    }
    repository.add_slot(new).await?;
    failpoint::reach("rotation.added");
    let tried = prove(repository, new, secret).await;
    if let Err(error) = tried {
        if let Err(left) = repository.remove_slot(&new.id).await {
            tracing::warn!(slot = %new.id, error = %left, "the new key, which opens nothing, stays in the list");
        }
        return Err(error);
    }
    failpoint::reach("rotation.tried");
    repository.remove_slot(old).await?;
    failpoint::reach("rotation.removed");
    Ok(())
}

async fn prove(repository: &Repository, new: &Slot, secret: &Secret) -> Result<(), RotationError> {
    let (slots, _) = repository.slots().await?;
    let stored = slots.into_iter().find(|slot| slot.id == new.id);
    let stored = stored.ok_or_else(|| RotationError::NotThere { slot: new.id.clone() })?;
    let opened = match secret {
        Secret::Key(key) => stored.open_with_key(key),
        Secret::Passphrase(passphrase) => stored.open_with_passphrase(passphrase),
        Secret::Writer(_) => Err(KeyError::KeyForm),
    };
    let keyring = opened.map_err(RotationError::Unopened)?;
    Ok(repository.description().check(&keyring.writer)?)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use repository::description::Description;
    use repository::keys::SlotKind;
    use repository::secrets::{Access, Keyring, RepositoryId};
    use storage::{Call, Calls, Fault, Faulty, Memory, Rule, Storage};

    use super::*;

    async fn repository_with_one_key(keyring: &Keyring, storage: Arc<Memory>) -> (Description, Slot, Secret) {
        let now = jiff::Timestamp::UNIX_EPOCH;
        let description = Description::new(&keyring.writer, now, true);
        let (slot, key) = Slot::for_key(keyring, SlotKind::KeyFile, "old", now);
        let slots = std::slice::from_ref(&slot);
        Repository::create(storage, keyring.clone(), slots, description.clone(), None).await.unwrap();
        (description, slot, Secret::Key(key))
    }

    async fn opens(storage: Arc<dyn Storage>, description: &Description, secret: &Secret) -> bool {
        Repository::open(storage, description.clone(), secret, None).await.is_ok()
    }

    #[tokio::test]
    async fn at_every_moment_a_key_opens_and_a_new_one_that_does_not_replaces_nothing() {
        let keyring = Keyring::generate(RepositoryId::random());
        let faults = [Fault::Fail, Fault::LoseReply, Fault::Flip(200), Fault::Truncate(3)];
        for fault in faults {
            for skip in 0..8 {
                let memory = Arc::new(Memory::default());
                let (description, old, old_secret) = repository_with_one_key(&keyring, memory.clone()).await;
                let faulty = Arc::new(Faulty::new(memory.clone()));
                // A fault of reading hits what proves; one of writing all that come.
                let calls = match fault {
                    Fault::Flip(_) | Fault::Truncate(_) => Calls::Of(Call::ReadAll),
                    _ => Calls::Any,
                };
                faulty.add(Rule { calls, skip, hit: u64::MAX, fault: fault.clone() });
                let access = Access::Full(keyring.clone());
                let repository = Repository::assemble(faulty, description.clone(), access, None);
                let (new, key) = Slot::for_key(&keyring, SlotKind::KeyFile, "new", jiff::Timestamp::now());
                let new_secret = Secret::Key(key);
                let rotated = rotate(&repository, &old.id, &new, &new_secret).await;
                let by_old = opens(memory.clone(), &description, &old_secret).await;
                let by_new = opens(memory.clone(), &description, &new_secret).await;
                assert!(by_old || by_new, "{fault:?} after {skip}: nothing opens");
                assert!(rotated.is_err() || (by_new && !by_old), "{fault:?} after {skip}");
            }
        }
    }

    #[tokio::test]
    async fn a_new_key_that_does_not_open_is_taken_back() {
        let keyring = Keyring::generate(RepositoryId::random());
        let memory = Arc::new(Memory::default());
        let (description, old, secret) = repository_with_one_key(&keyring, memory.clone()).await;
        let access = Access::Full(keyring.clone());
        let repository = Repository::assemble(memory.clone(), description.clone(), access, None);
        let (new, _) = Slot::for_key(&keyring, SlotKind::KeyFile, "new", jiff::Timestamp::now());
        let wrong = rotate(&repository, &old.id, &new, &secret).await.unwrap_err();
        assert!(matches!(wrong, RotationError::Unopened(_)), "{wrong}");
        assert_eq!(repository.slots().await.unwrap().0.len(), 1);
        assert!(opens(memory, &description, &secret).await);
        let unknown = rotate(&repository, "00000000", &new, &secret).await.unwrap_err();
        assert!(matches!(unknown, RotationError::Unknown { .. }), "{unknown}");
    }
}
