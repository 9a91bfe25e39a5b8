//! Listing the files below a directory.

use super::{Inner, failed, is_absence};
use crate::error::Call;
use crate::{Children, Entry, ObjectName, StorageError};
use jiff::Timestamp;
use std::fs::{DirEntry, Metadata};
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// How the names of unpublished files begin. No object name has a part that begins with a dot.
pub(super) const TEMPORARY_PREFIX: &str = ".tmp-";

/// The age after which a temporary file is a leftover of a process that died. No write lasts as long.
const STALE_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

impl Inner {
    /// Every object below `prefix`, ordered.
    pub(super) fn list(&self, prefix: &str) -> Result<Vec<Entry>, StorageError> {
        self.check_root(Call::List)?;
        let mut entries = Vec::new();
        let mut pending = vec![prefix.to_owned()];
        while let Some(prefix) = pending.pop() {
            let found = self.read_level(&prefix).map_err(|error| failed(Call::List, &prefix, error))?;
            entries.extend(found.entries);
            pending.extend(found.prefixes);
        }
        // A mount that went away in between would have ended the walk early.
        self.check_root(Call::List)?;
        entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    /// One level, without the directories that hold no object.
    pub(super) fn list_children(&self, prefix: &str) -> Result<Children, StorageError> {
        self.check_root(Call::ListChildren)?;
        let fail = |error| failed(Call::ListChildren, prefix, error);
        let mut children = self.read_level(prefix).map_err(fail)?;
        let mut holding = Vec::with_capacity(children.prefixes.len());
        for prefix in children.prefixes {
            if self.holds_objects(&prefix).map_err(fail)? {
                holding.push(prefix);
            }
        }
        self.check_root(Call::ListChildren)?;
        children.prefixes = holding;
        children.prefixes.sort_unstable();
        children.entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(children)
    }

    fn holds_objects(&self, prefix: &str) -> io::Result<bool> {
        let found = self.read_level(prefix)?;
        if !found.entries.is_empty() {
            return Ok(true);
        }
        for prefix in found.prefixes {
            if self.holds_objects(&prefix)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The files and directories directly below `prefix`, in no order; nothing if there is no such directory.
    fn read_level(&self, prefix: &str) -> io::Result<Children> {
        let mut level = Children::default();
        let reading = match std::fs::read_dir(self.root.join(prefix)) {
            Err(error) if is_absence(&error) => return Ok(level),
            reading => reading?,
        };
        for found in reading {
            let found = found?;
            let Some(name) = object_name(prefix, &found) else { continue };
            let metadata = match found.metadata() {
                // Deleted since the directory was read.
                Err(error) if is_absence(&error) => continue,
                metadata => metadata?,
            };
            if metadata.is_dir() {
                level.prefixes.push(name.as_str().to_owned());
            } else if metadata.is_file() {
                level.entries.push(Entry { name, size: metadata.len(), modified: modified(&metadata) });
            }
        }
        Ok(level)
    }
}

/// Removes what a process that died left in `directory`. Failure leaves it for the next time.
pub(super) fn remove_stale_temporaries(directory: &Path) {
    let Ok(reading) = std::fs::read_dir(directory) else { return };
    for found in reading.flatten() {
        if !found.file_name().to_string_lossy().starts_with(TEMPORARY_PREFIX) {
            continue;
        }
        let modified = found.metadata().and_then(|metadata| metadata.modified());
        let age = modified.ok().and_then(|modified| SystemTime::now().duration_since(modified).ok());
        if age.is_some_and(|age| age > STALE_AFTER) && std::fs::remove_file(found.path()).is_ok() {
            tracing::info!(path = %found.path().display(), "removed a temporary file that an earlier process left");
        }
    }
}

/// The name of what was found, unless it is hidden or cannot be one of ours.
fn object_name(prefix: &str, found: &DirEntry) -> Option<ObjectName> {
    let file_name = found.file_name();
    let part = file_name.to_str()?;
    let whole = if prefix.is_empty() { part.to_owned() } else { format!("{prefix}/{part}") };
    ObjectName::new(whole).ok()
}

fn modified(metadata: &Metadata) -> Option<Timestamp> {
    Timestamp::try_from(metadata.modified().ok()?).ok()
}
