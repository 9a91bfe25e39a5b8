//! Sealing: every stored object has its own random key, sealed to the repository's public key.
//!
//! [`Sealer`] makes an object and its [`Header`]; [`Opener`] opens one. Frames are AES-256-GCM under the object's key
//! with counter nonces and a mark on the last one; repository, kind, name and frame number are authenticated, so no
//! frame can stand in another place. `docs/format.md` §3 gives every byte.

mod kind;
mod stream;

use aws_lc_rs::aead;
use hpke::{Deserializable as _, Serializable as _};
use storage::ObjectName;
use zeroize::Zeroizing;

use crate::secrets::{Access, Kem, Keyring, Purpose, WriterCredential, array, random_bytes};

pub use kind::Kind;
pub use stream::{open_stream, seal_stream};

type Kdf = hpke::kdf::HkdfSha256;
type Aead = hpke::aead::AesGcm256;

/// First bytes of every sealed object; the last byte is the format version.
pub(crate) const MAGIC: [u8; 8] = *b"PGKEEP\0\x01";
/// Bytes that AES-GCM adds to each frame.
pub const TAG_LEN: usize = 16;
const FIXED_LEN: usize = 92;
const MAC_LEN: usize = 32;
/// Most public bytes that a header may carry.
const MAX_PUBLIC_LEN: usize = 256;
/// Most bytes that a header can have, for a reader that does not know yet.
pub const MAX_HEADER_LEN: usize = FIXED_LEN + MAX_PUBLIC_LEN + MAC_LEN;
/// Plaintext bytes of a frame of a stream at most.
pub const MAX_FRAME: usize = 1 << 20;

/// Why a sealed object could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// Not a sealed object, or one of a version that this program does not know.
    #[error("{name} is not a sealed object of this format")]
    Form {
        /// The object.
        name: ObjectName,
    },
    /// The object is another kind than its name says.
    #[error("{name} is of another kind than its name says")]
    WrongKind {
        /// The object.
        name: ObjectName,
    },
    /// Changed, exchanged with another object, or written without this repository's secrets.
    #[error("{name} is not authentic: {what} was changed, belongs elsewhere, or was made with other keys")]
    NotAuthentic {
        /// The object.
        name: ObjectName,
        /// The part that failed: `header`, `frame 3`…
        what: String,
    },
    /// Ends before its last frame, or holds bytes behind it.
    #[error("{name} is truncated or has bytes after its end")]
    Length {
        /// The object.
        name: ObjectName,
    },
    /// Content longer than its limits, or of a form that cannot be read.
    #[error("{name} has content of an unknown form: {what}")]
    Content {
        /// The object.
        name: ObjectName,
        /// What was wrong.
        what: &'static str,
    },
    /// Only a writer credential is at hand.
    #[error("{name} cannot be opened with a writer credential")]
    NoPrivateKey {
        /// The object.
        name: ObjectName,
    },
}

/// The header of a sealed object: what a writer credential may read and check of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes that are authenticated and not secret (digest of the content, place in the chain…).
    pub public: Vec<u8>,
    /// Length of the header in the object.
    pub len: usize,
    encapsulated: [u8; 32],
    wrapped: [u8; 48],
}

impl Header {
    /// Reads and authenticates the header at the start of `bytes`.
    pub fn parse(
        writer: &WriterCredential,
        kind: Kind,
        name: &ObjectName,
        bytes: &[u8],
    ) -> Result<Self, SealError> {
        let form = || SealError::Form { name: name.clone() };
        if bytes.len() < FIXED_LEN || bytes[..8] != MAGIC || bytes[9] != 0 {
            return Err(form());
        }
        let public_len = usize::from(u16::from_le_bytes([bytes[10], bytes[11]]));
        let body_len = FIXED_LEN + public_len;
        if public_len > MAX_PUBLIC_LEN || bytes.len() < body_len + MAC_LEN {
            return Err(form());
        }
        if bytes[8] != kind as u8 {
            return Err(SealError::WrongKind { name: name.clone() });
        }
        let mac = blake3::Hash::from_bytes(array(&bytes[body_len..body_len + MAC_LEN]));
        // blake3::Hash compares in constant time.
        if header_mac(writer, name, &bytes[..body_len]) != mac {
            return Err(SealError::NotAuthentic { name: name.clone(), what: "its header".into() });
        }
        Ok(Self {
            encapsulated: array(&bytes[12..44]),
            wrapped: array(&bytes[44..92]),
            public: bytes[FIXED_LEN..body_len].to_vec(),
            len: body_len + MAC_LEN,
        })
    }
}

