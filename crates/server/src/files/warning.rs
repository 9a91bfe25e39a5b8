//! What a listing leaves out, and says so.

use std::fmt;

/// Something in the data directory that a backup does not hold, and that its owner should know of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Warning {
    /// A symbolic link that PostgreSQL did not make. It is not followed.
    UnknownSymlink {
        /// Where it is.
        path: Vec<u8>,
        /// Where it points.
        target: Vec<u8>,
    },
    /// A socket, a pipe or a device.
    SpecialFile {
        /// Where it is.
        path: Vec<u8>,
    },
    /// An entry that the server's user cannot look at: a link to where it may not go, or to itself.
    Unreadable {
        /// Where it is.
        path: Vec<u8>,
        /// What the server said.
        why: String,
    },
    /// A name that the database's encoding has no characters for, so that no statement can hold it.
    UnspeakableName {
        /// Where it is.
        path: Vec<u8>,
        /// The encoding.
        encoding: String,
    },
    /// A directory that leads back to one above it.
    Loop {
        /// Where it is.
        path: Vec<u8>,
    },
    /// A tablespace whose directory does not exist, or holds nothing of this cluster's version.
    EmptyTablespace {
        /// Where its link is.
        path: Vec<u8>,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownSymlink { path, target } => {
                let (path, target) = (path.escape_ascii(), target.escape_ascii());
                write!(
                    f,
                    "{path} is a symbolic link to {target}, which is not PostgreSQL's; not in the backup"
                )
            }
            Self::SpecialFile { path } => {
                write!(f, "{} is no file and no directory; not in the backup", path.escape_ascii())
            }
            Self::Unreadable { path, why } => {
                write!(f, "{} cannot be looked at ({why}); not in the backup", path.escape_ascii())
            }
            Self::UnspeakableName { path, encoding } => {
                let path = path.escape_ascii();
                write!(f, "{path} has a name that is not valid in {encoding}; not in the backup")
            }
            Self::Loop { path } => {
                let path = path.escape_ascii();
                write!(f, "{path} leads back to a directory above it; what is in it is not in the backup")
            }
            Self::EmptyTablespace { path } => {
                write!(
                    f,
                    "{} leads to no directory of this cluster; nothing of it in the backup",
                    path.escape_ascii()
                )
            }
        }
    }
}
