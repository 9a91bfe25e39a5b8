//! `backup_manifest`: PostgreSQL's own list of a backup's files, so that `pg_verifybackup` can judge a
//! restore.
//!
//! [`BackupManifestWriter`] writes it as the server does, file by file as they come. Source:
//! `backup/backup_manifest.c`.

use std::fmt::Write as _;
use std::io;

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use crate::{Lsn, Major, TimelineId};

/// The name of the file in the data directory. It does not list itself.
pub const BACKUP_MANIFEST_FILE: &str = "backup_manifest";

/// The layout for majors that we do not know: that of the newest we do.
const NEWEST_VERSION: u8 = 2;

/// WAL of one timeline that must be replayed before the backup is consistent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalRange {
    /// The timeline.
    pub timeline: TimelineId,
    /// Where replay on it begins.
    pub start: Lsn,
    /// Where it ends.
    pub end: Lsn,
}

/// Writes a manifest to `W`. Nothing is a manifest until [`BackupManifestWriter::finish`] has added the
/// checksum.
#[derive(Debug)]
pub struct BackupManifestWriter<W> {
    out: W,
    digest: Sha256,
    line: String,
    is_first: bool,
}

impl<W: io::Write> BackupManifestWriter<W> {
    /// Begins the manifest of a cluster of `major`, whose `pg_verifybackup` is to read it. Writes in small
    /// pieces: give it something buffered.
    pub fn new(out: W, major: Major, system_identifier: u64) -> io::Result<BackupManifestWriter<W>> {
        let version = major.facts().map_or(NEWEST_VERSION, |facts| facts.manifest_version);
        let (digest, mut line) =
            (Sha256::new(), format!("{{ \"PostgreSQL-Backup-Manifest-Version\": {version},\n"));
        if version >= 2 {
            let _ = writeln!(line, "\"System-Identifier\": {system_identifier},");
        }
        line.push_str("\"Files\": [");
        let mut writer = BackupManifestWriter { out, digest, line, is_first: true };
        writer.put_line()?;
        Ok(writer)
    }

