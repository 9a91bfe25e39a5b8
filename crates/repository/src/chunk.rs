//! Chunks: the unit of digest, compression and sealing.
//!
//! A [`Digester`] names content by keyed BLAKE3; a [`Codec`] compresses and always decompresses again to compare, for a
//! broken compressor must not be noticed first by a restore (restic#4677). One of each belongs to each worker.

mod batch;

use blake3::platform::Platform;
use zstd::zstd_safe::{CParameter, compress_bound};

use crate::secrets::{Purpose, WriterCredential};

/// Most plaintext bytes of a chunk: 128 pages.
pub const MAX_CHUNK: usize = 1 << 20;
/// The unit of comparison between backups, whatever the server's block size.
pub const PAGE: usize = 8192;
/// The compression level used when none is asked for.
pub const DEFAULT_LEVEL: i32 = 1;

/// First eight bytes of a page's keyed digest: enough to compare a page with the one that the parent stored
/// (a changed page goes unnoticed once in 2^64), too little to name content for ever.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PageDigest(pub u64);

/// The keyed digest of a chunk's plaintext.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ChunkDigest(pub [u8; 32]);

/// How a chunk's plaintext is stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Encoding {
    /// As it is: compression would have gained too little.
    Plain = 0,
    /// One zstd frame.
    Zstd = 1,
}

impl Encoding {
    /// Reads the stored byte.
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Plain),
            1 => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// Digests of pages, chunks and whole contents under one repository's keys.
#[derive(Clone)]
pub struct Digester {
    platform: Platform,
    page_key: [u8; 32],
    chunk_key: [u8; 32],
    content_key: [u8; 32],
    row_key: [u8; 32],
}

impl Digester {
    /// Derives the keys from the writer secret, so that only holders of it can confirm a guess at some content.
    pub fn new(writer: &WriterCredential) -> Self {
        Self {
            platform: Platform::detect(),
            page_key: *writer.derive(Purpose::PageDigest),
            chunk_key: *writer.derive(Purpose::ChunkDigest),
            content_key: *writer.derive(Purpose::ContentDigest),
            row_key: *writer.derive(Purpose::RowDigest),
        }
    }

    /// Digest of one page of at most 8 KiB.
    pub fn page(&self, page: &[u8]) -> [u8; 32] {
        *blake3::keyed_hash(&self.page_key, page).as_bytes()
    }

    /// Appends the digest of each page of `region`, of which the last may be short.
    pub fn pages(&self, region: &[u8], digests: &mut Vec<[u8; 32]>) {
        let (batches, rest) = region.as_chunks();
        for batch in batches {
            digests.extend_from_slice(&batch::digests(self.platform, &self.page_key, batch));
        }
        digests.extend(rest.chunks(PAGE).map(|page| self.page(page)));
    }

    /// Digest of a chunk, and the short digests of its pages. The chunk's digest is taken over the pages' full
    /// digests, so each byte is read once.
    pub fn chunk(&self, plain: &[u8], each_page: impl FnMut(PageDigest)) -> ChunkDigest {
        let mut digests = Vec::with_capacity(plain.len().div_ceil(PAGE));
        self.pages(plain, &mut digests);
        digests.iter().map(short).for_each(each_page);
        self.chunk_of_pages(digests.iter())
    }

    /// Digest of a whole content that is not made of pages: a WAL segment, a stored manifest, a list page.
    pub fn content(&self, content: &[u8]) -> [u8; 32] {
        *blake3::keyed_hash(&self.content_key, content).as_bytes()
    }

    /// Digest of one row of a logical backup: of what it says, and where a piece ends.
    pub fn row(&self, row: &[u8]) -> [u8; 32] {
        row_digest(&self.row_key, row)
    }

    /// The key of rows' digests, which stands in the manifest: a copy is in a repository that has another one.
    pub fn row_key(&self) -> [u8; 32] {
        self.row_key
    }

    /// Digests a whole content that comes in pieces, as [`Digester::content`] does.
    pub fn content_hasher(&self) -> blake3::Hasher {
        blake3::Hasher::new_keyed(&self.content_key)
    }

    /// Digest of a content whose pages were digested already.
    pub(crate) fn chunk_of_pages<'a>(&self, pages: impl Iterator<Item = &'a [u8; 32]>) -> ChunkDigest {
        let mut hasher = blake3::Hasher::new_keyed(&self.chunk_key);
        for digest in pages {
            hasher.update(digest);
        }
        ChunkDigest(*hasher.finalize().as_bytes())
    }
}

/// Digest of one row under this key.
pub fn row_digest(key: &[u8; 32], row: &[u8]) -> [u8; 32] {
    *blake3::keyed_hash(key, row).as_bytes()
}

/// The eight bytes of a full page digest that tables keep.
pub fn short(digest: &[u8; 32]) -> PageDigest {
    PageDigest(u64::from_le_bytes(*digest.first_chunk().expect("a digest has 32 bytes")))
}

/// Why a chunk could not be encoded or decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The compressor gave something that does not decompress to what went in: faulty memory or a faulty library.
    #[error("compression did not survive its check; this machine's memory or the zstd library is faulty")]
    CheckFailed,
    /// A file that has too many parts for one page of the list: about a terabyte in one piece.
    #[error("the file list has an entry of {len} bytes; {MAX_CHUNK} is the most")]
    TooLong {
        /// Bytes of the encoded page.
        len: usize,
    },
    /// The stored bytes are not what their table says.
    #[error("a chunk does not decompress to its recorded length")]
    Damaged,
}

