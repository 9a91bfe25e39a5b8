//! Whether what was stored is whole, before there is a backup: what `pg_dump` wrote is read back and compared with the catalogue.

use std::collections::HashSet;
use std::io::Write as _;
use std::process::Stdio;
use std::sync::Arc;

use repository::Repository;
use repository::content::Entry;
use server::programs::Program;

use super::error::LogicalError;
use super::reader::FileReader;

/// Reads the definitions back and asks `pg_restore` for their list: every table whose rows are stored must be in it.
pub(crate) async fn definitions(
    repository: &Arc<Repository>,
    entry: &Entry,
    restore: &Program,
    oids: HashSet<u32>,
) -> Result<(), LogicalError> {
    let mut command = restore.command(None)?;
    command.arg("--list").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut running = restore.start(command)?;
    let stdout = running.child.stdout.take().expect("it was piped");
    let lines = std::thread::spawn(move || std::io::read_to_string(stdout));
    let mut stdin = running.child.stdin.take().expect("it was piped");
    let failed = |action| move |source| LogicalError::Pipe { action, source };
    let mut reader = FileReader::new(repository);
    let fed = reader
        .read(entry, |bytes| match stdin.write_all(bytes) {
            // It has the list, which stands first, and wants no more.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(LogicalError::Stopped),
            other => other.map_err(failed("give the definitions to pg_restore")),
        })
        .await;
    drop(stdin);
    match fed {
        Err(LogicalError::Stopped) => {}
        other => other?,
    }
    let list = lines.join().expect("reading does not panic").map_err(failed("read pg_restore's list"))?;
    running.finish()?;
    let mut missing = oids;
    for line in list.lines().filter(|line| !line.starts_with(';')) {
        // `215; 1259 16385 TABLE public name owner`: dump id, catalogue, oid, kind.
        let mut words = line.split_whitespace();
        if let (Some("1259"), Some(oid)) = (words.nth(1), words.next()) {
            missing.remove(&oid.parse().unwrap_or(0));
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(LogicalError::NotWhole { what: format!("pg_dump gave no definition of {} tables", missing.len()) })
}
