//! Every setting there is: its name in the file, its variables, its form.

use operations::backup::CHANGED_BY;
use operations::probe::MODES;
use operations::retention::Keep;

/// One setting.
#[derive(Debug)]
pub struct Key {
    /// Its name in `pgkeep.toml`, with a dot for a setting of a table: `s3.region`.
    pub name: &'static str,
    /// Our own variable, which wins over the file.
    pub variable: &'static str,
    /// Variables that are there for other programs too: the file wins over them. The first that is set counts.
    pub ambient: &'static [&'static str],
    /// What a value looks like.
    pub form: Form,
    /// Whether a value may be shown.
    pub shown: Shown,
    /// What applies when nobody says anything; empty when that is worked out or there is none.
    pub default: &'static str,
}

/// What a value looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Any text.
    Text,
    /// A path; in a file it is relative to the file's folder.
    Path,
    /// The location of a repository; a relative path is treated as above.
    Location,
    /// A whole number in a range.
    Number(u64, u64),
    /// A span of time, `90s` or `10m`.
    Duration,
    /// The same, or days or weeks: `30d`.
    Span,
    /// A number of bytes, `512MiB` or `10GiB`.
    Size,
    /// A span of days or weeks, or a number of backups: `30d` or `14`.
    Keep,
    /// `true` or `false`.
    Switch,
    /// One of a few words.
    Choice(&'static [&'static str]),
}

/// Whether a value may be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// As it is.
    Yes,
    /// Without the password in it.
    WithoutPassword,
    /// Never; and it may come from a variable or the file only, never from the command line, which others can see.
    Never,
}

impl Form {
    /// What was expected, for a message.
    pub fn expected(self) -> String {
        match self {
            Form::Text | Form::Path | Form::Location => "text".to_owned(),
            Form::Number(min, max) => format!("a whole number from {min} to {max}"),
            Form::Duration => "a span of time such as 90s or 10m".to_owned(),
            Form::Span => "a span of time such as 30d, 12w or 36h".to_owned(),
            Form::Keep => "a span such as 30d or 12w, or a number of backups such as 14".to_owned(),
            Form::Size => "a number of bytes such as 512MiB or 10GiB".to_owned(),
            Form::Switch => "true or false".to_owned(),
            Form::Choice(words) => words.join(" or "),
        }
    }

    /// Whether a text has this form; locations are checked where they are opened, with an error of their own.
    pub fn accepts(self, text: &str) -> bool {
        match self {
            Form::Text | Form::Path | Form::Location => true,
            Form::Number(min, max) => text.parse::<u64>().is_ok_and(|number| (min..=max).contains(&number)),
            Form::Duration => duration(text).is_some(),
            Form::Span => span(text).is_some(),
            Form::Size => size(text).is_some(),
            Form::Keep => text.parse::<Keep>().is_ok(),
            Form::Switch => matches!(text, "true" | "false"),
            Form::Choice(words) => words.contains(&text),
        }
    }
}

/// Reads a span of time: `90s`, `10m`, `1h 30m`, or a bare number of seconds.
pub fn duration(text: &str) -> Option<std::time::Duration> {
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(std::time::Duration::from_secs(seconds));
    }
    text.parse::<jiff::SignedDuration>().ok()?.try_into().ok()
}

/// Reads a span of time as [`duration`] does, or of days or weeks: `30d`, `12w`. No more than a hundred years.
pub fn span(text: &str) -> Option<std::time::Duration> {
    const DAY: u64 = 24 * 3600;
    let days = |unit, days: u64| Some(text.strip_suffix(unit)?.trim().parse::<u64>().ok()?.checked_mul(days));
    let days = days('d', 1).or_else(|| days('w', 7));
    let span = match days {
        Some(days) => std::time::Duration::from_secs(days?.checked_mul(DAY)?),
        None => duration(text)?,
    };
    Some(span).filter(|span| span.as_secs() <= 36_525 * DAY)
}

