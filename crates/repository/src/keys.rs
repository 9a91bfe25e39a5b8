//! Key slots: the keyring, wrapped by one passphrase or one generated key each.
//!
//! A slot is a small JSON object below `keys/`. Losing one slot does no harm while another can be opened; a changed or
//! truncated slot never keeps the others from being tried. `docs/format.md` §2.

use std::fmt;

use aws_lc_rs::aead;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::secrets::{Keyring, parse_hex, random_bytes};

/// Argon2id memory of new slots, in KiB: 64 MiB keeps every command under its memory limit.
const MEMORY_KIB: u32 = 64 * 1024;
const PASSES: u32 = 3;
/// A slot with less than OWASP's floor for Argon2id is refused: someone weakened it.
const FLOOR: (u32, u32) = (19 * 1024, 2);
/// A slot that asks for more is refused: someone wants us out of memory or time.
const CEILING: (u32, u32) = (1024 * 1024, 20);
/// A passphrase has at least this many characters.
pub const PASSPHRASE_MIN: usize = 12;

/// What opens a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SlotKind {
    /// A passphrase, for people.
    Passphrase,
    /// A generated key in a file, for machines.
    KeyFile,
    /// A generated key on paper, for the day when all else is lost.
    Recovery,
}

impl fmt::Display for SlotKind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Passphrase => "passphrase",
            Self::KeyFile => "key-file",
            Self::Recovery => "recovery",
        })
    }
}

/// The stored form of a slot.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Slot {
    format: u32,
    /// The slot's id, also its name: 8 hexadecimal digits.
    pub id: String,
    /// What opens it.
    pub kind: SlotKind,
    /// What the user called it.
    pub label: String,
    /// When it was made.
    pub created: jiff::Timestamp,
    argon2id: Option<Argon2Parameters>,
    wrapped: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Argon2Parameters {
    memory_kib: u32,
    passes: u32,
    salt: String,
}

/// A generated key and the slot that it opens; its text is the content of a key file or a recovery sheet.
pub struct SlotKey {
    slot: String,
    secret: Zeroizing<[u8; 32]>,
    kind: SlotKind,
}

/// Why a slot was refused or did not open.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Below the floor.
    #[error("the passphrase is too weak: at least {PASSPHRASE_MIN} characters, five of them different")]
    WeakPassphrase,
    /// Not what pgkeep writes into a key file.
    #[error("not a pgkeep key file or recovery key")]
    KeyForm,
    /// The slot's object cannot be read.
    #[error("key slot {slot} cannot be read: {what}")]
    SlotForm {
        /// The slot.
        slot: String,
        /// What was wrong.
        what: String,
    },
    /// The slot asks for less or more work than any pgkeep wrote.
    #[error("key slot {slot} was weakened or inflated: Argon2id with {memory_kib} KiB and {passes} passes")]
    Parameters {
        /// The slot.
        slot: String,
        /// As stored.
        memory_kib: u32,
        /// As stored.
        passes: u32,
    },
    /// Wrong passphrase or key, or a changed slot.
    #[error("key slot {slot} does not open with this {kind}")]
    Wrong {
        /// The slot.
        slot: String,
        /// What was tried.
        kind: SlotKind,
    },
}

impl SlotKey {
    /// The text that the user keeps: one line `pgkeep-key-1:<slot>:<16 groups of 4 hexadecimal digits>`.
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(format!("{}:{}:", prefix(self.kind), self.slot));
        for (at, byte) in self.secret.iter().enumerate() {
            if at > 0 && at % 2 == 0 {
                text.push('-');
            }
            text.push_str(&format!("{byte:02x}"));
        }
        text
    }

    /// Reads what [`SlotKey::to_text`] writes; spaces, hyphens and upper case in the digits do not matter.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let mut parts = text.trim().splitn(3, ':');
        let (Some(found), Some(slot), Some(digits)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(KeyError::KeyForm);
        };
        let kind = [SlotKind::KeyFile, SlotKind::Recovery].into_iter().find(|kind| prefix(*kind) == found);
        let digits: Zeroizing<String> = Zeroizing::new(
            digits
                .chars()
                .filter(|c| !c.is_whitespace() && *c != '-')
                .map(|c| c.to_ascii_lowercase())
                .collect(),
        );
        match (kind, parse_hex::<4>(slot), parse_hex::<32>(&digits)) {
            (Some(kind), Some(_), Some(secret)) => {
                Ok(Self { slot: slot.to_owned(), secret: Zeroizing::new(secret), kind })
            }
            _ => Err(KeyError::KeyForm),
        }
    }

    /// The slot that this key opens.
    pub fn slot(&self) -> &str {
        &self.slot
    }
}

fn prefix(kind: SlotKind) -> &'static str {
    if kind == SlotKind::Recovery { "pgkeep-recovery-1" } else { "pgkeep-key-1" }
}

impl Slot {
    /// Wraps the keyring under a new generated key.
    pub fn for_key(keyring: &Keyring, kind: SlotKind, label: &str, now: jiff::Timestamp) -> (Self, SlotKey) {
        let key = SlotKey { slot: new_id(), secret: Zeroizing::new(random_bytes()), kind };
        let wrapped = wrap(&key_of(&key), &key.slot, kind, keyring);
        let slot = Self::new(key.slot.clone(), kind, label, now, None, wrapped);
        (slot, key)
    }

