//! What the answers of a store mean for a caller.

use super::document::element;
use crate::error::{Action, Cause};
use crate::{ObjectName, StorageError};
use object_store::client::HttpError;
use std::error::Error;
use std::fmt;

/// The longest text of an answer that is repeated in an error.
const TEXT_CHARS_MAX: usize = 200;

/// An answer that is no success, or not what was asked for.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The provider's name for the error.
    pub code: Option<String>,
    /// The provider's sentence about it.
    pub message: Option<String>,
    /// The object's whole size, where a refused range tells it.
    pub size: Option<u64>,
    /// What is wrong with an answer that claims success.
    pub strange: Option<&'static str>,
}

impl Answer {
    /// Takes the reason out of an error document, if the text is one.
    pub fn read(status: u16, code: Option<&str>, text: &str) -> Answer {
        let named = |code: &&str| code.len() <= 64 && code.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let code = code.or_else(|| element(text, "Code")).filter(named).map(str::to_owned);
        let message = element(text, "Message").filter(|_| code.is_some()).map(shortened);
        Answer { status, code, message, ..Answer::default() }
    }

    pub fn code_is(&self, codes: &[&str]) -> bool {
        self.code.as_deref().is_some_and(|code| codes.contains(&code))
    }

    /// Whether the store, asked for a range, said that the object is empty.
    pub fn is_of_empty_object(&self) -> bool {
        self.status == 416 && (self.size == Some(0) || self.size.is_none() && self.code_is(&["InvalidRange"]))
    }

    /// The error that a caller gets. A 404 is an absence only if the store itself says that the object is
    /// what is absent.
    fn meaning(self, action: Action, name: Option<&ObjectName>) -> StorageError {
        if self.code_is(&["NoSuchBucket", "ContainerNotFound"]) {
            return StorageError::RootMissing { root: "the bucket".to_owned() };
        }
        if let Some(name) = name {
            let name = || name.clone();
            if self.status == 404 && self.code_is(&["NoSuchKey", "BlobNotFound"]) {
                return StorageError::NotFound { name: name() };
            }
            if matches!(self.status, 304 | 412) || self.code_is(&["BlobAlreadyExists"]) {
                return StorageError::NameTaken { name: name() };
            }
        }
        let again =
            self.code_is(&["InternalError", "SlowDown", "ServerBusy", "RequestTimeout", "OperationTimedOut"]);
        let full = self.code_is(&["XMinioStorageFull", "QuotaExceeded", "InsufficientStorage"]);
        let expired =
            self.code_is(&["ExpiredToken", "InvalidToken", "InvalidAccessKeyId", "SignatureDoesNotMatch"]);
        let (status, source) = (self.status, Cause::from(self));
        match status {
            _ if full => StorageError::Full { action, source },
            507 => StorageError::Full { action, source },
            _ if expired => StorageError::Refused { action, source },
            401 | 403 | 407 => StorageError::Refused { action, source },
            _ if again => StorageError::Transient { action, source },
            408 | 409 | 425 | 429 | 499 | 500 | 502..=504 | 520..=599 => {
                StorageError::Transient { action, source }
            }
            _ => StorageError::Other { action, source },
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the answer was HTTP {}", self.status)?;
        if let Some(code) = &self.code {
            write!(f, " {code}")?;
        }
        if let Some(strange) = self.strange {
            write!(f, ", {strange}")?;
        }
        if let Some(message) = &self.message {
            write!(f, ": {message}")?;
        }
        match self.status {
            301 | 302 | 307 | 308 => {
                write!(f, " (the bucket is in another region or behind another endpoint)")
            }
            404 if self.code.is_none() => {
                write!(f, " without the store's own explanation, which proves nothing")
            }
            501 => write!(f, " (the store does not know this kind of request, such as create-only writes)"),
            _ => Ok(()),
        }
    }
}

impl Error for Answer {}

/// A request without an answer. Holds the innermost reason only: the layers between repeat the address, which
/// may be signed.
#[derive(Debug)]
pub(super) struct Broken {
    text: String,
    for_credentials: bool,
}

impl Broken {
    pub fn new(error: &(dyn Error + 'static), for_credentials: bool) -> Broken {
        Broken { text: innermost(error), for_credentials }
    }

    /// The platform's service for credentials has a bad moment.
    pub fn status(status: u16) -> Broken {
        Broken { text: format!("the answer was HTTP {status}"), for_credentials: true }
    }

    /// A certificate that does not fit will not fit later.
    fn is_final(&self) -> bool {
        self.text.contains("certificate")
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let errand = if self.for_credentials { "ask the platform for credentials: " } else { "" };
        write!(f, "{errand}{}", self.text)
    }
}

impl Error for Broken {}

/// What the library's error means. `name` is the object that the call was about.
pub(super) fn meaning(error: object_store::Error, action: Action, name: Option<&ObjectName>) -> StorageError {
    if let Some(answer) = answer(&error) {
        return answer.clone().meaning(action, name);
    }
    if let Some(broken) = find::<Broken>(&error) {
        let source = Cause::from(broken.to_string());
        return match broken.is_final() {
            true => StorageError::Other { action, source },
            false => StorageError::Transient { action, source },
        };
    }
    let source = Cause::from(innermost(&error));
    match find::<HttpError>(&error) {
        // The connection broke while the body was on its way.
        Some(_) => StorageError::Transient { action, source },
        None => StorageError::Other { action, source },
    }
}

/// The answer below an error of the library, if there was one.
pub(super) fn answer(error: &object_store::Error) -> Option<&Answer> {
    find::<Answer>(error)
}

fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    chain(error).find_map(|error| error.downcast_ref())
}

/// The error and its causes, outermost first.
fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let error = next?;
        next = error.source();
        Some(error)
    })
}