    /// Adds a file of `size` bytes whose CRC-32C is `crc32c`, if that is known: a file without one is judged by its size
    /// (`parse_manifest.c` takes both fields as optional). `path` is relative to the data directory; files
    /// of tablespaces are at `pg_tblspc/<oid>/…`. Neither the manifest itself nor anything in `pg_wal` is to
    /// be listed.
    pub fn add_file(
        &mut self,
        path: &[u8],
        size: u64,
        modified: Timestamp,
        crc32c: Option<u32>,
    ) -> io::Result<()> {
        self.line.push_str(if self.is_first { "\n" } else { ",\n" });
        self.is_first = false;
        match std::str::from_utf8(path) {
            Ok(path) => {
                self.line.push_str("{ \"Path\": ");
                push_json(&mut self.line, path);
            }
            Err(_) => {
                self.line.push_str("{ \"Encoded-Path\": \"");
                push_hex(&mut self.line, path);
                self.line.push('"');
            }
        }
        let modified = modified.strftime("%Y-%m-%d %H:%M:%S GMT");
        let _ = write!(self.line, ", \"Size\": {size}, \"Last-Modified\": \"{modified}\"");
        if let Some(crc32c) = crc32c {
            // pg_checksum_final copies the CRC as it lies in memory, lowest byte first.
            self.line.push_str(", \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"");
            push_hex(&mut self.line, &crc32c.to_le_bytes());
            self.line.push('"');
        }
        self.line.push_str(" }");
        self.put_line()
    }

    /// Ends the manifest with the WAL to be replayed, newest timeline first, and the checksum of everything
    /// before it; returns what it was written to, not flushed.
    pub fn finish(mut self, ranges: &[WalRange]) -> io::Result<W> {
        self.line.push_str("\n],\n\"WAL-Ranges\": [\n");
        for (index, range) in ranges.iter().enumerate() {
            let WalRange { timeline, start, end } = range;
            let separator = if index == 0 { "" } else { ",\n" };
            let _ = write!(
                self.line,
                "{separator}{{ \"Timeline\": {timeline}, \"Start-LSN\": \"{start}\", \"End-LSN\": \"{end}\" }}"
            );
        }
        self.line.push_str("\n],\n");
        self.put_line()?;
        let mut last = String::from("\"Manifest-Checksum\": \"");
        push_hex(&mut last, &self.digest.finalize());
        last.push_str("\"}\n");
        self.out.write_all(last.as_bytes())?;
        Ok(self.out)
    }

    /// Writes the line built so far and counts it into the checksum.
    fn put_line(&mut self) -> io::Result<()> {
        self.digest.update(self.line.as_bytes());
        self.out.write_all(self.line.as_bytes())?;
        self.line.clear();
        Ok(())
    }
}

fn push_hex(line: &mut String, bytes: &[u8]) {
    for byte in bytes {
        let _ = write!(line, "{byte:02x}");
    }
}

/// `text` as a JSON string, as `escape_json` writes it.
fn push_json(line: &mut String, text: &str) {
    line.push('"');
    for character in text.chars() {
        match character {
            '\u{8}' => line.push_str("\\b"),
            '\u{c}' => line.push_str("\\f"),
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\t' => line.push_str("\\t"),
            '"' => line.push_str("\\\""),
            '\\' => line.push_str("\\\\"),
            control if control < ' ' => {
                let _ = write!(line, "\\u{:04x}", u32::from(control));
            }
            other => line.push(other),
        }
    }
    line.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(timeline: u32, start: &str, end: &str) -> WalRange {
        let timeline = TimelineId::new(timeline).unwrap();
        WalRange { timeline, start: start.parse().unwrap(), end: end.parse().unwrap() }
    }

    fn moment() -> Timestamp {
        "2026-11-22T18:32:48.9Z".parse().unwrap()
    }

    #[test]
    fn the_text_is_the_servers() {
        let mut writer = BackupManifestWriter::new(Vec::new(), Major::new(15), 7).unwrap();
        // As PostgreSQL 15 wrote it for a file with these bytes.
        writer.add_file(b"PG_VERSION", 3, moment(), Some(crc32c::crc32c(b"15\n"))).unwrap();
        writer.add_file(b"base/\xff", 0, moment(), None).unwrap();
        let ranges = [range(2, "0/1000100", "0/1000200"), range(1, "0/1000028", "0/1000100")];
        let text = String::from_utf8(writer.finish(&ranges).unwrap()).unwrap();
        let expected = "{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n\
            { \"Path\": \"PG_VERSION\", \"Size\": 3, \"Last-Modified\": \"2026-11-22 18:32:48 GMT\", \
            \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"8a744722\" },\n\
            { \"Encoded-Path\": \"626173652fff\", \"Size\": 0, \"Last-Modified\": \"2026-11-22 18:32:48 GMT\" }\n],\n\
            \"WAL-Ranges\": [\n\
            { \"Timeline\": 2, \"Start-LSN\": \"0/1000100\", \"End-LSN\": \"0/1000200\" },\n\
            { \"Timeline\": 1, \"Start-LSN\": \"0/1000028\", \"End-LSN\": \"0/1000100\" }\n],\n";
        let (before, last) = text.split_at(expected.len());
        assert_eq!(before, expected);
        let mut checksum = String::new();
        push_hex(&mut checksum, &Sha256::digest(expected));
        assert_eq!(last, format!("\"Manifest-Checksum\": \"{checksum}\"}}\n"));
    }

    #[test]
    fn from_17_the_system_identifier_is_told() {
        for (major, version) in [(16, 1), (17, 2), (18, 2), (99, 2)] {
            let writer = BackupManifestWriter::new(Vec::new(), Major::new(major), u64::MAX).unwrap();
            let bytes = writer.finish(&[range(1, "0/1", "0/2")]).unwrap();
            let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
            assert_eq!(json["PostgreSQL-Backup-Manifest-Version"], version);
            let identifier = (version == 2).then_some(u64::MAX);
            assert_eq!(json.get("System-Identifier").and_then(|value| value.as_u64()), identifier);
        }
    }

    proptest! {
        #[test]
        fn any_path_is_read_back(path: Vec<u8>, text in ".*") {
            let mut writer = BackupManifestWriter::new(Vec::new(), Major::new(18), 1).unwrap();
            writer.add_file(&path, 1, moment(), Some(1)).unwrap();
            writer.add_file(text.as_bytes(), 1, moment(), Some(1)).unwrap();
            let bytes = writer.finish(&[]).unwrap();
            let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
            prop_assert_eq!(json["Files"][1]["Path"].as_str(), Some(text.as_str()));
            let mut hex = String::new();
            push_hex(&mut hex, &path);
            match std::str::from_utf8(&path) {
                Ok(path) => prop_assert_eq!(json["Files"][0]["Path"].as_str(), Some(path)),
                Err(_) => prop_assert_eq!(json["Files"][0]["Encoded-Path"].as_str(), Some(hex.as_str())),
            }
        }
    }
}
