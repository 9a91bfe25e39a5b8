//! What every storage and every wrapper must do, as one suite of checks for tests.
//!
//! [`check`] panics where the storage breaks the contract. It writes below a random prefix and removes what
//! it wrote, so it may run on a bucket that is in use.

use crate::{Entry, ObjectName, Storage, StorageError};
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use futures_util::future::join_all;
use std::ops::Range;

/// Checks the whole contract.
pub async fn check(storage: &dyn Storage) {
    let root = format!("contract-{:016x}", rand::random::<u64>());
    let suite = Suite { storage, root };
    suite.absent().await;
    suite.written_is_read().await;
    suite.never_overwritten().await;
    suite.ranges().await;
    suite.listed().await;
    suite.deleted().await;
    suite.one_of_many_creates().await;
    suite.clean_up().await;
}

struct Suite<'a> {
    storage: &'a dyn Storage,
    root: String,
}

impl Suite<'_> {
    fn name(&self, rest: &str) -> ObjectName {
        ObjectName::new(format!("{}/{rest}", self.root)).expect("the suite's own names are good")
    }

    async fn create(&self, rest: &str, bytes: &[u8]) -> ObjectName {
        let name = self.name(rest);
        let created = self.storage.create(&name, &[Bytes::copy_from_slice(bytes)]).await;
        created.expect("create a new object");
        name
    }

    async fn absent(&self) {
        let name = self.name("absent/object");
        assert_not_found("size", self.storage.size(&name).await);
        assert_not_found("read", self.storage.read(&name, 0..1).await);
        assert_not_found("read_stream", self.streamed(&name, 0..1).await);
        assert_not_found("read of nothing", self.storage.read(&name, 0..0).await);
        assert_not_found("read_tail", self.storage.read_tail(&name, 8).await);
        assert_not_found("read_tail of nothing", self.storage.read_tail(&name, 0).await);
        assert_not_found("read_all", self.storage.read_all(&name, 8).await);
        assert_not_found("delete", self.storage.delete(&name).await);
        let prefix = format!("{}/absent", self.root);
        assert_eq!(self.storage.list(&prefix).await.expect("list nothing"), []);
        let children = self.storage.list_children(&prefix).await.expect("list nothing");
        assert_eq!(children, Default::default(), "children of nothing");
    }

    async fn streamed(&self, name: &ObjectName, range: Range<u64>) -> Result<Vec<u8>, StorageError> {
        let pieces: Vec<Bytes> = self.storage.read_stream(name, range).try_collect().await?;
        Ok(pieces.concat())
    }

    async fn written_is_read(&self) {
        let contents: [&[&[u8]]; 5] =
            [&[], &[b""], &[b"a"], &[b"one ", b"", b"two"], &[&[0, 255, 10, 13, 0]]];
        for (number, parts) in contents.iter().enumerate() {
            let name = self.name(&format!("written/{number}"));
            let parts: Vec<Bytes> = parts.iter().map(|part| Bytes::copy_from_slice(part)).collect();
            let whole = parts.concat();
            self.storage.create(&name, &parts).await.expect("create an object of several parts");
            assert_eq!(self.storage.size(&name).await.expect("size"), whole.len() as u64);
            let limit = whole.len() as u64;
            assert_eq!(self.storage.read_all(&name, limit).await.expect("read_all"), whole);
            assert_eq!(self.storage.read(&name, 0..limit).await.expect("read"), whole);
            assert_eq!(self.streamed(&name, 0..limit).await.expect("read_stream"), whole);
        }
        let large: Bytes = (0..3_000_000_u32).flat_map(|number| number.to_le_bytes()).collect();
        let name = self.create("written/large", &large).await;
        assert!(
            self.storage.read_all(&name, u64::MAX).await.expect("read_all") == large,
            "large object differs"
        );
        let inside = 5..large.len() as u64 - 7;
        assert!(
            self.streamed(&name, inside).await.expect("read_stream") == large[5..large.len() - 7],
            "streamed object differs"
        );
    }

    async fn never_overwritten(&self) {
        let name = self.create("kept/object", b"first").await;
        for bytes in [b"other", b"first"] {
            let again = self.storage.create(&name, &[Bytes::copy_from_slice(bytes)]).await;
            assert!(
                matches!(&again, Err(StorageError::NameTaken { name: taken }) if *taken == name),
                "{again:?}"
            );
        }
        assert_eq!(self.storage.read_all(&name, 100).await.expect("read_all"), "first");
    }

    async fn ranges(&self) {
        let bytes: Vec<u8> = (0..100).collect();
        let name = self.create("ranges/object", &bytes).await;
        for range in [0..100, 0..1, 99..100, 40..60, 0..0, 100..100] {
            let read = self.storage.read(&name, range.clone()).await.expect("a range inside");
            assert_eq!(read, bytes[range.start as usize..range.end as usize], "{range:?}");
        }
        for range in [0..101, 99..101, 100..101, 500..600, 101..101] {
            let read = self.storage.read(&name, range.clone()).await;
            let Err(StorageError::Truncated { size, .. }) = read else { panic!("{range:?} gave {read:?}") };
            assert_eq!(size, 100, "{range:?}");
            if !range.is_empty() {
                let streamed = self.streamed(&name, range.clone()).await;
                assert!(
                    matches!(streamed, Err(StorageError::Truncated { size: 100, .. })),
                    "{range:?} gave {streamed:?}"
                );
            }
        }
        for max in [0, 1, 99, 100, 101, u64::MAX] {
            let tail = self.storage.read_tail(&name, max).await.expect("the end");
            assert_eq!((tail.size, &tail.bytes[..]), (100, &bytes[100 - max.min(100) as usize..]), "{max}");
        }
        let large = self.storage.read_all(&name, 99).await;
        assert!(matches!(large, Err(StorageError::TooLarge { size: 100, limit: 99, .. })), "{large:?}");
        let empty = self.create("ranges/empty", b"").await;
        let tail = self.storage.read_tail(&empty, 8).await.expect("the end of nothing");
        assert_eq!((tail.size, tail.bytes.len()), (0, 0));
        let beyond = self.storage.read(&empty, 0..1).await;
        assert!(matches!(beyond, Err(StorageError::Truncated { size: 0, .. })), "{beyond:?}");
    }

    async fn listed(&self) {
        // Around the slash in byte order, and a neighbour whose name begins like the prefix.
        let below = ["a-b", "a.b", "a/0", "a/b/c", "a/b/d", "a0", "a=b", "aB", "z"];
        for rest in below {
            self.create(&format!("list/{rest}"), rest.as_bytes()).await;
        }
        self.create("list-neighbour", b"").await;
        let prefix = format!("{}/list", self.root);
        let expected: Vec<String> = below.iter().map(|rest| format!("{prefix}/{rest}")).collect();
        for prefix in [prefix.clone(), format!("{prefix}/")] {
            let entries = self.storage.list(&prefix).await.expect("list");
            assert_eq!(names(&entries), expected, "ordered by name, however deep");
            let sizes = entries.iter().zip(below).all(|(entry, rest)| entry.size == rest.len() as u64);
            assert!(sizes, "{entries:?}");
            let children = self.storage.list_children(&prefix).await.expect("list_children");
            assert_eq!(children.prefixes, [format!("{}/a", prefix.trim_end_matches('/'))]);
            let direct: Vec<String> =
                expected.iter().filter(|name| !name.contains("list/a/")).cloned().collect();
            assert_eq!(names(&children.entries), direct);
        }
        let inner = self.storage.list(&format!("{prefix}/a")).await.expect("list");
        assert_eq!(names(&inner), expected[2..5], "whole parts only");
        let top = self.storage.list_children("").await.expect("list the root");
        assert!(top.prefixes.contains(&self.root), "{top:?}");
        assert!(self.storage.list("../etc").await.is_err(), "a prefix outside the root");
    }

    async fn deleted(&self) {
        let name = self.create("deleted/deep/object", b"x").await;
        self.storage.delete(&name).await.expect("delete");
        assert_not_found("read after delete", self.storage.read_all(&name, 8).await);
        assert_not_found("second delete", self.storage.delete(&name).await);
        self.storage.remove(&name).await.expect("remove what is not there");
        let left = self.storage.list_children(&format!("{}/deleted", self.root)).await.expect("list");
        assert_eq!(left, Default::default(), "an empty prefix does not exist");
        let again = self.create("deleted/deep/object", b"y").await;
        assert_eq!(self.storage.read_all(&name, 8).await.expect("read_all"), "y");
        self.storage.remove(&again).await.expect("remove");
        assert_not_found("read after remove", self.storage.read_all(&again, 8).await);
    }

    async fn one_of_many_creates(&self) {
        let name = self.name("race/object");
        let contents: Vec<[Bytes; 1]> = (0..8).map(|number| [Bytes::from(vec![number; 1000])]).collect();
        let created = join_all(contents.iter().map(|parts| self.storage.create(&name, parts))).await;
        let winners: Vec<usize> = (0..created.len()).filter(|at| created[*at].is_ok()).collect();
        assert_eq!(winners.len(), 1, "{created:?}");
        let stored = self.storage.read_all(&name, 1000).await.expect("read_all");
        assert_eq!(stored, contents[winners[0]][0], "the winner's bytes");
        let lost = created.iter().filter(|done| matches!(done, Err(StorageError::NameTaken { .. }))).count();
        assert_eq!(lost, 7, "{created:?}");
    }

    async fn clean_up(&self) {
        for entry in self.storage.list(&self.root).await.expect("list") {
            self.storage.delete(&entry.name).await.expect("delete");
        }
        assert_eq!(self.storage.list(&self.root).await.expect("list"), []);
    }
}

fn names(entries: &[Entry]) -> Vec<&str> {
    entries.iter().map(|entry| entry.name.as_str()).collect()
}

fn assert_not_found<T: std::fmt::Debug>(what: &str, result: Result<T, StorageError>) {
    assert!(matches!(result, Err(StorageError::NotFound { .. })), "{what} of an absent object: {result:?}");
}
