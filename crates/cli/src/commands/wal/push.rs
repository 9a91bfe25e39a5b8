//! `pgkeep wal push`: one file into the repository, and into every further one.
//!
//! PostgreSQL hears of the first repository and of those that are required. The others are tried at the same time, within
//! a bound, and one that failed is left alone for a while: a second repository must never fill the server's disk.

use std::path::Path;

use futures_util::future::join_all;
use jiff::Timestamp;
use operations::archive::{Context, push};
use operations::failure_note::About;

use super::{context, start};
use crate::failure::{Class, Failure, Outcome};
use crate::secret_files::Use;
use crate::settings::{Rank, Settings};

/// What came of a file in one repository.
enum Tried {
    Stored(Box<Context>),
    /// It failed a while ago, and was not tried.
    Resting,
    Failed(Failure),
}

/// Stores it; fails unless it is durable in every repository that counts.
pub async fn run(settings: &Settings, file: &Path) -> Outcome<u8> {
    let all: Vec<&Settings> = settings.repositories().collect();
    let tried = join_all(all.iter().map(|one| attempt(one, file, all.len()))).await;
    let (mut failure, mut stored) = (None, Vec::new());
    for (settings, tried) in all.iter().zip(tried) {
        match tried {
            Tried::Stored(context) => stored.push((settings, context)),
            Tried::Failed(failed) if settings.rank == Rank::Further => {
                let why = failed.because.join(": ");
                tracing::warn!(
                    "cannot {}: {why}; the copy that follows the next backup brings it",
                    failed.what
                );
            }
            Tried::Failed(failed) if failure.is_none() => failure = Some(failed),
            Tried::Failed(failed) => tracing::warn!("cannot {}: {}", failed.what, failed.because.join(": ")),
            Tried::Resting => {}
        }
    }
    let Some(failure) = failure else { return Ok(0) };
    // PostgreSQL asks for this file again and again and for no other, but the rest need not wait for that.
    for (settings, context) in stored {
        push::store_rest(&context, file, &|background| start(settings, background));
    }
    Err(failure)
}

async fn attempt(settings: &Settings, file: &Path, repositories: usize) -> Tried {
    let what = match repositories {
        1 => format!("archive {}", file.display()),
        _ => format!("archive {} in repository {}", file.display(), settings.name),
    };
    if settings.rank != Rank::Further {
        return match store(settings, file, &what).await {
            Ok(context) => Tried::Stored(Box::new(context)),
            Err(failure) => Tried::Failed(failure),
        };
    }
    let note = settings.failure_note(About::Wal);
    if note.rests(Timestamp::now()) {
        return Tried::Resting;
    }
    let bytes = std::fs::metadata(file).map_or(0, |metadata| metadata.len());
    let bound = super::limits(settings).deadline_for(bytes);
    let stored = tokio::time::timeout(bound, store(settings, file, &what)).await;
    let stored = stored.unwrap_or_else(|_| {
        let late = format!("it was not stored within {} s", bound.as_secs());
        Err(Failure::new(Class::TryAgain, &what).because(late))
    });
    match stored {
        Ok(context) => {
            note.worked();
            Tried::Stored(Box::new(context))
        }
        Err(failure) => {
            note.failed(Timestamp::now(), failure.why());
            Tried::Failed(failure)
        }
    }
}

async fn store(settings: &Settings, file: &Path, what: &str) -> Outcome<Context> {
    let context = context(settings, Use::Add).await.map_err(|failure| failure.within(what))?;
    match push::run(&context, file, &|background| start(settings, background)).await {
        Ok(_) => Ok(context),
        Err(error) => Err(Failure::caused(what, &error).with_status(error.exit_status())),
    }
}
