//! Walking the files of a cluster in byte order of their paths, wherever they are.
//!
//! A [`Place`] answers what is in a directory; what of that belongs in a backup, and in which order, is decided here, so
//! that a cluster is the same cluster whichever way it is read.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::ops::ControlFlow;

use pg::datadir::{RelationFile, Rule, classify};

use super::{FileKind, FileMetadata, FilesError, FoundFile, Warning};

/// What no cluster is without. A listing that lacks one of them is of something else, or of a cluster being destroyed.
const ESSENTIAL: [&[u8]; 4] = [b"PG_VERSION", b"global/pg_control", b"global/pg_filenode.map", b"pg_xact"];

/// Directories below `pg_wal` that the server expects there; kept, empty, like `pg_wal` itself.
const BELOW_WAL: [&[u8]; 2] = [b"pg_wal/archive_status", b"pg_wal/summaries"];

/// Directories in one another, at most. PostgreSQL has five; past this somebody made a loop that could not be told from
/// directories.
const DEPTH_MAX: usize = 32;

pub(super) type Visit<'a> = dyn FnMut(FoundFile) -> ControlFlow<()> + 'a;

/// What an entry is, seen without following it where links can be told.
pub(super) enum Look {
    File(FileMetadata),
    Directory(FileMetadata),
    Link {
        metadata: FileMetadata,
        target: Vec<u8>,
    },
    /// A socket, a pipe, a device.
    Special,
    /// The place could not look, and says so by this.
    Refused(Warning),
}

/// A data directory somewhere. `None` everywhere means that the entry has vanished.
pub(super) trait Place {
    /// A directory that can be asked for what is in it.
    type Directory;

    /// Whether directories may be links that could not be told from directories.
    fn may_follow_links(&self) -> bool;

    /// The one directory in each tablespace that is this cluster's, `PG_15_202209061`.
    fn version_directory(&self) -> &str;

    /// The data directory.
    fn root(&self) -> Result<Self::Directory, FilesError>;

    /// A directory in another one.
    fn open(
        &self,
        parent: &Self::Directory,
        name: &[u8],
        path: &[u8],
    ) -> Result<Option<Self::Directory>, FilesError>;

    /// The directory of a tablespace, through its link or, for one that lies in place, as it is.
    fn open_tablespace(&self, path: &[u8]) -> Result<Option<Self::Directory>, FilesError>;

    /// The names in a directory, each once, in byte order.
    #[allow(clippy::type_complexity, reason = "names of an open directory, and whether it is still there")]
    fn names<'d>(
        &self,
        directory: &'d Self::Directory,
        path: &[u8],
    ) -> Result<Option<Cow<'d, [Vec<u8>]>>, FilesError>;

    /// What a directory's entry is.
    fn look(&self, directory: &Self::Directory, name: &[u8], path: &[u8])
    -> Result<Option<Look>, FilesError>;

    /// The attributes of the directory at `path`, links followed; `None` too when it is none.
    fn directory_at(&self, path: &[u8]) -> Result<Option<FileMetadata>, FilesError>;
}