/// The text of the innermost cause, short, without what may be a signature.
pub(super) fn innermost(error: &(dyn Error + 'static)) -> String {
    let last = chain(error).last().unwrap_or(error);
    // A query may be a signature; nothing of it is of use to a reader.
    let text = last.to_string();
    let shown: Vec<&str> = text
        .split_whitespace()
        .map(|word| if word.contains("://") { word.split('?').next().unwrap_or(word) } else { word })
        .collect();
    shortened(&shown.join(" "))
}

fn shortened(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(TEXT_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Call;
    use proptest::prelude::*;

    fn judged(status: u16, code: &str) -> StorageError {
        let text = format!("<Error><Code>{code}</Code><Message>why</Message></Error>");
        let name = ObjectName::new("a/b").unwrap();
        Answer::read(status, None, &text).meaning(Action::new(Call::Read, "a/b"), Some(&name))
    }

    #[test]
    fn only_the_stores_own_word_is_an_absence() {
        assert!(judged(404, "NoSuchKey").is_not_found());
        assert!(judged(404, "BlobNotFound").is_not_found());
        for (status, code) in
            [(404, ""), (404, "NotFound"), (403, "NoSuchKey"), (200, "NoSuchKey"), (404, "No Such Key")]
        {
            assert!(!judged(status, code).is_not_found(), "{status} {code}");
        }
        assert!(matches!(judged(404, "NoSuchBucket"), StorageError::RootMissing { .. }));
    }

    #[test]
    fn what_may_pass_is_transient_and_what_will_not_is_not() {
        for status in [408, 409, 429, 500, 502, 503, 504] {
            assert!(judged(status, "").is_transient(), "{status}");
        }
        assert!(judged(200, "SlowDown").is_transient());
        for status in [301, 400, 401, 403, 404, 405, 501] {
            assert!(!judged(status, "").is_transient(), "{status}");
        }
        assert!(matches!(judged(400, "ExpiredToken"), StorageError::Refused { .. }));
        assert!(matches!(judged(507, ""), StorageError::Full { .. }));
        assert!(matches!(judged(412, "PreconditionFailed"), StorageError::NameTaken { .. }));
        assert!(matches!(judged(409, "BlobAlreadyExists"), StorageError::NameTaken { .. }));
    }

    #[test]
    fn a_signed_address_is_not_repeated() {
        let error = std::io::Error::other("GET https://host/x?sig=hunter2&se=1 failed");
        assert_eq!(innermost(&error), "GET https://host/x failed");
    }

    proptest! {
        #[test]
        fn any_explanation_is_read_without_panic(text in "\\PC{0,80}|(<Code>|</Code>|<Message>|</Message>|[a-zé<>]){0,20}") {
            let answer = Answer::read(500, None, &text);
            prop_assert!(answer.to_string().chars().count() < 500);
        }
    }
}
