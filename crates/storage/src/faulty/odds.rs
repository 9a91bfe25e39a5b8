//! Faults by chance.

use std::time::Duration;

use rand::Rng as _;
use rand::rngs::StdRng;

use super::Fault;
use crate::error::Call;

/// How many of ten thousand calls go wrong in which way. What a call cannot suffer (a listing a flipped byte) does not
/// happen to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Odds {
    /// [`Fault::Fail`]
    pub fail: u32,
    /// [`Fault::Refuse`]
    pub refuse: u32,
    /// [`Fault::Full`], of creates
    pub full: u32,
    /// [`Fault::LoseReply`]
    pub lose_reply: u32,
    /// [`Fault::Truncate`], of reads
    pub truncate: u32,
    /// [`Fault::Flip`], of reads
    pub flip: u32,
    /// [`Fault::Delay`]
    pub delay: u32,
    /// [`Fault::Late`], of creates
    pub late: u32,
    /// [`Fault::Omit`], of listings
    pub omit: u32,
    /// [`Fault::Repeat`], of listings
    pub repeat: u32,
    /// [`Fault::Stale`], of listings
    pub stale: u32,
    /// The longest delay, and the longest time that a listing stays behind.
    pub longest: Duration,
}

impl Odds {
    /// Every fault as often.
    pub fn all(each: u32, longest: Duration) -> Odds {
        Odds {
            fail: each,
            refuse: each,
            full: each,
            lose_reply: each,
            truncate: each,
            flip: each,
            delay: each,
            late: each,
            omit: each,
            repeat: each,
            stale: each,
            longest,
        }
    }

    /// What happens to a call. One roll decides, so that odds of one kind leave the calls that others hit as they are.
    pub(super) fn draw(&self, call: Call, random: &mut StdRng) -> Option<Fault> {
        let mut roll = random.random_range(0..10_000_u32);
        let (at, time) = (random.random_range(0..600_usize), self.longest.mul_f64(random.random()));
        let lists = matches!(call, Call::List | Call::ListChildren);
        let reads = matches!(call, Call::Read | Call::ReadTail | Call::ReadAll);
        let creates = call == Call::Create;
        let faults = [
            (self.fail, true, Fault::Fail),
            (self.refuse, true, Fault::Refuse),
            (self.full, creates, Fault::Full),
            (self.lose_reply, true, Fault::LoseReply),
            (self.truncate, reads, Fault::Truncate(at)),
            (self.flip, reads, Fault::Flip(at)),
            (self.delay, true, Fault::Delay(time)),
            (self.late, creates, Fault::Late(time)),
            (self.omit, lists, Fault::Omit(at)),
            (self.repeat, lists, Fault::Repeat(at)),
            (self.stale, lists, Fault::Stale),
        ];
        for (odds, suffers, fault) in faults {
            if roll < odds {
                return suffers.then_some(fault);
            }
            roll -= odds;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng as _;

    #[test]
    fn every_kind_comes_and_a_seed_repeats_itself() {
        let odds = Odds::all(500, Duration::from_secs(9));
        let drawn = |seed| {
            let mut random = StdRng::seed_from_u64(seed);
            let calls = Call::ALL.into_iter().cycle().take(4_000);
            calls.map(|call| odds.draw(call, &mut random)).collect::<Vec<_>>()
        };
        assert_eq!(drawn(7), drawn(7));
        assert_ne!(drawn(7), drawn(8));
        let mut kinds: Vec<_> = drawn(7).iter().flatten().map(std::mem::discriminant).collect();
        kinds.sort_by_key(|kind| format!("{kind:?}"));
        kinds.dedup();
        assert_eq!(kinds.len(), 11);
        assert_eq!(Odds::default().draw(Call::List, &mut StdRng::seed_from_u64(1)), None);
    }
}
