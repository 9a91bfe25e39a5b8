//! Choosing the backup and refusing what cannot be done, before anything is written.

use std::collections::HashSet;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use pg::recovery::RecoveryTarget;
use pg::{Lsn, Major};
use repository::Repository;
use repository::manifest::Manifest;

use super::directory::{DirectoryState, inspect, unarchived};
use super::error::RestoreError;
use super::{PlannedTablespace, RestorePlan, RestoreRequest};
use crate::reachable::{ArchiveState, Window, window};

/// Finds the backup for the target and checks everything that can be checked without writing.
pub async fn plan(repository: Arc<Repository>, request: RestoreRequest) -> Result<RestorePlan, RestoreError> {
    let state = ArchiveState::read(&repository, &request.cluster).await?;
    let (manifest, window) = choose(&repository, &request, &state).await?;
    let server = manifest.server();
    let major = Major::from_server_version_num(server.version_num);
    if !major.is_supported() {
        return Err(RestoreError::UnknownMajor { version_num: server.version_num });
    }
    let resumed = check_target_directory(&request, &request.into, &manifest)?;
    let tablespaces = place_tablespaces(&request, &manifest, resumed)?;
    let owner = find_owner(&request, &server.owner)?;
    let totals = manifest.totals();
    if !resumed && !request.delta {
        check_space(&request.into, &tablespaces, totals.bytes)?;
    }
    Ok(RestorePlan {
        backup: manifest.id.clone(),
        reuse: resumed || request.delta,
        resumed,
        bytes: totals.bytes,
        files: totals.files,
        packs: manifest.packs.len() as u64,
        fetch_bytes: manifest.packs.iter().map(|pack| pack.size).sum(),
        major,
        window,
        tablespaces,
        owner,
        manifest,
        request,
        repository,
    })
}

async fn choose(
    repository: &Repository,
    request: &RestoreRequest,
    state: &ArchiveState,
) -> Result<(Manifest, Window), RestoreError> {
    if let Some(id) = &request.backup {
        let manifest = named_backup(repository, request, id).await?;
        if manifest.is_logical() {
            return Err(RestoreError::Logical { id: id.clone() });
        }
        let found = window(repository, &request.cluster, state, &manifest, request.timeline).await?;
        if is_before_end(&request.target, &found) {
            let end = (found.from.lsn, found.from.time);
            return Err(RestoreError::BackupTooLate { id: id.clone(), target: request.target.clone(), end });
        }
        check_reaches(&manifest, &request.target, &found)?;
        return Ok((manifest, found));
    }
    let mut earliest = None;
    let mut refused = None;
    let mut backups = repository.backups(&request.cluster).await?;
    if backups.is_empty() {
        return Err(RestoreError::NoBackup { cluster: request.cluster.to_string() });
    }
    while let Some(backup) = backups.pop() {
        let manifest = match backup.manifest {
            Ok(manifest) => manifest,
            Err(source) => {
                refused.get_or_insert(RestoreError::DamagedManifest { id: backup.id, source });
                continue;
            }
        };
        if manifest.is_logical() {
            return Err(RestoreError::Logical { id: manifest.id });
        }
        let found = match window(repository, &request.cluster, state, &manifest, request.timeline).await {
            Ok(found) => found,
            Err(error) => {
                refused.get_or_insert(error.into());
                continue;
            }
        };
        if is_before_end(&request.target, &found) {
            earliest = Some((found.from.lsn, found.from.time));
            continue;
        }
        match check_reaches(&manifest, &request.target, &found) {
            Ok(()) => return Ok((manifest, found)),
            Err(error) => drop(refused.get_or_insert(error)),
        }
    }
    Err(refused.unwrap_or(RestoreError::TargetTooEarly { target: request.target.clone(), earliest }))
}

