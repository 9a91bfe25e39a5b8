//! What an export will write, known before it writes anything.

use std::sync::Arc;

use repository::Repository;
use repository::logical::{DatabaseRecord, Globals, TableRecord};
use repository::manifest::Manifest;
use server::programs::Program;

use super::{ExportRequest, Format, GlobalsWanted};
use crate::logical::LogicalError;
use crate::logical::reader::{FileReader, table_records};
use crate::logical::restore::{chosen, database_of, find, major_of, selected};

/// What an export will write.
pub struct ExportPlan {
    /// What was asked for.
    pub request: ExportRequest,
    /// The backup.
    pub manifest: Manifest,
    /// Its database.
    pub database: DatabaseRecord,
    /// Tables whose rows are written.
    pub tables: Vec<TableRecord>,
    /// What should be known before, for people.
    pub warnings: Vec<String>,
    /// What makes SQL of the archive.
    pub(super) program: Option<Program>,
    pub(super) repository: Arc<Repository>,
}

impl ExportPlan {
    /// Bytes of rows.
    pub fn bytes(&self) -> u64 {
        self.tables.iter().map(|table| table.bytes).sum()
    }
}

/// Finds the backup and what of it is wanted, and refuses what cannot be done.
pub async fn plan(repository: Arc<Repository>, request: ExportRequest) -> Result<ExportPlan, LogicalError> {
    refuse(&request)?;
    let manifest = chosen(&repository, &request.cluster, request.backup.as_ref()).await?;
    let database = database_of(&manifest, request.database.as_deref(), None)?.clone();
    let list = find(&repository, &manifest, &repository::logical::tables(&database.name)).await?;
    let list = FileReader::new(&repository).read_all(&list).await?;
    let tables = selected(table_records(&list)?, &request.schemas, &request.tables)?;

    let record = manifest.logical.clone().unwrap_or_default();
    let mut warnings: Vec<String> =
        database.uncovered.iter().map(|what| format!("not in the backup: {what}")).collect();
    if request.globals != GlobalsWanted::No {
        match record.globals() {
            Globals::Left => {
                let what = "the backup has no roles and tablespaces: its role could not read them".to_owned();
                return Err(LogicalError::Choice { what });
            }
            Globals::WithoutPasswords => {
                warnings.push("roles have no passwords: the backup's role could not read them".to_owned());
            }
            Globals::Whole => {}
        }
    }
    let needs_program = request.format == Format::Plain && request.globals != GlobalsWanted::Only;
    let server = pg::Major::from_server_version_num(manifest.server().version_num);
    let major = major_of(&record.dumped_by).unwrap_or(server);
    let program = needs_program.then(|| Program::find("pg_restore", major)).transpose()?;
    Ok(ExportPlan { request, manifest, database, tables, warnings, program, repository })
}

/// Refuses what a format cannot have.
fn refuse(request: &ExportRequest) -> Result<(), LogicalError> {
    let says_how = request.clean || request.single_transaction || request.no_owner || request.no_privileges;
    let what = match request.format {
        Format::Custom if says_how => {
            "drops, transactions, owners and privileges are for pg_restore to decide, by options of the same names"
        }
        Format::Custom if request.globals != GlobalsWanted::No => {
            "roles and tablespaces are SQL: they go into a file of their own, in the format plain"
        }
        _ => return Ok(()),
    };
    Err(LogicalError::Choice { what: what.to_owned() })
}
