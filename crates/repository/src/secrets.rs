//! The repository's secrets and what each of them allows.
//!
//! Reading needs the private key, forging needs the writer secret; the owner of the bucket has neither. A host that
//! only adds backups holds a [`WriterCredential`]; whoever restores holds a [`Keyring`].

use std::fmt;

use base64::Engine as _;
use hpke::{Deserializable as _, Kem as _, Serializable as _};
use rand::TryRngCore as _;
use zeroize::Zeroizing;

/// The key encapsulation of every sealed object: X25519 with HKDF-SHA256 (RFC 9180, 0x0020).
pub(crate) type Kem = hpke::kem::X25519HkdfSha256;

/// Identity of a repository: 16 random bytes made by `init`, bound into every sealed object.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RepositoryId(pub [u8; 16]);

impl RepositoryId {
    /// A new random identity.
    pub fn random() -> Self {
        Self(random_bytes())
    }

    /// Reads the 32 lower-case hexadecimal digits that [`fmt::Display`] writes.
    pub fn parse(text: &str) -> Option<Self> {
        parse_hex(text).map(Self)
    }
}

impl fmt::Display for RepositoryId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(out, "{byte:02x}"))
    }
}

impl fmt::Debug for RepositoryId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "RepositoryId({self})")
    }
}

/// What a host needs to add backups and WAL: the public key to seal to and the secret that proves authorship.
#[derive(Clone)]
pub struct WriterCredential {
    /// The repository that this credential belongs to.
    pub repository: RepositoryId,
    /// X25519 public key that objects are sealed to.
    pub public_key: [u8; 32],
    pub(crate) writer_secret: Zeroizing<[u8; 32]>,
}

/// Everything: the writer credential and the private key that opens what was sealed.
#[derive(Clone)]
pub struct Keyring {
    /// The half that writes.
    pub writer: WriterCredential,
    pub(crate) private_key: Zeroizing<[u8; 32]>,
}

/// What the secrets at hand allow.
#[derive(Clone)]
pub enum Access {
    /// Adding only; nothing stored can be read back.
    Write(WriterCredential),
    /// Adding and reading.
    Full(Keyring),
}

impl Access {
    /// The half that writes, which both kinds of access have.
    pub fn writer(&self) -> &WriterCredential {
        match self {
            Self::Write(writer) => writer,
            Self::Full(keyring) => &keyring.writer,
        }
    }

    /// True when stored objects can be opened.
    pub fn can_read(&self) -> bool {
        matches!(self, Self::Full(_))
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(if self.can_read() { "Access::Full(..)" } else { "Access::Write(..)" })
    }
}

impl fmt::Debug for WriterCredential {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "WriterCredential({}, ..)", self.repository)
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Keyring({}, ..)", self.writer.repository)
    }
}

/// Why the text or bytes of a credential could not be read.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum SecretError {
    /// Not in the form that pgkeep writes.
    #[error("not a pgkeep {expected}")]
    Form {
        /// What was expected: `keyring`, `writer credential`, `key file`…
        expected: &'static str,
    },
    /// The private key does not belong to the public key beside it.
    #[error("the keyring's private key does not match its public key")]
    Mismatch,
}

const KEYRING_FORM: u8 = 1;
const WRITER_FORM: u8 = 2;
const WRITER_PREFIX: &str = "pgkeep-writer-1:";

impl WriterCredential {
    /// The text of a writer credential file: one line, `pgkeep-writer-1:` and base64.
    pub fn to_text(&self) -> Zeroizing<String> {
        let bytes = self.encode(WRITER_FORM);
        Zeroizing::new(format!(
            "{WRITER_PREFIX}{}\n",
            base64::engine::general_purpose::STANDARD.encode(&*bytes)
        ))
    }

    /// Reads what [`WriterCredential::to_text`] writes.
    pub fn parse(text: &str) -> Result<Self, SecretError> {
        let form = SecretError::Form { expected: "writer credential" };
        let encoded = text.trim().strip_prefix(WRITER_PREFIX).ok_or(form.clone())?;
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(encoded)
            .map(Zeroizing::new)
            .map_err(|_| form.clone())?;
        match bytes.split_first() {
            Some((&WRITER_FORM, rest)) if rest.len() == 80 => Ok(Self::decode(rest)),
            _ => Err(form),
        }
    }

    fn encode(&self, form: u8) -> Zeroizing<Vec<u8>> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(113));
        bytes.push(form);
        bytes.extend_from_slice(&self.repository.0);
        bytes.extend_from_slice(&self.public_key);
        bytes.extend_from_slice(&*self.writer_secret);
        bytes
    }

    /// Reads 80 bytes: repository id, public key, writer secret.
    fn decode(bytes: &[u8]) -> Self {
        Self {
            repository: RepositoryId(array(&bytes[..16])),
            public_key: array(&bytes[16..48]),
            writer_secret: Zeroizing::new(array(&bytes[48..80])),
        }
    }

    /// A key derived from the writer secret for one purpose (BLAKE3 key derivation).
    pub(crate) fn derive(&self, purpose: Purpose) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(blake3::derive_key(purpose.context(), &*self.writer_secret))
    }
}

