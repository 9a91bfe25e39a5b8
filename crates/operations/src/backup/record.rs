//! What the manifest records before the copying begins: the server, and configuration outside its data directory.

use std::path::Path;

use pg::control::ControlFile;
use repository::manifest::{ConfigFile, Manifest, ServerRecord, Span, TablespaceRecord};
use server::backup::Started;
use server::facts::ServerFacts;
use server::files::{FileSource, FilesError};

use super::{BackupRequest, Plan};

/// A configuration file larger than this is none.
const MAX_CONFIG: usize = 1 << 20;

/// The manifest as far as it is known when the server has begun the backup.
pub(crate) fn begin_manifest(
    plan: &Plan,
    request: &BackupRequest,
    facts: &ServerFacts,
    control: &ControlFile,
    started: &Started,
    source: &dyn FileSource,
) -> Manifest {
    use std::os::unix::ffi::OsStrExt as _;
    let directory = source.directory();
    let (config_files, unreadable) = outside_configuration(facts, &directory.path, source);
    let tablespace = |tablespace: &server::facts::Tablespace| TablespaceRecord {
        oid: tablespace.oid,
        location: tablespace.location.as_os_str().as_bytes().to_vec(),
    };
    let parent = plan.parent();
    let reread_at =
        if plan.reread { plan.now.as_microsecond() } else { parent.map_or(0, |parent| parent.reread_at_us) };
    Manifest {
        id: plan.id.clone(),
        kind: plan.kind as i32,
        cluster: request.cluster.to_string(),
        parent_id: parent.map(|manifest| manifest.id.clone()).unwrap_or_default(),
        server: Some(ServerRecord {
            system_identifier: control.system_identifier,
            version_num: facts.version_num,
            catalog_version: control.catalog_version,
            control_version: control.control_version,
            wal_segment_size: control.wal_segment_size.bytes(),
            block_size: control.block_size,
            data_checksums: control.has_data_checksums(),
            data_directory: directory.path.to_string_lossy().into_owned(),
            owner: directory.owner.and_then(crate::owner::name_of).unwrap_or_default(),
            directory_mode: directory.mode,
            tablespaces: facts
                .tablespaces
                .iter()
                .filter(|space| space.location.is_absolute())
                .map(tablespace)
                .collect(),
        }),
        span: Some(Span {
            start_lsn: started.start_lsn.get(),
            stop_lsn: 0,
            timeline: started.timeline.get(),
            start_us: started.at.as_microsecond(),
            stop_us: 0,
            // Entries whose change time was not settled have none.
            settled_before_ns: i64::MAX,
        }),
        reread_at_us: reread_at,
        program: concat!("pgkeep ", env!("CARGO_PKG_VERSION")).to_owned(),
        label: request.label.clone(),
        warnings: plan.rolled_back.iter().map(ToString::to_string).chain(unreadable).collect(),
        config_files,
        ..Manifest::default()
    }
}

/// Configuration files that lie outside the data directory; and a warning for each that cannot be read.
fn outside_configuration(
    facts: &ServerFacts,
    directory: &Path,
    source: &dyn FileSource,
) -> (Vec<ConfigFile>, Vec<String>) {
    let all = [&facts.config_file, &facts.hba_file, &facts.ident_file];
    let (mut files, mut warnings) = (Vec::new(), Vec::new());
    for path in all.into_iter().flatten().filter(|path| !path.starts_with(directory)) {
        let why = match source.read_outside(path, MAX_CONFIG + 1) {
            Ok(content) if content.len() <= MAX_CONFIG => {
                files.push(ConfigFile { path: path.to_string_lossy().into_owned(), content });
                continue;
            }
            Ok(_) => "it is too long".to_owned(),
            Err(error) => reason(&error),
        };
        warnings.push(format!("the configuration file {} is not in the backup: {why}", path.display()));
    }
    (files, warnings)
}

fn reason(error: &FilesError) -> String {
    match error {
        FilesError::Sql { source, .. } if source.is_permission_denied() => {
            "the role is not a member of pg_read_server_files".to_owned()
        }
        FilesError::Sql { source, .. } => source.to_string(),
        FilesError::Io { source, .. } => source.to_string(),
        other => other.to_string(),
    }
}
