//! Making a repository: what the storage can do, the secrets, the key slots.
//!
//! [`prepare`] tries the storage out and makes the secrets, and stores nothing; the caller then makes sure that the keys are
//! kept somewhere; [`Prepared::create`] makes the repository exist. A run that ends in between leaves nothing but a probe.

use std::path::Path;
use std::sync::Arc;

use repository::description::Description;
use repository::keys::{KeyError, Slot, SlotKey, SlotKind};
use repository::secrets::{Keyring, RepositoryId};
use repository::{Repository, RepositoryError};
use secrecy::SecretString;
use storage::Storage;
use storage::probe::{Capabilities, ProbeError, probe};

/// What the new repository shall have.
pub struct InitRequest {
    /// A passphrase that opens it.
    pub passphrase: Option<SecretString>,
    /// Whether to make a key for machines.
    pub key_file: bool,
    /// What the slots are called; the host's name, for instance.
    pub label: String,
    /// The time now.
    pub now: jiff::Timestamp,
}

/// Why no repository was made.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// There is one already; nothing was changed.
    #[error("there is a repository here already")]
    Exists,
    /// Nothing would open it but the recovery key.
    #[error("neither a passphrase nor a key file was asked for")]
    NoKey,
    /// The storage could not be tried out.
    #[error("try the storage out")]
    Probe(#[source] ProbeError),
    /// The storage changes what it stores, or does not list it.
    #[error("the storage is not fit for a repository: {why}")]
    Unfit {
        /// What it does.
        why: &'static str,
    },
    /// The passphrase was refused.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The repository could not be written.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
}

/// A repository that is ready to be made.
pub struct Prepared {
    /// What the storage was seen to do.
    pub capabilities: Capabilities,
    /// The key for machines, to be put into a file.
    pub key: Option<SlotKey>,
    /// The key for the day when all else is lost, to be put away.
    pub recovery: SlotKey,
    keyring: Keyring,
    slots: Vec<Slot>,
    now: jiff::Timestamp,
}

/// Tries the storage out and makes the secrets.
///
/// `storage` must honour create-only writes if it can. Stores nothing but a probe, which it removes.
pub async fn prepare(storage: &dyn Storage, request: InitRequest) -> Result<Prepared, InitError> {
    match Repository::describe(storage).await {
        Err(RepositoryError::Absent) => {}
        Err(error) => return Err(error.into()),
        Ok(_) => return Err(InitError::Exists),
    }
    if request.passphrase.is_none() && !request.key_file {
        return Err(InitError::NoKey);
    }
    let id = RepositoryId::random();
    let capabilities = probe(storage).await.map_err(InitError::Probe)?;
    if !capabilities.read_back {
        return Err(InitError::Unfit { why: "what is read is not what was written" });
    }
    if !capabilities.list {
        return Err(InitError::Unfit { why: "a listing does not show what was just written" });
    }
    let keyring = Keyring::generate(id);
    let mut slots = Vec::new();
    if let Some(passphrase) = &request.passphrase {
        slots.push(Slot::for_passphrase(&keyring, passphrase, &request.label, request.now)?);
    }
    let key = request.key_file.then(|| {
        let (slot, key) = Slot::for_key(&keyring, SlotKind::KeyFile, &request.label, request.now);
        slots.push(slot);
        key
    });
    let (slot, recovery) = Slot::for_key(&keyring, SlotKind::Recovery, "recovery key", request.now);
    slots.push(slot);
    Ok(Prepared { capabilities, key, recovery, keyring, slots, now: request.now })
}

impl Prepared {
    /// Makes the repository exist. `storage` is the one of [`prepare`], opened with `conditional_put` as
    /// [`Prepared::capabilities`] say; `local` is the folder for what this host keeps.
    pub async fn create(
        self,
        storage: Arc<dyn Storage>,
        local: Option<&Path>,
    ) -> Result<Repository, InitError> {
        let description = Description::new(&self.keyring.writer, self.now, self.capabilities.create_only);
        match Repository::create(storage, self.keyring, &self.slots, description, local).await {
            Err(RepositoryError::Exists) => Err(InitError::Exists),
            other => Ok(other?),
        }
    }
}

#[cfg(test)]
mod tests {
    use repository::Secret;
    use storage::{Faulty, Memory};

    use super::*;

    fn request() -> InitRequest {
        InitRequest {
            passphrase: Some(SecretString::from("a long passphrase".to_owned())),
            key_file: true,
            label: "test".into(),
            now: "2026-11-22T00:00:00Z".parse().unwrap(),
        }
    }

    async fn reopen(storage: &Arc<dyn Storage>, secret: Secret) -> Result<Repository, RepositoryError> {
        let description = Repository::describe(&**storage).await?;
        Repository::open(storage.clone(), description, &secret, None).await
    }

    #[tokio::test]
    async fn each_key_opens_what_was_made_and_a_second_run_changes_nothing() {
        let storage: Arc<dyn Storage> = Arc::new(Memory::default());
        let prepared = prepare(&*storage, request()).await.unwrap();
        assert!(prepared.capabilities.is_complete());
        assert_eq!(storage.list("").await.unwrap(), [], "nothing is stored before the keys are kept");
        let keys = [prepared.key.as_ref().unwrap(), &prepared.recovery].map(|key| key.to_text());
        prepared.create(storage.clone(), None).await.unwrap();
        for text in keys {
            reopen(&storage, Secret::Key(SlotKey::parse(&text).unwrap())).await.unwrap();
        }
        reopen(&storage, Secret::Passphrase(request().passphrase.unwrap())).await.unwrap();
        let before = storage.list("").await.unwrap();
        assert!(matches!(prepare(&*storage, request()).await, Err(InitError::Exists)));
        assert_eq!(storage.list("").await.unwrap(), before);
    }

    #[tokio::test]
    async fn the_slots_of_an_interrupted_run_do_not_stand_in_the_way_of_the_next() {
        // A probe writes, writes again and deletes; then come the three slots, and the description is never written.
        let faulty = Arc::new(Faulty::failing_write(6, Memory::default()));
        let storage: Arc<dyn Storage> = faulty.clone();
        let prepared = prepare(&*storage, request()).await.unwrap();
        assert!(prepared.create(storage.clone(), None).await.is_err());
        assert_eq!(storage.list("").await.unwrap().len(), 3);

        prepare(&*storage, request()).await.unwrap().create(storage.clone(), None).await.unwrap();
        reopen(&storage, Secret::Passphrase(request().passphrase.unwrap())).await.unwrap();
    }

    #[tokio::test]
    async fn a_repository_that_nothing_opens_is_not_made() {
        let storage = Memory::default();
        let request = InitRequest { passphrase: None, key_file: false, ..request() };
        assert!(matches!(prepare(&storage, request).await, Err(InitError::NoKey)));
        let weak =
            InitRequest { passphrase: Some(SecretString::from("short".to_owned())), ..self::request() };
        assert!(matches!(prepare(&storage, weak).await, Err(InitError::Key(KeyError::WeakPassphrase))));
        assert_eq!(storage.list("").await.unwrap(), []);
    }
}