async fn named_backup(
    repository: &Repository,
    request: &RestoreRequest,
    id: &str,
) -> Result<Manifest, RestoreError> {
    let unknown = || RestoreError::UnknownBackup { id: id.to_owned() };
    if !repository.backup_ids(&request.cluster).await?.iter().any(|known| known == id) {
        return Err(unknown());
    }
    repository
        .manifest(&request.cluster, id)
        .await
        .map_err(|source| RestoreError::DamagedManifest { id: id.to_owned(), source })
}

/// True if the target lies before the point where the backup becomes consistent.
fn is_before_end(target: &RecoveryTarget, window: &Window) -> bool {
    match target {
        RecoveryTarget::Time(moment) => window.from.time.is_none_or(|end| *moment < end),
        RecoveryTarget::Lsn(lsn) => *lsn < window.from.lsn,
        _ => false,
    }
}

/// Refuses a target that replay cannot reach. A time needs a commit at or after it, for otherwise PostgreSQL ends with
/// "recovery ended before configured recovery target was reached". Whether a transaction or a restore point exists shows
/// only in replay.
fn check_reaches(manifest: &Manifest, target: &RecoveryTarget, window: &Window) -> Result<(), RestoreError> {
    let hole = window.holes.first().map(ToString::to_string);
    let Some(to) = window.to else {
        let what = hole.unwrap_or_else(|| format!("everything after {}", window.from.lsn));
        return Err(RestoreError::BackupWalMissing { id: manifest.id.clone(), what });
    };
    let reached = match target {
        RecoveryTarget::Time(moment) => to.time.is_some_and(|last| last >= *moment),
        RecoveryTarget::Lsn(lsn) => *lsn <= to.lsn,
        // "Latest" must not quietly mean "as far as the first hole".
        RecoveryTarget::Latest => hole.is_none(),
        RecoveryTarget::Immediate | RecoveryTarget::Xid(_) | RecoveryTarget::Name(_) => true,
    };
    let latest = (to.lsn, to.time.or(window.from.time));
    if reached { Ok(()) } else { Err(RestoreError::TargetTooLate { target: target.clone(), latest, hole }) }
}

/// Returns true if the directory holds the rest of an interrupted restore of the same backup.
fn check_target_directory(
    request: &RestoreRequest,
    path: &Path,
    manifest: &Manifest,
) -> Result<bool, RestoreError> {
    let not_ours = |what: String| Err(RestoreError::NotOurs { path: path.to_owned(), what });
    match inspect(path)? {
        DirectoryState::Absent | DirectoryState::Empty => Ok(false),
        DirectoryState::Running { pid } => {
            not_ours(format!("a PostgreSQL server (process {pid}) is running there"))
        }
        DirectoryState::Incomplete { backup } if backup == manifest.id => Ok(true),
        DirectoryState::Incomplete { .. } if request.delta => Ok(false),
        DirectoryState::Incomplete { backup } => {
            not_ours(format!("it holds an unfinished restore of backup {backup}; --delta goes over it"))
        }
        DirectoryState::Cluster { .. } | DirectoryState::Other if !request.delta => {
            Err(RestoreError::NotEmpty { path: path.to_owned() })
        }
        DirectoryState::Cluster { system_identifier }
            if system_identifier == manifest.server().system_identifier =>
        {
            // Old WAL is removed, and these commits may be nowhere else.
            match unarchived(path) {
                0 => Ok(false),
                count => not_ours(format!(
                    "its pg_wal holds {count} segments that were never archived; archive them with `pgkeep wal push`, or \
                     remove pg_wal/archive_status/*.ready to give them up"
                )),
            }
        }
        DirectoryState::Cluster { system_identifier } => {
            not_ours(format!("it holds another cluster, with system identifier {system_identifier}"))
        }
        DirectoryState::Other => not_ours("it holds something that is no PostgreSQL cluster".into()),
    }
}

