//! Files that hold secrets, and secrets that come from them, from commands and from people.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::process::{Command, Stdio};

use repository::Secret;
use repository::keys::SlotKey;
use repository::secrets::WriterCredential;
use secrecy::{ExposeSecret as _, SecretString};
use zeroize::Zeroizing;

use crate::failure::{Class, Failure, Outcome};
use crate::settings::Settings;
use crate::terminal;

/// No secret file is larger.
const FILE_LIMIT: u64 = 64 << 10;

/// What a command is going to do with the repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Only add; a writer credential is the better choice.
    Add,
    /// Read, and perhaps add.
    Read,
}

/// The secret that is configured for such a use; asks for a passphrase as the last resort.
pub fn configured(settings: &Settings, wanted: Use) -> Outcome<Secret> {
    if wanted == Use::Add
        && let Some(writer) = writer(settings)?
    {
        return Ok(writer);
    }
    if let Some(key) = key(settings)? {
        return Ok(key);
    }
    if let Some(passphrase) = passphrase(settings)? {
        return Ok(Secret::Passphrase(passphrase));
    }
    if let Some(writer) = writer(settings)? {
        return Ok(writer);
    }
    if terminal::is_interactive() {
        return Ok(Secret::Passphrase(terminal::ask_secret("passphrase of the repository: ")?));
    }
    Err(Failure::wrong("open the repository")
        .because("no key and no passphrase is configured")
        .hint("--key-file or --passphrase-file, their variables, or PGKEEP_KEY or PGKEEP_PASSPHRASE"))
}

/// Whether a command that cannot ask anybody finds a secret that reads.
pub fn reads_unasked(settings: &Settings) -> bool {
    let names = ["key", "key_file", "passphrase", "passphrase_file", "passphrase_command"];
    names.iter().any(|name| settings.secret(name).is_some())
}

/// The key that is configured, if one is.
pub fn key(settings: &Settings) -> Outcome<Option<Secret>> {
    let (what, text) = if let Some(key) = settings.secret("key") {
        ("read the key in PGKEEP_KEY".to_owned(), key)
    } else if let Some(path) = settings.path("key_file") {
        (format!("read the key file {}", path.display()), read_secret(&path)?)
    } else {
        return Ok(None);
    };
    parse_key(what, &text).map(Some)
}

/// The key in a file that the command line names.
pub fn key_in(path: &Path) -> Outcome<Secret> {
    parse_key(format!("read the key file {}", path.display()), &read_secret(path)?)
}

fn parse_key(what: String, text: &SecretString) -> Outcome<Secret> {
    match SlotKey::parse(text.expose_secret()) {
        Ok(key) => Ok(Secret::Key(key)),
        Err(error) => Err(Failure::caused(what, &error)),
    }
}

fn writer(settings: &Settings) -> Outcome<Option<Secret>> {
    let (what, text) = if let Some(writer) = settings.secret("writer") {
        ("read the writer credential in PGKEEP_WRITER".to_owned(), writer)
    } else if let Some(path) = settings.path("writer_file") {
        (format!("read the writer credential {}", path.display()), read_secret(&path)?)
    } else {
        return Ok(None);
    };
    match WriterCredential::parse(text.expose_secret()) {
        Ok(writer) => Ok(Some(Secret::Writer(writer))),
        Err(error) => Err(Failure::caused(what, &error).class(Class::WrongRequest)),
    }
}

/// The passphrase that is configured, if one is; nobody is asked.
pub fn passphrase(settings: &Settings) -> Outcome<Option<SecretString>> {
    if let Some(path) = settings.path("passphrase_file") {
        return passphrase_of(read_secret(&path)?).map(Some);
    }
    if let Some(command) = settings.command("passphrase_command") {
        return passphrase_of(run(command)?).map(Some);
    }
    Ok(settings.secret("passphrase"))
}

