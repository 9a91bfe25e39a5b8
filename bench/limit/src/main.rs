//! The bare pipeline of a backup, forwards and backwards, with no product code: what this machine can do.
//!
//! `limit full DATA OUT` reads the files of a data directory, digests each page, compresses, seals and writes one file with
//! one fsync; `limit restore OUT INTO` goes backwards with one `syncfs`. Neither knows PostgreSQL, checks a checksum, compares
//! with anything, or could be resumed. Threads share nothing but two counters, and reuse their buffers and contexts.
#![allow(clippy::print_stdout, clippy::print_stderr)] // it is a program for a benchmark

mod index;
mod pipeline;
mod plan;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

const USAGE: &str =
    "usage: limit full DATA OUT [--threads N] [--level L]\n       limit restore OUT INTO [--threads N]";

/// What went wrong, in words.
type Outcome<T> = Result<T, String>;

struct Arguments {
    wish: String,
    from: PathBuf,
    to: PathBuf,
    threads: usize,
    level: i32,
}

fn main() -> ExitCode {
    let started = Instant::now();
    match read_arguments().and_then(|arguments| run(&arguments)) {
        Ok((read, written)) => {
            let seconds = started.elapsed().as_secs_f64();
            println!("{{\"read_bytes\": {read}, \"written_bytes\": {written}, \"seconds\": {seconds:.3}}}");
            ExitCode::SUCCESS
        }
        Err(message) => {
            eprintln!("limit: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Outcome<(u64, u64)> {
    match arguments.wish.as_str() {
        "full" => pipeline::full(&arguments.from, &arguments.to, arguments.threads, arguments.level),
        "restore" => pipeline::restore(&arguments.from, &arguments.to, arguments.threads),
        _ => Err(USAGE.to_owned()),
    }
}

fn read_arguments() -> Outcome<Arguments> {
    let mut places = Vec::new();
    let (mut threads, mut level) = (2, 1);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || words.next().and_then(|text| text.parse::<i32>().ok()).ok_or(USAGE);
        match word.as_str() {
            "--threads" => threads = number()?.max(1) as usize,
            "--level" => level = number()?,
            _ => places.push(word),
        }
    }
    let [wish, from, to] = <[String; 3]>::try_from(places).map_err(|_| USAGE)?;
    Ok(Arguments { wish, from: from.into(), to: to.into(), threads, level })
}

/// Names the file in an error.
fn at<T>(path: &Path, result: std::io::Result<T>) -> Outcome<T> {
    result.map_err(|error| format!("{}: {error}", path.display()))
}
