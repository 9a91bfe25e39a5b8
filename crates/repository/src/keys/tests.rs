use super::*;
use crate::secrets::RepositoryId;

fn now() -> jiff::Timestamp {
    "2026-11-22T00:00:00Z".parse().unwrap()
}

#[test]
fn key_and_passphrase_slots_open_and_nothing_else_does() {
    let keyring = Keyring::generate(RepositoryId::random());
    let (slot, key) = Slot::for_key(&keyring, SlotKind::Recovery, "paper", now());
    let key = SlotKey::parse(
        &key.to_text().to_uppercase().replace("PGKEEP-RECOVERY-1", "pgkeep-recovery-1").to_lowercase(),
    )
    .unwrap();
    let slot = Slot::decode(key.slot(), &slot.encode()).unwrap();
    assert_eq!(*slot.open_with_key(&key).unwrap().private_key, *keyring.private_key);
    let (_, other) = Slot::for_key(&keyring, SlotKind::Recovery, "", now());
    assert!(matches!(slot.open_with_key(&other), Err(KeyError::Wrong { .. })));

    let passphrase = SecretString::from("correct horse battery");
    let slot = Slot::for_passphrase(&keyring, &passphrase, "me", now()).unwrap();
    assert!(slot.open_with_passphrase(&passphrase).is_ok());
    assert!(matches!(slot.open_with_passphrase(&"wrong".into()), Err(KeyError::Wrong { .. })));
}

#[test]
fn weak_passphrases_and_changed_parameters_are_refused() {
    let keyring = Keyring::generate(RepositoryId::random());
    for weak in ["", "short", "aaaaaaaaaaaaaaaaaaaa"] {
        assert!(matches!(
            Slot::for_passphrase(&keyring, &weak.into(), "", now()),
            Err(KeyError::WeakPassphrase)
        ));
    }
    let passphrase = SecretString::from("correct horse battery");
    let slot = Slot::for_passphrase(&keyring, &passphrase, "me", now()).unwrap();
    let text = String::from_utf8(slot.encode()).unwrap();
    for changed in ["\"memory_kib\": 8", "\"memory_kib\": 99999999"] {
        let text = text.replace("\"memory_kib\": 65536", changed);
        let slot = Slot::decode(&slot.id, text.as_bytes()).unwrap();
        assert!(matches!(slot.open_with_passphrase(&passphrase), Err(KeyError::Parameters { .. })));
    }
}

#[test]
fn every_truncation_of_a_slot_is_an_error() {
    let keyring = Keyring::generate(RepositoryId::random());
    let (slot, key) = Slot::for_key(&keyring, SlotKind::KeyFile, "", now());
    let bytes = slot.encode();
    for len in 0..bytes.len() - 2 {
        assert!(Slot::decode(key.slot(), &bytes[..len]).is_err(), "{len}");
    }
}

proptest::proptest! {
    #[test]
    fn parsers_take_any_text(text in ".{0,150}", tail in "[0-9a-fA-F: -]{0,90}") {
        let _ = SlotKey::parse(&text);
        let _ = SlotKey::parse(&format!("pgkeep-key-1:{tail}"));
        let _ = Slot::decode("00000000", text.as_bytes());
    }
}
