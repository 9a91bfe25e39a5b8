//! The backups that are verified: their manifests opened, their control files read.

use std::collections::{HashMap, HashSet};

use pg::control::{ControlError, ControlFile};
use repository::manifest::Manifest;
use repository::moved::Places;
use repository::proof::Damage;
use repository::{PackId, layout};

use super::{Run, VerifyError};
use crate::findings::{Finding, HurtFile};

/// What is remembered of a backup; its manifest is read again when its lists are.
pub(super) struct Subject {
    pub(super) id: String,
    /// It is of rows, and its files have no pages of the server's.
    pub(super) is_logical: bool,
    pub(super) start_lsn: u64,
    pub(super) stop_lsn: u64,
    pub(super) timeline: u32,
    /// Blocks of a relation's segment file, where its pages carry checksums.
    pub(super) checksums: Option<u32>,
    /// Pages that were wrong on the server already.
    pub(super) known_pages: HashSet<(Vec<u8>, u32)>,
}

/// A pack that is named by the backups.
#[derive(Clone, Copy)]
pub(super) struct PackItem {
    pub(super) size: u64,
    /// Bytes of table and footer, where a manifest tells it.
    pub(super) tail_len: Option<u32>,
    /// Place of the newest backup that names it, from the newest back.
    pub(super) rank: u32,
}

/// Everything that is there to verify.
#[derive(Default)]
pub(super) struct Subjects {
    /// Newest first.
    pub(super) backups: Vec<Subject>,
    pub(super) packs: HashMap<PackId, PackItem>,
    /// Where the pages are of packs that were moved.
    pub(super) places: Places,
}

/// Reads the manifests of the backups that were asked for.
pub(super) async fn read(run: &mut Run<'_>) -> Result<Subjects, VerifyError> {
    let cluster = &run.request.cluster;
    let wanted = &run.request.backups;
    let mut ids = run.repository.backup_ids(cluster).await?;
    ids.retain(|id| wanted.is_empty() || wanted.contains(id));
    let mut subjects = Subjects::default();
    for id in ids.into_iter().rev() {
        run.check_stop()?;
        let name = layout::manifest(cluster, &id);
        let Some(read) = run.repository.listed(cluster, id.clone()).await? else { continue };
        run.report.backups += 1;
        match read.manifest {
            Ok(manifest) => {
                if run.proofs.damaged().any(|(object, _, _)| object == name.as_str()) {
                    run.look.whole.push(name.to_string());
                }
                run.report.findings.extend(of_manifest(&manifest));
                subjects.add(manifest);
            }
            Err(error) => {
                let damage = Damage { what: error.to_string(), backups: vec![id.clone()] };
                let lost = format!("backup {id} cannot be restored; others do not need it");
                let finding = Finding::damage(error.to_string(), lost).of(&name).hurting(vec![id]);
                run.look.damaged.push((name.to_string(), damage));
                run.report.findings.push(finding);
            }
        }
    }
    subjects.place(run).await?;
    Ok(subjects)
}

impl Subjects {
    /// Puts the packs that pages were moved to in the place of those that are gone.
    pub(super) async fn place(&mut self, run: &Run<'_>) -> Result<(), VerifyError> {
        self.places = Places::find(&run.repository, |id| self.packs.contains_key(&id)).await?;
        for (id, item) in std::mem::take(&mut self.packs) {
            for to in self.places.packs(id) {
                let item = if to == id { item } else { moved_to(run, to, item.rank).await? };
                self.packs.entry(to).or_insert(item);
            }
        }
        Ok(())
    }

