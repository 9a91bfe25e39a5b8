//! How parts become fewer, though no byte is written again and again.
//!
//! A part's level follows from its length, so it is the same after a restart. When so many of one level stand at the end, the
//! next part takes their place and reaches the level above: a byte is written once for each level at most, whether a server
//! takes a second to fill its segment or a day.

use repository::archive::Part;

/// Fewer parts than this stand beside each other at a level below the highest.
const FANOUT: usize = 64;
/// Two levels from the bottom a part has a 64th of its segment, so no more than 64 such parts fit into it.
const HIGHEST: u32 = 2;

/// 0 below a 4096th of a segment, 1 below a 64th, 2 above.
fn level(bytes: u32, segment_bytes: u32) -> u32 {
    match bytes {
        few if few < segment_bytes / 4096 => 0,
        some if some < segment_bytes / 64 => 1,
        _ => HIGHEST,
    }
}

/// Where the next part begins, which ends at `to`. `stored` follow each other from byte 0 to the first byte that no part has,
/// `shipped`; the next part takes the place of those behind its first byte.
pub(super) fn begin(stored: &[Part], shipped: u32, to: u32, segment_bytes: u32) -> u32 {
    let (mut from, mut rest) = (shipped, stored);
    loop {
        let reached = level(to - from, segment_bytes);
        let at_end = |is_meant: &dyn Fn(u32) -> bool| {
            let level_of = |part: &Part| level(part.to - part.from, segment_bytes);
            rest.iter().rev().take_while(|part| is_meant(level_of(part))).count()
        };
        // Smaller ones before a larger one would never become many enough.
        let smaller = at_end(&|level| level < reached);
        let alike = at_end(&|level| level <= reached && level < HIGHEST);
        let taken = if alike + 1 >= FANOUT { alike.max(smaller) } else { smaller };
        if taken == 0 {
            return from;
        }
        let (before, replaced) = rest.split_at(rest.len() - taken);
        (from, rest) = (replaced[0].from, before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use repository::archive::covered;

    const MIB: u32 = 1 << 20;

    /// Bytes written for a whole segment, and the most parts that ever stood beside each other.
    fn fill(lengths: impl Iterator<Item = u32>) -> (u64, usize) {
        let segment = "000000010000000000000003".parse().unwrap();
        let (mut parts, mut shipped, mut written, mut most) = (Vec::<Part>::new(), 0, 0, 0);
        for length in lengths {
            let to = (shipped + length).min(MIB);
            let from = begin(&parts, shipped, to, MIB);
            parts.retain(|part| part.from < from);
            parts.push(Part { segment, from, to });
            assert_eq!(covered(&parts), to);
            (written, most, shipped) = (written + u64::from(to - from), most.max(parts.len()), to);
            if shipped == MIB {
                break;
            }
        }
        (written, most)
    }

    #[test]
    fn however_slowly_a_segment_fills_its_bytes_are_written_a_few_times_and_its_parts_stay_few() {
        for length in [40, 200, 1000, 5000, 20_000, 200_000] {
            let (written, most) = fill(std::iter::repeat(length));
            assert!(written <= u64::from(MIB) * 7 / 2, "{length}: {written}");
            assert!(most <= 3 * FANOUT, "{length}: {most}");
        }
    }

    proptest! {
        #[test]
        fn the_same_at_any_rates(
            lengths in prop::collection::vec(prop_oneof![8u32..400, 8u32..9000, 8u32..100_000], 1..40),
        ) {
            let (written, most) = fill(lengths.into_iter().cycle());
            prop_assert!(written <= u64::from(MIB) * 4 && most <= 3 * FANOUT, "{} {}", written, most);
        }
    }
}
