//! The end of a restore: recovery settings, label, PostgreSQL's own manifest; the control file last.

use std::io::{self, Write as _};

use jiff::Timestamp;
use pg::manifest::{BackupManifestWriter, WalRange};
use pg::recovery::{RECOVERY_SETTINGS, RecoveryTarget, TargetTimeline};
use pg::{Lsn, TimelineId, conf};
use repository::content::{Entry, EntryKind};
use tokio::runtime::Handle;

use super::directory::CONTROL_UNFINISHED;
use super::error::RestoreError;
use super::tree::Tree;
use super::{RestorePlan, Summary};
use crate::failpoint;

const AUTO_CONF: &str = "postgresql.auto.conf";
/// Below this the configuration is put that lay outside the data directory.
pub const OUTSIDE_CONFIG: &str = "pgkeep-config";

/// Path and content.
type SmallFile = (Vec<u8>, Vec<u8>);

/// Writes what makes the directory a cluster in recovery. After this it can be started.
pub(crate) fn finish(
    plan: &RestorePlan,
    tree: &Tree,
    handle: &Handle,
    summary: &mut Summary,
) -> Result<(), RestoreError> {
    write_settings(plan, tree)?;
    failpoint::reach("restore.settings");
    let label = &plan.manifest.backup_label;
    tree.put("backup_label", 0o600, label)?;
    // The target is reached by archive recovery, also with no target at all: then to the end of the WAL.
    tree.put("recovery.signal", 0o600, b"")?;
    let outside = write_outside_configuration(plan, tree, summary)?;
    failpoint::reach("restore.signal");
    let control = plan.manifest.whole_control_file();
    tree.put_with("backup_manifest", 0o600, |file| backup_manifest(plan, handle, &control, &outside, file))?;
    tree.put(CONTROL_UNFINISHED, 0o600, &control)?;
    tree.sync()?;
    failpoint::reach("restore.all-but-control");
    // Without its control file no server starts; from here on one does.
    let (from, to) = (tree.data_path().join(CONTROL_UNFINISHED), tree.data_path().join("global/pg_control"));
    std::fs::rename(&from, &to).map_err(RestoreError::disk("rename", from.clone()))?;
    let global = tree.data_path().join("global");
    std::fs::File::open(&global)
        .and_then(|folder| folder.sync_all())
        .map_err(RestoreError::disk("sync", global.clone()))?;
    failpoint::reach("restore.control");
    tree.unmark()
}

fn write_settings(plan: &RestorePlan, tree: &Tree) -> Result<(), RestoreError> {
    let path = tree.data_path().join(AUTO_CONF);
    let old = match std::fs::read(&path) {
        Ok(old) => old,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(RestoreError::disk("read", path)(error)),
    };
    let mut stale = RECOVERY_SETTINGS.to_vec();
    if !plan.request.keep_archiving {
        stale.push("archive_mode");
    }
    let mut text = conf::without_settings(&old, &stale);
    let request = &plan.request;
    // PostgreSQL's own "latest" takes the highest number, even where that timeline left the backup's past.
    let settings = pg::recovery::RecoverySettings {
        target: request.target.clone(),
        inclusive: request.inclusive,
        timeline: TargetTimeline::Id(plan.window.timeline),
        action: if request.target == RecoveryTarget::Latest {
            pg::recovery::TargetAction::Promote
        } else {
            request.action
        },
        restore_command: request.restore_command.clone(),
    };
    text.extend_from_slice(format!("# pgkeep restored backup {}\n", plan.backup).as_bytes());
    text.extend_from_slice(settings.auto_conf_lines(plan.major).as_bytes());
    if !request.keep_archiving {
        text.extend_from_slice(b"# A restored copy must not archive into the stream of the cluster that it came from.\narchive_mode = 'off'\n");
    }
    tree.put(AUTO_CONF, 0o600, &text)
}

/// Puts configuration that lay elsewhere beside the cluster; it is never written to where it was.
fn write_outside_configuration(
    plan: &RestorePlan,
    tree: &Tree,
    summary: &mut Summary,
) -> Result<Vec<SmallFile>, RestoreError> {
    let mut written = Vec::new();
    for file in &plan.manifest.config_files {
        let Some(name) = std::path::Path::new(&file.path).file_name() else { continue };
        if written.is_empty() {
            tree.make_directory(OUTSIDE_CONFIG.as_bytes(), 0o700)?;
        }
        let path = format!("{OUTSIDE_CONFIG}/{}", name.to_string_lossy());
        tree.put(&path, 0o600, &file.content)?;
        written.push((path.as_bytes().to_vec(), file.content.clone()));
    }
    if !written.is_empty() {
        summary.outside_configuration = Some(tree.data_path().join(OUTSIDE_CONFIG));
    }
    Ok(written)
}

/// PostgreSQL's `backup_manifest`, with the checksums of what was read when the backup was taken: `pg_verifybackup`
/// then judges backup and restore together. Of a file that was read only in part, beside WAL summaries, it judges the size.
fn backup_manifest(
    plan: &RestorePlan,
    handle: &Handle,
    control: &[u8],
    outside: &[SmallFile],
    file: &mut std::fs::File,
) -> Result<(), RestoreError> {
    let manifest = &plan.manifest;
    let failed = || RestoreError::disk("write", plan.request.into.join("backup_manifest"));
    let span = manifest.span();
    let stopped = Timestamp::from_microsecond(span.stop_us).unwrap_or_default();
    let mut writer =
        BackupManifestWriter::new(io::BufWriter::new(file), plan.major, manifest.server().system_identifier)
            .map_err(failed())?;
    let mut entries = plan.repository.entries(manifest);
    while let Some(entry) = handle.block_on(entries.next())? {
        if entry.kind == EntryKind::File {
            let modified = Timestamp::from_nanosecond(i128::from(entry.mtime_ns)).unwrap_or(stopped);
            writer.add_file(&entry.path, entry.size, modified, entry.known_crc32c()).map_err(failed())?;
        }
    }
    let ours = [(&b"backup_label"[..], &manifest.backup_label[..]), (b"global/pg_control", control)];
    let outside = outside.iter().map(|(path, content)| (&path[..], &content[..]));
    for (path, content) in ours.into_iter().chain(outside) {
        let crc = Some(crc32c::crc32c(content));
        writer.add_file(path, content.len() as u64, stopped, crc).map_err(failed())?;
    }
    let timeline = TimelineId::new(span.timeline);
    let (start, end) = (Lsn::new(span.start_lsn), Lsn::new(span.stop_lsn));
    let ranges: Vec<WalRange> = match (timeline, start, end) {
        (Some(timeline), Some(start), Some(end)) => vec![WalRange { timeline, start, end }],
        _ => Vec::new(),
    };
    writer.finish(&ranges).and_then(|mut out| out.flush()).map_err(failed())
}

/// The link of a tablespace points here.
pub(crate) fn link_target<'p>(plan: &'p RestorePlan, entry: &Entry) -> Option<&'p std::path::Path> {
    let oid = entry.tablespace_oid()?;
    plan.tablespaces.iter().find(|space| space.oid == oid).map(|space| space.to.as_path())
}

/// True for a file that a restore writes itself or never: with `standby.signal`, which somebody may have put beside a
/// running primary, the server would never be promoted.
pub(crate) fn is_written_last(path: &[u8]) -> bool {
    path == pg::datadir::CONTROL_FILE || path == b"backup_label" || path == b"standby.signal"
}
