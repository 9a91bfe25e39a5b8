//! Keyed BLAKE3 of sixteen pages at once.
//!
//! A page of 8 KiB is a tree of eight leaves: too few to fill the vector units of a processor, and its upper levels fewer
//! still. Here the same place of sixteen trees is computed together, which is twice as fast with AVX-512. The compression
//! function is the library's, through the part of its interface that it calls unstable; a test compares every platform
//! with the stable one. `docs/decisions/0003-pages-digested-in-batches.md`.

use blake3::platform::{Platform, words_from_le_bytes_32};
use blake3::{BLOCK_LEN, CHUNK_LEN, IncrementCounter, OUT_LEN};

use super::PAGE;

/// Pages digested together: the lanes of the widest vectors.
pub(super) const BATCH: usize = 16;
const LEAVES: usize = PAGE / CHUNK_LEN;

// Section 2.2 of the BLAKE3 paper.
const CHUNK_START: u8 = 1;
const CHUNK_END: u8 = 2;
const PARENT: u8 = 4;
const ROOT: u8 = 8;
const KEYED_HASH: u8 = 16;

/// Chaining values of one place in all trees.
type Level = [u8; BATCH * OUT_LEN];

/// `blake3::keyed_hash` of each of sixteen pages.
pub(super) fn digests(
    platform: Platform,
    key: &[u8; 32],
    pages: &[u8; BATCH * PAGE],
) -> [[u8; OUT_LEN]; BATCH] {
    let key = words_from_le_bytes_32(key);
    let pages: &[[u8; PAGE]; BATCH] = pages.as_chunks().0.try_into().expect("sixteen pages");
    let mut level: [Level; LEAVES] = [[0; BATCH * OUT_LEN]; LEAVES];
    for (leaf, values) in level.iter_mut().enumerate() {
        let inputs = pages.each_ref().map(|page| &page.as_chunks::<CHUNK_LEN>().0[leaf]);
        let (counter, same) = (leaf as u64, IncrementCounter::No);
        platform.hash_many(&inputs, &key, counter, same, KEYED_HASH, CHUNK_START, CHUNK_END, values);
    }
    let mut width = LEAVES;
    while width > 1 {
        let flags = KEYED_HASH | PARENT | if width == 2 { ROOT } else { 0 };
        width /= 2;
        for at in 0..width {
            let (left, right) = (&level[2 * at], &level[2 * at + 1]);
            let blocks: [[u8; BLOCK_LEN]; BATCH] = std::array::from_fn(|lane| {
                let mut block = [0; BLOCK_LEN];
                block[..OUT_LEN].copy_from_slice(&left[lane * OUT_LEN..][..OUT_LEN]);
                block[OUT_LEN..].copy_from_slice(&right[lane * OUT_LEN..][..OUT_LEN]);
                block
            });
            let inputs = blocks.each_ref();
            platform.hash_many(&inputs, &key, 0, IncrementCounter::No, flags, 0, 0, &mut level[at]);
        }
    }
    let (digests, _) = level[0].as_chunks();
    digests.try_into().expect("sixteen digests")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_platform_gives_what_the_stable_interface_gives() {
        let mut pages = Box::new([0; BATCH * PAGE]);
        blake3::Hasher::new().update(b"pages").finalize_xof().fill(&mut *pages);
        pages[3 * PAGE..4 * PAGE].fill(0);
        let key = [7; 32];
        let expected =
            pages.as_chunks::<PAGE>().0.iter().map(|page| *blake3::keyed_hash(&key, page).as_bytes());
        let expected: Vec<_> = expected.collect();
        for platform in platforms() {
            assert_eq!(digests(platform, &key, &pages)[..], expected[..], "{platform:?}");
        }
    }

    fn platforms() -> Vec<Platform> {
        #[cfg(target_arch = "x86_64")]
        let special = [Platform::sse2(), Platform::sse41(), Platform::avx2(), Platform::avx512()];
        #[cfg(not(target_arch = "x86_64"))]
        let special = [Some(Platform::detect())];
        special.into_iter().flatten().chain([Platform::portable()]).collect()
    }
}
