//! A data directory on this machine.

use std::collections::HashMap;
use std::fs::File;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use pg::Major;
use pg::control::ControlFile;
use pg::datadir::{CONTROL_FILE, tablespace_version_directory};

use super::{FileSource, FilesError, FoundFile, OpenFile, Warning, open, walk};

/// How often `pg_control` is read again when its CRC does not match, and after what pause. The server may be just
/// writing it, which the file system may show half done; its own tools try 10 times (`get_controlfile`).
const CONTROL_TRIES: u32 = 10;
const CONTROL_PAUSE: Duration = Duration::from_millis(20);

/// No control file is longer: `PG_CONTROL_FILE_SIZE`, `catalog/pg_control.h`.
const CONTROL_FILE_SIZE: usize = 8192;

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
        let mut text = [0; 64];
        let length = required(files.read_at(b"PG_VERSION", 0, &mut text))?;
        files.major = String::from_utf8_lossy(&text[..length]).parse()?;
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

    /// Reads a listed file once. For several reads of one file, [`FileSource::open`] it.
    pub fn read_at(&self, path: &[u8], offset: u64, buffer: &mut [u8]) -> Result<usize, FilesError> {
        self.open(path)?.read_at(offset, buffer)
    }

    /// The bytes of `pg_control`, whole and with the right CRC, and what they say.
    ///
    /// A backup takes them last, and takes these: the file itself may be caught half written.
    pub fn read_control_file(&self) -> Result<(Vec<u8>, ControlFile), FilesError> {
        let mut tries = 1;
        loop {
            let mut bytes = vec![0; CONTROL_FILE_SIZE];
            let length = required(self.read_at(CONTROL_FILE, 0, &mut bytes))?;
            bytes.truncate(length);
            match ControlFile::parse(&bytes) {
                Ok(control) => return Ok((bytes, control)),
                Err(error) if error.is_transient() && tries < CONTROL_TRIES => {
                    tries += 1;
                    thread::sleep(CONTROL_PAUSE);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl FileSource for LocalFiles {
    fn walk(&self, visit: &mut dyn FnMut(FoundFile) -> ControlFlow<()>) -> Result<Vec<Warning>, FilesError> {
        walk::walk(self, visit)
    }

    fn open(&self, path: &[u8]) -> Result<Box<dyn OpenFile>, FilesError> {
        Ok(Box::new(open::open(self, path)?))
    }
}

/// Turns "vanished" into "missing", for files that no running cluster is without.
fn required<T>(result: Result<T, FilesError>) -> Result<T, FilesError> {
    result.map_err(|error| match error {
        FilesError::Vanished { path } => FilesError::Missing { path },
        other => other,
    })
}
