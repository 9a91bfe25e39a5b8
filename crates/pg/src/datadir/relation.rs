//! The names of files that hold tables and indexes.

/// Where a relation's file lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tablespace {
    /// `base`: `pg_default`.
    Default,
    /// `global`: `pg_global`, shared by all databases.
    Global,
    /// `pg_tblspc/<oid>`.
    Oid(u32),
}

/// Which part of a relation a file holds. Source: `ForkNumber`, `common/relpath.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fork {
    /// The data.
    Main,
    /// The free space map.
    Fsm,
    /// The visibility map.
    Vm,
    /// What an unlogged relation is reset to after a crash, and after a restore.
    Init,
}

/// What the path of a relation's file says. Temporary relations are none of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RelationFile {
    /// Where it lies.
    pub tablespace: Tablespace,
    /// The database; `None` for shared relations, which belong to all.
    pub database: Option<u32>,
    /// The number in the file's name: not the relation's oid, and used again after a drop.
    pub relfilenode: u32,
    /// Which part of the relation.
    pub fork: Fork,
    /// Which segment file of that fork, from 0; each holds as many blocks as the control file says, the last
    /// fewer.
    pub segment: u32,
}

impl RelationFile {
    /// The relation file at `path`, relative to the data directory; `None` for every other file. Source:
    /// `parse_filename_for_nontemp_relation`, `storage/file/reinit.c`, and `GetRelationPath`,
    /// `common/relpath.c`.
    pub fn parse(path: &[u8]) -> Option<RelationFile> {
        let (tablespace, database, name) = place(path)?;
        let (relfilenode, rest) = take_number(name)?;
        let (fork, rest) = take_fork(rest);
        let segment = match rest {
            [] => 0,
            [b'.', digits @ ..] => match take_number(digits)? {
                (segment, []) => segment,
                _ => return None,
            },
            _ => return None,
        };
        Some(RelationFile { tablespace, database, relfilenode, fork, segment })
    }

    /// The path of the first segment of the init fork beside a file: if it exists, the relation is unlogged,
    /// and of its forks only that one belongs in a backup. `None` when the file is itself of an init fork, or
    /// no relation's.
    pub fn init_fork_of(path: &[u8]) -> Option<Vec<u8>> {
        let file = RelationFile::parse(path)?;
        if file.fork == Fork::Init {
            return None;
        }
        let name_at = path.iter().rposition(|&b| b == b'/').map_or(0, |slash| slash + 1);
        Some([&path[..name_at], format!("{}_init", file.relfilenode).as_bytes()].concat())
    }
}

/// The number of the first block in a segment file, counted from the start of its fork, as page checksums
/// need it. `None` when it is past the last block a relation can have.
pub fn first_block(segment: u32, blocks_per_segment: u32) -> Option<u32> {
    segment.checked_mul(blocks_per_segment)
}

/// Whether the pages of the file at `path` carry checksums in a cluster that has them: the relation files do,
/// of every fork, and nothing else (not `pg_control`, `pg_filenode.map`, `pg_internal.init`, `PG_VERSION`).
/// Source: `sendFile`, `backup/basebackup.c`.
pub fn has_page_checksums(path: &[u8]) -> bool {
    RelationFile::parse(path).is_some()
}

/// Whether `path` is a file of a temporary relation, `t<backend>_<number>[_fork][.segment]`: they vanish with
/// their session, and the server removes what is left of them when it starts. Source:
/// `looks_like_temp_rel_name`, `storage/file/fd.c`.
pub fn is_temporary_relation(path: &[u8]) -> bool {
    let parts = || {
        let (_, Some(_), name) = place(path)? else { return None };
        let digits = name.strip_prefix(b"t")?;
        let backend_end = digits.iter().position(|b| !b.is_ascii_digit())?;
        let number = digits[backend_end..].strip_prefix(b"_").filter(|_| backend_end > 0)?;
        let number_end = number.iter().position(|b| !b.is_ascii_digit()).unwrap_or(number.len());
        let (_, rest) = take_fork(&number[number_end..]);
        let segment = rest.strip_prefix(b".");
        let is_end =
            segment.map_or(rest.is_empty(), |seg| !seg.is_empty() && seg.iter().all(u8::is_ascii_digit));
        Some(number_end > 0 && is_end)
    };
    parts().unwrap_or(false)
}

/// The tablespace and database of the directory that `path` lies in, and its name.
fn place(path: &[u8]) -> Option<(Tablespace, Option<u32>, &[u8])> {
    let mut parts = path.split(|&b| b == b'/');
    let mut next = || parts.next();
    let place = match next()? {
        b"global" => (Tablespace::Global, None, next()?),
        b"base" => (Tablespace::Default, Some(whole_number(next()?)?), next()?),
        b"pg_tblspc" => {
            let tablespace = Tablespace::Oid(whole_number(next()?)?);
            next().filter(|directory| directory.starts_with(b"PG_"))?;
            (tablespace, Some(whole_number(next()?)?), next()?)
        }
        _ => return None,
    };
    next().is_none().then_some(place)
}

