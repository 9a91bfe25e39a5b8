//! Failures as the user sees them: what was being done, because of what, and what to do about it.

mod classes;
mod hints;

use std::error::Error;
use std::fmt::Write as _;

use classes::class_of;
use hints::hint_of;

/// Kinds of failure that a script would treat differently. The exit codes last for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// None of the others: a disk that fails, a program that is missing.
    Other = 1,
    /// What was asked or configured cannot be done as it is.
    WrongRequest = 2,
    /// What was asked for is proven not to be there.
    NotFound = 3,
    /// The same call may succeed later.
    TryAgain = 4,
    /// What is stored was changed, truncated or lost.
    Damaged = 5,
    /// Something else is there already.
    Conflict = 6,
    /// A mistake in pgkeep.
    Bug = 70,
}

/// A failure, ready to be shown.
#[derive(Clone, Debug)]
pub struct Failure {
    /// How a script should take it.
    pub class: Class,
    /// What was being done.
    pub what: String,
    /// Why it failed, outermost first.
    pub because: Vec<String>,
    /// What to do about it.
    pub hint: Option<String>,
}

/// What most commands return.
pub type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// A failure that needs no cause.
    pub fn new(class: Class, what: impl Into<String>) -> Self {
        Self { class, what: what.into(), because: Vec::new(), hint: None }
    }

    /// A request that cannot be met as it is.
    pub fn wrong(what: impl Into<String>) -> Self {
        Self::new(Class::WrongRequest, what)
    }

    /// `what` failed with `error`; class and hint follow from the error and what is below it.
    pub fn caused(what: impl Into<String>, error: &(dyn Error + 'static)) -> Self {
        let (mut because, mut class, mut hint) = (Vec::new(), None, None);
        let mut next = Some(error);
        while let Some(error) = next {
            let text = error.to_string();
            // A layer that only repeats what is below it adds nothing.
            if because.last() != Some(&text) {
                because.push(text);
            }
            class = class.or_else(|| class_of(error));
            hint = hint.or_else(|| hint_of(error));
            next = error.source();
        }
        Self { class: class.unwrap_or(Class::Other), what: what.into(), because, hint }
    }

    /// The failure of a command whose exit status PostgreSQL sees, by that status; 200 is what `wal get` adds.
    pub fn with_status(mut self, status: u8) -> Self {
        let classes = [
            Class::WrongRequest,
            Class::NotFound,
            Class::TryAgain,
            Class::Damaged,
            Class::Conflict,
            Class::Bug,
        ];
        let found = classes.into_iter().find(|class| *class as u8 == status % 200);
        self.class = found.unwrap_or(Class::Other);
        self
    }

    /// Gives another class than the one that follows from the cause.
    pub fn class(mut self, class: Class) -> Self {
        self.class = class;
        self
    }

    /// The failure of something larger, because of this one.
    pub fn within(mut self, what: impl Into<String>) -> Self {
        self.because.insert(0, std::mem::replace(&mut self.what, what.into()));
        self
    }

    /// Why, in one line.
    pub fn why(&self) -> String {
        if self.because.is_empty() { self.what.clone() } else { self.because.join(": ") }
    }

    /// Adds a cause of our own words.
    pub fn because(mut self, cause: impl Into<String>) -> Self {
        self.because.push(cause.into());
        self
    }

    /// Says what to do, unless the cause said so already.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint.get_or_insert_with(|| hint.into());
        self
    }

    /// The text for a terminal, wrapped at `width` columns.
    pub fn render(&self, width: usize) -> String {
        let mut text = String::new();
        push_wrapped(&mut text, "error: ", &self.what, width);
        for cause in &self.because {
            push_wrapped(&mut text, "  because: ", cause, width);
        }
        if let Some(hint) = &self.hint {
            push_wrapped(&mut text, "  hint: ", hint, width);
        }
        text
    }

    /// The same for a program.
    pub fn to_json(&self) -> serde_json::Value {
        let class = format!("{:?}", self.class);
        serde_json::json!({"error": {
            "class": snake(&class), "what": self.what, "because": self.because, "hint": self.hint,
            "exit_code": self.class as u8,
        }})
    }
}

fn snake(name: &str) -> String {
    let mut text = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.push(c.to_ascii_lowercase());
    }
    text
}

/// Appends `head` and `body`, broken at blanks so that lines fit; later lines are set in under the body. Lines that the
/// body has itself stay: a log or a configuration snippet must not be rewrapped into one.
pub fn push_wrapped(text: &mut String, head: &str, body: &str, width: usize) {
    let indent = " ".repeat(head.chars().count());
    let mut lead = head;
    for line in body.lines().filter(|line| !line.trim().is_empty()) {
        let mut column = lead.chars().count();
        text.push_str(lead);
        for (at, word) in line.split_whitespace().enumerate() {
            let len = word.chars().count();
            if at > 0 && column + 1 + len > width {
                write!(text, "\n{indent}").expect("a String takes every write");
                column = indent.len();
            } else if at > 0 {
                text.push(' ');
                column += 1;
            }
            text.push_str(word);
            column += len;
        }
        text.push('\n');
        lead = &indent;
    }
}

#[cfg(test)]
mod tests {
    use repository::RepositoryError;
    use storage::StorageError;

    use super::*;

    #[test]
    fn lines_fit_and_keep_their_shape() {
        let failure = Failure::wrong("restore to 2026-11-20 03:00:00+00")
            .because("WAL is missing from 0/5A000000 to 0/5B000000 on timeline 3, and so nothing past it can be had")
            .hint("the latest reachable target is\n2026-11-19 23:41:07+00");
        let text = failure.render(60);
        assert!(text.lines().all(|line| line.len() <= 60), "{text}");
        insta::assert_snapshot!(text, @r"
        error: restore to 2026-11-20 03:00:00+00
          because: WAL is missing from 0/5A000000 to 0/5B000000 on
                   timeline 3, and so nothing past it can be had
          hint: the latest reachable target is
                2026-11-19 23:41:07+00
        ");
    }

    #[test]
    fn the_class_comes_from_below_and_repeated_layers_are_shown_once() {
        let below = StorageError::RootMissing { root: "/backups".into() };
        let error = RepositoryError::from(below);
        let failure = Failure::caused("open the repository", &error);
        assert_eq!((failure.class, failure.because.len()), (Class::NotFound, 1));
        assert_eq!(failure.to_json()["error"]["class"], "not_found");
    }

    proptest::proptest! {
        #[test]
        fn wrapping_loses_no_word(body in "([a-z]{1,12} ?){0,40}", width in 20usize..90) {
            let mut text = String::new();
            push_wrapped(&mut text, "error: ", &body, width);
            let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            let found = words(text.trim_start_matches("error: "));
            proptest::prop_assert_eq!(found, words(&body));
        }
    }
}
