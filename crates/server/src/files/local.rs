//! A data directory on this machine.

mod tree;

use std::collections::HashMap;
use std::fs::File;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use pg::Major;
use pg::control::ControlFile;
use pg::datadir::tablespace_version_directory;
use rustix::time::{ClockId, clock_gettime};

use super::{
    DirectoryFacts, FileSource, FilesError, FoundFile, OpenFile, Range, Reader, Warning, cluster, open, walk,
};

/// The files of a cluster whose data directory is on this machine.
///
/// Nothing is reached through a symbolic link, save the data directory itself and the links of tablespaces.
#[derive(Debug)]
pub struct LocalFiles {
    pub(super) data_directory: PathBuf,
    /// The directory all paths are relative to.
    pub(super) root: OwnedFd,
    pub(super) major: Major,
    /// The one directory in each tablespace that is this cluster's, `PG_15_202209061`.
    pub(super) version_directory: String,
    /// Directories of tablespaces, opened through their links at the first need, by the name of the link.
    pub(super) tablespaces: Mutex<HashMap<Vec<u8>, Arc<OwnedFd>>>,
}

impl LocalFiles {
    /// Opens a data directory. It must hold a cluster: `PG_VERSION` and a control file that can be understood.
    pub fn new(data_directory: impl AsRef<Path>) -> Result<Self, FilesError> {
        let data_directory = data_directory.as_ref().to_owned();
        let directory = |source| FilesError::DataDirectory { path: data_directory.clone(), source };
        let root = File::open(&data_directory).map_err(directory)?;
        if !root.metadata().map_err(directory)?.is_dir() {
            return Err(directory(std::io::ErrorKind::NotADirectory.into()));
        }
        let mut files = Self {
            data_directory,
            root: root.into(),
            major: Major::new(0),
            version_directory: String::new(),
            tablespaces: Mutex::default(),
        };
        files.major = cluster::read_major(|path, length| files.read_small(path, length))?;
        let (_, control) = files.read_control_file()?;
        files.version_directory = tablespace_version_directory(files.major, control.catalog_version);
        Ok(files)
    }

    /// Where the cluster is.
    pub fn data_directory(&self) -> &Path {
        &self.data_directory
    }

    /// The major version in `PG_VERSION`.
    pub fn major(&self) -> Major {
        self.major
    }

    /// Reads a listed file once. For several reads of one file, [`LocalFiles::open`] it.
    pub fn read_at(&self, path: &[u8], offset: u64, buffer: &mut [u8]) -> Result<usize, FilesError> {
        self.open(path)?.read_at(offset, buffer)
    }

    /// Opens a listed file.
    pub fn open(&self, path: &[u8]) -> Result<Box<dyn OpenFile>, FilesError> {
        Ok(Box::new(open::open(self, path)?))
    }

    fn read_small(&self, path: &[u8], length: usize) -> Result<Vec<u8>, FilesError> {
        let mut bytes = vec![0; length];
        let length = self.read_at(path, 0, &mut bytes)?;
        bytes.truncate(length);
        Ok(bytes)
    }
}

impl FileSource for LocalFiles {
    fn walk(&self, visit: &mut dyn FnMut(FoundFile) -> ControlFlow<()>) -> Result<Vec<Warning>, FilesError> {
        walk::walk(self, visit)
    }

    fn reader(&self) -> Box<dyn Reader + '_> {
        Box::new(LocalReader(self))
    }

    fn read_control_file(&self) -> Result<(Vec<u8>, ControlFile), FilesError> {
        cluster::read_control_file(|path, length| self.read_small(path, length))
    }

    fn read_outside(&self, path: &Path, limit: usize) -> Result<Vec<u8>, FilesError> {
        use std::io::Read as _;
        let mut bytes = Vec::new();
        let read = File::open(path).and_then(|file| file.take(limit as u64).read_to_end(&mut bytes));
        let path = path.as_os_str().as_encoded_bytes().to_vec();
        read.map_err(|source| FilesError::Io { what: "read", path, source })?;
        Ok(bytes)
    }

    fn directory(&self) -> DirectoryFacts {
        let metadata = std::fs::metadata(&self.data_directory).ok();
        DirectoryFacts {
            path: self.data_directory.clone(),
            mode: metadata.as_ref().map_or(0o700, |metadata| metadata.mode() & 0o7777),
            owner: metadata.map(|metadata| metadata.uid()),
        }
    }

    fn clock_ns(&self) -> Result<i64, FilesError> {
        Ok(file_clock_ns())
    }
}

/// The clock that local file systems take their times from, nanoseconds since 1970.
pub fn file_clock_ns() -> i64 {
    let now = clock_gettime(ClockId::RealtimeCoarse);
    now.tv_sec.saturating_mul(1_000_000_000).saturating_add(now.tv_nsec)
}

/// Opens what is asked for; nothing is gained by knowing before.
#[derive(Debug)]
struct LocalReader<'f>(&'f LocalFiles);

impl Reader for LocalReader<'_> {
    fn announce(&mut self, _: &[Range<'_>]) -> Result<(), FilesError> {
        Ok(())
    }

    fn open(&mut self, path: &[u8]) -> Result<Box<dyn OpenFile>, FilesError> {
        self.0.open(path)
    }
}
