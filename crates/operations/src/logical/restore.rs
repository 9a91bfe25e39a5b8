//! Bringing a logical backup into a database: definitions first, rows in parallel, then indexes and constraints; compared at the
//! end with what the backup says it has.
//!
//! Three ways to a database that has something in it: refuse; clean, which is one transaction, so that a failure leaves what was
//! there; swap, which makes a new database beside it and exchanges the names when the new one is whole.

mod clean;
mod definitions;
mod plan;
mod rows;
mod swap;
mod tables;
mod target;

pub use plan::{RestorePlan, plan};
pub(crate) use plan::{chosen, database_of, major_of, selected};
pub use target::TargetFacts;

use std::sync::Arc;
use std::time::{Duration, Instant};

use repository::logical::{self, OtherRecord};
use repository::{ClusterName, Repository};
use server::connection::{Connection, ConnectionSettings};
use server::tables::{literal, qualified};

use super::LogicalError;
use super::reader::{FileReader, records};
use crate::monitor::{Event, Monitor};
use definitions::{Definitions, Section};

/// What to do with a target that is not empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum How {
    /// Refuse.
    #[default]
    Empty,
    /// Drop what the backup has and make it anew, in one transaction.
    Clean,
    /// Restore into a new database and exchange the names.
    Swap,
}

/// What to bring where.
#[derive(Clone, Debug)]
pub struct RestoreRequest {
    /// The stream's name in the repository.
    pub cluster: ClusterName,
    /// The backup's id; the newest if `None`.
    pub backup: Option<String>,
    /// Which of the backup's databases; the one that has the target's name, or the only one, if `None`.
    pub database: Option<String>,
    /// The database to restore into.
    pub target: ConnectionSettings,
    /// What to do with what is in it.
    pub how: How,
    /// Only these tables, `schema.table` or `table`; all if empty.
    pub tables: Vec<String>,
    /// Only these schemas; all if empty.
    pub schemas: Vec<String>,
    /// The name that the one table gets: `schema.table` or `table`.
    pub rename: Option<String>,
    /// Leave out rows.
    pub definitions_only: bool,
    /// Leave out definitions: the tables must be there.
    pub rows_only: bool,
    /// Everything belongs to the role that restores.
    pub no_owner: bool,
    /// Leave out privileges.
    pub no_privileges: bool,
    /// The role to restore as.
    pub role: Option<String>,
    /// Drop the old database after a swap instead of keeping it under another name.
    pub drop_old: bool,
    /// Sessions at once.
    pub workers: usize,
}

/// What was restored.
#[derive(Clone, Debug, Default)]
pub struct RestoreReport {
    /// The backup.
    pub backup: String,
    /// The database that has it now.
    pub database: String,
    /// Tables whose rows were brought back, and compared.
    pub tables: u64,
    /// Their rows.
    pub rows: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Where the database is kept that was there before a swap.
    pub kept_as: Option<String>,
    /// What should be known of it, for people.
    pub warnings: Vec<String>,
    /// How long it took.
    pub elapsed: Duration,
}

/// Does what the plan says.
pub async fn execute(plan: RestorePlan, monitor: Arc<dyn Monitor>) -> Result<RestoreReport, LogicalError> {
    let began = Instant::now();
    monitor.event(Event::Phase("read definitions"));
    let definitions = Definitions::fetch(&plan).await?;
    let others = plan.others().await?;
    tokio::task::block_in_place(|| {
        let restoring = Restoring { plan: &plan, definitions, others, monitor: &*monitor };
        let mut report = match plan.request.how {
            _ if !plan.request.tables.is_empty() => restoring.tables()?,
            How::Clean => restoring.clean()?,
            How::Swap => restoring.swap()?,
            How::Empty => restoring.whole(&plan.request.target)?,
        };
        report.backup = plan.manifest.id.clone();
        report.elapsed = began.elapsed();
        Ok(report)
    })
}

/// A restore at work.
struct Restoring<'r> {
    plan: &'r RestorePlan,
    definitions: Definitions,
    others: Vec<OtherRecord>,
    monitor: &'r dyn Monitor,
}

