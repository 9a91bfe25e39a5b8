//! What is read: the files of a data directory, cut into chunks of at most 1 MiB; small files share one.

use std::fs;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use crate::{Outcome, at};

/// The most that is read, compressed and sealed at once.
pub const CHUNK: usize = 1 << 20;
/// Directories that PostgreSQL fills anew, so that a backup has only the directory.
const EMPTY: [&str; 9] = [
    "pg_wal",
    "pg_dynshmem",
    "pg_notify",
    "pg_replslot",
    "pg_serial",
    "pg_snapshots",
    "pg_stat_tmp",
    "pg_subtrans",
    "pgsql_tmp",
];

/// A directory, or a file with its size.
pub struct Entry {
    /// From the root of the data directory.
    pub path: PathBuf,
    /// `None` for a directory.
    pub size: Option<u64>,
}

/// A stretch of one file.
#[derive(Clone, Copy)]
pub struct Piece {
    /// Which of the entries.
    pub file: u32,
    /// From where in it.
    pub offset: u64,
    /// How many bytes.
    pub length: u32,
}

/// The entries below `root` in order of their paths, parents first.
pub fn entries(root: &Path) -> Outcome<Vec<Entry>> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in at(&folder, fs::read_dir(root.join(&folder)))? {
            let entry = at(&folder, entry)?;
            let (path, kind) = (folder.join(entry.file_name()), at(&folder, entry.file_type())?);
            if kind.is_dir() {
                if !EMPTY.iter().any(|name| path.as_os_str() == *name) {
                    folders.push(path.clone());
                }
                found.push(Entry { path, size: None });
            } else if kind.is_file() && path.as_os_str() != "postmaster.pid" {
                let size = at(&path, entry.metadata())?.len();
                found.push(Entry { path, size: Some(size) });
            }
        }
    }
    found.sort_unstable_by(|one, other| {
        one.path.as_os_str().as_bytes().cmp(other.path.as_os_str().as_bytes())
    });
    Ok(found)
}

/// The chunks in which the entries are read.
pub fn chunks(entries: &[Entry]) -> Vec<Vec<Piece>> {
    let mut chunks = Vec::new();
    let (mut open, mut filled) = (Vec::new(), 0);
    for (file, entry) in entries.iter().enumerate() {
        let mut offset = 0;
        while let Some(left) = entry.size.map(|size| size - offset).filter(|left| *left > 0) {
            let length = left.min(CHUNK as u64) as u32;
            if filled + length as usize > CHUNK {
                chunks.push(std::mem::take(&mut open));
                filled = 0;
            }
            open.push(Piece { file: file as u32, offset, length });
            filled += length as usize;
            offset += u64::from(length);
        }
    }
    if !open.is_empty() {
        chunks.push(open);
    }
    chunks
}

/// A path from its bytes.
pub fn path(bytes: &[u8]) -> PathBuf {
    std::ffi::OsString::from_vec(bytes.to_vec()).into()
}
