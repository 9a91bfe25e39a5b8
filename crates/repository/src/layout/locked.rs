//! Which objects are locked, by their names.

use std::time::Duration;

use storage::ObjectName;

use super::{CLUSTERS, KEYS, MOVED, PACKS, description};
use crate::archive::Part;

/// For how long an object is locked when it is created, where objects are locked for `span`; `None` for what a restore
/// does not need, and what must be removable by whoever keeps order. Packs longer, so that not every backup need make
/// their locks longer.
pub fn lock_time(name: &ObjectName, span: Duration) -> Option<Duration> {
    let text = name.as_str();
    if text.starts_with(PACKS) || text.starts_with(MOVED) {
        return Some(span.saturating_add(span / 4));
    }
    let rest = text.strip_prefix(CLUSTERS).and_then(|rest| rest.split_once('/')).map(|(_, rest)| rest);
    let is_locked = match rest {
        Some(rest) if rest.starts_with("wal/") => name.last_part().parse::<Part>().is_err(),
        Some(rest) => rest == "identity" || rest.starts_with("backups/"),
        None => text.starts_with(KEYS) || *name == description(),
    };
    is_locked.then_some(span)
}

#[cfg(test)]
mod tests {
    use pg::wal::FileName;

    use super::super::*;
    use super::*;

    #[test]
    fn what_a_restore_needs_is_locked_and_nothing_else() {
        let (cluster, span) = (ClusterName::new("main").unwrap(), Duration::from_secs(400));
        let file = |text: &str| wal_file(&cluster, &text.parse::<FileName>().unwrap());
        let longer = [pack(PackId([1; 16])), moved(PackId([1; 16]))];
        let locked = [
            description(),
            key_slot("0a"),
            identity(&cluster),
            manifest(&cluster, "20261128T020000Z-full"),
            file("0000000A000000010000000F"),
            file("0000000A000000010000000F.partial"),
            file("0000000A.history"),
        ];
        let part: Part = "0000000A000000010000000F.00000000-00002000".parse().unwrap();
        let free = [
            wal_file(&cluster, &part),
            partial_manifest(&cluster, "20261128T020000Z-full", 1),
            expired_note(&cluster, "20261128T020000Z-full"),
            pin(&cluster, "20261128T020000Z-full", "0a"),
            claim(&cluster, "20261128T020000Z-full"),
            proof(&cluster, "20261128T020000Z-0a"),
            mark("20261128T020000Z-0a"),
            lease("maintenance", 1),
            ObjectName::new("probe/0a").unwrap(),
        ];
        for (names, time) in [(&longer[..], Some(500)), (&locked[..], Some(400)), (&free[..], None)] {
            for name in names {
                assert_eq!(lock_time(name, span), time.map(Duration::from_secs), "{name}");
            }
        }
    }
}
