//! Stepping down from root, as PostgreSQL demands.

use std::fs;
use std::os::unix::fs::{MetadataExt, lchown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use super::ThrowawayError;

/// The user that servers run as: ourselves, or another user when we are root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunAs {
    /// User and group to step down to; `None` when we are not root.
    user: Option<(u32, u32)>,
}

impl RunAs {
    /// Ourselves when we are not root; otherwise user `postgres`, or `nobody` where that does not exist.
    pub fn unprivileged() -> Result<Self, ThrowawayError> {
        if !is_root() {
            return Ok(Self { user: None });
        }
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let user = ["postgres", "nobody"].iter().find_map(|name| ids_of(&passwd, name));
        user.map(|user| Self { user: Some(user) }).ok_or(ThrowawayError::NoUnprivilegedUser)
    }

    /// The owner of `path` when we are root, ourselves otherwise. An error when root owns it.
    pub fn owner_of(path: &Path) -> Result<Self, ThrowawayError> {
        if !is_root() {
            return Ok(Self { user: None });
        }
        let metadata = fs::metadata(path).map_err(|source| file("look at", path, source))?;
        if metadata.uid() == 0 {
            return Err(ThrowawayError::BelongsToRoot { path: path.to_owned() });
        }
        Ok(Self { user: Some((metadata.uid(), metadata.gid())) })
    }

    /// User and group that commands step down to; `None` when they run as ourselves.
    pub fn ids(&self) -> Option<(u32, u32)> {
        self.user
    }

    /// Makes `command` run as that user, without our supplementary groups.
    pub fn apply(&self, command: &mut Command) {
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
    }

    /// Gives `path` and everything below it to that user. Symlinks are given, not followed.
    pub fn give(&self, path: &Path) -> Result<(), ThrowawayError> {
        let Some((uid, gid)) = self.user else { return Ok(()) };
        let mut waiting = vec![path.to_owned()];
        while let Some(path) = waiting.pop() {
            lchown(&path, Some(uid), Some(gid)).map_err(|source| file("give away", &path, source))?;
            if fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir()) {
                let entries = fs::read_dir(&path).map_err(|source| file("list", &path, source))?;
                for entry in entries {
                    waiting.push(entry.map_err(|source| file("list", &path, source))?.path());
                }
            }
        }
        Ok(())
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// User and group id of a name, in the text of `/etc/passwd`.
fn ids_of(passwd: &str, name: &str) -> Option<(u32, u32)> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let found = fields.next()? == name;
        let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
        found.then_some((uid, gid))
    })
}

pub(super) fn file(what: &'static str, path: &Path, source: std::io::Error) -> ThrowawayError {
    ThrowawayError::File { what, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_come_from_the_right_line() {
        let passwd =
            "root:x:0:0:root:/root:/bin/sh\nodd\npostgres:x:101:104:PostgreSQL,,,:/var/lib:/bin/bash\n";
        assert_eq!(ids_of(passwd, "postgres"), Some((101, 104)));
        assert_eq!(ids_of(passwd, "postgre"), None);
    }
}
