//! `pg_dump` at work beside the readers: definitions and large objects, no rows.

use std::io::Read as _;
use std::process::Stdio;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, bounded};
use server::programs::{Program, ProgramError, Running};
use server::snapshot::Snapshot;

use crate::logical::content::Sink;
use crate::logical::error::LogicalError;
use crate::logical::rows::each_row;

/// Bytes of one read, and how many of them wait for a thread that stores them: so far the program gets while all threads
/// read rows.
const READ: usize = 64 << 10;
const WAITING: usize = 64;

/// The program, and what it has written so far.
pub(super) struct Dump {
    running: Running,
    output: Receiver<Vec<u8>>,
    pump: JoinHandle<std::io::Result<()>>,
}

impl Dump {
    /// Starts it, to see the moment of `snapshot`.
    pub(super) fn start(
        program: &Program,
        snapshot: &Snapshot,
        arguments: &[String],
    ) -> Result<Self, LogicalError> {
        let mut command = program.command(Some(snapshot.settings()))?;
        command
            // Uncompressed: what is the same in the next backup must have the same bytes.
            .args(["--format=custom", "--compress=0", "--no-password", "--exclude-table-data=*.*"])
            .arg(format!("--snapshot={}", snapshot.id()))
            .arg(format!("--encoding={}", snapshot.encoding()))
            .args(arguments)
            .stdout(Stdio::piped());
        let mut running = program.start(command)?;
        let mut stdout = running.child.stdout.take().expect("it was piped");
        let (output_in, output) = bounded(WAITING);
        let pump = std::thread::spawn(move || {
            loop {
                let mut buffer = vec![0; READ];
                let length = stdout.read(&mut buffer)?;
                buffer.truncate(length);
                // Nobody reads any more when something else failed, which says why.
                if length == 0 || output_in.send(buffer).is_err() {
                    return Ok(());
                }
            }
        });
        Ok(Self { running, output, pump })
    }

    /// Stores what it writes until it ends.
    pub(super) fn store(self, sink: &mut Sink<'_>, path: String) -> Result<(), LogicalError> {
        let Self { running, output, pump } = self;
        let mut file = sink.file(path)?;
        for bytes in &output {
            each_row(&bytes, &mut |line| file.row(line))?;
        }
        let failed = |source| LogicalError::Pipe { action: "read what pg_dump writes", source };
        pump.join().expect("the pump does not panic").map_err(failed)?;
        finish(running)?;
        file.finish().map(drop)
    }
}

fn finish(running: Running) -> Result<(), ProgramError> {
    let words = running.finish()?;
    if !words.is_empty() {
        tracing::warn!(%words, "pg_dump warned");
    }
    Ok(())
}
