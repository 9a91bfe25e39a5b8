//! Storing ahead what waits in `archive_status`, several files at once.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pg::wal::FileName;
use repository::archive::Stored;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Context;
use super::push::{PushError, push_file, ready_files};
use super::spool::{FileIdentity, Role, Spool};
use crate::failpoint;

/// How often a full spool is looked at again.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What a drainer did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Files that are now durable and noted.
    pub files: u64,
}

/// Stores every file that waits, oldest first, and leaves a note of each for [`super::push::run`] to answer from.
///
/// One drainer works for a server at a time; a second returns at once. It ends when nothing waits, when the spool stays
/// full because nobody asks, and at the first file that fails: that one is then pushed, and its error told, by the call
/// that PostgreSQL waits for. Wants a runtime with as many threads as workers, and is right on any.
pub async fn drain(context: &Context, wal_directory: &Path) -> Result<Drained, PushError> {
    let mut drained = Drained::default();
    let Some(spool) = Spool::open(context, wal_directory) else { return Ok(drained) };
    let Some(_lock) = spool.lock(Role::Drain).await else { return Ok(drained) };
    spool.sweep();
    loop {
        let waiting = waiting(&spool, wal_directory)?;
        if waiting.is_empty() {
            return Ok(drained);
        }
        let before = drained.files;
        let more = store_all(context, &spool, waiting, &mut drained).await?;
        // Without progress it would turn in circles, as when no note can be written.
        if !more || drained.files == before {
            return Ok(drained);
        }
    }
}

/// The files that wait and have no good note, in order. Notes of files that wait no longer are removed.
fn waiting(spool: &Spool, wal_directory: &Path) -> Result<Vec<(FileName, PathBuf)>, PushError> {
    let fail = |source| PushError::Read { path: wal_directory.join("archive_status"), source };
    let ready = ready_files(wal_directory).map_err(fail)?;
    let names: BTreeSet<String> = ready.iter().map(FileName::to_string).collect();
    for noted in spool.pushed() {
        if !names.contains(&noted) {
            spool.forget_pushed(&noted);
        }
    }
    let files = ready.into_iter().map(|name| (name, wal_directory.join(name.to_string())));
    Ok(files.filter(|(name, path)| !is_noted(spool, name, path)).collect())
}

fn is_noted(spool: &Spool, name: &FileName, path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| spool.is_pushed(name, &FileIdentity::from(&metadata)))
}

/// Stores the files, a few at a time; false when it ended early because the spool stayed full.
async fn store_all(
    context: &Context,
    spool: &Spool,
    waiting: Vec<(FileName, PathBuf)>,
    drained: &mut Drained,
) -> Result<bool, PushError> {
    let (mut running, mut room) = (JoinSet::new(), true);
    for (name, path) in waiting {
        let Ok(metadata) = fs::metadata(&path) else { continue };
        let at_once = context.limits.files_at_once(metadata.len());
        // One more than the cores have to do: the others wait for the disk.
        while running.len() > at_once {
            finish_one(spool, &mut running, drained).await?;
        }
        room = wait_for_room(context, spool, running.len()).await;
        if !room {
            break;
        }
        let context = context.clone();
        let threads = (context.limits.workers / at_once).max(1);
        running.spawn(async move { (name, push_file(&context, &path, &name, threads).await) });
    }
    while !running.is_empty() {
        finish_one(spool, &mut running, drained).await?;
    }
    Ok(room)
}

type Tried = (FileName, Result<(Stored, FileIdentity), PushError>);

async fn finish_one(
    spool: &Spool,
    running: &mut JoinSet<Tried>,
    drained: &mut Drained,
) -> Result<(), PushError> {
    let Some(finished) = running.join_next().await else { return Ok(()) };
    let (name, result) = finished.expect("a push does not panic, and none is cancelled");
    match result {
        Ok((_, file)) => {
            failpoint::reach("wal-drain.stored");
            drained.files += u64::from(spool.note_pushed(&name, file));
            failpoint::reach("wal-drain.noted");
        }
        // PostgreSQL has recycled or removed it since: it was archived by another way.
        Err(PushError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Waits until the spool has room for one more note; false if nobody takes any.
async fn wait_for_room(context: &Context, spool: &Spool, running: usize) -> bool {
    let mut used = spool.pushed().len();
    let mut since = Instant::now();
    while used + running >= context.limits.ahead {
        if since.elapsed() > context.limits.idle {
            return false;
        }
        tokio::time::sleep(LOOK_EVERY).await;
        let now = spool.pushed().len();
        if now < used {
            since = Instant::now();
        }
        used = now;
    }
    true
}

#[cfg(test)]
mod tests;