/// Reads a number of bytes: `512MiB`, `10 GB`, or a bare number.
pub fn size(text: &str) -> Option<u64> {
    text.parse::<bytesize::ByteSize>().ok().map(|size| size.as_u64())
}

const fn key(name: &'static str, variable: &'static str, form: Form) -> Key {
    Key { name, variable, ambient: &[], form, shown: Shown::Yes, default: "" }
}

impl Key {
    const fn or(mut self, ambient: &'static [&'static str]) -> Self {
        self.ambient = ambient;
        self
    }

    const fn default(mut self, default: &'static str) -> Self {
        self.default = default;
        self
    }

    const fn secret(mut self) -> Self {
        self.shown = Shown::Never;
        self
    }

    const fn hides_password(mut self) -> Self {
        self.shown = Shown::WithoutPassword;
        self
    }
}

const FORMATS: Form = Form::Choice(&["text", "json"]);
/// No calendar has more days.
const COUNT: Form = Form::Number(0, 100_000);
const LEVELS: Form = Form::Choice(&["error", "warn", "info", "debug", "trace"]);

/// Every setting, in the order of `pgkeep config`.
pub const KEYS: &[Key] = &[
    key("repository", "PGKEEP_REPOSITORY", Form::Location).or(&[
        "BACKUP_DIR",
        "BUCKET_NAME",
        "AWS_S3_BUCKET",
    ]),
    key("cluster", "PGKEEP_CLUSTER", Form::Text).default("main"),
    key("database_url", "PGKEEP_DATABASE_URL", Form::Text).or(&["DATABASE_URL"]).hides_password(),
    key("primary_url", "PGKEEP_PRIMARY_URL", Form::Text).secret(),
    key("mode", "PGKEEP_MODE", Form::Choice(&MODES)).default("auto"),
    key("changed_by", "PGKEEP_CHANGED_BY", Form::Choice(&CHANGED_BY)).default("content"),
    key("key_file", "PGKEEP_KEY_FILE", Form::Path),
    key("key", "PGKEEP_KEY", Form::Text).secret(),
    key("passphrase_file", "PGKEEP_PASSPHRASE_FILE", Form::Path),
    key("passphrase_command", "PGKEEP_PASSPHRASE_COMMAND", Form::Text),
    key("passphrase", "PGKEEP_PASSPHRASE", Form::Text).secret(),
    key("writer_file", "PGKEEP_WRITER_FILE", Form::Path),
    key("writer", "PGKEEP_WRITER", Form::Text).secret(),
    key("state_dir", "PGKEEP_STATE_DIR", Form::Path),
    key("spool_dir", "PGKEEP_SPOOL_DIR", Form::Path),
    key("workers", "PGKEEP_WORKERS", Form::Number(1, 256)),
    key("compression_level", "PGKEEP_COMPRESSION_LEVEL", Form::Number(1, 19)).default("1"),
    key("push_timeout", "PGKEEP_PUSH_TIMEOUT", Form::Duration).default("60s"),
    key("wal_timeout", "PGKEEP_WAL_TIMEOUT", Form::Duration).default("10m"),
    key("slot", "PGKEEP_SLOT", Form::Text),
    key("max_lag", "PGKEEP_MAX_LAG", Form::Duration).default("1s"),
    key("slot_limit", "PGKEEP_SLOT_LIMIT", Form::Size).default("10GiB"),
    key("logical.databases", "PGKEEP_LOGICAL_DATABASES", Form::Text),
    key("logical.schemas", "PGKEEP_LOGICAL_SCHEMAS", Form::Text),
    key("logical.exclude_schemas", "PGKEEP_LOGICAL_EXCLUDE_SCHEMAS", Form::Text),
    key("logical.exclude_tables", "PGKEEP_LOGICAL_EXCLUDE_TABLES", Form::Text),
    key("logical.exclude_rows", "PGKEEP_LOGICAL_EXCLUDE_ROWS", Form::Text),
    key("logical.lock_timeout", "PGKEEP_LOGICAL_LOCK_TIMEOUT", Form::Duration).default("5m"),
    key("retention.keep", "PGKEEP_RETENTION_KEEP", Form::Keep).default("30d"),
    key("retention.keep_daily", "PGKEEP_RETENTION_KEEP_DAILY", COUNT).default("0"),
    key("retention.keep_weekly", "PGKEEP_RETENTION_KEEP_WEEKLY", COUNT).default("0"),
    key("retention.keep_monthly", "PGKEEP_RETENTION_KEEP_MONTHLY", COUNT).default("0"),
    key("retention.keep_yearly", "PGKEEP_RETENTION_KEEP_YEARLY", COUNT).default("0"),
    key("retention.keep_at_least", "PGKEEP_RETENTION_KEEP_AT_LEAST", Form::Number(1, 100_000)).default("3"),
    key("prune.grace", "PGKEEP_PRUNE_GRACE", Form::Duration).default("48h"),
    key("prune.max_repack", "PGKEEP_PRUNE_MAX_REPACK", Form::Size).default("10GiB"),
    key("schedule.backup", "PGKEEP_SCHEDULE_BACKUP", Form::Text).default("0 2 * * *"),
    key("schedule.verify", "PGKEEP_SCHEDULE_VERIFY", Form::Text).default("0 4 * * *"),
    key("schedule.verify_budget", "PGKEEP_SCHEDULE_VERIFY_BUDGET", Form::Text).default("5%"),
    key("schedule.time_zone", "PGKEEP_SCHEDULE_TIME_ZONE", Form::Text).default("UTC"),
    key("schedule.jitter", "PGKEEP_SCHEDULE_JITTER", Form::Duration).default("0s"),
    key("lock", "PGKEEP_LOCK", Form::Span),
    key("lock_mode", "PGKEEP_LOCK_MODE", Form::Choice(&["governance", "compliance"])).default("governance"),
    key("log", "PGKEEP_LOG", LEVELS).default("warn"),
    key("log_format", "PGKEEP_LOG_FORMAT", FORMATS).default("text"),
    key("s3.endpoint", "PGKEEP_S3_ENDPOINT", Form::Text).or(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]),
    key("s3.region", "PGKEEP_S3_REGION", Form::Text).or(&["AWS_REGION", "AWS_DEFAULT_REGION"]),
    key("s3.addressing", "PGKEEP_S3_ADDRESSING", Form::Choice(&["auto", "path", "virtual"])).default("auto"),
    key("s3.allow_http", "PGKEEP_S3_ALLOW_HTTP", Form::Switch).default("false"),
    key("s3.access_key_id", "PGKEEP_S3_ACCESS_KEY_ID", Form::Text).or(&["AWS_ACCESS_KEY_ID"]),
    key("s3.secret_access_key", "PGKEEP_S3_SECRET_ACCESS_KEY", Form::Text)
        .or(&["AWS_SECRET_ACCESS_KEY"])
        .secret(),
    key("s3.session_token", "PGKEEP_S3_SESSION_TOKEN", Form::Text).or(&["AWS_SESSION_TOKEN"]).secret(),
    key("gcs.endpoint", "PGKEEP_GCS_ENDPOINT", Form::Text),
    key("gcs.service_account_file", "PGKEEP_GCS_SERVICE_ACCOUNT_FILE", Form::Path)
        .or(&["GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH"]),
    key("gcs.service_account_key", "PGKEEP_GCS_SERVICE_ACCOUNT_KEY", Form::Text)
        .or(&["GOOGLE_SERVICE_ACCOUNT_KEY"])
        .secret(),
    key("gcs.application_credentials", "PGKEEP_GCS_APPLICATION_CREDENTIALS", Form::Path)
        .or(&["GOOGLE_APPLICATION_CREDENTIALS"]),
    key("gcs.anonymous", "PGKEEP_GCS_ANONYMOUS", Form::Switch).default("false"),
    key("azure.account", "PGKEEP_AZURE_ACCOUNT", Form::Text)
        .or(&["AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT"]),
    key("azure.endpoint", "PGKEEP_AZURE_ENDPOINT", Form::Text).or(&["AZURE_STORAGE_ENDPOINT"]),
    key("azure.access_key", "PGKEEP_AZURE_ACCESS_KEY", Form::Text)
        .or(&["AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_KEY"])
        .secret(),
    key("azure.sas_token", "PGKEEP_AZURE_SAS_TOKEN", Form::Text).or(&["AZURE_STORAGE_SAS_TOKEN"]).secret(),
    key("azure.client_id", "PGKEEP_AZURE_CLIENT_ID", Form::Text).or(&["AZURE_CLIENT_ID"]),
    key("azure.client_secret", "PGKEEP_AZURE_CLIENT_SECRET", Form::Text)
        .or(&["AZURE_CLIENT_SECRET"])
        .secret(),
    key("azure.tenant_id", "PGKEEP_AZURE_TENANT_ID", Form::Text).or(&["AZURE_TENANT_ID"]),
    key("azure.federated_token_file", "PGKEEP_AZURE_FEDERATED_TOKEN_FILE", Form::Path)
        .or(&["AZURE_FEDERATED_TOKEN_FILE"]),
];

