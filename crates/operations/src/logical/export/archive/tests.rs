use proptest::prelude::*;

use super::*;

fn archive(minor: u8) -> Archive {
    let text = |text: &str| Some(text.as_bytes().to_vec());
    let entry = Entry {
        id: 7,
        has_data: true,
        table_oid: text("1259"),
        oid: text("16385"),
        tag: text("größe"),
        kind: text("TABLE DATA"),
        section: SECTION_DATA,
        definition: None,
        drop: text(""),
        copy: text("COPY t FROM stdin;\n"),
        schema: text("public"),
        tablespace: None,
        access_method: text("heap"),
        relkind: if minor >= RELKIND_SINCE { 114 } else { 0 },
        owner: text("me"),
        with_oids: text("false"),
        needs: vec![3, 5],
        place: Place::At(1 << 40),
    };
    let other = Entry { id: 8, has_data: false, needs: Vec::new(), place: Place::None, ..entry.clone() };
    Archive {
        version: [minor, 0],
        made: [1, 2, 3, 4, 5, 126, -1],
        database: text("app"),
        server: None,
        dumped_by: text("18.4"),
        entries: vec![entry, other],
    }
}

fn read(bytes: &[u8]) -> Result<Archive, LogicalError> {
    Archive::read(&mut Numbers::new(bytes, 0))
}

#[test]
fn what_is_written_is_read() {
    for minor in OLDEST..=RELKIND_SINCE {
        let (written, bytes) = (archive(minor), archive(minor).to_bytes());
        assert_eq!(read(&bytes).unwrap(), written);
        for length in 0..bytes.len() {
            assert!(read(&bytes[..length]).is_err(), "{length} bytes of {}", bytes.len());
        }
    }
}

#[test]
fn what_is_not_known_is_refused_by_its_name() {
    let told = |at: usize, byte: u8| {
        let mut bytes = archive(16).to_bytes();
        bytes[at] = byte;
        read(&bytes).unwrap_err().to_string()
    };
    assert!(told(0, b'X').contains("not in pg_dump's custom format"));
    assert!(told(6, 17).contains("version 1.17"), "{}", told(6, 17));
    assert!(told(6, 13).contains("version 1.13"));
    assert!(told(8, 8).contains("sizes"));
    assert!(told(11, 1).contains("compressed"));
    assert!(told(12, 9).contains("no sign"));
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(minor in OLDEST..=RELKIND_SINCE, changes in prop::collection::vec((any::<usize>(), any::<u8>()), 1..6)) {
        let mut bytes = archive(minor).to_bytes();
        for (at, byte) in changes {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        if let Ok(found) = read(&bytes) {
            let again = read(&found.to_bytes()).unwrap();
            prop_assert_eq!(again.entries.len(), found.entries.len());
        }
    }
}
