//! Taking a logical backup, from the server's facts to the manifest.

use std::collections::HashSet;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use repository::Repository;
use repository::archive::Identity;
use repository::logical::{self, Globals, LogicalRecord};
use repository::manifest::{Manifest, ServerRecord, Span};
use repository::pack::PackMemory;
use server::connection::{Connection, ConnectionSettings};
use server::facts::ServerFacts;
use server::programs::{Program, ProgramError};
use server::tables;
use tokio::runtime::Handle;

use super::capture::{self, Captured};
use super::content::{Finished, Shared, Sink};
use super::error::LogicalError;
use super::plan::{Plan, plan_backup};
use super::{LogicalRequest, check};
use crate::backup::live::pack_refs;
use crate::backup::{BackupReport, LOCAL_LIMIT};
use crate::failpoint;
use crate::monitor::{Event, Monitor};
use crate::owner::holder;
use crate::retention::SMALL_PART;

/// Memory for packs, for each worker, as of a physical backup.
const PACK_MEMORY: usize = 28 << 20;

/// Takes a logical backup of what the request selects of the server behind `connection`.
pub async fn back_up(
    connection: Connection,
    repository: Arc<Repository>,
    request: &LogicalRequest,
    monitor: Arc<dyn Monitor>,
) -> Result<BackupReport, LogicalError> {
    let began = Instant::now();
    connection.remove_timeouts()?;
    let facts = ServerFacts::read(&connection)?;
    if let Some(pooler) = &facts.pooler {
        return Err(LogicalError::Pooler { pooler: pooler.to_string(), hint: pooler.hint() });
    }
    // Before anything is claimed: without it there is no backup.
    let dump = Program::find("pg_dump", facts.major)?;
    let restore = dump.sibling("pg_restore").map_or_else(|| Program::find("pg_restore", dump.major), Ok)?;
    let identity = Identity { logical: true, ..Identity::default() };
    repository.bind(&request.cluster, &identity).await?;
    let plan = plan_backup(&repository, request).await?;
    for warning in &plan.warnings {
        monitor.event(Event::Warning(warning.clone()));
    }
    repository.claim(&request.cluster, &plan.id, &holder()).await?;
    failpoint::reach("logical.claimed");
    let taking = Taking { repository: &repository, request, facts: &facts, plan: &plan, dump, restore };
    match taking.run(connection, &*monitor).await {
        Ok((manifest, bytes_read_back)) => {
            repository.local().trim(LOCAL_LIMIT);
            Ok(BackupReport { manifest, elapsed: began.elapsed(), bytes_read_back })
        }
        Err(error) => {
            repository.withdraw_claim(&request.cluster, &plan.id).await;
            Err(error)
        }
    }
}

/// A backup that may begin.
struct Taking<'t> {
    repository: &'t Arc<Repository>,
    request: &'t LogicalRequest,
    facts: &'t ServerFacts,
    plan: &'t Plan,
    dump: Program,
    restore: Program,
}

