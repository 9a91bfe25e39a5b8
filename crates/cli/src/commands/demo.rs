//! `pgkeep demo`: the whole story on a throwaway server, with the real commands in processes of their own.

mod stage;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use server::throwaway::{Binaries, StopMode, Throwaway};

use crate::failure::{Class, Failure, Outcome};
use crate::output::{Output, bytes, elapsed};
use stage::{Stage, failed};
use writer::Writer;

/// Rows that the table begins with.
const FIRST_ROWS: u64 = 200_000;
/// How long rows are written before and after the backup.
const WRITING: Duration = Duration::from_secs(2);

/// What to show it on.
#[derive(Debug, Args)]
pub struct DemoArguments {
    /// The PostgreSQL version [default: the newest that is installed]
    #[arg(long, value_name = "MAJOR")]
    postgresql: Option<pg::Major>,
    /// A folder to work in; something new is made in it and removed at the end
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
}

/// A step and how long it took.
#[derive(Debug, Serialize)]
struct Step {
    what: &'static str,
    seconds: f64,
}

#[derive(Debug, Default, Serialize)]
struct Story {
    postgresql: String,
    rows_before_the_disaster: u64,
    rows_restored: u64,
    sum_matches: bool,
    backup_bytes: u64,
    repository_bytes: u64,
    steps: Vec<Step>,
    seconds: f64,
}

/// Tells the story; everything is cleaned up in the end, whatever the end is.
pub fn run(arguments: &DemoArguments, output: Output) -> Outcome {
    let binaries = Binaries::require(arguments.postgresql).map_err(|error| {
        Failure::caused("show the demo", &error)
            .hint("`apt install postgresql` is enough; PGKEEP_PG_BIN_17=/folder names an unusual place")
    })?;
    let interrupted = watch_for_interrupt()?;
    let mut teller = Teller { output, interrupted, story: Story::default(), begun: Instant::now() };
    let stage = Stage::new(arguments.folder.as_deref(), &binaries)?;
    teller.say(&format!(
        "pgkeep demo: PostgreSQL {}, everything in {}\n",
        binaries.major,
        stage.folder().display()
    ))?;
    teller.story.postgresql = binaries.major.to_string();
    let told = tell(&mut teller, &stage);
    let folder = stage.folder().to_owned();
    let cleaned = stage.remove().map_err(failed("clean up"));
    // Ctrl-C also ends the servers and programs that a step works with: what that step then says means nothing.
    if teller.interrupted.load(Ordering::SeqCst) {
        cleaned?;
        return Err(
            Failure::new(Class::Other, "the demo was interrupted").because("everything was cleaned up")
        );
    }
    told?;
    cleaned?;
    teller.end(&folder)
}

fn tell(teller: &mut Teller, stage: &Stage) -> Outcome {
    teller.step("make a repository", "`pgkeep init`: an encrypted repository in a folder", || {
        stage.pgkeep(&["init", "--no-server", "--recovery-key-file", "recovery.key"]).map(|_| String::new())
    })?;
    let server =
        teller.step_with("start a server", "a server that archives every WAL segment to it", || {
            let server = stage.start_server()?;
            writer::prepare(&server, FIRST_ROWS)?;
            Ok((server, format!("{FIRST_ROWS} accounts in a table")))
        })?;
    let writer = Writer::start(&server)?;
    teller.wait(WRITING)?;
    teller.step("back up", "`pgkeep backup`, while rows are being written", || {
        let backup = stage.pgkeep_json(&["backup", "--database-url", &server.conninfo()])?;
        let number = |name: &str| backup["backup"][name].as_u64().unwrap_or(0);
        Ok(format!("{} read, {} stored", bytes(number("bytes_read")), bytes(number("bytes_stored"))))
    })?;
    teller.wait(WRITING)?;
    let ledger = writer.stop()?;
    teller.story.rows_before_the_disaster = ledger.rows;
    teller.say(&format!("   {} rows now; the last was committed at {}\n", ledger.rows, ledger.shown()))?;
    teller.step("lose it", "the disaster: DELETE of every account, then DROP TABLE", || {
        writer::destroy(&server)?;
        Ok("committed, archived, gone".to_owned())
    })?;
    restore_it(teller, stage, server, &ledger)
}