fn whole_number(text: &[u8]) -> Option<u32> {
    match take_number(text)? {
        (number, []) => Some(number),
        _ => None,
    }
}

/// A decimal number from 1 without leading zeroes, and what follows it.
fn take_number(text: &[u8]) -> Option<(u32, &[u8])> {
    let end = text.iter().position(|b| !b.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    if digits.is_empty() || digits[0] == b'0' {
        return None;
    }
    Some((std::str::from_utf8(digits).ok()?.parse().ok()?, rest))
}

fn take_fork(rest: &[u8]) -> (Fork, &[u8]) {
    const NAMED: [(&[u8], Fork); 3] = [(b"_fsm", Fork::Fsm), (b"_vm", Fork::Vm), (b"_init", Fork::Init)];
    NAMED
        .iter()
        .find_map(|(suffix, fork)| rest.strip_prefix(*suffix).map(|rest| (*fork, rest)))
        .unwrap_or((Fork::Main, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(path: &str) -> Option<RelationFile> {
        RelationFile::parse(path.as_bytes())
    }

    #[test]
    fn every_part_of_a_path_is_read() {
        let file = RelationFile {
            tablespace: Tablespace::Oid(16_385),
            database: Some(5),
            relfilenode: 16_384,
            fork: Fork::Vm,
            segment: 12,
        };
        assert_eq!(parse("pg_tblspc/16385/PG_15_202209061/5/16384_vm.12"), Some(file));
        let shared = parse("global/1262_fsm").unwrap();
        assert_eq!((shared.tablespace, shared.database, shared.fork), (Tablespace::Global, None, Fork::Fsm));
        let plain = parse("base/5/4294967295").unwrap();
        assert_eq!((plain.tablespace, plain.segment, plain.fork), (Tablespace::Default, 0, Fork::Main));
        assert_eq!(parse("base/5/2619_init").unwrap().fork, Fork::Init);
    }

    #[test]
    fn other_files_are_no_relations() {
        for path in [
            "",
            "global",
            "global/",
            "global/pg_control",
            "global/pg_filenode.map",
            "base/5/PG_VERSION",
            "base/5/016384",
            "base/5/0",
            "base/5/16384.",
            "base/5/16384.0",
            "base/5/16384.01",
            "base/5/16384_fsm_vm",
            "base/5/16384_foo",
            "base/5/4294967296",
            "base/5/16384/1",
            "base/x/16384",
            "base/16384",
            "base/5/t3_16384",
            "pg_xact/0001",
            "pg_tblspc/16385/5/16384",
            "pg_tblspc/16385/PG_15_202209061/16384",
            "base/5/pg_internal.init",
            "5/16384",
        ] {
            assert_eq!(parse(path), None, "{path}");
            assert!(!has_page_checksums(path.as_bytes()));
        }
        assert!(has_page_checksums(b"base/5/16384_init"));
    }

    #[test]
    fn temporary_relations_are_told_by_name_and_place() {
        for path in [
            "base/5/t3_16384",
            "base/5/t0_16384_fsm",
            "base/5/t12_16384.1",
            "base/5/t12_16384_vm.1",
            "pg_tblspc/16385/PG_15_202209061/5/t3_1",
        ] {
            assert!(is_temporary_relation(path.as_bytes()), "{path}");
        }
        for path in [
            "base/5/t_16384",
            "base/5/t3",
            "base/5/t3_",
            "base/5/t3_16384_foo",
            "base/5/t3_16384.",
            "global/t3_1",
            "t3_16384",
            "base/5/16384",
            "base/5/t3_16384.x",
        ] {
            assert!(!is_temporary_relation(path.as_bytes()), "{path}");
        }
    }

    #[test]
    fn the_init_fork_lies_beside() {
        let beside =
            |path: &[u8]| RelationFile::init_fork_of(path).map(|path| String::from_utf8(path).unwrap());
        assert_eq!(beside(b"base/5/16384_vm.1").as_deref(), Some("base/5/16384_init"));
        assert_eq!(beside(b"base/5/16384_init"), None);
        assert_eq!(beside(b"PG_VERSION"), None);
    }

    #[test]
    fn blocks_count_on_over_segments() {
        assert_eq!(first_block(2, 131_072), Some(262_144));
        assert_eq!(first_block(u32::MAX, 131_072), None);
    }

    proptest! {
        #[test]
        fn any_path_is_read_without_panic(path: Vec<u8>) {
            let _ = (RelationFile::parse(&path), is_temporary_relation(&path), RelationFile::init_fork_of(&path));
        }

        #[test]
        fn made_up_paths_are_read_back(database in 1u32.., relfilenode in 1u32.., segment: u32, fork in 0usize..4) {
            let (suffix, fork) = [("", Fork::Main), ("_fsm", Fork::Fsm), ("_vm", Fork::Vm), ("_init", Fork::Init)][fork];
            let end = if segment == 0 { String::new() } else { format!(".{segment}") };
            let file = parse(&format!("base/{database}/{relfilenode}{suffix}{end}")).unwrap();
            let expected = RelationFile { tablespace: Tablespace::Default, database: Some(database), relfilenode, fork, segment };
            prop_assert_eq!(file, expected);
        }
    }
}
