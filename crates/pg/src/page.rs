//! Data pages: their checksum, and whether one is whole.
//!
//! [`verify`] is for pages of relation files (see [`crate::datadir::has_page_checksums`]) of a cluster with
//! data checksums.

/// Bytes in a page. Servers built with another size are refused when their control file is read.
pub const PAGE_SIZE: usize = 8192;

/// Columns of the checksum: the algorithm treats a page as rows of 32 words and hashes each column on its
/// own.
const LANES: usize = 32;
const ROW_BYTES: usize = LANES * 4;
const FNV_PRIME: u32 = 16_777_619;

/// Where `pd_checksum` lies in `PageHeaderData`, `storage/bufpage.h`.
const CHECKSUM_AT: usize = 8;
const UPPER_AT: usize = 14;

/// Starting values of the columns: `checksumBaseOffsets`, `storage/checksum_impl.h`, part of the on-disk
/// format.
const BASIS: [u32; LANES] = [
    0x5B1F36E9, 0xB8525960, 0x02AB50AA, 0x1DE66D2A, 0x79FF467A, 0x9BB9F8A3, 0x217E7CD2, 0x83E13D2C,
    0xF8D4474F, 0xE39EB970, 0x42C6AE16, 0x993216FA, 0x7B093B5D, 0x98DAFF3C, 0xF718902A, 0x0B1C9CDB,
    0xE58F764B, 0x187636BC, 0x5D7B3BB1, 0xE73DE7DE, 0x92BEC979, 0xCCA6C0B2, 0x304A0979, 0x85AA43D4,
    0x783125BB, 0x6CA8EAA2, 0xE407EAC6, 0x4B5CFC3E, 0x9FBF8C76, 0x15CA20BE, 0xF2CA9FD3, 0x959BD756,
];

/// What a page's own header says about its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The checksum matches.
    Valid,
    /// Every byte is zero: space that was added to the file and not yet used. Such a page has no checksum.
    New,
    /// The checksum does not match. While the server runs this may be a page caught half written: read again,
    /// and compare `lsn` with the start of the backup, because replay repairs every page changed after it.
    Mismatch {
        /// What the bytes give.
        expected: u16,
        /// What the header holds.
        found: u16,
        /// The page's LSN, which is as doubtful as the rest of it. Zero for none.
        lsn: u64,
    },
}

/// The checksum that `page` should carry as the block numbered `block` of its relation fork, counted over all
/// segment files. The two checksum bytes in the page are not part of it. Never zero.
///
/// Source: `pg_checksum_page`, `storage/checksum_impl.h`: FNV-1a on 32 columns of 32-bit words, with a shift
/// mixed in.
///
/// # Panics
/// If `page` is not [`PAGE_SIZE`] bytes.
// Compiled for several processors, chosen at run time: 57 GB/s with AVX2, 21 without.
#[multiversion::multiversion(targets("x86_64+avx2", "x86_64+sse4.1"))]
pub fn checksum(page: &[u8], block: u32) -> u16 {
    assert_eq!(page.len(), PAGE_SIZE, "a page is {PAGE_SIZE} bytes");
    let mut sums = BASIS;
    // The first row holds the checksum itself, which counts as zero; taking it apart keeps the loop free of
    // branches.
    let mut first = [0; ROW_BYTES];
    first.copy_from_slice(&page[..ROW_BYTES]);
    first[CHECKSUM_AT..CHECKSUM_AT + 2].fill(0);
    mix(&mut sums, &first);
    for row in page[ROW_BYTES..].as_chunks::<ROW_BYTES>().0 {
        mix(&mut sums, row);
    }
    mix(&mut sums, &[0; ROW_BYTES]);
    mix(&mut sums, &[0; ROW_BYTES]);
    let folded = sums.iter().fold(block, |folded, sum| folded ^ sum);
    (folded % 65_535 + 1) as u16
}

/// One row into the columns. Plain indexing over fixed lengths, which LLVM turns into vector instructions.
#[inline(always)]
fn mix(sums: &mut [u32; LANES], row: &[u8; ROW_BYTES]) {
    let words = row.as_chunks::<4>().0;
    for lane in 0..LANES {
        let mixed = sums[lane] ^ u32::from_le_bytes(words[lane]);
        sums[lane] = mixed.wrapping_mul(FNV_PRIME) ^ (mixed >> 17);
    }
}

