use super::*;
use crate::secrets::RepositoryId;

fn keyring() -> Keyring {
    Keyring::generate(RepositoryId::random())
}

fn name(text: &str) -> ObjectName {
    ObjectName::new(text).unwrap()
}

#[test]
fn streams_open_at_every_length() {
    let keyring = keyring();
    let access = Access::Full(keyring.clone());
    for len in [0, 1, MAX_FRAME - 1, MAX_FRAME, MAX_FRAME + 1, 3 * MAX_FRAME] {
        let content = vec![7; len];
        let object = seal_stream(&keyring.writer, Kind::Manifest, &name("a"), b"pub", &content);
        let (header, opened) = open_stream(&access, Kind::Manifest, &name("a"), &object).unwrap();
        assert_eq!((header.public.as_slice(), opened.len()), (b"pub".as_slice(), len));
        assert!(opened == content);
    }
}

#[test]
fn every_flipped_byte_and_every_truncation_is_noticed() {
    let keyring = keyring();
    let access = Access::Full(keyring.clone());
    let object = seal_stream(&keyring.writer, Kind::Wal, &name("x/y"), b"12", b"some content");
    for at in 0..object.len() {
        let mut damaged = object.to_vec();
        damaged[at] ^= 1;
        assert!(open_stream(&access, Kind::Wal, &name("x/y"), &damaged).is_err(), "byte {at}");
        assert!(open_stream(&access, Kind::Wal, &name("x/y"), &object[..at]).is_err(), "cut at {at}");
    }
    let longer = [&object[..], &object[object.len() - 32..]].concat();
    assert!(open_stream(&access, Kind::Wal, &name("x/y"), &longer).is_err());
}

#[test]
fn a_dropped_last_frame_is_noticed() {
    let keyring = keyring();
    let object = seal_stream(&keyring.writer, Kind::Wal, &name("a"), b"", &vec![1; 2 * MAX_FRAME]);
    let first_only = header_len(0) + 4 + MAX_FRAME + TAG_LEN;
    let opened = open_stream(&Access::Full(keyring), Kind::Wal, &name("a"), &object[..first_only]);
    assert!(matches!(opened, Err(SealError::NotAuthentic { .. })));
}

#[test]
fn place_kind_repository_and_writer_are_bound() {
    let (keyring, other) = (keyring(), keyring());
    let object = seal_stream(&keyring.writer, Kind::Wal, &name("a"), b"", b"text");
    let access = Access::Full(keyring.clone());
    assert!(open_stream(&access, Kind::Wal, &name("b"), &object).is_err());
    assert!(open_stream(&access, Kind::Manifest, &name("a"), &object).is_err());
    assert!(open_stream(&Access::Full(other.clone()), Kind::Wal, &name("a"), &object).is_err());
    let mut forger = keyring.writer.clone();
    forger.writer_secret = other.writer.writer_secret.clone();
    let forged = seal_stream(&forger, Kind::Wal, &name("a"), b"", b"text");
    assert!(open_stream(&access, Kind::Wal, &name("a"), &forged).is_err());
}

#[test]
fn a_writer_reads_the_header_but_not_the_content() {
    let keyring = keyring();
    let object = seal_stream(&keyring.writer, Kind::Wal, &name("a"), b"digest", b"text");
    let header = Header::parse(&keyring.writer, Kind::Wal, &name("a"), &object).unwrap();
    assert_eq!(header.public, b"digest");
    let opened = open_stream(&Access::Write(keyring.writer), Kind::Wal, &name("a"), &object);
    assert!(matches!(opened, Err(SealError::NoPrivateKey { .. })));
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_refused_without_panic(bytes in proptest::collection::vec(0u8.., 0..400)) {
        let keyring = Keyring::for_test_vectors(1);
        let with_magic = [&MAGIC[..], &[3, 0, 0, 0], &bytes].concat();
        let access = Access::Full(keyring);
        proptest::prop_assert!(open_stream(&access, Kind::Wal, &name("a"), &bytes).is_err());
        proptest::prop_assert!(open_stream(&access, Kind::Wal, &name("a"), &with_magic).is_err());
    }
}
