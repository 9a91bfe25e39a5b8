//! Findings: what a check or verification has to say about a repository.

use repository::RepositoryError;
use serde::Serialize;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing; nothing that was backed up is hurt.
    Warning,
    /// Something cannot be restored, or not as it was.
    Damage,
}

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// What is the case.
    pub what: String,
    /// The stored object that it is about.
    pub object: Option<String>,
    /// The backups that are hurt.
    pub backups: Vec<String>,
    /// The files that are hurt, with the bytes of each; at most [`FILES_MAX`].
    pub files: Vec<HurtFile>,
    /// How many files are hurt that are not listed.
    pub more_files: u64,
    /// What still can and what cannot be restored.
    pub consequence: String,
}

/// So many hurt files of one finding are listed, the others are counted.
pub const FILES_MAX: usize = 100;

/// A file with bytes that cannot be restored as they were.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HurtFile {
    /// The backup that is meant.
    pub backup: String,
    /// The file, below the data directory.
    pub path: String,
    /// The first byte that is hurt.
    pub from: u64,
    /// The byte after the last one; those between may be whole.
    pub to: u64,
    /// The blocks of 8 KiB that lie in it: first and last, counted in this file.
    pub blocks: (u64, u64),
}

impl Finding {
    /// Something that cannot be restored.
    pub fn damage(what: impl Into<String>, consequence: impl Into<String>) -> Self {
        Self::new(Severity::Damage, what, consequence)
    }

    /// Something worth knowing.
    pub fn warning(what: impl Into<String>, consequence: impl Into<String>) -> Self {
        Self::new(Severity::Warning, what, consequence)
    }

    fn new(severity: Severity, what: impl Into<String>, consequence: impl Into<String>) -> Self {
        Self {
            severity,
            what: what.into(),
            object: None,
            backups: Vec::new(),
            files: Vec::new(),
            more_files: 0,
            consequence: consequence.into(),
        }
    }

    /// About this object.
    pub fn of(self, object: impl ToString) -> Self {
        Self { object: Some(object.to_string()), ..self }
    }

    /// Which hurts these backups.
    pub fn hurting(self, backups: Vec<String>) -> Self {
        Self { backups, ..self }
    }
}

/// Whether the error says that what is stored is damaged, and not that it could not be looked at.
pub fn is_damage(error: &RepositoryError) -> bool {
    error.is_damage()
}

/// Backups in a sentence: three of them, and how many more.
pub(crate) fn in_words(backups: &[String]) -> String {
    const SHOWN: usize = 3;
    let shown = backups.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    match backups.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
