//! The scene of the scenarios: a throwaway cluster, `cp` as its archiver, a repository in memory, and the judges of a
//! restore. A scenario of `tests/*.rs` is named by its id in the list of what can go wrong.
#![allow(dead_code)] // each file of scenarios uses a part of it

mod every_kind;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use operations::backup::{BackupError, BackupRequest, backup};
use operations::monitor::Silent;
use operations::probe::Mode;
use operations::restore::{RestoreRequest, execute, plan};
use pg::recovery::{RecoveryTarget, TargetAction, TargetTimeline};
use pg::wal::{FileName, SegmentSize};
use repository::archive::WalInfo;
use repository::description::Description;
use repository::keys::{Slot, SlotKey, SlotKind};
use repository::manifest::Manifest;
use repository::secrets::{Access, Keyring, RepositoryId};
use repository::{ClusterName, Repository};
use server::throwaway::{Binaries, RunAs, Throwaway, ThrowawayBuilder};
use storage::{Memory, Storage};

pub struct Scene {
    pub server: Throwaway,
    pub folder: tempfile::TempDir,
    pub memory: Arc<Memory>,
    pub keyring: Keyring,
    /// What opens the two slots.
    pub keys: [SlotKey; 2],
    pub description: Description,
    /// Full access, with this host's cache in `local()`.
    pub repository: Arc<Repository>,
    pub cluster: ClusterName,
    /// How the files are read.
    pub mode: Mode,
    carried: Mutex<HashSet<String>>,
}

impl Scene {
    pub async fn new() -> Self {
        Self::with(|builder| builder).await
    }

    /// A scene whose server is set as `configure` wants it.
    pub async fn with(configure: impl FnOnce(ThrowawayBuilder) -> ThrowawayBuilder) -> Self {
        Self::of(&binaries(), configure).await
    }

    /// The same with another PostgreSQL.
    pub async fn of(
        binaries: &Binaries,
        configure: impl FnOnce(ThrowawayBuilder) -> ThrowawayBuilder,
    ) -> Self {
        let folder = open_folder();
        let wal = folder.path().join("wal");
        std::fs::create_dir(&wal).unwrap();
        RunAs::unprivileged().unwrap().give(&wal).unwrap();
        let builder = Throwaway::builder(binaries)
            .setting("fsync", "off")
            .setting("archive_mode", "on")
            .setting("archive_command", &format!("cp %p {0}/%f.tmp && mv {0}/%f.tmp {0}/%f", wal.display()));
        let server = configure(builder).start().unwrap();
        let memory = Arc::new(Memory::default());
        let keyring = Keyring::generate(RepositoryId::random());
        let now = jiff::Timestamp::now();
        let description = Description::new(&keyring.writer, now, true);
        let (first, key) = Slot::for_key(&keyring, SlotKind::KeyFile, "host", now);
        let (second, recovery) = Slot::for_key(&keyring, SlotKind::Recovery, "paper", now);
        let local = folder.path().join("local");
        let repository = Repository::create(
            memory.clone(),
            keyring.clone(),
            &[first, second],
            description.clone(),
            Some(&local),
        )
        .await
        .unwrap();
        Self {
            folder,
            server,
            memory,
            keyring,
            keys: [key, recovery],
            description,
            repository: Arc::new(repository),
            cluster: ClusterName::new("main").unwrap(),
            mode: Mode::Local,
            carried: Mutex::default(),
        }
    }

    /// This host's cache.
    pub fn local(&self) -> PathBuf {
        self.folder.path().join("local")
    }

    /// The repository as somebody else opens it.
    pub fn opened(&self, storage: Arc<dyn Storage>, access: Access, local: Option<&Path>) -> Arc<Repository> {
        Arc::new(Repository::assemble(storage, self.description.clone(), access, local))
    }

    /// The repository opened with everything, on another storage and without a cache.
    pub fn readable(&self, storage: Arc<dyn Storage>) -> Arc<Repository> {
        self.opened(storage, Access::Full(self.keyring.clone()), None)
    }