fn restore_it(teller: &mut Teller, stage: &Stage, mut server: Throwaway, ledger: &writer::Ledger) -> Outcome {
    teller.step("see what can be restored", "`pgkeep status`", || {
        let status = stage.pgkeep_json(&["status", "--database-url", &server.conninfo()])?;
        teller_size(&status)
    })?;
    server.stop(StopMode::Fast).map_err(failed("stop the server"))?;
    drop(server);
    let restored = stage.folder().join("restored");
    let target = ledger.target();
    teller.step("restore", "`pgkeep restore` to just before the disaster", || {
        let into = restored.to_string_lossy();
        let report = stage.pgkeep_json(&["restore", "--into", &into, "--to", &target])?;
        let plan = &report["plan"];
        Ok(format!(
            "{} from backup {}",
            bytes(plan["bytes"].as_u64().unwrap_or(0)),
            plan["backup"].as_str().unwrap_or("")
        ))
    })?;
    let found =
        teller.step_with("start and count", "a server on the restored files replays the WAL", || {
            let server = stage.start_restored(&restored)?;
            let found = writer::count(&server)?;
            let text = format!("{} rows, sum {}", found.rows, found.sum);
            Ok((found, text))
        })?;
    teller.story.rows_restored = found.rows;
    teller.story.sum_matches = found.sum == ledger.sum;
    teller.story.repository_bytes = stage.repository_bytes();
    if (found.rows, found.sum) == (ledger.rows, ledger.sum) {
        return Ok(());
    }
    Err(Failure::new(Class::Bug, "show the demo").because(format!(
        "{} rows with sum {} were committed, {} with sum {} came back",
        ledger.rows, ledger.sum, found.rows, found.sum
    )))
}

fn teller_size(status: &serde_json::Value) -> Outcome<String> {
    let range = &status["ranges"][0];
    let text = |value: &serde_json::Value| value.as_str().unwrap_or("?").to_owned();
    Ok(format!("any moment from {} to {}", text(&range["from"]["time"]), text(&range["to"]["time"])))
}

/// Tells the steps as they happen, and keeps their times.
struct Teller {
    output: Output,
    interrupted: Arc<AtomicBool>,
    story: Story,
    begun: Instant,
}

impl Teller {
    fn say(&self, text: &str) -> Outcome {
        self.output.say(text)
    }

    fn check(&self) -> Outcome {
        if self.interrupted.load(Ordering::SeqCst) {
            return Err(Failure::new(Class::Other, "the demo was interrupted"));
        }
        Ok(())
    }

    fn wait(&self, time: Duration) -> Outcome {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.check()?;
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn step(&mut self, what: &'static str, told: &str, work: impl FnOnce() -> Outcome<String>) -> Outcome {
        self.step_with(what, told, || work().map(|text| ((), text)))
    }

    fn step_with<T>(
        &mut self,
        what: &'static str,
        told: &str,
        work: impl FnOnce() -> Outcome<(T, String)>,
    ) -> Outcome<T> {
        self.check()?;
        let number = self.story.steps.len() + 1;
        self.say(&format!("{number}. {told}"))?;
        let begun = Instant::now();
        let (value, text) = work()?;
        let took = begun.elapsed();
        self.story.steps.push(Step { what, seconds: took.as_secs_f64() });
        let text = if text.is_empty() { String::new() } else { format!("   {text}") };
        self.say(&format!("   {}{text}\n", elapsed(took)))?;
        Ok(value)
    }

    fn end(mut self, folder: &std::path::Path) -> Outcome {
        self.story.seconds = self.begun.elapsed().as_secs_f64();
        let story = &self.story;
        self.output.show(story, || {
            format!(
                "Every row that was committed before the disaster is back: {} of {}, and their sum is the same.\n\
                 The repository took {}. All of it took {}; {} is removed.\n",
                story.rows_restored,
                story.rows_before_the_disaster,
                bytes(story.repository_bytes),
                elapsed(self.begun.elapsed()),
                folder.display()
            )
        })
    }
}

/// Notes Ctrl-C and SIGTERM instead of dying of them, so that servers and folders are removed.
fn watch_for_interrupt() -> Outcome<Arc<AtomicBool>> {
    let what = "watch for Ctrl-C";
    let interrupted = Arc::new(AtomicBool::new(false));
    let noted = interrupted.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed(what))?;
    std::thread::spawn(move || {
        runtime.block_on(async {
            let terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate());
            let Ok(mut terminate) = terminate else { return };
            loop {
                tokio::select! {
                    _ = tokio::signal::ctrl_c() => {}
                    _ = terminate.recv() => {}
                }
                noted.store(true, Ordering::SeqCst);
            }
        });
    });
    Ok(interrupted)
}