impl Taking<'_> {
    /// The manifest, and how many bytes of earlier backups were read to compare with them.
    async fn run(
        &self,
        connection: Connection,
        monitor: &dyn Monitor,
    ) -> Result<(Manifest, u64), LogicalError> {
        let memory = PackMemory::bounded(self.request.workers.max(1) * PACK_MEMORY);
        let (known, level) = (self.plan.known_pages(), self.request.level);
        let shared =
            Shared::new(self.repository, &self.plan.earlier, &known, level, memory, Handle::current());
        let mut manifest = self.begin();
        let captured =
            tokio::task::block_in_place(|| self.capture(&connection, &shared, &mut manifest, monitor));
        if let Err(error) = captured {
            self.keep_attempt(&shared, manifest).await;
            return Err(error);
        }
        failpoint::reach("logical.captured");
        let finished = tokio::task::block_in_place(|| shared.finish())?;
        self.fill(&mut manifest, finished, &shared)?;
        self.compare_size(&mut manifest, monitor);
        monitor.event(Event::Phase("check"));
        self.check(&manifest).await?;
        failpoint::reach("logical.list-stored");
        // Last on purpose: until the manifest exists there is no backup.
        let predecessor = self.plan.predecessor.as_ref();
        let manifest = self.repository.publish_claimed(&self.request.cluster, manifest, predecessor).await?;
        failpoint::reach("logical.published");
        Ok((manifest, shared.read_back.load(Ordering::Relaxed)))
    }

    /// Puts into the manifest what the list leaves.
    fn fill(
        &self,
        manifest: &mut Manifest,
        finished: Finished,
        shared: &Shared<'_>,
    ) -> Result<(), LogicalError> {
        manifest.packs = pack_refs(&finished.live, &shared.uploader, &self.plan.packs)?;
        manifest.pages = finished.pages;
        manifest.totals = Some(finished.totals);
        Ok(())
    }

    /// Tells of a backup that has much less than the one before it: `expire` lets it take no other's place.
    fn compare_size(&self, manifest: &mut Manifest, monitor: &dyn Monitor) {
        let before = self.plan.predecessor.as_ref().map_or(0, |before| before.manifest.totals().bytes);
        let now = manifest.totals().bytes;
        if now < before / SMALL_PART {
            let warning = format!(
                "it has {now} bytes, the backup before it {before}: is everything there? It does not take the place of older ones"
            );
            monitor.event(Event::Warning(warning.clone()));
            manifest.warnings.push(warning);
        }
    }

    fn begin(&self) -> Manifest {
        Manifest {
            id: self.plan.id.clone(),
            kind: self.plan.kind as i32,
            cluster: self.request.cluster.to_string(),
            parent_id: self.plan.parent_id.clone(),
            server: Some(ServerRecord {
                system_identifier: self.facts.system_identifier.unwrap_or(0),
                version_num: self.facts.version_num,
                ..ServerRecord::default()
            }),
            reread_at_us: self.plan.now.as_microsecond(),
            program: concat!("pgkeep ", env!("CARGO_PKG_VERSION")).to_owned(),
            label: self.request.label.clone(),
            warnings: self.plan.warnings.clone(),
            logical: Some(LogicalRecord {
                dumped_by: self.dump.version.clone(),
                row_key: self.repository.digester().row_key().to_vec(),
                ..LogicalRecord::default()
            }),
            ..Manifest::default()
        }
    }

    /// Stores everything that the server is asked for.
    fn capture(
        &self,
        connection: &Connection,
        shared: &Shared<'_>,
        manifest: &mut Manifest,
        monitor: &dyn Monitor,
    ) -> Result<(), LogicalError> {
        let settings = connection.settings_beside();
        let mut record = manifest.logical.take().unwrap_or_default();
        record.globals = self.globals(&settings, shared, manifest)? as i32;
        for database in self.databases(connection)? {
            let settings = settings.clone().database(&database);
            let Captured { record: one, warnings } =
                capture::database(&settings, &self.dump, self.request, shared, monitor)?;
            record.databases.push(one);
            for warning in warnings {
                monitor.event(Event::Warning(warning.clone()));
                manifest.warnings.push(warning);
            }
        }
        let times = || record.databases.iter().map(|database| database.taken_us);
        manifest.span = Some(Span {
            start_us: times().min().unwrap_or(0),
            stop_us: times().max().unwrap_or(0),
            ..Span::default()
        });
        manifest.logical = Some(record);
        Ok(())
    }

    fn databases(&self, connection: &Connection) -> Result<Vec<String>, LogicalError> {
        let selection = &self.request.selection;
        if selection.all_databases {
            return Ok(tables::databases(connection)?);
        }
        let mut databases = selection.databases.clone();
        databases.dedup();
        Ok(if databases.is_empty() { vec![connection.database()] } else { databases })
    }

    /// Stores roles, their rights and tablespaces, as far as the role may read them.
    fn globals(
        &self,
        settings: &ConnectionSettings,
        shared: &Shared<'_>,
        manifest: &mut Manifest,
    ) -> Result<Globals, LogicalError> {
        let Some(program) = self.dump.sibling("pg_dumpall") else {
            manifest
                .warnings
                .push("pg_dumpall is not beside pg_dump: roles are not in the backup".to_owned());
            return Ok(Globals::Left);
        };
        let (globals, sql) = match globals_sql(&program, settings, &[]) {
            Ok(sql) => (Globals::Whole, sql),
            Err(_) => match globals_sql(&program, settings, &["--no-role-passwords"]) {
                Ok(sql) => (Globals::WithoutPasswords, sql),
                Err(error) => {
                    manifest.warnings.push(format!("roles are not in the backup: {error}"));
                    return Ok(Globals::Left);
                }
            },
        };
        let mut sink = Sink::new(shared);
        sink.put(logical::GLOBALS.to_owned(), &sql)?;
        sink.finish()?;
        Ok(globals)
    }

    /// Reads the definitions back, on a host that can.
    async fn check(&self, manifest: &Manifest) -> Result<(), LogicalError> {
        if !self.repository.access().can_read() {
            return Ok(());
        }
        for database in manifest.logical.iter().flat_map(|record| &record.databases) {
            let missing = |path: &str| LogicalError::NotWhole { what: format!("{path} was not stored") };
            let (definitions, tables) =
                (logical::definitions(&database.name), logical::tables(&database.name));
            let entry = self.repository.find_entry(manifest, definitions.as_bytes()).await?;
            let entry = entry.ok_or_else(|| missing(&definitions))?;
            let list = self.repository.find_entry(manifest, tables.as_bytes()).await?;
            let list = super::FileReader::new(self.repository)
                .read_all(&list.ok_or_else(|| missing(&tables))?)
                .await?;
            let records = super::reader::table_records(&list)?;
            let own = records.iter().filter(|table| !table.of_extension);
            let oids: HashSet<u32> = own.map(|table| table.oid).collect();
            check::definitions(self.repository, &entry, &self.restore, oids).await?;
        }
        Ok(())
    }

    /// Notes what a failed attempt has stored, so that the next one finds it.
    async fn keep_attempt(&self, shared: &Shared<'_>, mut manifest: Manifest) {
        let kept = async {
            let Some(finished) = tokio::task::block_in_place(|| shared.finish_durable())? else {
                return Ok(());
            };
            self.fill(&mut manifest, finished, shared)?;
            self.repository.publish_partial(&self.request.cluster, &manifest, 1).await?;
            Ok::<(), LogicalError>(())
        };
        if let Err(error) = kept.await {
            tracing::warn!(%error, "what was stored is not noted for the next backup");
        }
    }
}

fn globals_sql(
    program: &Program,
    settings: &ConnectionSettings,
    arguments: &[&str],
) -> Result<Vec<u8>, ProgramError> {
    let mut command = program.command(Some(settings))?;
    command.args(["--globals-only", "--no-password"]).args(arguments).stdout(Stdio::piped());
    let mut running = program.start(command)?;
    let mut sql = Vec::new();
    let mut stdout = running.child.stdout.take().expect("it was piped");
    std::io::Read::read_to_end(&mut stdout, &mut sql)
        .map_err(|source| ProgramError::Run { program: program.to_string(), source })?;
    running.finish()?;
    Ok(sql)
}
