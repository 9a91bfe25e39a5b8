use super::*;
use proptest::prelude::*;

/// Written by PostgreSQL 15 with `--wal-segsize=1 --data-checksums`, copied by pg_basebackup.
const REAL: &[u8] = include_bytes!("../../testdata/pg_control_15");

fn patched(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut file = REAL.to_vec();
    file[at..at + bytes.len()].copy_from_slice(bytes);
    let crc = crc32c::crc32c(&file[..at::CRC_1700]);
    file[at::CRC_1700..at::CRC_1700 + 4].copy_from_slice(&crc.to_le_bytes());
    file
}

/// As PostgreSQL 18 lays it out: one flag before the nonce.
fn version_18() -> Vec<u8> {
    let mut file = REAL.to_vec();
    file[at::CONTROL_VERSION..at::CATALOG_VERSION].copy_from_slice(&1800u32.to_le_bytes());
    file[at::CATALOG_VERSION..at::STATE].copy_from_slice(&202_506_291u32.to_le_bytes());
    file.copy_within(256..288, 257);
    file[256] = 1;
    let crc = crc32c::crc32c(&file[..at::CRC_1800]);
    file[at::CRC_1800..at::CRC_1800 + 4].copy_from_slice(&crc.to_le_bytes());
    file
}

#[test]
fn a_real_file_says_what_pg_controldata_says() {
    let control = ControlFile::parse(REAL).unwrap();
    assert_eq!(control.system_identifier, 7_711_065_609_306_309_948);
    assert_eq!(control.control_version, 1300);
    assert_eq!(control.catalog_version, 202_209_061);
    assert_eq!(control.major(), Some(Major::new(15)));
    assert_eq!(control.state, ClusterState::InProduction);
    assert_eq!(control.modified.unwrap().to_string(), "2026-11-22T18:34:11Z");
    let checkpoint = Checkpoint {
        location: "0/1000060".parse().unwrap(),
        redo: "0/1000028".parse().unwrap(),
        timeline: TimelineId::FIRST,
        previous_timeline: TimelineId::FIRST,
        full_page_writes: true,
        next_xid: 733,
        time: "2026-11-22T18:34:11Z".parse().ok(),
    };
    assert_eq!(control.checkpoint, checkpoint);
    assert_eq!((control.min_recovery_point, control.min_recovery_timeline), (None, None));
    assert_eq!((control.backup_start, control.backup_end, control.backup_end_required), (None, None, false));
    assert_eq!((control.wal_level, control.wal_log_hints), (WalLevel::Replica, false));
    assert_eq!(control.limits, [100, 8, 10, 0, 64]);
    assert_eq!((control.block_size, control.segment_blocks, control.wal_block_size), (8192, 131_072, 8192));
    assert_eq!(control.wal_segment_size.bytes(), 1 << 20);
    assert!(control.has_data_checksums());
}

#[test]
fn the_filling_may_be_missing_and_nothing_else() {
    assert!(ControlFile::parse(&REAL[..at::CRC_1700 + 4]).is_ok());
    for length in 0..at::CRC_1700 + 4 {
        let error = ControlFile::parse(&REAL[..length]).unwrap_err();
        assert!(matches!(error, ControlError::TooShort { .. }), "{length}: {error}");
    }
}

#[test]
fn the_layout_of_18_differs_in_the_tail() {
    let control = ControlFile::parse(&version_18()).unwrap();
    assert_eq!((control.control_version, control.major()), (1800, Some(Major::new(18))));
    assert_eq!(control.data_checksum_version, 1);
    assert!(ControlFile::parse(&version_18()[..at::CRC_1800]).is_err());
}

#[test]
fn each_known_major_is_told_by_its_numbers() {
    for facts in crate::version::KNOWN.iter().filter(|facts| facts.control_version != 1800) {
        let mut numbers = facts.control_version.to_le_bytes().to_vec();
        numbers.extend(facts.catalog_version.to_le_bytes());
        let control = ControlFile::parse(&patched(at::CONTROL_VERSION, &numbers)).unwrap();
        assert_eq!((control.control_version, control.major()), (facts.control_version, Some(facts.major)));
    }
}

#[test]
fn every_flipped_bit_is_noticed() {
    for bit in 0..(at::CRC_1700 + 4) * 8 {
        let mut file = REAL.to_vec();
        file[bit / 8] ^= 1 << (bit % 8);
        let error = ControlFile::parse(&file).unwrap_err();
        let in_version = (at::CONTROL_VERSION..at::CATALOG_VERSION).contains(&(bit / 8));
        assert!(error.is_transient() || in_version, "bit {bit}: {error}");
    }
}

#[test]
fn foreign_layouts_are_refused_by_name() {
    let error = ControlFile::parse(&patched(at::BLOCK_SIZE, &16_384u32.to_le_bytes())).unwrap_err();
    assert_eq!(error.to_string(), "read pg_control: the block size is 16384, only 8192 is supported");
    let error = ControlFile::parse(&patched(at::MAX_ALIGN, &[4])).unwrap_err();
    assert!(matches!(error, ControlError::Layout { .. }));
    let error = ControlFile::parse(&patched(at::CONTROL_VERSION, &1300u32.to_be_bytes())).unwrap_err();
    assert!(matches!(error, ControlError::UnknownVersion { .. }));
}

#[test]
fn values_no_server_writes_are_refused() {
    for (at, bytes) in
        [(at::STATE, [7]), (at::WAL_LEVEL, [3]), (at::WAL_SEGMENT_SIZE, [1]), (at::WAL_BLOCK_SIZE, [1])]
    {
        let error = ControlFile::parse(&patched(at, &bytes)).unwrap_err();
        assert!(matches!(error, ControlError::Value { .. }), "{error}");
    }
    assert!(ControlFile::parse(&patched(at::REDO, &[0; 8])).is_err());
    assert!(ControlFile::parse(&patched(at::TIMELINE, &[0; 4])).is_err());
}

#[test]
fn the_recovery_fields_are_where_they_should_be() {
    let mut fields = vec![0; 33];
    fields[..8].copy_from_slice(&0x5_0000_0028u64.to_le_bytes());
    fields[8] = 3;
    fields[16..24].copy_from_slice(&0x4_0000_0028u64.to_le_bytes());
    fields[24..32].copy_from_slice(&0x6_0000_0028u64.to_le_bytes());
    fields[32] = 1;
    let control = ControlFile::parse(&patched(at::MIN_RECOVERY_POINT, &fields)).unwrap();
    assert_eq!(control.min_recovery_point, "5/28".parse().ok());
    assert_eq!(control.min_recovery_timeline, TimelineId::new(3));
    assert_eq!((control.backup_start, control.backup_end), ("4/28".parse().ok(), "6/28".parse().ok()));
    assert!(control.backup_end_required);
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
        prop_assert!(ControlFile::parse(&bytes).is_err());
    }

    #[test]
    fn any_fields_under_a_right_crc_are_read_without_panic(at in 16usize..280, bytes: [u8; 8]) {
        let _ = ControlFile::parse(&patched(at, &bytes));
    }
}
