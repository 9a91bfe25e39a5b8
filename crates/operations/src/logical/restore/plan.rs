//! What a restore will do, known before it does anything.

use std::sync::Arc;

use repository::logical::{DatabaseRecord, TableRecord};
use repository::manifest::Manifest;
use repository::{ClusterName, Repository};
use server::connection::Connection;
use server::programs::Program;

use super::target::TargetFacts;
use super::{How, RestoreRequest, find};
use crate::logical::LogicalError;
use crate::logical::reader::{FileReader, table_records};
use crate::logical::selection::matches_table;

/// What a restore will do.
pub struct RestorePlan {
    /// What was asked for.
    pub request: RestoreRequest,
    /// The backup.
    pub manifest: Manifest,
    /// Its database.
    pub database: DatabaseRecord,
    /// Tables whose rows come back.
    pub tables: Vec<TableRecord>,
    /// What is there now.
    pub target: TargetFacts,
    /// What should be known before, for people.
    pub warnings: Vec<String>,
    pub(crate) restore: Program,
    pub(crate) repository: Arc<Repository>,
}

impl RestorePlan {
    /// Rows that come back.
    pub fn rows(&self) -> u64 {
        self.tables.iter().map(|table| table.rows).sum()
    }

    /// Their bytes.
    pub fn bytes(&self) -> u64 {
        self.tables.iter().map(|table| table.bytes).sum()
    }
}

/// Finds the backup, looks at the target, and refuses what cannot be done. Nothing is changed.
pub async fn plan(repository: Arc<Repository>, request: RestoreRequest) -> Result<RestorePlan, LogicalError> {
    let manifest = chosen(&repository, &request.cluster, request.backup.as_ref()).await?;
    let (settings, how, schemas) = (request.target.clone(), request.how, request.schemas.clone());
    let target = tokio::task::spawn_blocking(move || {
        let connection = Connection::connect(&settings)?;
        TargetFacts::read(&connection, how, &schemas)
    });
    let target = target.await.expect("looking does not panic")?;
    let database = database_of(&manifest, request.database.as_deref(), Some(&target.database))?.clone();
    let list = find(&repository, &manifest, &repository::logical::tables(&database.name)).await?;
    let list = FileReader::new(&repository).read_all(&list).await?;
    let tables = selected(table_records(&list)?, &request.schemas, &request.tables)?;

    let dumped_by = manifest.logical.as_ref().map(|record| record.dumped_by.clone()).unwrap_or_default();
    let restore = Program::find("pg_restore", major_of(&dumped_by).unwrap_or(target.major))?;
    let mut warnings = Vec::new();
    let from = pg::Major::from_server_version_num(manifest.server().version_num);
    if target.major < from {
        warnings.push(format!(
            "the backup is of PostgreSQL {from} and the target is {}: what the older one does not know will fail",
            target.major
        ));
    }
    if target.encoding != database.encoding && how != How::Swap {
        warnings.push(format!(
            "the backup is in {} and the target in {}: characters that it lacks will fail",
            database.encoding, target.encoding
        ));
    }
    warnings.extend(database.uncovered.iter().map(|what| format!("not in the backup: {what}")));
    let is_partial = !request.tables.is_empty() || request.rows_only;
    if how == How::Empty && !is_partial && target.relations > 0 {
        return Err(LogicalError::NotEmpty {
            database: target.database.clone(),
            relations: target.relations,
        });
    }
    if request.rename.is_some() && tables.len() != 1 {
        return Err(LogicalError::Choice {
            what: format!("a new name is for one table, and {} were chosen", tables.len()),
        });
    }
    Ok(RestorePlan { request, manifest, database, tables, target, warnings, restore, repository })
}

/// The backup of that id, or the newest.
pub(crate) async fn chosen(
    repository: &Repository,
    cluster: &ClusterName,
    backup: Option<&String>,
) -> Result<Manifest, LogicalError> {
    let ids = repository.backup_ids(cluster).await?;
    let unknown = |id: &str| LogicalError::Choice { what: format!("cluster {cluster} has no backup {id}") };
    if let Some(id) = backup {
        if !ids.contains(id) {
            return Err(unknown(id));
        }
        let manifest = repository.manifest(cluster, id).await?;
        return if manifest.is_logical() { Ok(manifest) } else { Err(physical(id)) };
    }
    let mut refused = None;
    for id in ids.iter().rev() {
        match repository.manifest(cluster, id).await {
            Ok(manifest) if manifest.is_logical() => return Ok(manifest),
            Ok(_) => return Err(physical(id)),
            Err(error) if error.is_damage() => refused = refused.or(Some(error)),
            Err(error) => return Err(error.into()),
        }
    }
    Err(refused.map_or_else(|| unknown("that could be restored"), LogicalError::from))
}

fn physical(id: &str) -> LogicalError {
    LogicalError::Choice { what: format!("backup {id} is of files: it is restored into a directory") }
}

/// The database of that name; the only one, or the one with the usual name, if none is given.
pub(crate) fn database_of<'m>(
    manifest: &'m Manifest,
    database: Option<&str>,
    usual: Option<&str>,
) -> Result<&'m DatabaseRecord, LogicalError> {
    let databases = manifest.logical.as_ref().map(|record| &record.databases[..]).unwrap_or_default();
    let named = |name: &str| databases.iter().find(|database| database.name == name);
    let found = match (database, databases) {
        (Some(name), _) => named(name),
        (None, [only]) => Some(only),
        (None, _) => usual.and_then(named),
    };
    found.ok_or_else(|| {
        let names: Vec<&str> = databases.iter().map(|database| database.name.as_str()).collect();
        LogicalError::Choice { what: format!("say which database: the backup has {}", names.join(", ")) }
    })
}

/// The tables in these schemas that match one of these patterns; none of either means all.
pub(crate) fn selected(
    tables: Vec<TableRecord>,
    schemas: &[String],
    patterns: &[String],
) -> Result<Vec<TableRecord>, LogicalError> {
    let wants = |table: &TableRecord| {
        let in_schemas = schemas.is_empty() || schemas.contains(&table.schema);
        let in_tables = patterns.is_empty()
            || patterns.iter().any(|pattern| matches_table(pattern, &table.schema, &table.name));
        in_schemas && in_tables
    };
    for pattern in patterns {
        if !tables.iter().any(|table| matches_table(pattern, &table.schema, &table.name)) {
            return Err(LogicalError::Choice {
                what: format!("the backup has no rows of a table {pattern}"),
            });
        }
    }
    Ok(tables.into_iter().filter(wants).collect())
}

/// The major in `pg_dump (PostgreSQL) 17.10`.
pub(crate) fn major_of(dumped_by: &str) -> Option<pg::Major> {
    let (_, number) = dumped_by.split_once("(PostgreSQL) ")?;
    number.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok().map(pg::Major::new)
}
