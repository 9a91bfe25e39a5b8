//! From settings to an open repository.
//!
//! Commands for people read the description and the key slot anew. `wal push` and `wal get` run for every segment and take
//! both of a bucket from a copy on this host: the slot is ciphertext, and the description is checked with what the slot holds.

use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use repository::description::Description;
use repository::keys::{Slot, SlotKey};
use repository::secrets::Access;
use repository::{Repository, RepositoryError, Secret, layout};
use storage::{Location, LockRule, Storage};

use crate::failure::{Class, Failure, Outcome};
use crate::secret_files::{self, Use};
use crate::settings::Settings;

/// How long a copied description is believed. A repository that was deleted or exchanged is noticed after this.
const COPY_AGE_MAX: Duration = Duration::from_secs(600);
/// No slot is larger.
const SLOT_LIMIT: u64 = 64 << 10;

/// Opens the configured repository, asking the storage for everything.
pub async fn open(settings: &Settings, wanted: Use) -> Outcome<Arc<Repository>> {
    let (location, storage, description) = describe(settings).await?;
    let secret = secret_files::configured(settings, wanted)?;
    let state = settings.state_dir();
    let opened = Repository::open(storage, description, &secret, state.as_deref()).await;
    opened.map(Arc::new).map_err(|error| cannot_open(&location, &error))
}

/// Opens another repository than the configured one, in which objects are locked by `lock`, or not.
pub async fn open_other(
    settings: &Settings,
    place: &str,
    secret: &Secret,
    lock: Option<LockRule>,
) -> Outcome<Arc<Repository>> {
    let parsed = place.parse::<Location>();
    let location = parsed.map_err(|error| Failure::caused(format!("use {place}"), &error))?;
    let (storage, description) =
        describe_at(&location, storage::Settings { lock, ..settings.storage() }).await?;
    let state = settings.state_dir();
    let opened = Repository::open(storage, description, secret, state.as_deref()).await;
    opened.map(Arc::new).map_err(|error| cannot_open(&location, &error))
}

/// Opens the repository for a command that PostgreSQL waits for.
pub async fn open_quickly(settings: &Settings, wanted: Use) -> Outcome<Arc<Repository>> {
    let secret = secret_files::configured(settings, wanted)?;
    if wanted == Use::Add && matches!(secret, Secret::Passphrase(_)) {
        // A restored server may have nothing else, and then slow is better than not at all.
        return Err(Failure::wrong("open the repository")
            .because("a passphrase takes a tenth of a second and 64 MiB each time, and PostgreSQL waits for this command")
            .hint("configure a key file or a writer credential: `pgkeep key add --file`, `pgkeep key writer`"));
    }
    let location = settings.location()?;
    // A directory is asked each time, which costs next to nothing: if its mount went away, an empty folder is left in
    // its place, and WAL written there would be lost when the mount comes back.
    let state = settings.state_dir().filter(|_| !matches!(location, Location::Directory(_)));
    let copies = state.map(|state| Copies::new(&state, &location));
    if let Some(repository) = copies.as_ref().and_then(|copies| copies.open(settings, &location, &secret)) {
        return Ok(Arc::new(repository));
    }
    let (location, storage, description) = describe(settings).await?;
    let state = settings.state_dir();
    let opened = Repository::open(storage, description, &secret, state.as_deref()).await;
    let repository = opened.map_err(|error| cannot_open(&location, &error))?;
    if let Some(copies) = copies {
        copies.keep(&repository, &secret).await;
    }
    Ok(Arc::new(repository))
}

/// Finds the repository and reads its description; its storage is opened as the description says it must be used.
async fn describe(settings: &Settings) -> Outcome<(Location, Arc<dyn Storage>, Description)> {
    let location = settings.location()?;
    let (storage, description) = describe_at(&location, settings.storage()).await?;
    Ok((location, storage, description))
}