/// The bytes that a header with `public_len` public bytes takes.
pub(crate) const fn header_len(public_len: usize) -> usize {
    FIXED_LEN + public_len + MAC_LEN
}

/// Seals the frames of one new object.
pub struct Sealer {
    header: Vec<u8>,
    frames: FrameCipher,
    next: u64,
}

impl Sealer {
    /// Makes the object's key and its header, which carries `public` readable and authenticated.
    ///
    /// Panics if `public` is longer than 256 bytes.
    pub fn new(writer: &WriterCredential, kind: Kind, name: &ObjectName, public: &[u8]) -> Self {
        assert!(public.len() <= MAX_PUBLIC_LEN, "public bytes are few");
        let key = Zeroizing::new(random_bytes::<32>());
        let psk = writer.derive(Purpose::Psk);
        let recipient = <Kem as hpke::Kem>::PublicKey::from_bytes(&writer.public_key)
            .expect("any 32 bytes are a public key");
        let (encapsulated, wrapped) = hpke::single_shot_seal::<Aead, Kdf, Kem>(
            &hpke::OpModeS::Psk(psk_bundle(&psk)),
            &recipient,
            &info(writer),
            &*key,
            &place(writer, kind, name),
        )
        .expect("sealing to a valid public key cannot fail");
        let mut fixed = [0; FIXED_LEN];
        fixed[..8].copy_from_slice(&MAGIC);
        fixed[8] = kind as u8;
        fixed[12..44].copy_from_slice(&encapsulated.to_bytes());
        fixed[44..].copy_from_slice(&wrapped);
        let header = whole_header(writer, name, fixed, public);
        Self { header, frames: FrameCipher::new(&key, place(writer, kind, name)), next: 0 }
    }

    /// The header with other public bytes, for what is known only after the frames were sealed.
    pub(crate) fn header_with(&self, writer: &WriterCredential, name: &ObjectName, public: &[u8]) -> Vec<u8> {
        whole_header(writer, name, array(&self.header[..FIXED_LEN]), public)
    }

    /// The header's bytes.
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// The number that the next frame will have.
    pub fn next_frame(&self) -> u64 {
        self.next
    }

    /// Encrypts `buffer[start..]` in place as the next frame and appends its tag.
    pub fn seal_tail(&mut self, buffer: &mut Vec<u8>, start: usize, last: bool) {
        self.frames.seal_tail(self.next, buffer, start, last);
        self.next += 1;
    }

    /// The cipher alone, for frames that several threads seal by their numbers.
    pub(crate) fn frames(&self) -> &FrameCipher {
        &self.frames
    }
}

/// Opens the frames of one stored object.
pub struct Opener {
    frames: FrameCipher,
    name: ObjectName,
}

impl Opener {
    /// Unwraps the object's key from its header.
    pub fn new(access: &Access, kind: Kind, name: &ObjectName, header: &Header) -> Result<Self, SealError> {
        let Access::Full(Keyring { writer, private_key }) = access else {
            return Err(SealError::NoPrivateKey { name: name.clone() });
        };
        let damaged = |_| SealError::NotAuthentic { name: name.clone(), what: "its key".into() };
        let psk = writer.derive(Purpose::Psk);
        let private = <Kem as hpke::Kem>::PrivateKey::from_bytes(&**private_key).map_err(damaged)?;
        let encapsulated =
            <Kem as hpke::Kem>::EncappedKey::from_bytes(&header.encapsulated).map_err(damaged)?;
        let place = place(writer, kind, name);
        let key = hpke::single_shot_open::<Aead, Kdf, Kem>(
            &hpke::OpModeR::Psk(psk_bundle(&psk)),
            &private,
            &encapsulated,
            &info(writer),
            &header.wrapped,
            &place,
        )
        .map(Zeroizing::new)
        .map_err(damaged)?;
        Ok(Self { frames: FrameCipher::new(&array(&key), place), name: name.clone() })
    }

