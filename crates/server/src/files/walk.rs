//! Listing a data directory in byte order of the paths.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd};

use pg::datadir::{RelationFile, Rule, classify};
use rustix::fs::{AtFlags, Dir, FileType, Stat, readlinkat, statat};
use rustix::io::Errno;

use super::open::{io_error, metadata_of, open_directory, tablespace};
use super::{FileKind, FilesError, FoundFile, LocalFiles, Warning};

/// What no cluster is without. A listing that lacks one of them is of something else, or of a cluster being destroyed.
const ESSENTIAL: [&[u8]; 4] = [b"PG_VERSION", b"global/pg_control", b"global/pg_filenode.map", b"pg_xact"];

/// Directories below `pg_wal` that the server expects there; kept, empty, like `pg_wal` itself.
const BELOW_WAL: [&[u8]; 2] = [b"pg_wal/archive_status", b"pg_wal/summaries"];

pub(super) type Visit<'a> = dyn FnMut(FoundFile) -> ControlFlow<()> + 'a;

/// Hands everything that belongs in a backup to `visit`.
pub(super) fn walk(files: &LocalFiles, visit: &mut Visit<'_>) -> Result<Vec<Warning>, FilesError> {
    let mut walker = Walker { files, visit, warnings: Vec::new(), missing: ESSENTIAL.to_vec() };
    let outcome = walker.directory(files.root.as_fd(), b"")?;
    match walker.missing.first() {
        Some(path) if outcome.is_continue() => Err(FilesError::Missing { path: path.to_vec() }),
        _ => Ok(walker.warnings),
    }
}

/// How to go on below an entry that has been listed.
#[derive(Clone, Copy)]
enum Below {
    /// An ordinary directory.
    Directory,
    /// The link, or the directory in place, of a tablespace.
    Tablespace,
    /// `pg_wal`.
    Wal,
}

struct Walker<'a, 'v> {
    files: &'a LocalFiles,
    visit: &'a mut Visit<'v>,
    warnings: Vec<Warning>,
    missing: Vec<&'static [u8]>,
}

type Outcome = Result<ControlFlow<()>, FilesError>;

/// Returns early when the visitor has had enough.
macro_rules! go_on {
    ($outcome:expr) => {
        if $outcome?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
    };
}

