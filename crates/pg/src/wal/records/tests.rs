use super::*;
use crate::TimelineId;
use proptest::prelude::*;

const PAGE: usize = 8192;
const COMMIT: u8 = 0x00;
const ABORT: u8 = 0x20;
const HEAP: u8 = 10;

fn size() -> SegmentSize {
    SegmentSize::new(1 << 20).unwrap()
}

fn name() -> SegmentName {
    "000000010000000000000009".parse().unwrap()
}

/// A segment written as the server writes one: page headers as they are reached, records chained and sealed.
struct Writer {
    bytes: Vec<u8>,
    previous: u64,
    timeline: u32,
    /// Where the last record ends in the file, without the padding behind it.
    last_end: usize,
}

impl Writer {
    /// A segment whose first `remaining` bytes belong to a record from the segment before.
    fn new(remaining: usize) -> Writer {
        let mut writer =
            Writer { bytes: Vec::new(), previous: name().start(size()) - 500, timeline: 1, last_end: 0 };
        let flag = if remaining > 0 { CONTINUES } else { 0 };
        writer.page(flag, remaining);
        writer.put(&vec![7; remaining], remaining);
        writer.align();
        writer
    }

    fn position(&self) -> u64 {
        name().start(size()) + self.bytes.len() as u64
    }

    fn page(&mut self, flags: u16, remaining: usize) {
        let is_first = self.bytes.is_empty();
        let position = self.position();
        let flags = if is_first { flags | LONG } else { flags };
        self.bytes.extend(0xD110u16.to_le_bytes());
        self.bytes.extend(flags.to_le_bytes());
        self.bytes.extend(self.timeline.to_le_bytes());
        self.bytes.extend(position.to_le_bytes());
        self.bytes.extend((remaining as u32).to_le_bytes());
        self.bytes.extend([0; 4]);
        if is_first {
            self.bytes.extend(4711u64.to_le_bytes());
            self.bytes.extend(size().bytes().to_le_bytes());
            self.bytes.extend((PAGE as u32).to_le_bytes());
        }
    }

    fn put(&mut self, mut bytes: &[u8], mut remaining: usize) {
        while !bytes.is_empty() {
            if self.bytes.len().is_multiple_of(PAGE) {
                self.page(CONTINUES, remaining);
            }
            let (piece, rest) = bytes.split_at(bytes.len().min(PAGE - self.bytes.len() % PAGE));
            self.bytes.extend_from_slice(piece);
            remaining -= piece.len();
            bytes = rest;
        }
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
    }

    /// The position of the record.
    fn record(&mut self, manager: u8, info: u8, main: &[u8]) -> Lsn {
        if self.bytes.len().is_multiple_of(PAGE) {
            self.page(0, 0);
        }
        let start = self.position();
        let record = sealed(self.previous, manager, info, main);
        self.put(&record, record.len());
        self.last_end = self.bytes.len();
        self.align();
        self.previous = start;
        Lsn::new(start).unwrap()
    }

    /// Up to and including the first page of what comes after a crash in the middle of the last record.
    fn give_up_at_next_page(&mut self, before_last: u64) {
        self.bytes.resize(self.bytes.len().next_multiple_of(PAGE), 0);
        self.page(GIVEN_UP, 0);
        self.previous = before_last;
    }

    fn finish(mut self) -> Vec<u8> {
        self.bytes.resize(size().bytes() as usize, 0);
        self.bytes
    }
}

fn sealed(previous: u64, manager: u8, info: u8, main: &[u8]) -> Vec<u8> {
    let mut body = vec![253, 1, 0, 254];
    body.extend((main.len() as u32).to_le_bytes());
    if main.len() < 256 && manager == TRANSACTION {
        body = vec![252, 9, 9, 9, 9, 255, main.len() as u8];
    }
    body.extend_from_slice(main);
    let mut record = ((24 + body.len()) as u32).to_le_bytes().to_vec();
    record.extend(730u32.to_le_bytes());
    record.extend(previous.to_le_bytes());
    record.extend([info, manager, 0, 0]);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&body), &record);
    record.extend(crc.to_le_bytes());
    record.extend(body);
    record
}

fn at(us: i64) -> Vec<u8> {
    [&us.to_le_bytes()[..], &[0; 24]].concat()
}

fn span(segment: &[u8]) -> Option<CommitSpan> {
    commit_span(segment, &name(), size())
}

#[test]
fn commits_and_aborts_are_found_among_others() {
    let mut writer = Writer::new(0);
    writer.record(HEAP, 0, &[1; 100]);
    writer.record(TRANSACTION, COMMIT | 0x80, &at(50));
    writer.record(TRANSACTION, 0x10, &at(1));
    writer.record(HEAP, 0, &[1; 20_000]);
    let last = writer.record(TRANSACTION, ABORT, &at(40));
    writer.record(TRANSACTION, 0x50, &at(99));
    let expected = CommitSpan { first: PgTimestamp(40), last: PgTimestamp(50), last_lsn: last };
    assert_eq!(span(&writer.finish()), Some(expected));
}

#[test]
fn a_segment_may_begin_inside_a_record() {
    for remaining in [1, 23, 1000, PAGE - LONG_HEADER_SIZE, PAGE, 3 * PAGE + 5] {
        let mut writer = Writer::new(remaining);
        let last = writer.record(TRANSACTION, 0x30, &at(7));
        assert_eq!(span(&writer.finish()).map(|span| span.last_lsn), Some(last), "{remaining}");
    }
    assert_eq!(span(&Writer::new(2 << 20).bytes), None);
}

