//! Buckets: Amazon S3 and kin, Google Cloud Storage, Azure Blob Storage.
//!
//! `provider` sets up the client library, `wire` judges what comes over the network, `fault` says what it
//! means; `signed` sends what the library has no words for, which are those of `lock`. Nothing here tries again; [`Retry`](crate::Retry) does. Objects are written by one request each (up
//! to 5 GB).

mod document;
mod fault;
mod listing;
mod lock;
mod provider;
mod signed;
mod wire;

use crate::error::{Action, Call, Cause};
use crate::memory::bad_prefix;
use crate::name::checked_prefix;
use crate::open::OpenError;
use crate::{Children, Entry, Location, LockRule, ObjectName, Settings, Storage, StorageError, Tail};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, GetResult, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use provider::{Client, Kind, Provider};
use std::fmt;
use std::ops::Range;
use tokio::sync::OnceCell;

/// No provider has objects as large; some servers choke on the numbers beyond.
const OBJECT_BYTES_MAX: u64 = 1 << 47;

/// The most memory that is taken because an answer promises so many bytes, before they come.
const PROMISE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Objects in a bucket, below a prefix.
///
/// The client is built when the first call comes: reading the machine's certificates takes longer than many a
/// command that never gets as far as a call.
pub struct Remote {
    location: Location,
    prefix: String,
    provider: Provider,
    settings: Settings,
    client: OnceCell<Client>,
    /// Set once the bucket has said that it has object lock.
    lockable: OnceCell<()>,
}

/// A part of an object.
struct Fetched {
    size: u64,
    bytes: Bytes,
}

/// Why there is no part of an object.
enum Unfetched {
    /// The object has none of the bytes asked for.
    Beyond,
    /// The object has no bytes at all.
    Empty,
    Failed(StorageError),
}

impl Remote {
    /// A storage at `location`, which is not a directory. Checks the settings and asks nobody.
    pub fn new(location: &Location, settings: &Settings) -> Result<Remote, OpenError> {
        let provider = Provider::new(location, settings)?;
        let prefix = provider.bucket().prefix.clone();
        Ok(Remote {
            location: location.clone(),
            prefix,
            provider,
            settings: settings.clone(),
            client: OnceCell::new(),
            lockable: OnceCell::new(),
        })
    }

    async fn client(&self, action: &Action) -> Result<&Client, StorageError> {
        let build = || async {
            let provider = self.provider.clone();
            let built = tokio::task::spawn_blocking(move || provider.build()).await;
            let built = built.map_err(|error| Cause::from(error.to_string()));
            built.and_then(|built| built.map_err(|error| Cause::from(fault::innermost(&error))))
        };
        self.client
            .get_or_try_init(build)
            .await
            .map_err(|source| StorageError::Other { action: action.clone(), source })
    }

    fn path(&self, name: &ObjectName) -> Path {
        if self.prefix.is_empty() {
            Path::from(name.as_str())
        } else {
            Path::from(format!("{}/{name}", self.prefix))
        }
    }

    /// Fetches a range. Always by range, even a whole object: only the store itself answers one with its
    /// place and size.
    async fn fetch(&self, call: Call, name: &ObjectName, range: GetRange) -> Result<Fetched, Unfetched> {
        let action = Action::new(call, name.as_str());
        let result = self.request(&action, name, range).await?;
        let length = result.range.end - result.range.start;
        collect(result, length).await.map_err(|error| Unfetched::Failed(error.meaning(action, name)))
    }

    async fn request(
        &self,
        action: &Action,
        name: &ObjectName,
        range: GetRange,
    ) -> Result<GetResult, Unfetched> {
        let client = self.client(action).await.map_err(Unfetched::Failed)?;
        let options = GetOptions { range: Some(range), ..GetOptions::default() };
        client.objects.get_opts(&self.path(name), options).await.map_err(|error| {
            match fault::answer(&error) {
                Some(answer) if answer.is_of_empty_object() => Unfetched::Empty,
                Some(answer) if answer.status == 416 => Unfetched::Beyond,
                _ => Unfetched::Failed(fault::meaning(error, action.clone(), Some(name))),
            }
        })
    }

