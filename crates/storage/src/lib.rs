//! Durable bytes under names: the only room that talks to disks and buckets for what a repository stores.
//!
//! Read in this order: [`Storage`], the trait, and [`ObjectName`]; [`StorageError`]; [`Location`], [`Settings`] and
//! [`open`], which give a storage; [`Filesystem`] and `Remote`, the storages; [`Memory`], for tests.
//!
//! It knows nothing of chunks, keys or PostgreSQL, spells no object name, compresses and encrypts nothing, and keeps no
//! cache. It reads no environment variable.

mod error;
mod filesystem;
mod location;
mod memory;
mod name;
mod open;
mod retry;
mod settings;
mod store;

pub use error::{Action, Call, Cause, StorageError};
pub use filesystem::Filesystem;
pub use location::{Bucket, Location, LocationError};
pub use memory::Memory;
pub use name::{Children, Entry, NAME_BYTES_MAX, NameError, ObjectName, Tail};
pub use open::{OpenError, make_root, open};
pub use retry::RetryPolicy;
pub use settings::{Addressing, AzureSettings, GcsSettings, S3Settings, Settings};
pub use store::Storage;