/// Judges `page` as the block numbered `block` of its relation fork, as the server does when it reads one.
///
/// A page whose `pd_upper` is zero counts as never used, but only if all of it is zero. Source:
/// `PageIsVerified`, `storage/page/bufpage.c`.
///
/// # Panics
/// If `page` is not [`PAGE_SIZE`] bytes.
pub fn verify(page: &[u8], block: u32) -> Verdict {
    let unused = u16_at(page, UPPER_AT) == 0;
    if unused && page.iter().all(|&byte| byte == 0) {
        return Verdict::New;
    }
    let (expected, found) = (checksum(page, block), u16_at(page, CHECKSUM_AT));
    if expected == found && !unused {
        Verdict::Valid
    } else {
        Verdict::Mismatch { expected, found, lsn: lsn(page) }
    }
}

/// The page's LSN: the end of the last WAL record that changed it, zero for none. Stored as two 32-bit
/// halves, high first. Source: `PageXLogRecPtr`, `storage/bufpage.h`.
///
/// # Panics
/// If `page` is shorter than eight bytes.
pub fn lsn(page: &[u8]) -> u64 {
    let half = |at: usize| u64::from(u16_at(page, at)) | u64::from(u16_at(page, at + 2)) << 16;
    half(0) << 32 | half(4)
}

fn u16_at(page: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([page[at], page[at + 1]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The algorithm as the comment of `checksum_impl.h` tells it, one word at a time.
    fn naive(page: &[u8], block: u32) -> u16 {
        let mut sums = BASIS;
        let zeroes = [0; 2 * ROW_BYTES];
        for (index, word) in page.chunks(4).chain(zeroes.chunks(4)).enumerate() {
            let mut word = [word[0], word[1], word[2], word[3]];
            if index == 2 {
                word[..2].fill(0);
            }
            let mixed = sums[index % LANES] ^ u32::from_le_bytes(word);
            sums[index % LANES] = mixed.wrapping_mul(FNV_PRIME) ^ (mixed >> 17);
        }
        ((sums.into_iter().fold(0, |a, b| a ^ b) ^ block) % 65_535 + 1) as u16
    }

    fn sealed(mut page: Vec<u8>, block: u32) -> Vec<u8> {
        page[UPPER_AT] |= 1;
        let sum = checksum(&page, block).to_le_bytes();
        page[CHECKSUM_AT..CHECKSUM_AT + 2].copy_from_slice(&sum);
        page
    }

    #[test]
    fn zeroes_are_a_new_page_and_only_zeroes() {
        let mut page = vec![0; PAGE_SIZE];
        assert_eq!(verify(&page, 7), Verdict::New);
        page[PAGE_SIZE - 1] = 1;
        assert!(matches!(verify(&page, 7), Verdict::Mismatch { found: 0, lsn: 0, .. }));
    }

    #[test]
    fn a_page_of_a_real_server_is_valid_in_its_place_only() {
        let page = include_bytes!("../testdata/pg_class_block_3");
        assert_eq!(verify(page, 3), Verdict::Valid);
        assert!(matches!(verify(page, 4), Verdict::Mismatch { .. }));
    }

    #[test]
    fn the_lsn_is_two_halves() {
        let mut page = vec![0; PAGE_SIZE];
        page[..8].copy_from_slice(&[0x16, 0, 0, 0, 0x48, 0xD8, 0x74, 0xB3]);
        assert_eq!(lsn(&page), 0x16_B374_D848);
    }

    fn any_page() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(any::<u8>(), PAGE_SIZE)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn the_fast_sum_is_the_naive_one(page in any_page(), block: u32) {
            prop_assert_eq!(checksum(&page, block), naive(&page, block));
        }

        #[test]
        fn a_sealed_page_is_valid_and_a_flipped_one_is_not(page in any_page(), block: u32, bit in 0..PAGE_SIZE * 8) {
            let mut page = sealed(page, block);
            prop_assert_eq!(verify(&page, block), Verdict::Valid);
            page[bit / 8] ^= 1 << (bit % 8);
            prop_assert_ne!(verify(&page, block), Verdict::Valid);
        }
    }
}
