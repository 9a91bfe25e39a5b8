//! What can go wrong, one variant for each thing that a caller or an operator would treat differently.

use crate::ObjectName;
use std::error::Error;
use std::fmt;
use std::ops::Range;

/// The cause below a [`StorageError`]; its text never holds a secret or a signed address.
pub type Cause = Box<dyn Error + Send + Sync>;

/// Why a call on a [`Storage`](crate::Storage) did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The object is proven to be absent: the storage was reached, knew us, and said so. Never used for a
    /// guess.
    #[error("{name} does not exist")]
    NotFound {
        /// The object asked for.
        name: ObjectName,
    },
    /// The object exists already and was left as it is.
    #[error("{name} exists already")]
    NameTaken {
        /// The object that was to be created.
        name: ObjectName,
    },
    /// The object ends before the end of the requested range.
    #[error("{name} has {size} bytes, too few for the range {}..{}", .range.start, .range.end)]
    Truncated {
        /// The object asked for.
        name: ObjectName,
        /// The bytes asked for.
        range: Range<u64>,
        /// The whole size of the object, in bytes.
        size: u64,
    },
    /// The object is larger than the caller is willing to read.
    #[error("{name} has {size} bytes, more than the limit of {limit}")]
    TooLarge {
        /// The object asked for.
        name: ObjectName,
        /// The whole size of the object, in bytes.
        size: u64,
        /// The caller's limit, in bytes.
        limit: u64,
    },
    /// The directory or bucket that holds everything is missing: not mounted, misspelt or not yet made.
    #[error("{root} is missing: not mounted, misspelt or not yet made")]
    RootMissing {
        /// The directory or bucket.
        root: String,
    },
    /// Objects cannot be locked here.
    #[error("objects cannot be locked here: {why}")]
    NoLock {
        /// Why.
        why: String,
    },
    /// Credentials or permissions do not allow it.
    #[error("{action}: access refused")]
    Refused {
        /// What was being done.
        action: Action,
        /// The answer.
        source: Cause,
    },
    /// The same call may succeed later.
    #[error("{action}: the storage did not answer as it should")]
    Transient {
        /// What was being done.
        action: Action,
        /// The fault.
        source: Cause,
    },
    /// There is no space, or a quota is used up.
    #[error("{action}: no space left")]
    Full {
        /// What was being done.
        action: Action,
        /// The answer.
        source: Cause,
    },
    /// Anything else; trying again is not expected to help.
    #[error("{action}")]
    Other {
        /// What was being done.
        action: Action,
        /// The fault.
        source: Cause,
    },
}

impl StorageError {
    /// Of a storage that locks nothing.
    pub(crate) fn no_lock() -> StorageError {
        StorageError::NoLock { why: "no lock is configured for this storage".to_owned() }
    }

    /// Whether the same call may succeed if it is made again later.
    pub fn is_transient(&self) -> bool {
        matches!(self, StorageError::Transient { .. })
    }

    /// Whether the object is proven to be absent.
    pub fn is_not_found(&self) -> bool {
        matches!(self, StorageError::NotFound { .. })
    }
}

/// What was being done to what, for the text of an error: `read packs/0a/0a3f`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Action {
    /// The call.
    pub call: Call,
    /// The object's name or the prefix; empty for the whole storage.
    pub subject: String,
}

impl Action {
    /// `call` on the object or prefix `subject`.
    pub fn new(call: Call, subject: impl Into<String>) -> Action {
        Action { call, subject: subject.into() }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let subject = if self.subject.is_empty() { "everything" } else { &self.subject };
        write!(f, "{} {subject}", self.call)
    }
}

/// The calls of [`Storage`](crate::Storage), as [`Faulty`](crate::Faulty) and [`Recording`](crate::Recording)
/// name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Call {
    /// [`Storage::create`](crate::Storage::create)
    Create,
    /// [`Storage::read`](crate::Storage::read)
    Read,
    /// [`Storage::read_tail`](crate::Storage::read_tail)
    ReadTail,
    /// [`Storage::read_all`](crate::Storage::read_all)
    ReadAll,
    /// [`Storage::size`](crate::Storage::size)
    Size,
    /// [`Storage::list`](crate::Storage::list)
    List,
    /// [`Storage::list_children`](crate::Storage::list_children)
    ListChildren,
    /// [`Storage::delete`](crate::Storage::delete)
    Delete,
    /// [`Storage::lock_until`](crate::Storage::lock_until)
    Lock,
    /// [`Storage::locked_until`](crate::Storage::locked_until)
    LockedUntil,
}

impl Call {
    /// Every call, in the order of the trait.
    pub const ALL: [Call; 10] = [
        Call::Create,
        Call::Read,
        Call::ReadTail,
        Call::ReadAll,
        Call::Size,
        Call::List,
        Call::ListChildren,
        Call::Delete,
        Call::Lock,
        Call::LockedUntil,
    ];
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Call::Create => "create",
            Call::Read | Call::ReadAll => "read",
            Call::ReadTail => "read the end of",
            Call::Size => "look at",
            Call::List | Call::ListChildren => "list",
            Call::Delete => "delete",
            Call::Lock => "lock",
            Call::LockedUntil => "ask for the lock of",
        })
    }
}
