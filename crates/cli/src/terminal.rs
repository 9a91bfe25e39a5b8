//! Asking the person at the terminal.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, IsTerminal as _, Write as _};

use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use secrecy::SecretString;
use zeroize::Zeroizing;

use crate::failure::{Class, Failure, Outcome};

/// Whether somebody is there to be asked: standard input and error are a terminal.
pub fn is_interactive() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Asks for a line that everybody may see.
pub fn ask(question: &str) -> Outcome<String> {
    let mut terminal = open()?;
    read_line(&mut terminal, question).map(|line| line.trim().to_owned()).map_err(|error| failed(&error))
}

/// Asks for a line that is not shown while it is typed.
pub fn ask_secret(question: &str) -> Outcome<SecretString> {
    let mut terminal = open()?;
    let before = tcgetattr(&terminal).map_err(|error| failed(&error.into()))?;
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    silent.local_modes.insert(LocalModes::ECHONL);
    tcsetattr(&terminal, OptionalActions::Flush, &silent).map_err(|error| failed(&error.into()))?;
    let line = read_line(&mut terminal, question);
    // Whatever happened, the terminal must show again what is typed.
    let restored = tcsetattr(&terminal, OptionalActions::Now, &before);
    let line = line.map_err(|error| failed(&error))?;
    restored.map_err(|error| failed(&error.into()))?;
    Ok(SecretString::from(line.trim_end_matches(['\n', '\r']).to_owned()))
}

/// Asks a question that only `yes` answers.
pub fn confirm(question: &str) -> Outcome<bool> {
    Ok(ask(&format!("{question} (yes/no) "))? == "yes")
}

fn open() -> Outcome<File> {
    OpenOptions::new().read(true).write(true).open("/dev/tty").map_err(|error| failed(&error))
}

fn failed(error: &io::Error) -> Failure {
    Failure::caused("ask at the terminal", error).class(Class::WrongRequest)
}

fn read_line(terminal: &mut File, question: &str) -> io::Result<Zeroizing<String>> {
    terminal.write_all(question.as_bytes())?;
    terminal.flush()?;
    let mut line = Zeroizing::new(String::with_capacity(256));
    BufReader::with_capacity(1, terminal).read_line(&mut line)?;
    if line.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "nothing was typed"));
    }
    Ok(line)
}
