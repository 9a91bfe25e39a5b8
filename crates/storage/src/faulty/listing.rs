//! Listings that lie in the ways in which listings may.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use super::{Fault, Faulty, locked};
use crate::error::Action;
use crate::{Children, Storage, StorageError};

/// No storage shows what was so long ago; what keeps a repository in order relies on twice as long.
const STALE_MOST: Duration = Duration::from_secs(24 * 3600);

/// What listings show later, and what they showed before.
#[derive(Debug, Default)]
pub(super) struct Listings {
    hidden: Mutex<Vec<(String, Instant)>>,
    earlier: Mutex<HashMap<String, (Children, Instant)>>,
}

impl Listings {
    /// Hides an object that is about to be created.
    pub fn hide(&self, name: &str, time: Duration) {
        locked(&self.hidden).push((name.to_owned(), Instant::now() + time));
    }

    fn visible(&self, mut listing: Children) -> Children {
        let now = Instant::now();
        let mut hidden = locked(&self.hidden);
        hidden.retain(|(_, until)| now < *until);
        listing.entries.retain(|entry| !hidden.iter().any(|(name, _)| name == entry.name.as_str()));
        listing
    }

    /// Remembers a listing; the one before it, or the same if there was none for long.
    fn exchange(&self, action: &Action, listing: &Children) -> Children {
        // Both ways to list have the same words for an action.
        let key = format!("{:?} {}", action.call, action.subject);
        let earlier = locked(&self.earlier).insert(key, (listing.clone(), Instant::now()));
        let earlier = earlier.filter(|(_, at)| at.elapsed() <= STALE_MOST);
        earlier.map_or_else(|| listing.clone(), |(earlier, _)| earlier)
    }
}

impl<S: Storage> Faulty<S> {
    pub(super) async fn listing(
        &self,
        action: Action,
        truth: impl Future<Output = Result<Children, StorageError>>,
    ) -> Result<Children, StorageError> {
        let seen = async {
            let listing = self.listings.visible(truth.await?);
            let earlier = self.listings.exchange(&action, &listing);
            Ok((listing, earlier))
        };
        let lie = |(listing, earlier), fault: &Fault| (lied(listing, &earlier, fault), earlier);
        Ok(self.run(action.clone(), seen, lie).await?.0)
    }
}

fn lied(mut listing: Children, earlier: &Children, fault: &Fault) -> Children {
    let count = listing.entries.len();
    match fault {
        Fault::Truncate(keep) => {
            listing.prefixes.truncate(*keep);
            listing.entries.truncate(*keep);
        }
        Fault::Omit(at) if count > 0 => {
            listing.entries.remove(at % count);
        }
        Fault::Repeat(at) if count > 0 => {
            let entry = listing.entries[at % count].clone();
            listing.entries.insert(at % count, entry);
        }
        Fault::Stale => listing = earlier.clone(),
        _ => {}
    }
    listing
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Calls, Memory, ObjectName, Rule};

    async fn listed(faulty: &Faulty<Memory>) -> Vec<String> {
        faulty.list("a").await.unwrap().iter().map(|entry| entry.name.last_part().to_owned()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn listings_lie_as_they_are_told() {
        let faulty = Faulty::new(Memory::new());
        let name = |last: &str| ObjectName::new(format!("a/{last}")).unwrap();
        let rule = |calls, fault| Rule { calls, skip: 0, hit: 1, fault };
        faulty.create(&name("1"), &[]).await.unwrap();
        assert_eq!(listed(&faulty).await, ["1"]);
        faulty.create(&name("2"), &[]).await.unwrap();
        faulty.add(rule(Calls::Reads, Fault::Stale));
        assert_eq!(listed(&faulty).await, ["1"], "as it was");
        assert_eq!(listed(&faulty).await, ["1", "2"]);
        faulty.add(rule(Calls::Reads, Fault::Omit(3)));
        assert_eq!(listed(&faulty).await, ["1"]);
        faulty.add(rule(Calls::Reads, Fault::Repeat(2)));
        assert_eq!(listed(&faulty).await, ["1", "1", "2"]);
        faulty.add(rule(Calls::Writes, Fault::Late(Duration::from_secs(5))));
        faulty.create(&name("3"), &[]).await.unwrap();
        assert_eq!(listed(&faulty).await, ["1", "2"]);
        assert_eq!(faulty.size(&name("3")).await.unwrap(), 0, "it is there all the same");
        tokio::time::advance(Duration::from_secs(6)).await;
        assert_eq!(listed(&faulty).await, ["1", "2", "3"]);
    }
}
