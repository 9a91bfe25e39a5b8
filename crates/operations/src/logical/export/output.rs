//! Where an export goes: a file that gets its name when it is whole, or a stream.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use flate2::write::GzEncoder;
use rustix::fs::{FlockOperation, RenameFlags, flock, renameat_with};
use rustix::io::Errno;

use crate::failpoint;
use crate::logical::LogicalError;

/// Bytes that are read or written at once.
const BUFFER: usize = 256 << 10;
/// zstd's and gzip's levels: those that the programs have when nobody says.
const ZSTD_LEVEL: i32 = 3;
const GZIP_LEVEL: u32 = 6;

/// How a file is compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// As `gzip` does.
    Gzip,
    /// As `zstd` does.
    Zstd,
}

impl Compression {
    /// What the end of a file's name says.
    pub fn of_name(path: &Path) -> Self {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("gz") => Self::Gzip,
            Some("zst") => Self::Zstd,
            _ => Self::None,
        }
    }
}

/// Where an export goes.
pub enum Destination {
    /// Into a new file, which only its owner may read.
    File {
        /// Its path.
        path: PathBuf,
        /// How it is compressed.
        compression: Compression,
        /// Whether it may take the place of one that is there.
        force: bool,
    },
    /// Into a stream, as it is.
    Stream(Box<dyn Write + Send>),
}

impl fmt::Debug for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, .. } => write!(f, "file {}", path.display()),
            Self::Stream(_) => f.write_str("stream"),
        }
    }
}

/// An export on its way.
pub(super) struct Output {
    encoder: Option<Encoder>,
    /// The unfinished file and the name that it gets, and whether that may be taken.
    name: Option<(PathBuf, PathBuf, bool)>,
}

enum Encoder {
    Plain(BufWriter<Counted>),
    Gzip(Box<GzEncoder<BufWriter<Counted>>>),
    Zstd(Box<zstd::Encoder<'static, BufWriter<Counted>>>),
}

/// Counts what is written.
struct Counted {
    to: Target,
    bytes: u64,
}

enum Target {
    File(File),
    Stream(Box<dyn Write + Send>),
}

impl Output {
    /// Opens it. A file that is there is refused before anything is read.
    pub(super) fn begin(destination: Destination) -> Result<Self, LogicalError> {
        let (to, name, compression) = match destination {
            Destination::Stream(stream) => (Target::Stream(stream), None, Compression::None),
            Destination::File { path, compression, force } => {
                if !force && path.symlink_metadata().is_ok() {
                    return Err(LogicalError::Exists { path });
                }
                let mut part = path.clone().into_os_string();
                part.push(".part");
                let part = PathBuf::from(part);
                let file = open_part(&part)?;
                (Target::File(file), Some((part, path, force)), compression)
            }
        };
        let to = BufWriter::with_capacity(BUFFER, Counted { to, bytes: 0 });
        let encoder = match compression {
            Compression::None => Encoder::Plain(to),
            Compression::Gzip => {
                Encoder::Gzip(Box::new(GzEncoder::new(to, flate2::Compression::new(GZIP_LEVEL))))
            }
            Compression::Zstd => {
                let made = zstd::Encoder::new(to, ZSTD_LEVEL);
                Encoder::Zstd(Box::new(made.map_err(failed("begin to compress the export"))?))
            }
        };
        Ok(Self { encoder: Some(encoder), name })
    }

    /// Takes all that comes.
    pub(super) fn pour(&mut self, from: &mut dyn Read) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER];
        loop {
            match from.read(&mut buffer)? {
                0 => return Ok(()),
                length => self.write_all(&buffer[..length])?,
            }
        }
    }

    /// Ends it; how many bytes were written. A file has its name from here on.
    pub(super) fn finish(mut self) -> Result<u64, LogicalError> {
        let ended = match self.encoder.take().expect("it is taken here only") {
            Encoder::Plain(to) => Ok(to),
            Encoder::Gzip(encoder) => encoder.finish(),
            Encoder::Zstd(encoder) => encoder.finish(),
        };
        let mut counted = ended
            .and_then(|to| to.into_inner().map_err(io::IntoInnerError::into_error))
            .map_err(failed("write the export"))?;
        counted.flush().map_err(failed("write the export"))?;
        let Some((part, path, force)) = &self.name else { return Ok(counted.bytes) };
        if let Target::File(file) = &counted.to {
            file.sync_all().map_err(failed("make the export durable"))?;
        }
        failpoint::reach("export.durable");
        rename(part, path, *force)?;
        failpoint::reach("export.named");
        self.name = None;
        Ok(counted.bytes)
    }
}

impl Drop for Output {
    /// What is not whole leaves nothing behind.
    fn drop(&mut self) {
        if let Some((part, ..)) = &self.name {
            let _ = fs::remove_file(part);
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.encoder.as_mut().expect("it is not finished") {
            Encoder::Plain(to) => to.write(bytes),
            Encoder::Gzip(to) => to.write(bytes),
            Encoder::Zstd(to) => to.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = match &mut self.to {
            Target::File(file) => file.write(bytes),
            Target::Stream(stream) => stream.write(bytes),
        }?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.to {
            Target::File(file) => file.flush(),
            Target::Stream(stream) => stream.flush(),
        }
    }
}

/// Opens the unfinished file: a new one, or one that a killed export has left.
fn open_part(part: &Path) -> Result<File, LogicalError> {
    loop {
        let opened = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(part);
        let file = opened.map_err(failed("make the file of the export"))?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|error| {
            failed(if error == Errno::WOULDBLOCK {
                "wait for another export that writes the same file"
            } else {
                "lock the file of the export"
            })(error.into())
        })?;
        let own = file.metadata().map_err(failed("look at the file of the export"))?;
        // Another export may have given the file its name, or removed it, before the lock was ours.
        let is_ours = |there: fs::Metadata| (there.dev(), there.ino()) == (own.dev(), own.ino());
        if part.metadata().is_ok_and(is_ours) {
            file.set_len(0).map_err(failed("make the file of the export"))?;
            return Ok(file);
        }
    }
}

/// Gives the file its name, durably.
fn rename(part: &Path, path: &Path, force: bool) -> Result<(), LogicalError> {
    let flags = if force { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
    let renamed = match renameat_with(rustix::fs::CWD, part, rustix::fs::CWD, path, flags) {
        // Not every filesystem knows how; then what was seen at the beginning has to do.
        Err(Errno::INVAL | Errno::NOSYS) if path.symlink_metadata().is_err() => fs::rename(part, path),
        Err(Errno::EXIST | Errno::INVAL | Errno::NOSYS) => {
            return Err(LogicalError::Exists { path: path.to_owned() });
        }
        other => other.map_err(io::Error::from),
    };
    renamed.map_err(failed("give the export its name"))?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = File::open(folder.unwrap_or(Path::new(".")));
    folder.and_then(|folder| folder.sync_all()).map_err(failed("make the export's name durable"))
}

fn failed(action: &'static str) -> impl FnOnce(io::Error) -> LogicalError {
    move |source| LogicalError::Export { action, source }
}