    /// A scene whose backups read the files in this way.
    pub async fn reading(mode: Mode) -> Self {
        Self { mode, ..Self::new().await }
    }

    pub fn sql(&self, script: &str) {
        self.server.connect().unwrap().run_script(script).unwrap();
    }

    /// Carries what `cp` archived into the repository, once; in order, as an archiver does: no interruption leaves a hole.
    pub async fn carry(&self) {
        let folder = self.folder.path().join("wal");
        let names = || -> BTreeSet<_> {
            let entries = std::fs::read_dir(&folder).unwrap();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        };
        // Whatever came before the last of a first look is in a second one.
        let Some(last) = names().pop_last() else { return };
        for name in names().into_iter().take_while(|name| *name <= last) {
            let Ok(file) = name.parse::<FileName>() else { continue };
            if self.carried.lock().unwrap().contains(&name) {
                continue;
            }
            let content = std::fs::read(folder.join(&name)).unwrap();
            let span = match &file {
                FileName::Segment(segment) => {
                    let size = SegmentSize::new(content.len() as u32).unwrap();
                    pg::wal::records::commit_span(&content, segment, size)
                }
                _ => None,
            };
            let time = |time: pg::PgTimestamp| time.to_timestamp().map(|time| time.as_microsecond());
            let info = WalInfo {
                name: name.clone(),
                length: content.len() as u64,
                stored_us: 0,
                first_commit_us: span.as_ref().and_then(|span| time(span.first)),
                last_commit_us: span.as_ref().and_then(|span| time(span.last)),
            };
            self.repository.store_wal(&self.cluster, &file, &content, &info, 1).await.unwrap();
            self.carried.lock().unwrap().insert(name);
        }
    }

