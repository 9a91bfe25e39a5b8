//! Durable bytes under names: the only room that talks to disks and buckets for what a repository stores.
//!
//! Read in this order: [`Storage`], the trait, and [`ObjectName`]; [`StorageError`]; [`Location`],
//! [`Settings`] and [`open`], which give a storage; [`LockRule`], by which objects are locked; [`Filesystem`] and
//! [`Remote`], the storages; [`Retry`], which tries again; [`probe::probe`], which finds out what a storage really does;
//! [`Memory`], [`Faulty`] and [`Recording`], for tests, and [`planted`], which tests the tests; [`chance`], which a
//! simulation can repeat.
//!
//! It knows nothing of chunks, keys or PostgreSQL, spells no object name, compresses and encrypts nothing,
//! and keeps no cache. It reads no environment variable.

pub mod chance;
#[doc(hidden)]
pub mod contract;
mod direct;
mod error;
mod faulty;
mod filesystem;
mod location;
mod lock;
mod memory;
mod name;
mod open;
#[doc(hidden)]
pub mod planted;
pub mod probe;
mod recording;
mod remote;
mod retry;
mod settings;
mod store;

pub use direct::{DirectFile, aligned_buffer};
pub use error::{Action, Call, Cause, StorageError};
pub use faulty::{Calls, Fault, Faulty, Odds, Rule};
pub use filesystem::Filesystem;
pub use location::{Bucket, Location, LocationError};
pub use lock::{LockMode, LockRule};
pub use memory::Memory;
pub use name::{Children, Entry, NAME_BYTES_MAX, NameError, ObjectName, Tail};
pub use open::{OpenError, make_root, open};
pub use recording::{Counts, Recording};
pub use remote::Remote;
pub use retry::{Retry, RetryPolicy};
pub use settings::{Addressing, AzureSettings, GcsSettings, S3Settings, Settings};
pub use store::{Parts, Storage};
