//! Which backups, files and bytes a damaged pack hurts.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use repository::PackId;
use repository::chunk::PAGE;
use repository::content::Extent;
use repository::layout;
use repository::pages::pieces;
use repository::proof::Damage;

use super::packs::{DamagedPacks, PackState};
use super::subjects::{Subject, Subjects};
use super::walk::{SpanOf, spans};
use super::{Run, VerifyError};
use crate::backup::display_path;
use crate::findings::{FILES_MAX, Finding, HurtFile, in_words, is_damage};

/// What one pack hurts.
#[derive(Default)]
struct Hurt {
    backups: BTreeSet<String>,
    /// Bytes by backup and file, newest backup first.
    files: BTreeMap<(usize, Vec<u8>), (u64, u64)>,
    /// Pages that were damaged before they were stored.
    pages: BTreeMap<(usize, Vec<u8>), (u64, u64)>,
}

/// Walks through the lists of the backups that name a damaged pack, and tells what is hurt.
pub(super) async fn name(
    run: &mut Run<'_>,
    subjects: &Subjects,
    damaged: &DamagedPacks,
) -> Result<(), VerifyError> {
    if damaged.is_empty() {
        return Ok(());
    }
    run.monitor.event(crate::monitor::Event::Phase("name what is hurt"));
    let mut hurt: BTreeMap<PackId, Hurt> = damaged.keys().map(|id| (*id, Hurt::default())).collect();
    let packs: HashSet<PackId> = damaged.keys().copied().collect();
    let mut seen: HashSet<PackId> = HashSet::new();
    let mut still_there = 0;
    for (rank, subject) in subjects.backups.iter().enumerate() {
        let manifest = match run.repository.manifest(&run.request.cluster, &subject.id).await {
            // A backup that was expired meanwhile may have taken its packs with it.
            Err(error) if is_damage(&error) => continue,
            other => other?,
        };
        still_there += 1;
        let named = manifest.packs.iter().filter_map(|pack| pack.id().ok());
        let listed: Vec<PackId> = named.flat_map(|id| subjects.places.packs(id)).collect();
        for id in listed.iter().filter(|id| damaged.get(id).is_some_and(PackState::is_damaged)) {
            seen.insert(*id);
            hurt.entry(*id).or_default().backups.insert(subject.id.clone());
        }
        if !listed.iter().any(|id| packs.contains(id)) {
            continue;
        }
        for span in spans(&run.repository, &manifest, subject, &subjects.places, &packs).await? {
            mark(&span, rank, subject, damaged, &mut hurt);
        }
    }
    for (id, state) in damaged {
        let hurt = hurt.remove(id).unwrap_or_default();
        tell(run, subjects, (*id, state), hurt, seen.contains(id), still_there);
    }
    Ok(())
}

/// Adds what a span has in damaged places.
fn mark(
    span: &SpanOf,
    rank: usize,
    subject: &Subject,
    damaged: &DamagedPacks,
    hurt: &mut BTreeMap<PackId, Hurt>,
) {
    let mut at = span.from;
    for extent in &span.extents {
        let begin = at;
        at += extent.length;
        let Some(state) = damaged.get(&extent.pack) else { continue };
        let key = (rank, span.path.clone());
        let of = hurt.entry(extent.pack).or_default();
        for (from, to) in hurt_bytes(extent, begin, state) {
            widen(&mut of.files, &key, from, to);
        }
        for at in bad_pages(span, extent, begin, subject, state) {
            widen(&mut of.pages, &key, at, at + PAGE as u64);
        }
    }
}

fn widen(files: &mut BTreeMap<(usize, Vec<u8>), (u64, u64)>, key: &(usize, Vec<u8>), from: u64, to: u64) {
    let range = files.entry(key.clone()).or_insert((from, to));
    *range = (range.0.min(from), range.1.max(to));
}