    pub async fn carry_for_ever(&self) {
        loop {
            self.carry().await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends the current segment and carries all WAL that there is.
    pub async fn flush_wal(&self) {
        let connection = self.server.connect().unwrap();
        let row =
            connection.query_one("select pg_walfile_name(pg_switch_wal() - 1), pg_sleep(0.1)", &[]).unwrap();
        let last: String = row.first().unwrap().required(0).unwrap().to_owned();
        for _ in 0..500 {
            self.carry().await;
            if self.carried.lock().unwrap().contains(&last) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{last} was not archived: {}", self.server.log());
    }

    pub fn backup_request(&self, full: bool) -> BackupRequest {
        BackupRequest {
            cluster: self.cluster.clone(),
            mode: self.mode,
            label: String::new(),
            full,
            reread: false,
            changed_by: Default::default(),
            spread_checkpoint: false,
            workers: 2,
            level: 1,
            wal_timeout: Duration::from_secs(60),
            primary: None,
        }
    }

    pub async fn backup(&self, full: bool) -> Manifest {
        self.backup_to(self.repository.clone(), full).await.unwrap()
    }

    /// A backup into a repository that may be opened in another way than the scene's.
    pub async fn backup_to(&self, repository: Arc<Repository>, full: bool) -> Result<Manifest, BackupError> {
        let request = self.backup_request(full);
        let taking = backup(self.server.connect().unwrap(), repository, &request, Arc::new(Silent));
        tokio::select! {
            report = taking => report.map(|report| report.manifest),
            () = self.carry_for_ever() => unreachable!("it carries for ever"),
        }
    }

    pub fn restore_request(&self, into: &Path) -> RestoreRequest {
        RestoreRequest {
            cluster: self.cluster.clone(),
            backup: None,
            into: into.to_owned(),
            target: RecoveryTarget::Latest,
            inclusive: true,
            timeline: TargetTimeline::Latest,
            action: TargetAction::Promote,
            tablespace_map: Vec::new(),
            tablespaces_under: None,
            delta: false,
            restore_command: format!("cp {}/%f %p", self.folder.path().join("wal").display()),
            keep_archiving: false,
            // What came over SQL does not know its owner, whom root must name.
            owner: self
                .server
                .run_as()
                .ids()
                .filter(|_| self.mode == Mode::Sql)
                .map(|(uid, _)| uid.to_string()),
            workers: 2,
        }
    }

    /// Restores to the end of the WAL, lets PostgreSQL's own program judge, starts a server on it and waits for its
    /// promotion.
    pub async fn restore_latest(&self) -> Throwaway {
        let into = self.folder.path().join("restored");
        self.restore(self.restore_request(&into)).await;
        verify_backup(&into);
        start(&into)
    }

    pub async fn restore(&self, request: RestoreRequest) {
        let restore = plan(self.repository.clone(), request).await.unwrap();
        execute(restore, Arc::new(Silent)).await.unwrap();
    }
}

/// A new folder in memory where that is possible, open to the user that servers run as.
pub fn open_folder() -> tempfile::TempDir {
    let fast = Path::new("/dev/shm");
    let folder = if fast.is_dir() { tempfile::tempdir_in(fast) } else { tempfile::tempdir() }.unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

/// Starts a server on a restored directory and waits until it is promoted.
pub fn start(into: &Path) -> Throwaway {
    let server = Throwaway::builder(&binaries()).start_existing(into).unwrap();
    for _ in 0..600 {
        if number(&server, "select pg_is_in_recovery()::int") == 0 {
            return server;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("still in recovery: {}", server.log());
}

/// The one number that a query gives.
pub fn number(server: &Throwaway, sql: &str) -> i64 {
    let rows = server.connect().unwrap().query_one(sql, &[]).unwrap();
    rows.first().unwrap().parse(0).unwrap()
}

/// The one text that a query gives.
pub fn text(server: &Throwaway, sql: &str) -> String {
    let rows = server.connect().unwrap().query_one(sql, &[]).unwrap();
    rows.first().unwrap().required(0).unwrap().to_owned()
}

pub fn verify_backup(into: &Path) {
    run(binaries().command("pg_verifybackup").arg("-n").arg(into));
}

/// Runs a program that must succeed.
/// The server of these tests: 15, with its contrib modules; the majors are `cli`'s matter.
pub fn binaries() -> Binaries {
    Binaries::require(Some(pg::Major::new(15))).unwrap()
}

pub fn run(command: &mut std::process::Command) {
    let output = command.output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {out}{err}");
}

/// An error and its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(&format!(": {cause}"));
        next = cause.source();
    }
    text
}

/// Every path below a directory with its mode, and the digest of its content or where the link points.
pub fn tree(root: &Path) -> BTreeMap<PathBuf, (u32, String)> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let metadata = std::fs::symlink_metadata(&path).unwrap();
            let content = if metadata.is_dir() {
                open.push(path.clone());
                String::new()
            } else if metadata.is_symlink() {
                std::fs::read_link(&path).unwrap().display().to_string()
            } else {
                blake3::hash(&std::fs::read(&path).unwrap()).to_string()
            };
            let name = path.strip_prefix(root).unwrap().to_owned();
            found.insert(name, (metadata.permissions().mode() & 0o7777, content));
        }
    }
    found
}

/// Reads every entry of a backup and every chunk of its packs, with all checks.
pub async fn read_everything(repository: &Repository, manifest: &Manifest) {
    for pack in &manifest.packs {
        let id = pack.id().unwrap();
        let open = repository.open_pack(id, Some(pack.tail_len)).await.unwrap();
        for chunk in 0..open.table.chunks.len() as u32 {
            repository.read_chunk(id, chunk).await.unwrap();
        }
    }
    let (mut entries, mut files) = (repository.entries(manifest), 0);
    while let Some(entry) = entries.next().await.unwrap() {
        files += u64::from(entry.kind == repository::content::EntryKind::File);
        for index in 0..entry.size.div_ceil(repository::content::LEAF_SPAN) as u32 {
            let extents = repository.span_extents(&entry, index).await.unwrap();
            repository.pages(&extents, &Default::default()).await.unwrap();
        }
    }
    assert_eq!(files, manifest.totals().files);
}
