//! What the settings say about object lock.

use std::time::Duration;

use repository::layout::lock_time;
use storage::{LockMode, LockRule};

use super::{Settings, keys};

impl Settings {
    /// How objects of the repository are locked; `None` if they are not.
    pub(super) fn lock(&self) -> Option<LockRule> {
        let span = self.text("lock").and_then(keys::span)?;
        self.lock_for(span)
    }

    /// How objects of a repository are locked for this span; `None` for one that is zero.
    pub fn lock_for(&self, span: Duration) -> Option<LockRule> {
        let mode = match self.word("lock_mode") {
            "compliance" => LockMode::Compliance,
            _ => LockMode::Governance,
        };
        (!span.is_zero()).then_some(LockRule { span, mode, time_for: lock_time })
    }
}
