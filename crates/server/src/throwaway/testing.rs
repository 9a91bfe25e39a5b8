//! One server for all tests of a process that only ask it things.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::{Binaries, Throwaway};

static SHARED: Mutex<Weak<Throwaway>> = Mutex::new(Weak::new());

/// A running server. Tests that share it must leave it as they found it. Panics when no PostgreSQL is installed.
pub(crate) fn shared() -> Arc<Throwaway> {
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(server) = shared.upgrade() {
        return server;
    }
    let server = Arc::new(Throwaway::builder(&binaries()).start().expect("start a throwaway server"));
    *shared = Arc::downgrade(&server);
    server
}

/// The programs to test with. Panics when there are none: a test that could not run has not passed.
pub(crate) fn binaries() -> Binaries {
    Binaries::require(None).expect("these tests need a PostgreSQL server")
}

/// A server of the test's own, to do with as it likes.
pub(crate) fn started() -> Throwaway {
    Throwaway::builder(&binaries()).start().expect("start a throwaway server")
}