async fn describe_at(
    location: &Location,
    settings: storage::Settings,
) -> Outcome<(Arc<dyn Storage>, Description)> {
    let storage = open_storage(location, &settings)?;
    let description = Repository::describe(&*storage).await.map_err(|error| cannot_open(location, &error))?;
    if description.create_only {
        return Ok((storage, description));
    }
    let settings = storage::Settings { conditional_put: false, ..settings };
    Ok((open_storage(location, &settings)?, description))
}

/// The storage at a location; `conditional_put` as in [`storage::Settings`].
pub fn storage_at(
    settings: &Settings,
    location: &Location,
    conditional_put: bool,
) -> Outcome<Arc<dyn Storage>> {
    open_storage(location, &storage::Settings { conditional_put, ..settings.storage() })
}

fn open_storage(location: &Location, settings: &storage::Settings) -> Outcome<Arc<dyn Storage>> {
    storage::open(location, settings).map_err(|error| Failure::caused(format!("use {location}"), &error))
}

fn cannot_open(location: &Location, error: &RepositoryError) -> Failure {
    Failure::caused(format!("open the repository {location}"), error)
}

/// Copies on this host of what is needed to open one repository.
struct Copies {
    description: PathBuf,
    slots: PathBuf,
}

impl Copies {
    fn new(state: &Path, location: &Location) -> Self {
        // The hash may change with the toolchain: then the copy is made again.
        let mut hasher = DefaultHasher::new();
        location.to_string().hash(&mut hasher);
        let folder = state.join("places").join(format!("{:016x}", hasher.finish()));
        Self { description: folder.join("repository"), slots: folder.join("slots") }
    }

    /// The repository, if everything is here, young enough and authentic. Whatever is odd is left to the storage.
    fn open(&self, settings: &Settings, location: &Location, secret: &Secret) -> Option<Repository> {
        let age = fs::metadata(&self.description).ok()?.modified().ok()?.elapsed().ok()?;
        let description =
            Description::decode(&fs::read(&self.description).ok()?).ok().filter(|_| age < COPY_AGE_MAX)?;
        let access = match secret {
            Secret::Writer(writer) => Access::Write(writer.clone()),
            Secret::Key(key) => Access::Full(self.slot(key)?.open_with_key(key).ok()?),
            Secret::Passphrase(_) => return None,
        };
        description.check(access.writer()).ok()?;
        let storage = storage_at(settings, location, description.create_only).ok()?;
        Some(Repository::assemble(storage, description, access, settings.state_dir().as_deref()))
    }

    fn slot(&self, key: &SlotKey) -> Option<Slot> {
        Slot::decode(key.slot(), &fs::read(self.slots.join(key.slot())).ok()?).ok()
    }

    /// Keeps copies; a failure only costs requests.
    async fn keep(&self, repository: &Repository, secret: &Secret) {
        if let Secret::Key(key) = secret {
            let name = layout::key_slot(key.slot());
            match repository.storage().read_all(&name, SLOT_LIMIT).await {
                Ok(bytes) => keep_file(&self.slots.join(key.slot()), &bytes),
                Err(error) => tracing::debug!(%error, "cannot keep a copy of the key slot"),
            }
        }
        keep_file(&self.description, &repository.description().encode());
    }
}

fn keep_file(path: &Path, bytes: &[u8]) {
    let kept = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| {
        let temporary = path.with_extension(format!("{}.new", std::process::id()));
        fs::write(&temporary, bytes)?;
        fs::rename(&temporary, path).inspect_err(|_| drop(fs::remove_file(&temporary)))
    });
    if let Err(error) = kept {
        tracing::debug!(path = %path.display(), %error, "cannot keep a copy");
    }
}

/// Connects to the configured server.
pub async fn connect(settings: &Settings) -> Outcome<server::connection::Connection> {
    let server = settings.server();
    let connected =
        tokio::task::spawn_blocking(move || server::connection::Connection::connect(&server)).await;
    match connected {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(error)) => Err(Failure::caused("connect to the server", &error)
            .hint("--database-url, PGKEEP_DATABASE_URL or the PG* variables say where it is")),
        Err(error) => Err(Failure::caused("connect to the server", &error).class(Class::Bug)),
    }
}