fn place_tablespaces(
    request: &RestoreRequest,
    manifest: &Manifest,
    resumed: bool,
) -> Result<Vec<PlannedTablespace>, RestoreError> {
    let spaces = manifest.server().tablespaces;
    let location = |bytes: &[u8]| PathBuf::from(std::ffi::OsString::from_vec(bytes.to_vec()));
    let names = |text: &str, space: &repository::manifest::TablespaceRecord| {
        text == space.oid.to_string() || text.as_bytes() == space.location
    };
    for (text, _) in &request.tablespace_map {
        if !spaces.iter().any(|space| names(text, space)) {
            return Err(RestoreError::UnknownTablespace { text: text.clone() });
        }
    }
    let mut taken = HashSet::new();
    let mut placed = Vec::new();
    for space in &spaces {
        let mapped =
            request.tablespace_map.iter().find(|(text, _)| names(text, space)).map(|(_, path)| path.clone());
        let below = request.tablespaces_under.as_ref().map(|folder| folder.join(space.oid.to_string()));
        let from = location(&space.location);
        let to = mapped.or(below).unwrap_or_else(|| from.clone());
        let refuse = |what: &str| {
            Err(RestoreError::Tablespace { oid: space.oid, path: to.clone(), what: what.to_owned() })
        };
        if !to.is_absolute() {
            return refuse("the path is not absolute");
        }
        if to.starts_with(&request.into) || request.into.starts_with(&to) {
            return refuse("it lies inside the data directory, or the data directory in it");
        }
        if !taken.insert(to.clone()) {
            return refuse("another tablespace goes there");
        }
        match inspect(&to)? {
            DirectoryState::Absent | DirectoryState::Empty => {}
            DirectoryState::Incomplete { backup } if backup == manifest.id || request.delta => {}
            // It is the target's own if the target's link says so; another cluster may well live at the old place.
            _ if (request.delta || resumed) && is_linked(&request.into, space.oid, &to) => {}
            _ => return refuse("it is not empty; map the tablespace to another directory"),
        }
        placed.push(PlannedTablespace { oid: space.oid, from, to });
    }
    Ok(placed)
}

fn find_owner(request: &RestoreRequest, recorded: &str) -> Result<Option<(u32, u32)>, RestoreError> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let owner = request.owner.clone().unwrap_or_else(|| recorded.to_owned());
    let ids = crate::owner::ids_of(&owner).filter(|ids| ids.0 != 0);
    ids.map(Some).ok_or(RestoreError::UnknownOwner { owner })
}

/// True if the link of a tablespace in the target leads to this place.
fn is_linked(into: &Path, oid: u32, to: &Path) -> bool {
    std::fs::read_link(into.join(format!("pg_tblspc/{oid}"))).is_ok_and(|target| target == to)
}

/// Refuses what cannot fit. How much goes to which filesystem is not known before the file list is read, so the room of
/// all of them counts.
fn check_space(into: &Path, spaces: &[PlannedTablespace], needed: u64) -> Result<(), RestoreError> {
    use std::os::unix::fs::MetadataExt as _;
    fn existing(path: &Path) -> &Path {
        path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"))
    }
    let (mut free, mut counted) = (0u64, HashSet::new());
    for path in std::iter::once(into).chain(spaces.iter().map(|space| space.to.as_path())).map(existing) {
        let device = path.metadata().map(|metadata| metadata.dev());
        let (Ok(stat), Ok(device)) = (rustix::fs::statvfs(path), device) else { return Ok(()) };
        if counted.insert(device) {
            free = free.saturating_add(stat.f_bavail.saturating_mul(stat.f_frsize));
        }
    }
    let existing = existing(into);
    if free < needed {
        Err(RestoreError::NoSpace { path: existing.to_owned(), free, needed })
    } else {
        Ok(())
    }
}

/// What can be reached with the newest backup, for a hint after a refusal.
pub fn describe_moment(moment: (Lsn, Option<Timestamp>)) -> String {
    match moment {
        (lsn, Some(time)) => format!("{time} (LSN {lsn})"),
        (lsn, None) => format!("LSN {lsn}"),
    }
}
