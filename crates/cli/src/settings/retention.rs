//! What the settings say about how long backups are kept.

use operations::retention::Policy;

use super::Settings;

impl Settings {
    /// The policy of retention.
    pub fn policy(&self) -> Policy {
        let count = |name| self.number(name).unwrap_or(0) as u32;
        Policy {
            keep: self.word("retention.keep").parse().expect("the form was checked and there is a default"),
            daily: count("retention.keep_daily"),
            weekly: count("retention.keep_weekly"),
            monthly: count("retention.keep_monthly"),
            yearly: count("retention.keep_yearly"),
            at_least: count("retention.keep_at_least"),
        }
    }
}