#[test]
fn nothing_is_read_past_a_switch() {
    let mut writer = Writer::new(0);
    let last = writer.record(TRANSACTION, COMMIT, &at(7));
    writer.record(XLOG, SWITCH, &[]);
    writer.record(TRANSACTION, COMMIT, &at(8));
    assert_eq!(span(&writer.finish()).map(|span| span.last_lsn), Some(last));
}

#[test]
fn what_a_recycled_file_held_before_is_not_read() {
    let mut old = Writer::new(0);
    for time in 0..20_000 {
        old.record(TRANSACTION, COMMIT, &at(time));
    }
    let old = old.finish();
    let mut writer = Writer::new(0);
    let last = writer.record(TRANSACTION, COMMIT, &at(-5));
    let mut page = writer.bytes;
    page.resize(PAGE, 0);
    // The rest of the file is of an earlier segment: right in itself, at another address.
    let mut recycled = old.clone();
    for start in (PAGE..recycled.len()).step_by(PAGE) {
        recycled[start + 10] ^= 1;
    }
    recycled[..PAGE].copy_from_slice(&page);
    let expected = CommitSpan { first: PgTimestamp(-5), last: PgTimestamp(-5), last_lsn: last };
    assert_eq!(span(&recycled), Some(expected));
    // Even at the right address, a record that does not point back to ours is not the next one.
    let mut spliced = old;
    spliced[..PAGE].copy_from_slice(&page);
    assert_eq!(span(&spliced), Some(expected));
}

#[test]
fn a_record_given_up_after_a_crash_is_passed_over() {
    let mut writer = Writer::new(0);
    let before = writer.record(HEAP, 0, &[1; 100]);
    writer.record(HEAP, 0, &[1; PAGE]);
    let length = writer.bytes.len();
    writer.bytes.truncate(length / PAGE * PAGE);
    writer.give_up_at_next_page(before.get());
    let last = writer.record(TRANSACTION, COMMIT, &at(3));
    assert_eq!(span(&writer.finish()).map(|span| span.last_lsn), Some(last));
}

#[test]
fn a_promotion_inside_a_segment_goes_on_to_the_new_timeline() {
    let mut writer = Writer::new(0);
    writer.record(HEAP, 0, &[1; 9000]);
    writer.timeline = 2;
    writer.record(HEAP, 0, &[1; 9000]);
    let last = writer.record(TRANSACTION, COMMIT, &at(3));
    let segment = writer.finish();
    let promoted = name().on_timeline(TimelineId::new(2).unwrap());
    assert_eq!(commit_span(&segment, &promoted, size()).map(|span| span.last_lsn), Some(last));
    assert_eq!(span(&segment), None, "a page of a later timeline ends the older one");
}

#[test]
fn a_damaged_commit_does_not_count() {
    let mut writer = Writer::new(0);
    let lsn = writer.record(TRANSACTION, COMMIT, &at(3));
    let mut segment = writer.finish();
    let time_at = (lsn.get() - name().start(size())) as usize + RECORD_HEADER_SIZE + 7;
    assert!(span(&segment).is_some());
    segment[time_at] ^= 1;
    assert_eq!(span(&segment), None);
}

#[test]
fn another_segment_has_no_span() {
    let mut writer = Writer::new(0);
    writer.record(TRANSACTION, COMMIT, &at(3));
    let segment = writer.finish();
    assert_eq!(commit_span(&segment, &name().next(size()).unwrap(), size()), None);
    assert_eq!(commit_span(&segment, &name(), SegmentSize::DEFAULT), None);
    assert_eq!(span(&[]), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Records of any length, wherever they fall on pages: what was written whole is found, what is cut off
    /// is not.
    #[test]
    fn what_was_written_is_found(
        remaining in 0usize..20_000,
        records in proptest::collection::vec((any::<bool>(), 0usize..30_000, any::<i64>()), 0..40),
        cut in 0usize..1 << 20,
        piece in 1usize..20_000,
    ) {
        let mut writer = Writer::new(remaining);
        let mut expected: Option<CommitSpan> = None;
        for (ends, length, time) in records {
            let main = [&time.to_le_bytes()[..], &vec![9; length]].concat();
            let lsn = writer.record(if ends { TRANSACTION } else { HEAP }, COMMIT, &main);
            if ends && writer.last_end <= cut.min(1 << 20) {
                let moment = PgTimestamp(time);
                let span = expected.unwrap_or(CommitSpan { first: moment, last: moment, last_lsn: lsn });
                expected = Some(CommitSpan {
                    first: span.first.min(moment), last: span.last.max(moment), last_lsn: lsn,
                });
            }
        }
        let mut segment = writer.bytes;
        segment.resize(1 << 20, 0);
        segment.truncate(cut);
        prop_assert_eq!(span(&segment), expected);
        let mut walk = CommitWalk::new(&name(), size());
        segment.chunks(piece).for_each(|piece| walk.see(piece));
        prop_assert_eq!(walk.finish(), expected, "in pieces");
    }

    #[test]
    fn any_bytes_are_walked_without_panic(mut bytes: Vec<u8>, at_byte in 0usize..30_000, value: u8) {
        let _ = span(&bytes);
        let mut writer = Writer::new(3);
        for time in 0..300 {
            writer.record(TRANSACTION, COMMIT, &at(time));
        }
        let mut segment = writer.finish();
        segment[at_byte] = value;
        let _ = span(&segment);
        segment.truncate(LONG_HEADER_SIZE);
        segment.append(&mut bytes);
        let _ = span(&segment);
    }
}