    /// Wraps the keyring under a passphrase.
    pub fn for_passphrase(
        keyring: &Keyring,
        passphrase: &SecretString,
        label: &str,
        now: jiff::Timestamp,
    ) -> Result<Self, KeyError> {
        check_strength(passphrase)?;
        let id = new_id();
        let salt: [u8; 16] = random_bytes();
        let parameters =
            Argon2Parameters { memory_kib: MEMORY_KIB, passes: PASSES, salt: BASE64.encode(salt) };
        let key = stretch(&id, &parameters, passphrase)?;
        let wrapped = wrap(&key, &id, SlotKind::Passphrase, keyring);
        Ok(Self::new(id, SlotKind::Passphrase, label, now, Some(parameters), wrapped))
    }

    fn new(
        id: String,
        kind: SlotKind,
        label: &str,
        created: jiff::Timestamp,
        argon2id: Option<Argon2Parameters>,
        wrapped: Vec<u8>,
    ) -> Self {
        Self {
            format: 1,
            id,
            kind,
            label: label.to_owned(),
            created,
            argon2id,
            wrapped: BASE64.encode(wrapped),
        }
    }

    /// The stored bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("a slot has no map with odd keys");
        bytes.push(b'\n');
        bytes
    }

    /// Reads a stored slot; `id` is the one in its name and must be the one inside.
    pub fn decode(id: &str, bytes: &[u8]) -> Result<Self, KeyError> {
        let form = |what: String| KeyError::SlotForm { slot: id.to_owned(), what };
        let slot: Self = serde_json::from_slice(bytes).map_err(|error| form(error.to_string()))?;
        match slot.format {
            1 if slot.id == id => Ok(slot),
            1 => Err(form("it names another slot".into())),
            other => Err(form(format!("its format is {other}; this program knows 1"))),
        }
    }

    /// Opens the slot with the key that was made for it.
    pub fn open_with_key(&self, key: &SlotKey) -> Result<Keyring, KeyError> {
        self.unwrap_keyring(&key_of(key))
    }

    /// Opens the slot with a passphrase; takes a tenth of a second and 64 MiB on purpose.
    pub fn open_with_passphrase(&self, passphrase: &SecretString) -> Result<Keyring, KeyError> {
        let missing = || KeyError::SlotForm { slot: self.id.clone(), what: "it has no parameters".into() };
        let key = stretch(&self.id, self.argon2id.as_ref().ok_or_else(missing)?, passphrase)?;
        self.unwrap_keyring(&key)
    }

    fn unwrap_keyring(&self, key: &[u8; 32]) -> Result<Keyring, KeyError> {
        let form = |what: &str| KeyError::SlotForm { slot: self.id.clone(), what: what.into() };
        let mut wrapped = BASE64.decode(&self.wrapped).map(Zeroizing::new).map_err(|_| form("its base64"))?;
        let (nonce, sealed) = wrapped.split_first_chunk_mut::<12>().ok_or_else(|| form("its length"))?;
        let nonce = aead::Nonce::assume_unique_for_key(*nonce);
        let plain = cipher(key)
            .open_in_place(nonce, aead::Aad::from(additional(&self.id, self.kind)), sealed)
            .map_err(|_| KeyError::Wrong { slot: self.id.clone(), kind: self.kind })?;
        Keyring::decode(plain).map_err(|error| form(&error.to_string()))
    }
}

fn new_id() -> String {
    random_bytes::<4>().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn check_strength(passphrase: &SecretString) -> Result<(), KeyError> {
    let text = passphrase.expose_secret();
    let distinct: std::collections::BTreeSet<char> = text.chars().collect();
    if text.chars().count() < PASSPHRASE_MIN || distinct.len() < 5 {
        return Err(KeyError::WeakPassphrase);
    }
    Ok(())
}

fn stretch(
    slot: &str,
    parameters: &Argon2Parameters,
    passphrase: &SecretString,
) -> Result<Zeroizing<[u8; 32]>, KeyError> {
    let Argon2Parameters { memory_kib, passes, .. } = *parameters;
    let refused = || KeyError::Parameters { slot: slot.to_owned(), memory_kib, passes };
    if memory_kib < FLOOR.0 || passes < FLOOR.1 || memory_kib > CEILING.0 || passes > CEILING.1 {
        return Err(refused());
    }
    let salt = BASE64
        .decode(&parameters.salt)
        .ok()
        .filter(|salt| (16..=64).contains(&salt.len()))
        .ok_or_else(refused)?;
    let settings = argon2::Params::new(memory_kib, passes, 1, Some(32)).map_err(|_| refused())?;
    let argon2 = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, settings);
    let mut key = Zeroizing::new([0; 32]);
    argon2
        .hash_password_into(passphrase.expose_secret().as_bytes(), &salt, &mut *key)
        .map_err(|_| refused())?;
    Ok(key)
}

fn key_of(key: &SlotKey) -> Zeroizing<[u8; 32]> {
    Zeroizing::new(blake3::derive_key("pgkeep v1 key slot", &*key.secret))
}

fn cipher(key: &[u8; 32]) -> aead::LessSafeKey {
    aead::LessSafeKey::new(aead::UnboundKey::new(&aead::AES_256_GCM, key).expect("the key has 32 bytes"))
}

fn additional(slot: &str, kind: SlotKind) -> Vec<u8> {
    format!("pgkeep v1 key slot {slot} {kind}").into_bytes()
}

fn wrap(key: &[u8; 32], slot: &str, kind: SlotKind, keyring: &Keyring) -> Vec<u8> {
    // Each wrapping key wraps once (a new secret, or a new salt), so a random nonce cannot repeat under it.
    let nonce: [u8; 12] = random_bytes();
    let mut plain = keyring.encode();
    let tag = cipher(key)
        .seal_in_place_separate_tag(
            aead::Nonce::assume_unique_for_key(nonce),
            aead::Aad::from(additional(slot, kind)),
            &mut plain,
        )
        .expect("a keyring is short");
    [&nonce[..], &plain, tag.as_ref()].concat()
}

#[cfg(test)]
mod tests;
