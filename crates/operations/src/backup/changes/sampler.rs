//! Which of the blocks that are said to be unchanged are read all the same.

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// One of so many at least.
const ONE_OF: u64 = 1000;
/// And so many at least, where there are.
const LEAST: u64 = 32;

/// Picks from a stream whose length nobody knows.
///
/// The n-th is picked with the odds of 32 to n: what a draw of 32 out of all of them would have held in hand at some time, so
/// those 32 are among the picked. And one at random out of each thousand.
#[derive(Debug)]
pub(super) struct Sampler {
    random: StdRng,
    seen: u64,
    /// Which of this thousand.
    target: u64,
}

impl Sampler {
    pub(super) fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let target = random.random_range(0..ONE_OF);
        Self { random, seen: 0, target }
    }

    /// Whether the next one is picked.
    pub(super) fn pick(&mut self) -> bool {
        let in_thousand = self.seen % ONE_OF;
        if in_thousand == 0 {
            self.target = self.random.random_range(0..ONE_OF);
        }
        self.seen += 1;
        in_thousand == self.target || self.random.random_range(0..self.seen) < LEAST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_least_32_and_one_of_a_thousand_are_picked_everywhere() {
        for seed in 0..50 {
            let mut sampler = Sampler::new(seed);
            let picked: Vec<u64> = (0..100_000).filter(|_| sampler.pick()).collect();
            assert!(picked.iter().take_while(|at| **at < 32).count() == 32, "seed {seed}");
            assert!((0..100).all(|part| picked.iter().any(|at| at / 1000 == part)), "seed {seed}");
            assert!(picked.len() < 600, "seed {seed}: {}", picked.len());
        }
    }
}
