//! `pg_dump` at work beside the readers: definitions and large objects, no rows.

use std::io::Read as _;
use std::process::Stdio;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, bounded};
use server::programs::{Program, ProgramError, Running};
use server::snapshot::Snapshot;

use crate::logical::content::Sink;
use crate::logical::error::LogicalError;
use crate::logical::rows::{MAX_PIECE, each_row};

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
            .arg(format!("--encoding={}", definitions_encoding(snapshot.encoding())))
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
        let mut lines = Lines::default();
        for bytes in &output {
            lines.add(&bytes, &mut |line| file.row(line))?;
        }
        if !lines.rest.is_empty() {
            file.row(&lines.rest)?;
        }
        let failed = |source| LogicalError::Pipe { action: "read what pg_dump writes", source };
        pump.join().expect("the pump does not panic").map_err(failed)?;
        finish(running)?;
        file.finish().map(drop)
    }
}

/// What of the output has no newline yet. How much one read gives is chance, and where pieces are cut must not be.
#[derive(Default)]
struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    /// Hands out whole lines, and of a longer one as much as a piece has.
    fn add(
        &mut self,
        bytes: &[u8],
        visit: &mut dyn FnMut(&[u8]) -> Result<(), LogicalError>,
    ) -> Result<(), LogicalError> {
        each_row(bytes, &mut |mut part| {
            while self.rest.len() + part.len() > MAX_PIECE {
                let (now, later) = part.split_at(MAX_PIECE - self.rest.len());
                self.rest.extend_from_slice(now);
                visit(&self.rest)?;
                self.rest.clear();
                part = later;
            }
            self.rest.extend_from_slice(part);
            if self.rest.ends_with(b"\n") {
                visit(&self.rest)?;
                self.rest.clear();
            }
            Ok(())
        })
    }
}

/// Definitions are in UTF-8, so that they can be taken apart here; those of a database that knows no encoding are as they are.
fn definitions_encoding(database: &str) -> &str {
    if database == "SQL_ASCII" { database } else { "UTF8" }
}

fn finish(running: Running) -> Result<(), ProgramError> {
    let words = running.finish()?;
    if !words.is_empty() {
        tracing::warn!(%words, "pg_dump warned");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// However the output comes, the same lines are made of it.
        #[test]
        fn any_way_to_read_gives_the_same_lines(
            lengths in prop::collection::vec(0_usize..600_000, 0..6),
            reads in prop::collection::vec(1_usize..200_000, 1..40),
        ) {
            let output: Vec<u8> = lengths
                .iter()
                .flat_map(|length| [&vec![b'x'; *length][..], b"\n"].concat())
                .collect();
            let lines_of = |reads: &[usize]| {
                let (mut lines, mut found, mut at) = (Lines::default(), Vec::new(), 0);
                for read in reads.iter().cycle() {
                    let end = output.len().min(at + read);
                    lines.add(&output[at..end], &mut |line| { found.push(line.len()); Ok(()) }).unwrap();
                    at = end;
                    if at == output.len() { break; }
                }
                found
            };
            let whole = lines_of(&[output.len().max(1)]);
            prop_assert_eq!(whole.iter().sum::<usize>(), output.len());
            prop_assert_eq!(lines_of(&reads), whole);
        }
    }
}