    /// The backups among these that a damage hurts.
    pub(super) fn hurt_by<'d>(&self, damage: &'d Damage) -> impl Iterator<Item = &'d String> {
        damage.backups.iter().filter(|id| self.backups.iter().any(|subject| subject.id == **id))
    }

    fn add(&mut self, manifest: Manifest) {
        let rank = self.backups.len() as u32;
        for pack in &manifest.packs {
            let Ok(id) = pack.id() else { continue };
            let item = PackItem { size: pack.size, tail_len: Some(pack.tail_len), rank };
            self.packs.entry(id).or_insert(item);
        }
        let span = manifest.span();
        let control = control_of(&manifest).ok();
        let checksums = control.filter(ControlFile::has_data_checksums).map(|control| control.segment_blocks);
        self.backups.push(Subject {
            id: manifest.id,
            start_lsn: span.start_lsn,
            stop_lsn: span.stop_lsn,
            timeline: span.timeline,
            checksums,
            is_logical: manifest.logical.is_some(),
            known_pages: manifest.findings.into_iter().map(|page| (page.path, page.block)).collect(),
        });
    }
}

/// A pack that no manifest tells of. One that is missing is found to be so when it is read.
async fn moved_to(run: &Run<'_>, id: PackId, rank: u32) -> Result<PackItem, VerifyError> {
    let size = run.repository.stored_size(&layout::pack(id)).await?.unwrap_or(0);
    Ok(PackItem { size, tail_len: None, rank })
}

fn control_of(manifest: &Manifest) -> Result<ControlFile, ControlError> {
    ControlFile::parse(&manifest.whole_control_file())
}

/// What a manifest says against its own backup.
fn of_manifest(manifest: &Manifest) -> Vec<Finding> {
    let mut findings = Vec::new();
    if manifest.is_logical() {
        return findings;
    }
    let lost = |what: String| {
        Finding::damage(what, format!("backup {} does not start when it is restored", manifest.id))
            .hurting(vec![manifest.id.clone()])
    };
    let control = control_of(manifest);
    let per_file = control.as_ref().map_or(u32::MAX, |control| control.segment_blocks.max(1));
    match control {
        Ok(control) => findings.extend(mismatch(&control, manifest).map(lost)),
        Err(error) => findings.push(lost(format!("global/pg_control: {error}"))),
    }
    if manifest.findings_total > 0 {
        let what = format!(
            "{} pages had a wrong checksum on the server when they were backed up",
            manifest.findings_total
        );
        let as_it_was = "they are restored as the server had them; an earlier backup may hold them whole";
        let mut finding = Finding::damage(what, as_it_was).hurting(vec![manifest.id.clone()]);
        let listed = manifest.findings.iter().take(crate::findings::FILES_MAX);
        finding.files = listed.map(|page| hurt_page(manifest, per_file, &page.path, page.block)).collect();
        finding.more_files = manifest.findings_total - finding.files.len() as u64;
        findings.push(finding);
    }
    findings
}

fn hurt_page(manifest: &Manifest, per_file: u32, path: &[u8], block: u32) -> HurtFile {
    let block = u64::from(block % per_file);
    HurtFile {
        backup: manifest.id.clone(),
        path: crate::backup::display_path(path),
        from: block * 8192,
        to: (block + 1) * 8192,
        blocks: (block, block),
    }
}

/// What the control file says otherwise than the manifest's record of the server.
fn mismatch(control: &ControlFile, manifest: &Manifest) -> Option<String> {
    let server = manifest.server();
    let pairs = [
        ("system identifier", control.system_identifier, server.system_identifier),
        ("control version", control.control_version.into(), server.control_version.into()),
        ("catalog version", control.catalog_version.into(), server.catalog_version.into()),
        ("block size", control.block_size.into(), server.block_size.into()),
        ("WAL segment size", control.wal_segment_size.bytes().into(), server.wal_segment_size.into()),
        ("use of checksums", control.has_data_checksums().into(), server.data_checksums.into()),
    ];
    let (what, found, expected) = pairs.into_iter().find(|(_, found, expected)| found != expected)?;
    Some(format!("global/pg_control has {what} {found}, and the server had {expected}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_file_whose_sum_ends_in_zeros_is_as_long_as_any_other() {
        // Cut to nothing it is still a whole file, of zeros, and not one that was cut off.
        let zeros = control_of(&Manifest::default());
        assert!(!matches!(zeros, Err(ControlError::TooShort { .. })), "{zeros:?}");
    }
}