impl Restoring<'_> {
    /// Restores into a database that has nothing of the backup, or only its tables.
    fn whole(&self, target: &ConnectionSettings) -> Result<RestoreReport, LogicalError> {
        let request = &self.plan.request;
        if !request.rows_only {
            self.monitor.event(Event::Phase("make tables"));
            self.schemas(&Connection::connect(target)?)?;
            self.definitions.run(Section::PreData, target, 1)?;
        }
        let mut report = RestoreReport::default();
        if !request.definitions_only {
            if request.rows_only {
                rows::refuse_filled(self.plan, &Connection::connect(target)?)?;
            }
            self.monitor.event(Event::Phase("copy rows"));
            rows::copy_all(self.plan, target, self.monitor, &mut report)?;
            if self.plan.database.large_objects > 0 && request.schemas.is_empty() {
                self.monitor.event(Event::Phase("large objects"));
                self.definitions.run(Section::Data, target, 1)?;
            }
        }
        let connection = Connection::connect(target)?;
        self.sequences(&connection)?;
        if !request.rows_only {
            self.monitor.event(Event::Phase("make indexes and constraints"));
            self.definitions.run(Section::PostData, target, request.workers)?;
        }
        self.views(&connection, &mut report)?;
        report.database = connection.database();
        Ok(report)
    }

    fn run_script(
        &self,
        connection: &Connection,
        script: &(impl AsRef<[u8]> + ?Sized),
        what: &'static str,
    ) -> Result<(), LogicalError> {
        let named = self.plan.database.name.clone();
        connection.run_script(script).map_err(|source| LogicalError::Relation {
            action: what,
            relation: named,
            source,
        })
    }

    /// Makes the chosen schemas, which are in no section that has their content.
    fn schemas(&self, connection: &Connection) -> Result<(), LogicalError> {
        let wanted = &self.plan.request.schemas;
        if wanted.is_empty() {
            return Ok(());
        }
        let script = self.definitions.text(Section::PreData)?;
        let script = tables::blocks(&script);
        for schema in wanted {
            let sql = "SELECT count(*) FROM pg_catalog.pg_namespace WHERE nspname = $1";
            let is_there = connection.query_one(sql, &[schema])?.first()?.parse::<u64>(0)? > 0;
            let block =
                script.iter().find(|block| block.kind == "SCHEMA" && block.name == tables::headed(schema));
            match block {
                _ if is_there => {}
                Some(block) => self.run_script(connection, block.sql, "make the schema")?,
                None => {
                    return Err(LogicalError::Choice { what: format!("the backup has no schema {schema}") });
                }
            }
        }
        Ok(())
    }

    /// Gives each sequence its state.
    fn sequences(&self, connection: &Connection) -> Result<(), LogicalError> {
        if self.plan.request.definitions_only {
            return Ok(());
        }
        self.set_sequences(connection, &|schema, _| self.plan.wants_schema(schema))
    }

    fn set_sequences(
        &self,
        connection: &Connection,
        is_wanted: &dyn Fn(&str, &str) -> bool,
    ) -> Result<(), LogicalError> {
        for other in &self.others {
            let OtherRecord::Sequence { schema, name, last_value, is_called } = other else { continue };
            if !is_wanted(schema, name) {
                continue;
            }
            let named = qualified(schema, name);
            let sql =
                format!("SELECT pg_catalog.setval({}::regclass, {last_value}, {is_called})", literal(&named));
            connection.execute(&sql, &[]).map_err(LogicalError::relation("set sequence", named))?;
        }
        Ok(())
    }

    /// Makes materialized views anew. One that reads another has to wait for it. The server does so as the view's owner, who may
    /// have lost rights that were left out: that view stays without rows, and is told.
    fn views(&self, connection: &Connection, report: &mut RestoreReport) -> Result<(), LogicalError> {
        if self.plan.request.definitions_only {
            return Ok(());
        }
        let views = self.others.iter().filter_map(|other| match other {
            OtherRecord::MaterializedView { schema, name } if self.plan.wants_schema(schema) => {
                Some(qualified(schema, name))
            }
            _ => None,
        });
        let mut waiting: Vec<String> = views.collect();
        while !waiting.is_empty() {
            let before = waiting.len();
            let (mut left, mut told) = (Vec::new(), Vec::new());
            for view in waiting {
                connection.run_script("SAVEPOINT pgkeep").ok();
                match connection.run_script(&format!("REFRESH MATERIALIZED VIEW {view}")) {
                    Ok(()) => {}
                    // 55000: one that it reads has no rows yet. 42501: its owner may not read something.
                    Err(error) if error.has_sqlstate("55000") || error.has_sqlstate("42501") => {
                        connection.run_script("ROLLBACK TO SAVEPOINT pgkeep").ok();
                        told.push(format!("{view} has no rows until it is refreshed: {error}"));
                        left.push(view);
                    }
                    Err(source) => {
                        return Err(LogicalError::Relation { action: "refresh", relation: view, source });
                    }
                }
            }
            if left.len() == before {
                report.warnings.extend(told);
                break;
            }
            waiting = left;
        }
        Ok(())
    }
}

impl RestorePlan {
    /// Whether a schema is wanted.
    pub(crate) fn wants_schema(&self, schema: &str) -> bool {
        self.request.schemas.is_empty() || self.request.schemas.iter().any(|wanted| wanted == schema)
    }

    /// Sequences and views of the backup.
    async fn others(&self) -> Result<Vec<OtherRecord>, LogicalError> {
        let list = self.file(&logical::others(&self.database.name)).await?;
        records(&FileReader::new(&self.repository).read_all(&list).await?, "list of sequences")
    }

    /// A file of the backup.
    pub(crate) async fn file(&self, path: &str) -> Result<repository::content::Entry, LogicalError> {
        find(&self.repository, &self.manifest, path).await
    }
}

/// A file of a backup that must be there.
pub(crate) async fn find(
    repository: &Repository,
    manifest: &repository::manifest::Manifest,
    path: &str,
) -> Result<repository::content::Entry, LogicalError> {
    let found = repository.find_entry(manifest, path.as_bytes()).await?;
    found.ok_or_else(|| LogicalError::NotWhole { what: format!("it has no {path}") })
}
