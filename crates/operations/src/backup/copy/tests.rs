use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Instant;

use repository::content::{Extent, LEAF_SPAN};
use repository::description::Description;
use repository::secrets::{Keyring, RepositoryId};
use repository::{ClusterName, PackId, Repository};
use server::files::{DirectoryFacts, FileMetadata, FilesError, OpenFile, Range, Reader, Warning};

use super::super::worker::SpanDone;
use super::*;
use crate::monitor::Silent;

type Act<'s> = Box<dyn Fn(&[u8]) + Send + Sync + 's>;

/// Files of zeros and directories in the order given; `read` is called before each file is opened.
struct Source<'s> {
    files: Vec<(&'static str, FileKind, u64)>,
    directories: usize,
    listed: &'s Mutex<(usize, Instant)>,
    read: Act<'s>,
}

impl std::fmt::Debug for Source<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Source")
    }
}

#[derive(Debug)]
struct Zeros;

impl OpenFile for Zeros {
    fn read_at(&self, _: u64, buffer: &mut [u8]) -> Result<usize, FilesError> {
        buffer.fill(0);
        Ok(buffer.len())
    }

    fn metadata(&self) -> Result<FileMetadata, FilesError> {
        unreachable!("nobody asks")
    }
}

fn found(path: &str, kind: FileKind, size: u64) -> FoundFile {
    let path = path.as_bytes().to_vec();
    FoundFile { path, kind, size, mode: 0o600, uid: 0, gid: 0, mtime_ns: 0, ctime_ns: 0, inode: 1, device: 1 }
}

impl FileSource for Source<'_> {
    fn walk(&self, visit: &mut dyn FnMut(FoundFile) -> ControlFlow<()>) -> Result<Vec<Warning>, FilesError> {
        let files = self.files.iter().map(|(path, kind, size)| found(path, kind.clone(), *size));
        let directories = (0..self.directories).map(|at| found(&format!("z{at:07}"), FileKind::Directory, 0));
        for file in files.chain(directories) {
            if visit(file).is_break() {
                break;
            }
            let mut listed = self.listed.lock().unwrap();
            *listed = (listed.0 + 1, Instant::now());
        }
        Ok(Vec::new())
    }

    fn reader(&self) -> Box<dyn Reader + '_> {
        Box::new(ZeroReader(self))
    }

    fn read_control_file(&self) -> Result<(Vec<u8>, pg::control::ControlFile), FilesError> {
        unreachable!("nobody asks")
    }

    fn read_outside(&self, _: &std::path::Path, _: usize) -> Result<Vec<u8>, FilesError> {
        unreachable!("nobody asks")
    }

    fn directory(&self) -> DirectoryFacts {
        unreachable!("nobody asks")
    }

    fn clock_ns(&self) -> Result<i64, FilesError> {
        unreachable!("nobody asks")
    }
}

#[derive(Debug)]
struct ZeroReader<'s>(&'s Source<'s>);

impl Reader for ZeroReader<'_> {
    fn announce(&mut self, _: &[Range<'_>]) -> Result<(), FilesError> {
        Ok(())
    }

    fn open(&mut self, path: &[u8]) -> Result<Box<dyn OpenFile>, FilesError> {
        (self.0.read)(path);
        Ok(Box::new(Zeros))
    }
}

fn context() -> Context {
    let keyring = Keyring::generate(RepositoryId::random());
    let description = Description::new(&keyring.writer, jiff::Timestamp::now(), true);
    let access = repository::secrets::Access::Full(keyring);
    let storage = Arc::new(storage::Memory::default());
    Context {
        repository: Arc::new(Repository::assemble(storage, description, access, None)),
        cluster: ClusterName::new("main").unwrap(),
        workers: 2,
        level: 1,
        verify_checksums: false,
        segment_blocks: 131_072,
        start_lsn: 1,
        tail_lens: HashMap::new(),
        references: HashMap::new(),
        partial_time: Duration::from_secs(60),
        started_ns: 0,
        summary: None,
        first_partial: 0,
        stop: AtomicBool::new(false),
    }
}

fn copy(
    context: &Context,
    source: &Source<'_>,
    runtime: &tokio::runtime::Runtime,
) -> Result<Copied, BackupError> {
    let uploader = Uploader::new(context.repository.clone(), runtime.handle().clone());
    let packs = EarlierPacks { references: HashMap::new(), lost: Default::default() };
    copy_files(context, source, &[], &packs, &[], Manifest::default(), &uploader, runtime.handle(), &Silent)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap()
}

#[test]
fn a_copy_stopped_from_outside_is_an_error_and_no_panic() {
    let (context, runtime) = (context(), runtime());
    let read = |path: &[u8]| {
        if path == b"b" {
            context.stop.store(true, Ordering::Release);
        }
    };
    let files = ["a", "b", "c", "d", "e", "f", "g"].map(|path| (path, FileKind::File, LEAF_SPAN)).to_vec();
    let listed = Mutex::new((0, Instant::now()));
    let source = Source { files, directories: 0, listed: &listed, read: Box::new(read) };
    assert!(matches!(copy(&context, &source, &runtime), Err(BackupError::Stopped)));
}

#[test]
fn what_is_done_ahead_of_a_slow_file_is_bounded() {
    let (context, runtime) = (context(), runtime());
    let listed = Mutex::new((0, Instant::now()));
    // The first file is opened only when the listing has stood still for a while.
    let counted = Mutex::new(0);
    let read = |_: &[u8]| {
        loop {
            let (count, last) = *listed.lock().unwrap();
            if count > 0 && last.elapsed() > Duration::from_millis(300) {
                *counted.lock().unwrap() = count;
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    let files = vec![("a", FileKind::File, LEAF_SPAN)];
    let source = Source { files, directories: 100_000, listed: &listed, read: Box::new(read) };
    copy(&context, &source, &runtime).unwrap();
    let counted = *counted.lock().unwrap();
    assert!(counted < 30_000, "{counted} entries were listed");
}

#[test]
fn a_file_that_goes_away_between_its_spans_ends_there() {
    let (context, runtime) = (context(), runtime());
    let uploader = Uploader::new(context.repository.clone(), runtime.handle().clone());
    let collected = |vanished: [bool; 3]| {
        let mut collector =
            Collector::new(&context, uploader.clone(), runtime.handle().clone(), &[], Manifest::default());
        let job = Arc::new(FileJob {
            found: found("base/1/1259", FileKind::File, 3 * LEAF_SPAN),
            candidates: Vec::new(),
            parent: None,
        });
        for (index, vanished) in vanished.into_iter().enumerate() {
            let extent = Extent { pack: PackId([index as u8; 16]), chunk: 0, offset: 0, length: LEAF_SPAN };
            let mut done = SpanDone::new(&job, index as u32);
            done.vanished = vanished;
            if !vanished {
                (done.extents, done.length) = (vec![extent], LEAF_SPAN);
            }
            collector.take(index as u64, Outcome::Read(vec![done])).unwrap();
        }
        let collected = collector.finish().unwrap();
        (collected.totals.files, collected.totals.bytes)
    };
    assert_eq!(collected([false; 3]), (1, 3 * LEAF_SPAN));
    // The third span would stand where the second belongs.
    assert_eq!(collected([false, true, false]), (1, LEAF_SPAN));
    assert_eq!(collected([true, false, false]), (0, 0));
    assert_eq!(collected([true, true, true]), (0, 0));
}
