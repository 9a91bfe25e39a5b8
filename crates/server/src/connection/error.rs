//! What can go wrong between us and a server.

use std::fmt;
use std::time::Duration;

use super::{ConnectionSettings, raw};

/// A server that refuses does so at once.
const EXPLAINED_WITHIN: Duration = Duration::from_secs(5);

/// A five-character error code, `57P01`. Source: PostgreSQL's `errcodes.txt`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SqlState([u8; 5]);

impl SqlState {
    /// 42501: the role may not do this.
    pub const INSUFFICIENT_PRIVILEGE: Self = Self(*b"42501");
    /// 42883: no function of that name and arguments.
    pub const UNDEFINED_FUNCTION: Self = Self(*b"42883");

    /// The code of five ASCII letters or digits; `None` for anything else.
    pub fn new(text: &str) -> Option<Self> {
        let code: [u8; 5] = text.as_bytes().try_into().ok()?;
        code.iter().all(u8::is_ascii_alphanumeric).then_some(Self(code))
    }

    /// The five characters.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("only ASCII letters and digits are let in")
    }

    /// The first two characters, which name the class.
    pub fn class(&self) -> &str {
        &self.as_str()[..2]
    }
}

impl fmt::Display for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SqlState({self})")
    }
}

/// Why a server could not be asked, or did not answer as it should. No variant ever holds a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServerError {
    /// The connection string or a setting beside it cannot be used.
    #[error("connection settings: {reason}")]
    InvalidSettings {
        /// What is wrong with them.
        reason: String,
    },
    /// The server wants a password and none was given, in the string, `PGPASSWORD` or the password file.
    #[error("connect to the server: it asks for a password and none was given")]
    PasswordNeeded,
    /// No session came about.
    #[error("connect to the server: {message}")]
    Connect {
        /// libpq's account of it, one clause for each host tried.
        message: String,
    },
    /// The server answers and refuses a session, for a reason that does not pass by waiting.
    #[error("connect to the server: {message}")]
    Refused {
        /// libpq's account of it.
        message: String,
        /// The server's code.
        sqlstate: SqlState,
    },
    /// The session is gone; whatever it held (a backup in progress, a snapshot) is gone too.
    #[error("the connection to the server was lost: {message}")]
    ConnectionLost {
        /// libpq's account of it.
        message: String,
    },
    /// The server refused a statement.
    #[error("the server answered: {message}{} (SQLSTATE {sqlstate})", detail_suffix(.detail))]
    Query {
        /// The primary message.
        message: String,
        /// The code by which to tell errors apart.
        sqlstate: SqlState,
        /// The server's detail, when it gave one.
        detail: Option<String>,
        /// The server's hint, when it gave one.
        hint: Option<String>,
    },
    /// The answer is not of the form this server version should give.
    #[error("unexpected answer from the server: {what}")]
    UnexpectedAnswer {
        /// What was odd.
        what: String,
    },
    /// A statement or a parameter holds a zero byte, which PostgreSQL text cannot.
    #[error("a statement or parameter holds a zero byte")]
    NulByte,
}

impl ServerError {
    /// True when the same request may well succeed a little later, on a new session if this one was lost.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::ConnectionLost { .. } => true,
            Self::Query { sqlstate, .. } => {
                matches!(sqlstate.class(), "08" | "53" | "40" | "58")
                    || matches!(sqlstate.as_str(), "57P01" | "57P02" | "57P03" | "55P03")
            }
            _ => false,
        }
    }

    /// The server's error code, when it was the server that refused.
    pub fn sqlstate(&self) -> Option<SqlState> {
        match self {
            Self::Query { sqlstate, .. } | Self::Refused { sqlstate, .. } => Some(*sqlstate),
            _ => None,
        }
    }

    /// Whether it was the server that refused, with this code.
    pub fn has_sqlstate(&self, code: &str) -> bool {
        self.sqlstate().is_some_and(|state| state.as_str() == code)
    }

    /// A failed [`Self::Connect`] as [`Self::Refused`], if the server answers and says why: wrong credentials, no such role or
    /// database, no right. Connects once more to hear that. Others, and a server that has no room or is starting, stay as
    /// they are.
    pub fn explained(self, settings: &ConnectionSettings) -> Self {
        let Self::Connect { message } = self else { return self };
        let refusal = settings.resolve().ok().and_then(|keywords| raw::refusal(&keywords, EXPLAINED_WITHIN));
        match refusal {
            Some(sqlstate)
                if matches!(sqlstate.class(), "28" | "3D")
                    || sqlstate == SqlState::INSUFFICIENT_PRIVILEGE =>
            {
                Self::Refused { message, sqlstate }
            }
            _ => Self::Connect { message },
        }
    }

    /// True when the role lacks a privilege.
    pub fn is_permission_denied(&self) -> bool {
        self.sqlstate() == Some(SqlState::INSUFFICIENT_PRIVILEGE)
    }
}

fn detail_suffix(detail: &Option<String>) -> String {
    detail.as_ref().map(|text| format!(" ({text})")).unwrap_or_default()
}