impl Keyring {
    /// Makes the secrets of a new repository.
    pub fn generate(repository: RepositoryId) -> Self {
        let (private, public) = Kem::gen_keypair();
        let writer = WriterCredential {
            repository,
            public_key: array(&public.to_bytes()),
            writer_secret: Zeroizing::new(random_bytes()),
        };
        Self { writer, private_key: Zeroizing::new(array(&private.to_bytes())) }
    }

    /// The 113 bytes that key slots wrap: form, repository id, public key, writer secret, private key.
    pub(crate) fn encode(&self) -> Zeroizing<Vec<u8>> {
        let mut bytes = self.writer.encode(KEYRING_FORM);
        bytes.extend_from_slice(&*self.private_key);
        bytes
    }

    /// Reads what [`Keyring::encode`] writes, and checks that both halves belong together.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, SecretError> {
        let form = SecretError::Form { expected: "keyring" };
        let Some((&KEYRING_FORM, rest)) = bytes.split_first() else { return Err(form) };
        if rest.len() != 112 {
            return Err(form);
        }
        let keyring = Self {
            writer: WriterCredential::decode(&rest[..80]),
            private_key: Zeroizing::new(array(&rest[80..])),
        };
        let private = <Kem as hpke::Kem>::PrivateKey::from_bytes(&*keyring.private_key)
            .map_err(|_| SecretError::Mismatch)?;
        if array::<32>(&Kem::sk_to_pk(&private).to_bytes()) != keyring.writer.public_key {
            return Err(SecretError::Mismatch);
        }
        Ok(keyring)
    }

    /// A keyring from given bytes, so that the test vectors of `docs/format.md` can be made again.
    #[doc(hidden)]
    pub fn for_test_vectors(seed: u8) -> Self {
        let private_bytes = [seed; 32];
        let private =
            <Kem as hpke::Kem>::PrivateKey::from_bytes(&private_bytes).expect("any 32 bytes are a key");
        let writer = WriterCredential {
            repository: RepositoryId([seed ^ 0x55; 16]),
            public_key: array(&Kem::sk_to_pk(&private).to_bytes()),
            writer_secret: Zeroizing::new([seed ^ 0xaa; 32]),
        };
        Self { writer, private_key: Zeroizing::new(private_bytes) }
    }

    #[doc(hidden)]
    pub fn bytes_for_test_vectors(&self) -> Vec<u8> {
        self.encode().to_vec()
    }
}

/// What a derived key is for; the context strings are part of the stored format.
#[derive(Clone, Copy)]
pub(crate) enum Purpose {
    PageDigest,
    ChunkDigest,
    ContentDigest,
    RowDigest,
    HeaderMac,
    Psk,
    Local,
}

impl Purpose {
    fn context(self) -> &'static str {
        match self {
            Self::PageDigest => "pgkeep v1 page digest",
            Self::ChunkDigest => "pgkeep v1 chunk digest",
            Self::ContentDigest => "pgkeep v1 content digest",
            Self::RowDigest => "pgkeep v1 row digest",
            Self::HeaderMac => "pgkeep v1 header mac",
            Self::Psk => "pgkeep v1 hpke psk",
            Self::Local => "pgkeep v1 local files",
        }
    }
}

/// `N` bytes from the operating system's generator. Not from aws-lc's, which each process seeds first with 27 ms of
/// measuring its processor's jitter: half of a `wal push`.
pub(crate) fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::rngs::OsRng.try_fill_bytes(&mut bytes).expect("the system's random source works");
    bytes
}

/// Copies a slice whose length the caller has checked.
pub(crate) fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("the caller checked the length")
}

/// Exactly `2 * N` lower-case hexadecimal digits as bytes.
pub(crate) fn parse_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N || digits.iter().any(|digit| !matches!(digit, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keyring_and_credential_survive_their_text_forms() {
        let keyring = Keyring::generate(RepositoryId::random());
        let again = Keyring::decode(&keyring.encode()).unwrap();
        assert_eq!(*again.private_key, *keyring.private_key);
        let writer = WriterCredential::parse(&keyring.writer.to_text()).unwrap();
        assert_eq!(writer.public_key, keyring.writer.public_key);
        assert_eq!(*writer.writer_secret, *keyring.writer.writer_secret);
    }

    #[test]
    fn a_foreign_private_key_is_noticed() {
        let mut bytes = Keyring::generate(RepositoryId::random()).encode();
        bytes[90] ^= 1;
        assert_eq!(Keyring::decode(&bytes).unwrap_err(), SecretError::Mismatch);
    }

    #[test]
    fn debug_shows_no_secret() {
        let keyring = Keyring::for_test_vectors(7);
        assert!(!format!("{:?} {:?}", keyring, Access::Full(keyring.clone())).contains("173"));
    }

    proptest::proptest! {
        #[test]
        fn parsers_take_any_input(text in ".{0,200}", bytes in proptest::collection::vec(0u8.., 0..130)) {
            let _ = WriterCredential::parse(&text);
            let _ = Keyring::decode(&bytes);
            let _ = RepositoryId::parse(&text);
        }
    }
}