/// Reads a passphrase: the first line of a file.
pub fn read_passphrase(path: &Path) -> Outcome<SecretString> {
    passphrase_of(read_secret(path)?)
}

/// Asks for a new passphrase, twice.
pub fn ask_new_passphrase() -> Outcome<SecretString> {
    let first = terminal::ask_secret("new passphrase: ")?;
    let second = terminal::ask_secret("the same again: ")?;
    if first.expose_secret() != second.expose_secret() {
        return Err(Failure::wrong("read the new passphrase").because("the two are not the same"));
    }
    Ok(first)
}

/// The first line, without its end: editors add one.
fn passphrase_of(text: SecretString) -> Outcome<SecretString> {
    let line = text.expose_secret().lines().next().unwrap_or_default();
    if line.is_empty() {
        return Err(Failure::wrong("read the passphrase").because("it is empty"));
    }
    Ok(SecretString::from(line.to_owned()))
}

fn run(command: &str) -> Outcome<SecretString> {
    let what = "run the passphrase command";
    let child = Command::new("/bin/sh")
        .args(["-c", command])
        .stderr(Stdio::inherit())
        .stdin(Stdio::inherit())
        .output();
    let output = child.map_err(|error| Failure::caused(what, &error))?;
    let stdout = Zeroizing::new(output.stdout);
    if !output.status.success() {
        return Err(Failure::wrong(what).because(format!("it ended with {}", output.status)));
    }
    match std::str::from_utf8(&stdout) {
        Ok(text) => Ok(SecretString::from(text.to_owned())),
        Err(_) => Err(Failure::wrong(what).because("what it printed is not UTF-8")),
    }
}

fn read_secret(path: &Path) -> Outcome<SecretString> {
    let what = || format!("read {}", path.display());
    let failed = |error: io::Error| {
        let class =
            if error.kind() == io::ErrorKind::NotFound { Class::NotFound } else { Class::WrongRequest };
        Failure::caused(what(), &error).class(class)
    };
    let metadata = fs::metadata(path).map_err(failed)?;
    if metadata.len() > FILE_LIMIT {
        return Err(Failure::wrong(what()).because("it is too large for a key or passphrase"));
    }
    if metadata.is_file() && metadata.mode() & 0o007 != 0 {
        tracing::warn!(path = %path.display(), "everybody on this host can read this secret; `chmod 600` it");
    }
    fs::read_to_string(path).map(SecretString::from).map_err(failed)
}

/// Writes a secret into a new file that only its owner may read, and makes sure that it is on disk.
pub fn write_new(path: &Path, text: &str) -> Outcome {
    let what = || format!("write {}", path.display());
    let written =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).and_then(|mut file| {
            file.write_all(text.as_bytes())
                .and_then(|()| file.sync_all())
                .inspect_err(|_| drop(fs::remove_file(path)))
        });
    written.and_then(|()| sync_folder(path)).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Failure::new(Class::Conflict, what())
            .because("it exists already, and may be the only key to something")
            .hint("name a file that does not exist yet"),
        _ => Failure::caused(what(), &error),
    })
}

fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = std::path::absolute(path)?;
    folder.parent().map_or(Ok(()), |folder| fs::File::open(folder)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_file_is_private_and_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        write_new(&path, "one\n").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(write_new(&path, "two\n").unwrap_err().class, Class::Conflict);
        assert_eq!(read_secret(&path).unwrap().expose_secret(), "one\n");
    }

    #[test]
    fn a_passphrase_is_the_first_line() {
        let read = |text: &str| passphrase_of(SecretString::from(text.to_owned()));
        assert_eq!(read("a b \r\nc").unwrap().expose_secret(), "a b ");
        assert!(read("\n").is_err() && read("").is_err());
        assert_eq!(run("echo x; echo y").unwrap().expose_secret(), "x\ny\n");
        assert!(run("exit 3").unwrap_err().because[0].contains('3'));
    }
}
