//! Results on standard output, as text or as JSON, and the forms of sizes, spans and moments in them.

use std::io::{self, IsTerminal as _, Write as _};

use comfy_table::{ColumnConstraint, ContentArrangement, Table, TableStyle};
use serde::Serialize;

use crate::failure::{Class, Failure, Outcome};

/// Columns of a terminal whose width is not known.
const WIDTH: usize = 80;

/// Where results go.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// JSON instead of text.
    pub json: bool,
}

impl Output {
    /// Prints the value as JSON if that was asked for, its text otherwise.
    pub fn show<T: Serialize>(&self, value: &T, text: impl FnOnce() -> String) -> Outcome {
        if self.json {
            let json = serde_json::to_string_pretty(value).expect("what is shown has text for keys");
            print(&format!("{json}\n"))
        } else {
            print(&text())
        }
    }

    /// Prints text that is not part of a JSON result.
    pub fn say(&self, text: &str) -> Outcome {
        if self.json { Ok(()) } else { print(&format!("{text}\n")) }
    }
}

/// Writes to standard output. A reader that has gone away (`pgkeep list | head -1`) is no failure.
pub fn print(text: &str) -> Outcome {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::caused("write the result", &error).class(Class::Other))
        }
        _ => Ok(()),
    }
}

/// Writes to standard error, where failing changes nothing.
pub fn print_error(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// The columns to use: those of the terminal, at most 120; 80 where there is none.
pub fn width() -> usize {
    if !io::stdout().is_terminal() {
        return WIDTH;
    }
    rustix::termios::tcgetwinsize(io::stdout())
        .map(|size| usize::from(size.ws_col))
        .ok()
        .filter(|&columns| columns >= 40)
        .map_or(WIDTH, |columns| columns.min(120))
}

/// A table without lines, that fits the width.
pub fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(TableStyle::new());
    table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width() as u16);
    table.set_header(header.iter().copied());
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

/// Keeps a column's words whole: ids are copied.
pub fn keep_whole(table: &mut Table, column: usize) {
    if let Some(column) = table.column_mut(column) {
        column.set_constraint(ColumnConstraint::ContentWidth);
    }
}

/// The text of a table, without blanks at the ends of lines.
pub fn table_text(table: &Table) -> String {
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// Lines of `name  value`, the values under each other and wrapped.
pub fn facts(lines: &[(&str, String)]) -> String {
    let widest = lines.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for (name, value) in lines {
        let head = format!("{name:<widest$}  ");
        if value.is_empty() {
            text.push_str(head.trim_end());
            text.push('\n');
        } else {
            crate::failure::push_wrapped(&mut text, &head, value, width());
        }
    }
    text
}

/// `1.5 GiB`: three digits at most, binary units.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let (mut value, mut unit) = (count as f64 / 1024.0, 0);
    while value >= 1023.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if value < 9.95 { 1 } else { 0 };
    format!("{value:.digits$} {}", UNITS[unit])
}

/// `2026-11-22 02:00:00+00`: PostgreSQL's way, in UTC, to the second.
pub fn moment(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S+00").to_string()
}

/// The same for a column whose header says that it is UTC.
pub fn short_moment(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// The same to the microsecond, for moments that are copied into a command.
pub fn exact_moment(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S%.6f+00").to_string()
}

/// `42 s`, `7 min`, `3 h`, `12 days`: how long something took or is ago.
pub fn span(seconds: i64) -> String {
    match seconds {
        i64::MIN..=0 => "0 s".to_owned(),
        1..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// `1.42 s`, `37 s`: how long a step took.
pub fn elapsed(duration: std::time::Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 10.0 { format!("{seconds:.2} s") } else { span(seconds.round() as i64) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_few_digits() {
        let cases =
            [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (10_240, "10 KiB"), (1 << 20, "1.0 MiB")];
        for (count, text) in cases {
            assert_eq!(bytes(count), text);
        }
        assert_eq!(bytes(1_048_000), "1023 KiB");
        assert_eq!(bytes(u64::MAX), "16 EiB");
    }

    #[test]
    fn spans_are_rough() {
        let cases = [(-5, "0 s"), (42, "42 s"), (600, "10 min"), (86_400, "24 h"), (864_000, "10 days")];
        for (seconds, text) in cases {
            assert_eq!(span(seconds), text);
        }
    }

    #[test]
    fn facts_stand_under_each_other() {
        assert_eq!(facts(&[("a", "1".into()), ("long", "2".into())]), "a     1\nlong  2\n");
    }
}