    /// Decrypts one frame in place; returns the plaintext's part of the buffer.
    pub fn open_in_place<'b>(
        &self,
        number: u64,
        frame: &'b mut [u8],
        last: bool,
    ) -> Result<&'b mut [u8], SealError> {
        self.frames.open_in_place(number, frame, last).ok_or_else(|| SealError::NotAuthentic {
            name: self.name.clone(),
            what: format!("frame {number}"),
        })
    }

    /// The object that this opens.
    pub fn name(&self) -> &ObjectName {
        &self.name
    }
}

/// AES-256-GCM with counter nonces: four bytes that are 1 for the last frame and 0 otherwise, then the frame number.
pub(crate) struct FrameCipher {
    key: aead::LessSafeKey,
    place: Vec<u8>,
}

impl FrameCipher {
    fn new(key: &[u8; 32], place: Vec<u8>) -> Self {
        let key = aead::UnboundKey::new(&aead::AES_256_GCM, key).expect("the key has 32 bytes");
        Self { key: aead::LessSafeKey::new(key), place }
    }

    pub(crate) fn seal_tail(&self, number: u64, buffer: &mut Vec<u8>, start: usize, last: bool) {
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce(number, last), self.additional(number), &mut buffer[start..])
            .expect("a frame is far below the limit of AES-GCM");
        buffer.extend_from_slice(tag.as_ref());
    }

    fn open_in_place<'b>(&self, number: u64, frame: &'b mut [u8], last: bool) -> Option<&'b mut [u8]> {
        self.key.open_in_place(nonce(number, last), self.additional(number), frame).ok()
    }

    fn additional(&self, number: u64) -> aead::Aad<Vec<u8>> {
        let mut bytes = Vec::with_capacity(self.place.len() + 8);
        bytes.extend_from_slice(&self.place);
        bytes.extend_from_slice(&number.to_le_bytes());
        aead::Aad::from(bytes)
    }
}

fn nonce(number: u64, last: bool) -> aead::Nonce {
    let mut bytes = [0; 12];
    bytes[3] = u8::from(last);
    bytes[4..].copy_from_slice(&number.to_be_bytes());
    aead::Nonce::assume_unique_for_key(bytes)
}

/// Where an object belongs: repository id, kind, length of the name, name.
fn place(writer: &WriterCredential, kind: Kind, name: &ObjectName) -> Vec<u8> {
    let name = name.as_str().as_bytes();
    let mut bytes = Vec::with_capacity(19 + name.len());
    bytes.extend_from_slice(&writer.repository.0);
    bytes.push(kind as u8);
    bytes.extend_from_slice(&(name.len() as u16).to_le_bytes());
    bytes.extend_from_slice(name);
    bytes
}

fn info(writer: &WriterCredential) -> Vec<u8> {
    [b"pgkeep v1 object key".as_slice(), &writer.repository.0].concat()
}

fn psk_bundle(psk: &[u8; 32]) -> hpke::PskBundle<'_> {
    hpke::PskBundle::new(psk, b"pgkeep v1 writer").expect("neither part is empty")
}

fn whole_header(
    writer: &WriterCredential,
    name: &ObjectName,
    mut fixed: [u8; FIXED_LEN],
    public: &[u8],
) -> Vec<u8> {
    fixed[10..12].copy_from_slice(&(public.len() as u16).to_le_bytes());
    let mut header = Vec::with_capacity(FIXED_LEN + public.len() + MAC_LEN);
    header.extend_from_slice(&fixed);
    header.extend_from_slice(public);
    let mac = header_mac(writer, name, &header);
    header.extend_from_slice(mac.as_bytes());
    header
}

fn header_mac(writer: &WriterCredential, name: &ObjectName, header: &[u8]) -> blake3::Hash {
    let name = name.as_str().as_bytes();
    let mut hasher = blake3::Hasher::new_keyed(&writer.derive(Purpose::HeaderMac));
    hasher
        .update(&writer.repository.0)
        .update(&(name.len() as u16).to_le_bytes())
        .update(name)
        .update(header);
    hasher.finalize()
}

#[cfg(test)]
mod tests;
