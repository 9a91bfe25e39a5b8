//! What a long operation tells, on standard error: a bar on a terminal, plain lines elsewhere.

use std::io::{self, IsTerminal as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use operations::monitor::{Event, Monitor, Silent};

use crate::output::{bytes, elapsed, print_error};

/// Plain lines come no more often than this.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// The monitor for this terminal; silent when asked to be.
pub fn monitor(quiet: bool) -> Arc<dyn Monitor> {
    if quiet {
        Arc::new(Silent)
    } else if io::stderr().is_terminal() {
        Arc::new(Bar::new())
    } else {
        Arc::new(Lines::new())
    }
}

/// A bar that is redrawn in place.
struct Bar {
    bar: ProgressBar,
}

impl Bar {
    fn new() -> Self {
        let bar = ProgressBar::new_spinner();
        bar.set_style(spinner());
        bar.enable_steady_tick(Duration::from_millis(120));
        Self { bar }
    }
}

fn spinner() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {msg} {elapsed}").expect("the template is right")
}

fn measured() -> ProgressStyle {
    ProgressStyle::with_template(
        "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}",
    )
    .expect("the template is right")
}

impl Monitor for Bar {
    fn event(&self, event: Event) {
        match event {
            Event::Phase(phase) => {
                self.bar.set_style(spinner());
                self.bar.set_message(phase);
            }
            Event::Total { bytes, .. } => {
                self.bar.set_style(measured());
                self.bar.set_length(bytes);
                self.bar.set_position(0);
            }
            Event::Advanced { bytes } => self.bar.inc(bytes),
            Event::Warning(text) => self.bar.suspend(|| print_error(&format!("warning: {text}\n"))),
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// A line for each phase, and now and then how far it got.
struct Lines {
    state: Mutex<State>,
}

struct State {
    phase: &'static str,
    started: Instant,
    last_line: Instant,
    done: u64,
    total: u64,
}

impl Lines {
    fn new() -> Self {
        let now = Instant::now();
        Self { state: Mutex::new(State { phase: "", started: now, last_line: now, done: 0, total: 0 }) }
    }
}

impl State {
    fn end_phase(&mut self) -> Option<String> {
        let took = elapsed(self.started.elapsed());
        let moved = if self.done > 0 { format!("{}, ", bytes(self.done)) } else { String::new() };
        (!self.phase.is_empty()).then(|| format!("{}: {moved}{took}\n", self.phase))
    }

    fn apply(&mut self, event: Event) -> Option<String> {
        let now = Instant::now();
        match event {
            Event::Phase(phase) => {
                let line = self.end_phase();
                *self = State { phase, started: now, last_line: now, done: 0, total: 0 };
                line
            }
            Event::Total { bytes, .. } => {
                self.total = bytes;
                None
            }
            Event::Advanced { bytes: more } => {
                self.done += more;
                let due = now.duration_since(self.last_line) >= LINE_INTERVAL;
                due.then(|| {
                    self.last_line = now;
                    format!("{}: {} of {}\n", self.phase, bytes(self.done), bytes(self.total))
                })
            }
            Event::Warning(text) => Some(format!("warning: {text}\n")),
        }
    }
}

impl Monitor for Lines {
    fn event(&self, event: Event) {
        let line = self.state.lock().unwrap_or_else(PoisonError::into_inner).apply(event);
        if let Some(line) = line {
            print_error(&line);
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        if let Some(line) = self.state.get_mut().unwrap_or_else(PoisonError::into_inner).end_phase() {
            print_error(&line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_ends_each_phase() {
        let mut state =
            Lines::new().state.lock().map(|mut state| std::mem::replace(&mut *state, fresh())).unwrap();
        assert_eq!(state.apply(Event::Phase("copy files")), None);
        assert_eq!(state.apply(Event::Total { bytes: 2048, files: 1 }), None);
        assert_eq!(state.apply(Event::Advanced { bytes: 2048 }), None);
        let line = state.apply(Event::Phase("wait for WAL")).unwrap();
        assert!(line.starts_with("copy files: 2.0 KiB, 0."), "{line}");
        assert_eq!(state.apply(Event::Warning("x".into())).as_deref(), Some("warning: x\n"));
    }

    fn fresh() -> State {
        let now = Instant::now();
        State { phase: "", started: now, last_line: now, done: 0, total: 0 }
    }
}
