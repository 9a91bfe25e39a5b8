//! Copying while the session that holds the backup is watched; once more without the WAL summaries if they lied.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use repository::manifest::Manifest;
use server::backup::BackupSession;
use server::files::FileSource;
use tokio::runtime::Handle;

use super::copy::{Copied, copy_files};
use super::plan::Plan;
use super::upload::Uploader;
use super::{BackupError, Context};
use crate::monitor::{Event, Monitor};

/// Number of the first partial manifest of a second copy within one backup, past all of the first.
const SECOND_PARTIAL: u32 = 500_000;
/// How often a server that keeps the session open is asked for a sign of life.
const ASK_EVERY: Duration = Duration::from_secs(10);

/// What the copying of one backup works with.
pub(crate) struct Copying<'c> {
    pub(crate) plan: &'c Plan,
    pub(crate) files: &'c dyn FileSource,
    pub(crate) session: &'c BackupSession,
    pub(crate) uploader: &'c Uploader,
    pub(crate) monitor: &'c dyn Monitor,
}

impl Copying<'_> {
    /// Copies every file. Summaries that lied are told of, and what was copied beside them is not used: of it, only what the
    /// second copy finds by content stays.
    pub(crate) fn run(&self, context: Context, manifest: &mut Manifest) -> Result<Copied, BackupError> {
        match self.copy(&context, manifest) {
            Err(missed @ BackupError::SummaryMissed { .. }) => {
                let why = format!("{missed}: they are not believed, and everything is compared by content");
                warn(why, manifest, self.monitor);
                let stop = AtomicBool::new(false);
                let context = Context { summary: None, first_partial: SECOND_PARTIAL, stop, ..context };
                self.copy(&context, manifest)
            }
            copied => copied,
        }
    }

    fn copy(&self, context: &Context, manifest: &Manifest) -> Result<Copied, BackupError> {
        let Self { plan, files, session, uploader, monitor } = *self;
        let (known, handle) = (plan.known_pages(), Handle::current());
        let partial = manifest.clone();
        // The session is looked at now and then from here, while other threads work: without it all work is vain.
        tokio::task::block_in_place(|| {
            std::thread::scope(|scope| {
                let copying = scope.spawn(|| {
                    let (earlier, packs) = (&plan.earlier, &plan.packs);
                    copy_files(context, files, earlier, packs, &known, partial, uploader, &handle, monitor)
                });
                let mut looked = Instant::now();
                while !copying.is_finished() {
                    std::thread::sleep(Duration::from_millis(5));
                    // A session that the server ended is seen at once; one whose server does not answer, by asking.
                    if !session.connection().is_alive() || looked.elapsed() > ASK_EVERY {
                        looked = Instant::now();
                        session.check_alive().inspect_err(|_| context.stop.store(true, Ordering::Release))?;
                    }
                }
                copying.join().expect("the copying thread does not panic")
            })
        })
    }
}

/// Says it now, and to whoever asks for the backup later.
pub(crate) fn warn(text: String, manifest: &mut Manifest, monitor: &dyn Monitor) {
    monitor.event(Event::Warning(text.clone()));
    manifest.warnings.push(text);
}