impl Walker<'_, '_> {
    /// Lists what is in a directory.
    ///
    /// What is in the directory `a` comes not right after `a` but after `a-b`, since `-` sorts before `/`. So the
    /// directories found wait, under their name with a slash, until the next name is past that.
    fn directory(&mut self, directory: BorrowedFd<'_>, path: &[u8]) -> Outcome {
        let names = match names_in(directory) {
            Ok(names) => names,
            Err(Errno::NOENT) => return Ok(ControlFlow::Continue(())),
            Err(error) => return Err(io_error("list", path, error)),
        };
        let mut waiting: BTreeMap<Vec<u8>, Below> = BTreeMap::new();
        for name in &names {
            while let Some(first) = waiting.first_entry().filter(|first| first.key() < name) {
                let (key, below) = first.remove_entry();
                go_on!(self.below(directory, path, &key[..key.len() - 1], below));
            }
            let entry_path = join(path, name);
            if is_unlogged(&entry_path, &names) {
                continue;
            }
            let (found, below) = match self.entry(directory, name, entry_path)? {
                Some(entry) => entry,
                None => continue,
            };
            go_on!(self.hand_over(found));
            if let Some(below) = below {
                waiting.insert([name, &b"/"[..]].concat(), below);
            }
        }
        for (key, below) in waiting {
            go_on!(self.below(directory, path, &key[..key.len() - 1], below));
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Judges one entry: what is handed over of it, and how to go on below it.
    fn entry(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &[u8],
        path: Vec<u8>,
    ) -> Result<Option<(FoundFile, Option<Below>)>, FilesError> {
        let Some(stat) = stat(directory, name, AtFlags::SYMLINK_NOFOLLOW, &path)? else { return Ok(None) };
        let kind = FileType::from_raw_mode(stat.st_mode);
        let found = |kind, stat: &Stat| FoundFile::new(path.clone(), kind, metadata_of(stat));
        let is_directory = matches!(kind, FileType::Directory | FileType::Symlink);
        let rule = classify(&path, is_directory);
        if matches!(rule, Rule::SkipDir | Rule::SkipFile) {
            return Ok(None);
        }
        if rule == Rule::KeepEmptyDir {
            // In place of the directory there may be a link to another disk; a restore makes a directory of it.
            let Some(stat) = stat_directory(directory, name, &path, stat)? else { return Ok(None) };
            let below = (path == b"pg_wal").then_some(Below::Wal);
            return Ok(Some((found(FileKind::Directory, &stat), below)));
        }
        Ok(match kind {
            FileType::RegularFile => Some((found(FileKind::File, &stat), None)),
            FileType::Directory => {
                let below = if is_tablespace(&path) { Below::Tablespace } else { Below::Directory };
                Some((found(FileKind::Directory, &stat), Some(below)))
            }
            FileType::Symlink => match readlinkat(directory, name, Vec::new()) {
                Ok(target) => self.link(found(FileKind::Symlink { target: target.into_bytes() }, &stat)),
                Err(Errno::NOENT | Errno::INVAL) => None,
                Err(error) => return Err(io_error("read the link", &path, error)),
            },
            _ => {
                self.warnings.push(Warning::SpecialFile { path });
                None
            }
        })
    }

    /// Judges a symbolic link: a tablespace's is kept and followed, any other is left out.
    fn link(&mut self, link: FoundFile) -> Option<(FoundFile, Option<Below>)> {
        if is_tablespace(&link.path) {
            return Some((link, Some(Below::Tablespace)));
        }
        // Files that are skipped by name are skipped as links, too, and need no warning.
        if let FileKind::Symlink { target } = link.kind
            && classify(&link.path, false) != Rule::SkipFile
        {
            self.warnings.push(Warning::UnknownSymlink { path: link.path, target });
        }
        None
    }

    fn below(&mut self, directory: BorrowedFd<'_>, path: &[u8], name: &[u8], below: Below) -> Outcome {
        let path = join(path, name);
        match below {
            Below::Directory => match open_directory(directory, name) {
                Ok(opened) => self.directory(opened.as_fd(), &path),
                Err(Errno::NOENT) => Ok(ControlFlow::Continue(())),
                Err(error) => Err(io_error("open", &path, error)),
            },
            Below::Tablespace => self.tablespace(&path),
            Below::Wal => self.wal(),
        }
    }

    /// Lists the one directory of a tablespace that is this cluster's. Others belong to servers of other versions.
    fn tablespace(&mut self, path: &[u8]) -> Outcome {
        let version = self.files.version_directory.clone().into_bytes();
        let opened = match tablespace(self.files, path) {
            Ok(opened) => opened,
            Err(Errno::NOENT) => return self.empty_tablespace(path),
            Err(error) => return Err(io_error("open", path, error)),
        };
        let version_path = join(path, &version);
        let Some(stat) = stat(opened.as_fd(), &version, AtFlags::SYMLINK_NOFOLLOW, &version_path)? else {
            return self.empty_tablespace(path);
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return self.empty_tablespace(path);
        }
        go_on!(self.hand_over(FoundFile::new(version_path, FileKind::Directory, metadata_of(&stat))));
        self.below(opened.as_fd(), path, &version, Below::Directory)
    }

    fn empty_tablespace(&mut self, path: &[u8]) -> Outcome {
        self.warnings.push(Warning::EmptyTablespace { path: path.to_owned() });
        Ok(ControlFlow::Continue(()))
    }

    /// Lists the directories that the server expects below `pg_wal`, which may itself be a link.
    fn wal(&mut self) -> Outcome {
        for path in BELOW_WAL {
            if let Some(stat) = stat(self.files.root.as_fd(), path, AtFlags::empty(), path)?
                && FileType::from_raw_mode(stat.st_mode) == FileType::Directory
            {
                go_on!(self.hand_over(FoundFile::new(
                    path.to_vec(),
                    FileKind::Directory,
                    metadata_of(&stat)
                )));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn hand_over(&mut self, found: FoundFile) -> Outcome {
        self.missing.retain(|essential| *essential != found.path);
        Ok((self.visit)(found))
    }
}

/// The names in a directory, in byte order.
fn names_in(directory: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable();
    // A directory that changes while it is read may show a name twice.
    names.dedup();
    Ok(names)
}

/// Whether a relation's file lies beside its init fork: it is unlogged, and a restore starts it from that fork.
/// Source: `sendDir`, `basebackup.c`.
fn is_unlogged(path: &[u8], names: &[Vec<u8>]) -> bool {
    RelationFile::init_fork_of(path).is_some_and(|init| {
        let name = init.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
        names.binary_search_by(|other| other.as_slice().cmp(name)).is_ok()
    })
}

/// Whether a path is `pg_tblspc/<number>`.
fn is_tablespace(path: &[u8]) -> bool {
    let name = path.strip_prefix(b"pg_tblspc/").unwrap_or_default();
    !name.is_empty() && name.iter().all(u8::is_ascii_digit)
}

/// What the file system says of an entry; `None` when it has vanished.
fn stat(
    directory: BorrowedFd<'_>,
    name: &[u8],
    flags: AtFlags,
    path: &[u8],
) -> Result<Option<Stat>, FilesError> {
    match statat(directory, name, flags) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(io_error("look at", path, error)),
    }
}

/// The attributes of a directory that is kept empty: those of what a link leads to. `None` for a link that leads to none.
fn stat_directory(
    directory: BorrowedFd<'_>,
    name: &[u8],
    path: &[u8],
    own: Stat,
) -> Result<Option<Stat>, FilesError> {
    if FileType::from_raw_mode(own.st_mode) == FileType::Directory {
        return Ok(Some(own));
    }
    let behind = stat(directory, name, AtFlags::empty(), path)?;
    Ok(behind.filter(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory))
}

fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_owned() } else { [path, b"/", name].concat() }
}