    /// The body of a range that is there as a whole.
    async fn open_stream<'a>(
        &'a self,
        name: &'a ObjectName,
        range: Range<u64>,
    ) -> Result<BoxStream<'a, Result<Bytes, StorageError>>, StorageError> {
        let action = Action::new(Call::Read, name.as_str());
        let size = match self.request(&action, name, GetRange::Bounded(range.clone())).await {
            Ok(result) if result.range == range => {
                let meaning = move |error: Uncollected| error.meaning(action.clone(), name);
                return Ok(body(result, range.end - range.start).map_err(meaning).boxed());
            }
            Ok(result) => result.meta.size,
            Err(Unfetched::Failed(error)) => return Err(error),
            Err(Unfetched::Empty | Unfetched::Beyond) => self.read_size(Call::Read, name).await?,
        };
        Err(StorageError::Truncated { name: name.clone(), range, size })
    }

    async fn read_size(&self, call: Call, name: &ObjectName) -> Result<u64, StorageError> {
        match self.fetch(call, name, GetRange::Bounded(0..1)).await {
            Ok(fetched) => Ok(fetched.size),
            Err(Unfetched::Empty | Unfetched::Beyond) => Ok(0),
            Err(Unfetched::Failed(error)) => Err(error),
        }
    }

    /// Deletes without a look whether it is there.
    async fn delete_unseen(&self, name: &ObjectName) -> Result<(), StorageError> {
        let action = Action::new(Call::Delete, name.as_str());
        let deleted = self.client(&action).await?.objects.delete(&self.path(name)).await;
        deleted.map_err(|error| fault::meaning(error, action, Some(name)))
    }

    async fn put(&self, name: &ObjectName, parts: &[Bytes], mode: PutMode) -> Result<(), StorageError> {
        if let Some(rule) = self.settings.lock {
            return self.put_by_rule(name, parts, mode, rule).await;
        }
        let action = Action::new(Call::Create, name.as_str());
        let payload: PutPayload = parts.iter().cloned().collect();
        let options = PutOptions { mode, ..PutOptions::default() };
        let put = self.client(&action).await?.objects.put_opts(&self.path(name), payload, options).await;
        put.map(|_| ()).map_err(|error| fault::meaning(error, action, Some(name)))
    }
}

#[async_trait]
impl Storage for Remote {
    async fn create(&self, name: &ObjectName, parts: &[Bytes]) -> Result<(), StorageError> {
        if self.settings.conditional_put {
            return self.put(name, parts, PutMode::Create).await;
        }
        match self.read_size(Call::Create, name).await {
            Ok(_) => Err(StorageError::NameTaken { name: name.clone() }),
            Err(StorageError::NotFound { .. }) => self.put(name, parts, PutMode::Overwrite).await,
            Err(error) => Err(error),
        }
    }

    async fn prepare(&self, name: &ObjectName) {
        let action = Action::new(Call::Create, name.as_str());
        // What fails is told by the create.
        let _ = match self.settings.lock {
            Some(_) => self.require_lock(&action).await,
            None => self.client(&action).await.map(drop),
        };
    }

