//! Which packs are named: a set that takes twelve bytes for each.

use std::collections::HashSet;

use repository::PackId;

/// The packs that backups name, with the most bytes of each that one of them names.
///
/// Of a pack's id, which is random, eight bytes are kept: two packs that share them are taken for named when one is, and
/// that only keeps what could go.
#[derive(Default)]
pub(crate) struct LiveSet {
    keys: Vec<u64>,
    /// In KiB.
    most: Vec<u32>,
}

impl LiveSet {
    /// Adds packs with the bytes that are named of each.
    pub(crate) fn add(&mut self, packs: &mut Vec<(u64, u32)>) {
        packs.sort_unstable();
        let (mut keys, mut most) = (Vec::new(), Vec::new());
        let room = self.keys.len() + packs.len();
        keys.reserve_exact(room);
        most.reserve_exact(room);
        let mut push = |key: u64, live: u32| match keys.last() {
            Some(last) if *last == key => {
                let last = most.len() - 1;
                most[last] = live.max(most[last]);
            }
            _ => {
                keys.push(key);
                most.push(live);
            }
        };
        let mut old = 0;
        for &(key, live) in &*packs {
            while old < self.keys.len() && self.keys[old] <= key {
                push(self.keys[old], self.most[old]);
                old += 1;
            }
            push(key, live);
        }
        for at in old..self.keys.len() {
            push(self.keys[at], self.most[at]);
        }
        keys.shrink_to_fit();
        most.shrink_to_fit();
        (self.keys, self.most) = (keys, most);
        packs.clear();
    }

    /// The most bytes that one backup names of the pack; `None` if none names it.
    pub(crate) fn named(&self, pack: PackId) -> Option<u64> {
        let at = self.keys.binary_search(&key(pack)).ok()?;
        Some(u64::from(self.most[at]) << 10)
    }

    /// The keys of those whose ids begin with this byte and that are not in `listed`.
    pub(crate) fn lacking<'l>(
        &'l self,
        first: u8,
        listed: &'l HashSet<u64>,
    ) -> impl Iterator<Item = u64> + 'l {
        let begin = self.keys.partition_point(|key| key >> 56 < u64::from(first));
        let end = self.keys.partition_point(|key| key >> 56 <= u64::from(first));
        self.keys[begin..end].iter().copied().filter(|key| !listed.contains(key))
    }

    /// True if some backup names the pack.
    pub(crate) fn contains(&self, pack: PackId) -> bool {
        self.named(pack).is_some()
    }
}

/// What is kept of an id: its beginning, by which packs are listed.
pub(crate) fn key(pack: PackId) -> u64 {
    u64::from_be_bytes(*pack.0.first_chunk().expect("an id has 16 bytes"))
}

/// Bytes in whole KiB, at most what fits.
pub(crate) fn kib(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    proptest::proptest! {
        #[test]
        fn the_set_is_the_map_it_stands_for(batches in proptest::collection::vec(proptest::collection::vec((0u64..40, 0u32..9), 0..20), 0..6)) {
            let (mut set, mut model) = (LiveSet::default(), BTreeMap::new());
            for mut batch in batches {
                for (key, live) in &batch {
                    let most = model.entry(*key).or_insert(0);
                    *most = (*most).max(*live);
                }
                set.add(&mut batch);
            }
            assert_eq!(set.keys, model.keys().copied().collect::<Vec<_>>());
            assert_eq!(set.most, model.values().copied().collect::<Vec<_>>());
        }
    }
}
