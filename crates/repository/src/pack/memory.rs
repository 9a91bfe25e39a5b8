//! The memory of packs: a bounded number of parts, handed out to packs being filled and used again once these are stored.

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded};

/// Bytes of a part.
const PART: usize = 2 << 20;

/// Parts for packs. Whoever fills a pack waits while all of them are in packs that are on their way: this bounds the memory
/// of a backup, and lets as many packs be stored at once as fit.
#[derive(Clone, Debug, Default)]
pub struct PackMemory {
    /// `None` for memory without a bound.
    bound: Option<Bound>,
}

/// Parts that are free, `None` for one that may still be made, and the way back to them.
#[derive(Clone, Debug)]
struct Bound {
    free: Receiver<Option<Part>>,
    home: Sender<Option<Part>>,
}

/// Bytes, after some padding that aligns them.
#[derive(Debug)]
struct Part {
    buffer: Vec<u8>,
    padding: usize,
}

impl PackMemory {
    /// Room for `bytes`, none of it taken before it is needed. Each pack being filled needs room for one pack and a bit
    /// ([`super::PACK_TARGET`]); what is left serves the packs on their way.
    pub fn bounded(bytes: usize) -> Self {
        let (home, free) = bounded(bytes / PART);
        for _ in 0..bytes / PART {
            home.send(None).expect("the channel has room for every part");
        }
        Self { bound: Some(Bound { free, home }) }
    }

    /// Memory as it is needed, for packs that are few.
    pub fn unbounded() -> Self {
        Self::default()
    }

    fn take(&self) -> Part {
        let used_before =
            self.bound.as_ref().and_then(|bound| bound.free.recv().expect("this holds the other end"));
        let mut part = used_before.unwrap_or_else(|| {
            let (buffer, padding) = storage::aligned_buffer(PART);
            Part { buffer, padding }
        });
        part.buffer.truncate(part.padding);
        part
    }
}

/// Bytes that grow part by part.
pub(super) struct PartWriter {
    memory: PackMemory,
    full: Vec<Bytes>,
    part: Option<Part>,
    len: usize,
}

impl PartWriter {
    pub(super) fn new(memory: &PackMemory) -> Self {
        Self { memory: memory.clone(), full: Vec::new(), part: None, len: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn append(&mut self, mut bytes: &[u8]) {
        self.len += bytes.len();
        while !bytes.is_empty() {
            let part = self.part.get_or_insert_with(|| self.memory.take());
            let room = PART - (part.buffer.len() - part.padding);
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            part.buffer.extend_from_slice(now);
            bytes = later;
            if now.len() == room {
                self.end_part();
            }
        }
    }

    pub(super) fn finish(mut self) -> Vec<Bytes> {
        self.end_part();
        self.full
    }

    fn end_part(&mut self) {
        let home = self.memory.bound.as_ref().map(|bound| bound.home.clone());
        self.full.extend(self.part.take().map(|part| Bytes::from_owner(Lent { part: Some(part), home })));
    }
}

/// A part that goes home when the last reader of its bytes is gone.
struct Lent {
    part: Option<Part>,
    home: Option<Sender<Option<Part>>>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        self.part.as_ref().map_or(&[], |part| &part.buffer[part.padding..])
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(home) = &self.home {
            // There is room for every part; a home that is gone needs none.
            drop(home.try_send(self.part.take()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_back_when_their_bytes_are_dropped() {
        let memory = PackMemory::bounded(2 * PART);
        let mut writer = PartWriter::new(&memory);
        writer.append(&vec![7; PART + 3]);
        assert_eq!(writer.len(), PART + 3);
        let parts = writer.finish();
        assert_eq!(parts.iter().map(Bytes::len).collect::<Vec<_>>(), [PART, 3]);
        let free = &memory.bound.as_ref().unwrap().free;
        assert!(free.is_empty());
        let (whole, copy) = (parts[0].as_ptr(), parts[0].clone());
        drop(parts);
        assert_eq!(free.len(), 1);
        drop(copy);
        assert_eq!(free.len(), 2);
        let mut again = PartWriter::new(&memory);
        again.append(&vec![8; 2 * PART]);
        let again = again.finish();
        assert!(again.iter().any(|part| part.as_ptr() == whole));
        assert!(again.iter().all(|part| part.iter().all(|byte| *byte == 8)));
    }

    #[test]
    fn whoever_wants_a_part_waits_for_one() {
        let memory = PackMemory::bounded(PART);
        let mut writer = PartWriter::new(&memory);
        writer.append(b"first");
        let first = writer.finish();
        let waiting = {
            let memory = memory.clone();
            std::thread::spawn(move || {
                let mut writer = PartWriter::new(&memory);
                writer.append(b"second");
                writer.finish().concat()
            })
        };
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(!waiting.is_finished());
        drop(first);
        assert_eq!(waiting.join().unwrap(), b"second");
    }
}