    async fn read(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StorageError> {
        if range.start < range.end {
            let length = range.end - range.start;
            match self.fetch(Call::Read, name, GetRange::Bounded(range.clone())).await {
                Ok(fetched) if fetched.bytes.len() as u64 == length => return Ok(fetched.bytes),
                Ok(Fetched { size, .. }) => {
                    return Err(StorageError::Truncated { name: name.clone(), range, size });
                }
                Err(Unfetched::Failed(error)) => return Err(error),
                Err(Unfetched::Empty | Unfetched::Beyond) => {}
            }
        }
        let size = self.read_size(Call::Read, name).await?;
        match range.start == range.end && range.end <= size {
            true => Ok(Bytes::new()),
            false => Err(StorageError::Truncated { name: name.clone(), range, size }),
        }
    }

    fn read_stream<'a>(
        &'a self,
        name: &'a ObjectName,
        range: Range<u64>,
    ) -> BoxStream<'a, Result<Bytes, StorageError>> {
        match range.is_empty() {
            true => stream::empty().boxed(),
            false => stream::once(self.open_stream(name, range)).try_flatten().boxed(),
        }
    }

    async fn read_tail(&self, name: &ObjectName, max: u64) -> Result<Tail, StorageError> {
        let max = max.min(OBJECT_BYTES_MAX);
        let range = if self.provider.kind() == Kind::Azure || max == 0 {
            // Azure has no ranges counted from the end; nobody has empty ones.
            let size = self.read_size(Call::ReadTail, name).await?;
            if size == 0 || max == 0 {
                return Ok(Tail { size, bytes: Bytes::new() });
            }
            GetRange::Bounded(size.saturating_sub(max)..size)
        } else {
            GetRange::Suffix(max)
        };
        match self.fetch(Call::ReadTail, name, range).await {
            Ok(Fetched { size, bytes }) => Ok(Tail { size, bytes }),
            Err(Unfetched::Empty | Unfetched::Beyond) => Ok(Tail { size: 0, bytes: Bytes::new() }),
            Err(Unfetched::Failed(error)) => Err(error),
        }
    }

    async fn read_all(&self, name: &ObjectName, limit: u64) -> Result<Bytes, StorageError> {
        let action = Action::new(Call::ReadAll, name.as_str());
        // One byte more than allowed makes the range never empty, and shows what is too large.
        let range = GetRange::Bounded(0..limit.min(OBJECT_BYTES_MAX) + 1);
        let result = match self.request(&action, name, range).await {
            Ok(result) => result,
            Err(Unfetched::Empty | Unfetched::Beyond) => return Ok(Bytes::new()),
            Err(Unfetched::Failed(error)) => return Err(error),
        };
        let size = result.meta.size;
        if size > limit {
            return Err(StorageError::TooLarge { name: name.clone(), size, limit });
        }
        collect(result, size).await.map(|fetched| fetched.bytes).map_err(|error| error.meaning(action, name))
    }

    async fn size(&self, name: &ObjectName) -> Result<u64, StorageError> {
        self.read_size(Call::Size, name).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Entry>, StorageError> {
        let prefix = checked_prefix(prefix).map_err(|error| bad_prefix(Call::List, prefix, error))?;
        Ok(self.list_pages(Call::List, prefix, false).await?.entries)
    }

    async fn list_children(&self, prefix: &str) -> Result<Children, StorageError> {
        let prefix = checked_prefix(prefix).map_err(|error| bad_prefix(Call::ListChildren, prefix, error))?;
        self.list_pages(Call::ListChildren, prefix, true).await
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StorageError> {
        if self.provider.kind() == Kind::S3 {
            // S3 answers the delete of an absent object like any other.
            self.read_size(Call::Delete, name).await?;
        }
        self.delete_unseen(name).await
    }

    async fn remove(&self, name: &ObjectName) -> Result<(), StorageError> {
        match self.delete_unseen(name).await {
            Err(StorageError::NotFound { .. }) => Ok(()),
            done => done,
        }
    }

    fn lock_rule(&self) -> Option<LockRule> {
        self.settings.lock
    }

    async fn lock_until(&self, name: &ObjectName, until: Timestamp) -> Result<(), StorageError> {
        self.extend_lock(name, until).await
    }

    async fn locked_until(&self, name: &ObjectName) -> Result<Option<Timestamp>, StorageError> {
        Ok(self.lock_of(name).await?.map(|lock| lock.until))
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Remote({})", self.location)
    }
}

/// Why a body is not what its head promised.
enum Uncollected {
    Broken(object_store::Error),
    Length { expected: u64, came: u64 },
}

impl Uncollected {
    fn meaning(self, action: Action, name: &ObjectName) -> StorageError {
        match self {
            Uncollected::Broken(error) => fault::meaning(error, action, Some(name)),
            Uncollected::Length { expected, came } => {
                let source = format!("the answer promised {expected} bytes and had {came}").into();
                StorageError::Transient { action, source }
            }
        }
    }
}

/// Exactly `length` bytes of the body.
async fn collect(result: GetResult, length: u64) -> Result<Fetched, Uncollected> {
    let size = result.meta.size;
    let mut bytes = BytesMut::with_capacity(length.min(PROMISE_BYTES_MAX) as usize);
    let mut pieces = std::pin::pin!(body(result, length));
    while let Some(piece) = pieces.try_next().await? {
        bytes.extend_from_slice(&piece);
    }
    Ok(Fetched { size, bytes: bytes.freeze() })
}

/// The body as it comes, which fails unless it has exactly `length` bytes.
fn body(result: GetResult, length: u64) -> impl Stream<Item = Result<Bytes, Uncollected>> {
    stream::try_unfold((result.into_stream(), 0), move |(mut pieces, came)| async move {
        let piece = pieces.try_next().await.map_err(Uncollected::Broken)?;
        let came = came + piece.as_ref().map_or(0, Bytes::len) as u64;
        if came > length || (piece.is_none() && came < length) {
            return Err(Uncollected::Length { expected: length, came });
        }
        Ok(piece.map(|piece| (piece, (pieces, came))))
    })
}