/// Variables by which a platform hands out S3 credentials; passed on as they are.
pub const PLATFORM: [&str; 7] = [
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_ENDPOINT_URL_STS",
];

/// The setting of this name.
pub fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// The known word nearest to a mistyped one, if it is near enough to be meant.
pub fn nearest<'a>(typed: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (typed.len() / 3).clamp(1, 3);
    known
        .map(|word| (edits(typed, word), word))
        .min()
        .filter(|(edits, _)| *edits <= limit)
        .map(|(_, word)| word)
}

/// Levenshtein's distance of two words.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_variables_are_unique_and_defaults_have_their_form() {
        for (at, key) in KEYS.iter().enumerate() {
            assert!(key.default.is_empty() || key.form.accepts(key.default), "{}", key.name);
            assert_eq!(key.variable, format!("PGKEEP_{}", key.name.replace('.', "_").to_uppercase()));
            for other in &KEYS[..at] {
                assert!(
                    key.name != other.name && key.ambient.iter().all(|name| !other.ambient.contains(name))
                );
            }
        }
    }

    #[test]
    fn near_misses_are_guessed_and_others_are_not() {
        let names = || KEYS.iter().map(|key| key.name);
        assert_eq!(nearest("repostory", names()), Some("repository"));
        assert_eq!(nearest("s3.regoin", names()), Some("s3.region"));
        assert_eq!(nearest("bandwidth", names()), None);
    }

    #[test]
    fn sizes_are_read() {
        assert_eq!(
            (size("512MiB"), size("10 GB"), size("0")),
            (Some(512 << 20), Some(10_000_000_000), Some(0))
        );
        assert!(size("much").is_none() && size("-1").is_none());
    }

    #[test]
    fn spans_of_time_are_read() {
        assert_eq!(duration("90s"), duration("90"));
        assert_eq!(duration("1h 30m").map(|span| span.as_secs()), Some(5400));
        assert_eq!(duration("250ms").map(|span| span.as_millis()), Some(250));
        assert!(duration("-5s").is_none() && duration("soon").is_none());
        let hours = |text| span(text).map(|span| span.as_secs() / 3600);
        assert_eq!(
            (hours("30d"), hours("2w"), hours("36h"), hours("0")),
            (Some(720), Some(336), Some(36), Some(0))
        );
        for text in ["d", "-1d", "1.5d", "99999999999999999999d", "40000d", "30 moons"] {
            assert_eq!(span(text), None, "{text}");
        }
    }
}