/// Compression with contexts that are made once.
pub struct Codec {
    compressor: zstd::bulk::Compressor<'static>,
    decompressor: zstd::bulk::Decompressor<'static>,
    compressed: Vec<u8>,
    check: Vec<u8>,
}

impl Codec {
    /// Contexts for one worker; `level` is zstd's, 1 to 19.
    ///
    /// Panics if the level is outside zstd's range or memory runs out.
    pub fn new(level: i32) -> Self {
        Self {
            compressor: zstd::bulk::Compressor::new(level).expect("the level was checked"),
            decompressor: zstd::bulk::Decompressor::new().expect("a context needs little memory"),
            compressed: Vec::new(),
            check: Vec::new(),
        }
    }

    /// Contexts for WAL. It repeats itself in short runs: matches of five bytes instead of level 1's seven cost nothing there
    /// and save 3 %.
    pub(crate) fn for_wal() -> Self {
        let mut codec = Self::new(DEFAULT_LEVEL);
        codec.compressor.set_parameter(CParameter::MinMatch(5)).expect("a parameter of zstd");
        codec
    }

    /// Appends `plain` to `buffer`, compressed where that saves at least a sixteenth.
    pub fn encode(&mut self, plain: &[u8], buffer: &mut Vec<u8>) -> Result<Encoding, CodecError> {
        let most = plain.len() - plain.len() / 16;
        // Not into `buffer` itself: room for the worst case would have to be filled with zeros first.
        self.compressed.clear();
        self.compressed.reserve(compress_bound(plain.len()));
        match self.compressor.compress_to_buffer(plain, &mut self.compressed) {
            Ok(len) if len < most => {
                self.check.resize(plain.len(), 0);
                let checked = self.decompressor.decompress_to_buffer(&self.compressed, &mut self.check[..]);
                if checked.ok() != Some(plain.len()) || self.check != plain {
                    return Err(CodecError::CheckFailed);
                }
                buffer.extend_from_slice(&self.compressed);
                Ok(Encoding::Zstd)
            }
            Ok(_) => {
                buffer.extend_from_slice(plain);
                Ok(Encoding::Plain)
            }
            // The result always fits, so that nothing but the library or the memory can have failed.
            Err(_) => Err(CodecError::CheckFailed),
        }
    }

    /// Replaces `plain` by the content of `stored`, which must have `plain_len` bytes; the length comes from
    /// authenticated data and never exceeds [`MAX_CHUNK`], so a bomb cannot grow beyond that.
    pub fn decode(
        &mut self,
        encoding: Encoding,
        stored: &[u8],
        plain_len: usize,
        plain: &mut Vec<u8>,
    ) -> Result<(), CodecError> {
        if plain_len > MAX_CHUNK {
            return Err(CodecError::Damaged);
        }
        plain.resize(plain_len, 0);
        self.decode_into(encoding, stored, plain)
    }

    /// As [`Codec::decode`], into a place of the content's length.
    pub fn decode_into(
        &mut self,
        encoding: Encoding,
        stored: &[u8],
        plain: &mut [u8],
    ) -> Result<(), CodecError> {
        let len = match encoding {
            Encoding::Plain => {
                plain.get_mut(..stored.len()).ok_or(CodecError::Damaged)?.copy_from_slice(stored);
                stored.len()
            }
            Encoding::Zstd => {
                self.decompressor.decompress_to_buffer(stored, plain).map_err(|_| CodecError::Damaged)?
            }
        };
        if len == plain.len() { Ok(()) } else { Err(CodecError::Damaged) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secrets::Keyring;

    #[test]
    fn chunks_survive_compressed_and_stored() {
        let mut codec = Codec::new(DEFAULT_LEVEL);
        let noise: Vec<u8> = blake3::Hasher::new().finalize_xof().bytes_of(MAX_CHUNK);
        for (plain, expected) in
            [(vec![3; MAX_CHUNK], Encoding::Zstd), (noise, Encoding::Plain), (vec![], Encoding::Plain)]
        {
            let mut buffer = b"before".to_vec();
            assert_eq!(codec.encode(&plain, &mut buffer).unwrap(), expected);
            let mut again = Vec::new();
            codec.decode(expected, &buffer[6..], plain.len(), &mut again).unwrap();
            assert!(again == plain);
            assert_eq!(
                codec.decode(expected, &buffer[6..], plain.len() + 1, &mut again),
                Err(CodecError::Damaged)
            );
        }
    }

    trait BytesOf {
        fn bytes_of(self, len: usize) -> Vec<u8>;
    }
    impl BytesOf for blake3::OutputReader {
        fn bytes_of(mut self, len: usize) -> Vec<u8> {
            let mut bytes = vec![0; len];
            self.fill(&mut bytes);
            bytes
        }
    }

    #[test]
    fn a_chunk_digest_depends_on_every_page_and_on_the_key() {
        let digester = Digester::new(&Keyring::for_test_vectors(1).writer);
        let other = Digester::new(&Keyring::for_test_vectors(2).writer);
        let mut plain = vec![0; 3 * PAGE];
        let mut pages = Vec::new();
        let first = digester.chunk(&plain, |page| pages.push(page));
        assert_eq!(pages.len(), 3);
        assert_ne!(other.chunk(&plain, |_| ()), first);
        plain[3 * PAGE - 1] = 1;
        assert_ne!(digester.chunk(&plain, |_| ()), first);
    }

    proptest::proptest! {
        #[test]
        fn decoding_any_bytes_never_panics(bytes in proptest::collection::vec(0u8.., 0..300), len in 0usize..(1 << 21)) {
            let mut plain = Vec::new();
            let _ = Codec::new(1).decode(Encoding::Zstd, &bytes, len, &mut plain);
        }
    }
}
