use std::sync::Arc;

use super::*;
use repository::archive::WalContent as _;

const MIB: u32 = 1 << 20;
const LAG: Duration = Duration::from_secs(1);

struct Taking {
    intake: Intake,
    now: Instant,
    _folder: tempfile::TempDir,
}

fn segment(number: u64) -> SegmentName {
    SegmentName::from_number(TimelineId::FIRST, number, SegmentSize::new(MIB).unwrap())
}

impl Taking {
    fn new(parts: &[(u32, u32)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let intake = Intake::new(SegmentSize::new(MIB).unwrap(), folder.path().join("spool"));
        let parts = parts.iter().map(|&(from, to)| Part { segment: segment(5), from, to }).collect();
        intake.begin(segment(5), parts).unwrap();
        Self { intake, now: Instant::now(), _folder: folder }
    }

    fn take(&self, bytes: u32) {
        self.intake.take(&vec![7; bytes as usize], self.now).unwrap();
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
    }

    fn next(&self) -> Result<Work, Option<Instant>> {
        self.intake.next_work(self.now, LAG, Timestamp::UNIX_EPOCH)
    }

    fn next_part(&self) -> (Ticket, Part) {
        match self.next() {
            Ok(Work::Part(ticket, part, content)) => {
                assert_eq!(content.length(), u64::from(part.to - part.from));
                (ticket, part)
            }
            _ => panic!("no part is due"),
        }
    }

    /// Answers a comparison that is due of these parts, out of which some are the same, and some damaged.
    fn compare(&self, expected: &[(u32, u32)], same: usize, damaged: usize) {
        let Ok(Work::Compare(ticket, parts)) = self.next() else { panic!("parts are to be compared") };
        let parts: Vec<Part> = parts.into_iter().map(|(part, _)| part).collect();
        assert_eq!(parts.iter().map(|part| (part.from, part.to)).collect::<Vec<_>>(), expected);
        let (same, rest) = parts.split_at(same);
        let (damaged, gone) = rest.split_at(damaged);
        let found = Compared { same: same.to_vec(), gone: gone.to_vec(), damaged: damaged.to_vec() };
        self.intake.compared(ticket, &found);
    }

    fn durable(&self) -> u64 {
        self.intake.durable(TimelineId::FIRST).map_or(0, Lsn::get) - u64::from(5 * MIB)
    }
}

#[test]
fn a_part_is_due_a_lag_after_its_first_byte_and_the_next_one_a_lag_after_it() {
    let mut taking = Taking::new(&[]);
    assert!(matches!(taking.next(), Err(None)), "nothing is due of nothing");
    taking.take(1000);
    assert!(matches!(taking.next(), Err(Some(due)) if due == taking.now + LAG));
    taking.wait(LAG);
    taking.take(24);
    let (ticket, first) = taking.next_part();
    assert_eq!((first.from, first.to), (0, 1024));
    taking.take(76);
    taking.wait(LAG * 3);
    assert!(matches!(taking.next(), Err(None)), "one part at a time");
    taking.intake.part_done(ticket, first, true);
    assert_eq!(taking.durable(), 1024);
    let (ticket, second) = taking.next_part();
    assert_eq!((second.from, second.to), (1024, 1100));
    taking.intake.part_done(ticket, second, false);
    assert_eq!((taking.durable(), taking.next_part()), (1024, (ticket, second)));
}

#[test]
fn a_whole_segment_takes_the_place_of_its_parts_after_it_is_stored() {
    let mut taking = Taking::new(&[]);
    taking.take(1000);
    taking.wait(LAG);
    let (_, part) = taking.next_part();
    taking.take(MIB);
    let Ok(Work::Whole(ticket, name, content)) = taking.next() else { panic!("the segment is full") };
    assert_eq!((name, content.length()), (segment(5), u64::from(MIB)));
    taking.intake.whole_done(ticket, true);
    assert!(matches!(taking.next(), Err(None)), "its part is still on its way");
    taking.intake.part_done(ticket, part, true);
    assert_eq!(taking.durable(), u64::from(MIB));
    let Ok(Work::Remove(parts)) = taking.next() else { panic!("the part is of no use") };
    assert_eq!(parts, [part]);
    assert!(!taking.intake.wait_until_stored(Duration::ZERO));
    taking.intake.removed();
    taking.wait(LAG);
    let (_, next) = taking.next_part();
    assert_eq!((next.segment, next.from, next.to), (segment(6), 0, 1000));
}

#[test]
fn only_the_first_segment_that_is_not_stored_is_stored_in_parts() {
    let mut taking = Taking::new(&[]);
    taking.take(MIB + 5000);
    let Ok(Work::Whole(first, ..)) = taking.next() else { panic!("the segment is full") };
    taking.wait(LAG * 2);
    assert!(matches!(taking.next(), Err(None)), "its successor would have a hole before it");
    taking.intake.whole_done(first, false);
    let Ok(Work::Whole(again, ..)) = taking.next() else { panic!("it is tried again") };
    taking.intake.whole_done(again, true);
    assert_eq!(taking.next_part().1.segment, segment(6));
}

#[test]
fn parts_of_an_earlier_run_count_when_they_hold_what_came() {
    let mut taking = Taking::new(&[(0, 4096), (4096, 8192)]);
    taking.take(8191);
    taking.wait(LAG * 2);
    assert!(matches!(taking.next(), Err(None)), "they cannot be compared yet");
    assert_eq!(taking.durable(), 0);
    taking.take(1000);
    taking.compare(&[(0, 4096), (4096, 8192)], 2, 0);
    assert_eq!(taking.durable(), 8192);
    let (_, next) = taking.next_part();
    assert_eq!((next.from, next.to), (8192, 9191));
}

#[test]
fn parts_that_somebody_removed_are_stored_again() {
    let mut taking = Taking::new(&[(0, 4096)]);
    taking.take(5000);
    taking.compare(&[(0, 4096)], 0, 0);
    taking.wait(LAG);
    let (_, next) = taking.next_part();
    assert_eq!((next.from, next.to), (0, 5000));
}

#[test]
fn before_the_whole_is_stored_every_part_that_it_replaces_is_compared() {
    let taking = Taking::new(&[(0, 4096), (4000, 4100), (9000, 10_000)]);
    taking.take(MIB);
    let Ok(Work::Compare(ticket, parts)) = taking.next() else { panic!("they are to be compared") };
    assert_eq!(parts.len(), 3);
    assert!(matches!(taking.next(), Err(None)), "nothing is stored before the answer");
    let seen = Compared { same: vec![parts[0].0, parts[1].0], ..Compared::default() };
    taking.intake.compared(ticket, &seen);
    taking.compare(&[(9000, 10_000)], 1, 0);
    let Ok(Work::Whole(ticket, ..)) = taking.next() else { panic!("the segment is full") };
    taking.intake.whole_done(ticket, true);
    assert!(matches!(taking.next(), Ok(Work::Remove(parts)) if parts.len() == 3));
}

#[test]
fn a_damaged_part_is_stored_again_under_another_name_and_never_removed() {
    let mut taking = Taking::new(&[(0, 5000)]);
    taking.take(5000);
    taking.compare(&[(0, 5000)], 0, 1);
    for range in [(0, 4999), (4999, 5000)] {
        taking.wait(LAG);
        let (ticket, part) = taking.next_part();
        assert_eq!((part.from, part.to), range);
        taking.intake.part_done(ticket, part, true);
    }
    assert_eq!(taking.durable(), 5000);
    taking.take(MIB - 5000);
    let Ok(Work::Whole(ticket, ..)) = taking.next() else { panic!("the segment is full") };
    taking.intake.whole_done(ticket, true);
    let Ok(Work::Remove(parts)) = taking.next() else { panic!("its parts are of no use") };
    assert!(parts.iter().all(|part| (part.from, part.to) != (0, 5000)), "{parts:?}");
}

#[test]
fn of_a_segment_that_is_about_to_fill_no_part_is_stored_unless_it_does_not() {
    let mut taking = Taking::new(&[]);
    taking.take(MIB / 10 * 7);
    taking.wait(LAG);
    assert!(matches!(taking.next(), Err(Some(due)) if due == taking.now + LAG / 2), "full in 0.43 s");
    taking.wait(LAG / 2);
    assert_eq!(taking.next_part().1.to, MIB / 10 * 7, "it did not fill");
    let mut taking = Taking::new(&[]);
    taking.take(MIB / 10 * 6);
    taking.wait(LAG);
    assert_eq!(taking.next_part().1.to, MIB / 10 * 6, "full in 0.67 s");
}

#[test]
fn many_parts_become_one() {
    let mut taking = Taking::new(&[]);
    for number in 0..63 {
        taking.take(100);
        taking.wait(LAG);
        let (ticket, part) = taking.next_part();
        assert_eq!(part.from, number * 100);
        taking.intake.part_done(ticket, part, true);
    }
    taking.take(100);
    taking.wait(LAG);
    let (ticket, all) = taking.next_part();
    assert_eq!((all.from, all.to), (0, 6400));
    taking.intake.part_done(ticket, all, true);
    let Ok(Work::Remove(parts)) = taking.next() else { panic!("the many are of no use") };
    assert_eq!(parts.len(), 63);
    taking.take(100);
    taking.wait(LAG);
    assert_eq!(taking.next_part().1.from, 6400, "what was put together stays");
}

#[test]
fn what_a_timeline_left_behind_is_stored_at_once() {
    let taking = Taking::new(&[]);
    taking.take(MIB + 300);
    taking
        .intake
        .begin(SegmentName { timeline: TimelineId::new(2).unwrap(), ..segment(6) }, Vec::new())
        .unwrap();
    taking.take(200);
    let Ok(Work::Whole(first, ..)) = taking.next() else { panic!("the segment is full") };
    taking.intake.whole_done(first, true);
    let (ticket, left) = taking.next_part();
    assert_eq!((left.segment, left.to), (segment(6), 300));
    taking.intake.part_done(ticket, left, true);
    assert_eq!(
        taking.intake.position(),
        Some((TimelineId::new(2).unwrap(), Lsn::new(u64::from(6 * MIB) + 200).unwrap()))
    );
    assert!(matches!(taking.next(), Err(Some(_))), "the new timeline's part is due a lag after it came");
}

#[test]
fn a_timeline_whose_end_is_stored_already_keeps_nothing_waiting() {
    let mut taking = Taking::new(&[]);
    taking.take(300);
    taking.wait(LAG);
    let (ticket, part) = taking.next_part();
    taking.intake.part_done(ticket, part, true);
    let next = SegmentName { timeline: TimelineId::new(2).unwrap(), ..segment(5) };
    assert_eq!(taking.durable(), 300);
    taking.intake.begin(next, Vec::new()).unwrap();
    taking.take(400);
    // What is stored of the old timeline is not what the new one has at the same place.
    let of_new =
        |taking: &Taking| taking.intake.durable(next.timeline).map(|lsn| lsn.get() - u64::from(5 * MIB));
    assert_eq!((of_new(&taking), taking.intake.durable(TimelineId::FIRST)), (Some(0), None));
    taking.wait(LAG);
    let (ticket, part) = taking.next_part();
    assert_eq!(part.segment, next);
    taking.intake.part_done(ticket, part, true);
    assert_eq!(of_new(&taking), Some(400));
}

#[test]
fn a_closed_segment_has_to_be_begun_again() {
    let taking = Taking::new(&[]);
    taking.take(300);
    assert!(taking.intake.can_go_on());
    taking.intake.close();
    let (ticket, part) = taking.next_part();
    taking.intake.part_done(ticket, part, true);
    assert!(!taking.intake.can_go_on());
    taking.intake.begin(segment(5), vec![part]).unwrap();
    taking.take(MIB);
    assert!(taking.intake.can_go_on());
    taking.compare(&[(0, 300)], 1, 0);
    let Ok(Work::Whole(name, ..)) = taking.next() else { panic!("it is full") };
    taking.intake.whole_done(name, true);
    assert!(taking.intake.can_go_on(), "the next segment follows");
}

#[test]
fn a_segment_is_stored_only_after_the_one_before_it() {
    let taking = Taking::new(&[]);
    taking.take(3 * MIB);
    let Ok(Work::Whole(first, ..)) = taking.next() else { panic!("it is full") };
    assert!(matches!(taking.next(), Err(None)), "a restart could not tell that the first is missing");
    taking.intake.whole_done(first, true);
    let Ok(Work::Whole(_, name, _)) = taking.next() else { panic!("the next is full, too") };
    assert_eq!(name, segment(6));
}

#[test]
fn parts_that_hold_more_than_came_again_are_kept() {
    let taking = Taking::new(&[(0, 8192)]);
    taking.take(5000);
    taking.intake.close();
    assert!(matches!(taking.next(), Err(None)) && taking.intake.wait_until_stored(Duration::ZERO));
    assert_eq!(taking.durable(), 0, "they were not compared");
    let mut taking = Taking::new(&[(0, 1000), (4096, 9000)]);
    taking.take(5000);
    taking.compare(&[(0, 1000)], 0, 0);
    taking.wait(LAG);
    let (ticket, part) = taking.next_part();
    taking.intake.part_done(ticket, part, true);
    assert!(matches!(taking.next(), Err(None)), "nothing is removed");
}

#[test]
fn a_receiver_waits_while_too_much_is_not_stored() {
    let taking = Taking::new(&[]);
    for _ in 0..64 {
        assert!(taking.intake.wait_for_room(Duration::ZERO));
        taking.take(MIB);
    }
    taking.take(1);
    assert!(!taking.intake.wait_for_room(Duration::from_millis(1)));
    let intake = Arc::new(taking);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| intake.intake.wait_for_room(Duration::from_secs(30)));
        let Ok(Work::Whole(name, ..)) = intake.next() else { panic!("segments are full") };
        intake.intake.whole_done(name, true);
        assert!(waiting.join().unwrap());
    });
}