/// The bytes of a file that stand in damaged chunks, where `begin` is the place of the extent in it.
fn hurt_bytes(extent: &Extent, begin: u64, state: &PackState) -> Vec<(u64, u64)> {
    let whole = vec![(begin, begin + extent.length)];
    let cut = match &state.table {
        Some(table) if state.lost.is_none() => pieces(table, *extent),
        _ => return whole,
    };
    let Ok(cut) = cut else { return whole };
    let mut at = begin;
    let mut found = Vec::new();
    for piece in cut {
        if state.chunks.contains_key(&piece.chunk) {
            found.push((at, at + piece.length));
        }
        at += piece.length;
    }
    found
}

/// Where in the file pages have a wrong checksum that WAL does not repair and that the backup did not tell of.
fn bad_pages(span: &SpanOf, extent: &Extent, begin: u64, subject: &Subject, state: &PackState) -> Vec<u64> {
    let (Some(first), Some(table)) = (span.first_block, &state.table) else { return Vec::new() };
    let Ok(cut) = pieces(table, *extent) else { return Vec::new() };
    let mut at = begin;
    let mut found = Vec::new();
    for piece in cut {
        for page in state.pages.iter().filter(|page| page.chunk == piece.chunk) {
            let inside = page.offset >= piece.offset
                && u64::from(page.offset) < u64::from(piece.offset) + piece.length;
            let place = at + u64::from(page.offset.wrapping_sub(piece.offset));
            let block = first.wrapping_add((place / PAGE as u64) as u32);
            // A page changed after the backup's start is written again by replay, whatever it was caught as.
            let repaired = page.lsn >= subject.start_lsn;
            let known = || subject.known_pages.contains(&(span.path.clone(), block));
            if inside && block == page.block && !repaired && !known() {
                found.push(place);
            }
        }
        at += piece.length;
    }
    found
}

fn tell(
    run: &mut Run<'_>,
    subjects: &Subjects,
    (id, state): (PackId, &PackState),
    hurt: Hurt,
    is_named: bool,
    backups: usize,
) {
    let object = layout::pack(id).to_string();
    if state.is_damaged() && is_named {
        let names: Vec<String> = hurt.backups.iter().cloned().collect();
        let damage = Damage { what: state.what(), backups: names.clone() };
        run.look.damaged.push((object.clone(), damage));
        let told = run.report.findings.iter().any(|finding| finding.object.as_ref() == Some(&object));
        // What a list lost with the pack was told when the lists were read.
        if !told || !hurt.files.is_empty() {
            let others = backups - names.len().min(backups);
            let consequence = match others {
                0 => format!("the named files cannot be restored as they were from {}", in_words(&names)),
                _ => format!(
                    "the named files cannot be restored as they were from {}; {others} other backups do not need it",
                    in_words(&names)
                ),
            };
            let mut finding = Finding::damage(state.what(), consequence).of(&object).hurting(names);
            list_files(&mut finding, subjects, &hurt.files);
            run.report.findings.push(finding);
        }
    }
    if !hurt.pages.is_empty() {
        let names: BTreeSet<String> =
            hurt.pages.keys().map(|(rank, _)| subjects.backups[*rank].id.clone()).collect();
        let what = "pages have a wrong checksum, and were stored so";
        let consequence = "they are restored as they were read; another backup may hold them whole";
        let mut finding = Finding::damage(what, consequence).of(&object).hurting(names.into_iter().collect());
        list_files(&mut finding, subjects, &hurt.pages);
        run.report.findings.push(finding);
    }
}

fn list_files(finding: &mut Finding, subjects: &Subjects, files: &BTreeMap<(usize, Vec<u8>), (u64, u64)>) {
    let listed = files.iter().take(FILES_MAX).map(|((rank, path), (from, to))| HurtFile {
        backup: subjects.backups[*rank].id.clone(),
        path: display_path(path),
        from: *from,
        to: *to,
        blocks: (from / PAGE as u64, to.saturating_sub(1) / PAGE as u64),
    });
    finding.files = listed.collect();
    finding.more_files = (files.len() - finding.files.len()) as u64;
}
