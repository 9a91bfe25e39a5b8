//! Where a restored cluster is to stop, and the settings that tell it so.

mod settings;
mod target;

pub use settings::{ChoiceError, RECOVERY_SETTINGS, RecoverySettings, TargetAction, TargetTimeline};
pub use target::{RecoveryTarget, TargetError};