/// Hands everything that belongs in a backup to `visit`.
pub(super) fn walk<P: Place>(place: &P, visit: &mut Visit<'_>) -> Result<Vec<Warning>, FilesError> {
    let mut walker =
        Walker { place, visit, warnings: Vec::new(), missing: ESSENTIAL.to_vec(), above: Vec::new() };
    let root = place.root()?;
    let outcome = walker.directory(&root, b"")?;
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

struct Walker<'a, 'v, P> {
    place: &'a P,
    visit: &'a mut Visit<'v>,
    warnings: Vec<Warning>,
    missing: Vec<&'static [u8]>,
    /// Digests of the names in the directories above, by which one that leads back is known.
    above: Vec<u64>,
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

impl<P: Place> Walker<'_, '_, P> {
    /// Lists what is in a directory.
    ///
    /// What is in the directory `a` comes not right after `a` but after `a-b`, since `-` sorts before `/`. So the
    /// directories found wait, under their name with a slash, until the next name is past that.
    fn directory(&mut self, directory: &P::Directory, path: &[u8]) -> Outcome {
        let Some(names) = self.place.names(directory, path)? else { return Ok(ControlFlow::Continue(())) };
        let digest = digest_of(&names);
        if self.place.may_follow_links() && self.leads_back(digest) {
            self.warnings.push(Warning::Loop { path: path.to_owned() });
            return Ok(ControlFlow::Continue(()));
        }
        self.above.push(digest);
        let outcome = self.entries(directory, path, &names);
        self.above.pop();
        outcome
    }

    /// Whether a directory is one of those above it, or lies too deep. What leads back to a directory has its very names;
    /// once that may be chance (`a/a`).
    fn leads_back(&self, digest: u64) -> bool {
        let same = self.above.iter().filter(|above| **above == digest).count();
        same >= 2 || self.above.len() >= DEPTH_MAX
    }

    fn entries(&mut self, directory: &P::Directory, path: &[u8], names: &[Vec<u8>]) -> Outcome {
        let mut waiting: BTreeMap<Vec<u8>, Below> = BTreeMap::new();
        for name in names {
            while let Some(first) = waiting.first_entry().filter(|first| first.key() < name) {
                let (key, below) = first.remove_entry();
                go_on!(self.below(directory, path, &key[..key.len() - 1], below));
            }
            let entry_path = join(path, name);
            if is_unlogged(&entry_path, names) {
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
        directory: &P::Directory,
        name: &[u8],
        path: Vec<u8>,
    ) -> Result<Option<(FoundFile, Option<Below>)>, FilesError> {
        let Some(look) = self.place.look(directory, name, &path)? else { return Ok(None) };
        let is_directory = matches!(look, Look::Directory(_) | Look::Link { .. });
        let rule = classify(&path, is_directory);
        if matches!(rule, Rule::SkipDir | Rule::SkipFile) {
            return Ok(None);
        }
        if rule == Rule::KeepEmptyDir {
            // In place of the directory there may be a link to another disk; a restore makes a directory of it.
            let metadata = match look {
                Look::Directory(metadata) => metadata,
                _ => match self.place.directory_at(&path)? {
                    Some(metadata) => metadata,
                    None => return Ok(None),
                },
            };
            let below = (path == b"pg_wal").then_some(Below::Wal);
            return Ok(Some((FoundFile::new(path, FileKind::Directory, metadata), below)));
        }
        Ok(match look {
            Look::File(metadata) => Some((FoundFile::new(path, FileKind::File, metadata), None)),
            Look::Directory(metadata) => {
                let below = if is_tablespace(&path) { Below::Tablespace } else { Below::Directory };
                Some((FoundFile::new(path, FileKind::Directory, metadata), Some(below)))
            }
            Look::Link { metadata, target } => {
                self.link(FoundFile::new(path, FileKind::Symlink { target }, metadata))
            }
            Look::Special => {
                self.warnings.push(Warning::SpecialFile { path });
                None
            }
            Look::Refused(warning) => {
                self.warnings.push(warning);
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

    fn below(&mut self, directory: &P::Directory, path: &[u8], name: &[u8], below: Below) -> Outcome {
        let path = join(path, name);
        match below {
            Below::Directory => match self.place.open(directory, name, &path)? {
                Some(opened) => self.directory(&opened, &path),
                None => Ok(ControlFlow::Continue(())),
            },
            Below::Tablespace => self.tablespace(&path),
            Below::Wal => self.wal(),
        }
    }

    /// Lists the one directory of a tablespace that is this cluster's. Others belong to servers of other versions.
    fn tablespace(&mut self, path: &[u8]) -> Outcome {
        let version = self.place.version_directory().as_bytes();
        let version_path = join(path, version);
        if let Some(opened) = self.place.open_tablespace(path)?
            && let Some(Look::Directory(metadata)) = self.place.look(&opened, version, &version_path)?
        {
            go_on!(self.hand_over(FoundFile::new(version_path, FileKind::Directory, metadata)));
            return self.below(&opened, path, version, Below::Directory);
        }
        self.warnings.push(Warning::EmptyTablespace { path: path.to_owned() });
        Ok(ControlFlow::Continue(()))
    }

    /// Lists the directories that the server expects below `pg_wal`, which may itself be a link.
    fn wal(&mut self) -> Outcome {
        for path in BELOW_WAL {
            if let Some(metadata) = self.place.directory_at(path)? {
                go_on!(self.hand_over(FoundFile::new(path.to_vec(), FileKind::Directory, metadata)));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn hand_over(&mut self, found: FoundFile) -> Outcome {
        self.missing.retain(|essential| *essential != found.path);
        Ok((self.visit)(found))
    }
}

fn digest_of(names: &[Vec<u8>]) -> u64 {
    let mut hasher = DefaultHasher::new();
    names.hash(&mut hasher);
    hasher.finish()
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

fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_owned() } else { [path, b"/", name].concat() }
}
