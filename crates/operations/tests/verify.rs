//! What check and verify say of damaged, failing and whole repositories, and what they remember.
#![allow(clippy::unwrap_used, missing_docs)]

mod scene;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::Bytes;
use operations::check::check;
use operations::findings::{Finding, Severity};
use operations::monitor::Silent;
use operations::verify::{Budget, Verified, VerifyError, VerifyRequest, known_damage, verify};
use repository::manifest::Manifest;
use repository::secrets::Access;
use repository::{Repository, layout};
use scene::{Scene, chain};
use storage::{Calls, Fault, Faulty, Memory, ObjectName, Rule};

struct Judge {
    scene: Scene,
    backups: Vec<Manifest>,
}

impl Judge {
    /// A repository with every kind of object, of which nothing is damaged.
    async fn new() -> Self {
        let (scene, backups) = Scene::with_every_kind().await;
        Self { scene, backups }
    }

    fn request(&self) -> VerifyRequest {
        VerifyRequest {
            cluster: self.scene.cluster.clone(),
            backups: Vec::new(),
            budget: None,
            older_than: None,
            workers: 2,
            host: "test".into(),
            stop: Arc::new(AtomicBool::new(false)),
        }
    }

    async fn verify(&self, memory: &Arc<Memory>) -> Verified {
        let repository = self.scene.readable(memory.clone());
        verify(&repository, &self.request(), Arc::new(Silent)).await.unwrap()
    }

    /// What both say of a damaged repository.
    async fn findings(&self, memory: &Arc<Memory>) -> Vec<Finding> {
        let repository = self.scene.readable(memory.clone());
        let mut findings = check(&repository, &self.scene.cluster).await.unwrap().findings;
        let verified = self.verify(memory).await;
        assert!(verified.stopped.is_none(), "{:?}", verified.stopped);
        findings.extend(verified.report.findings);
        findings
    }

    /// The backups that an object's loss hurts, as their manifests say.
    fn needing(&self, name: &ObjectName) -> BTreeSet<String> {
        let needs = |backup: &&Manifest| {
            *name == layout::manifest(&self.scene.cluster, &backup.id)
                || backup.packs.iter().any(|pack| layout::pack(pack.id().unwrap()) == *name)
        };
        self.backups.iter().filter(needs).map(|backup| backup.id.clone()).collect()
    }
}

fn damage(findings: &[Finding]) -> Vec<&Finding> {
    findings.iter().filter(|finding| finding.severity == Severity::Damage).collect()
}

fn is_about(finding: &Finding, name: &ObjectName) -> bool {
    let said = format!("{:?} {} {:?}", finding.object, finding.what, finding.backups);
    said.contains(name.last_part())
}

/// The ways in which an object is damaged: deleted, cut, longer, flipped, and in the place of the next one of its kind.
fn damages(memory: &Memory, name: &ObjectName) -> Vec<(String, Option<Bytes>)> {
    let bytes = memory.bytes(name).unwrap();
    let mut found = vec![
        ("deleted".to_owned(), None),
        ("cut to half".into(), Some(bytes.slice(..bytes.len() / 2))),
        ("emptied".into(), Some(Bytes::new())),
        ("longer".into(), Some([&bytes[..], b"x"].concat().into())),
    ];
    for at in [0, bytes.len() / 3, bytes.len() / 2, bytes.len() - 1] {
        let mut flipped = bytes.to_vec();
        flipped[at] ^= 1;
        found.push((format!("flipped at {at}"), Some(flipped.into())));
    }
    let folder = |name: &ObjectName| name.as_str().split('/').take(3).last().unwrap_or("").len();
    let kin = memory.names().into_iter().find(|other| {
        other != name
            && other.as_str().split('/').next() == name.as_str().split('/').next()
            && folder(other) == folder(name)
    });
    found.extend(kin.map(|kin| (format!("replaced by {kin}"), memory.bytes(&kin))));
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_damage_is_found_with_its_backups_and_nothing_else_is() {
    let judge = Judge::new().await;
    assert_eq!(judge.findings(&judge.scene.memory).await, [], "nothing is damaged");
    let names = judge.scene.memory.names();
    let newest = layout::manifest(&judge.scene.cluster, &judge.backups[1].id);
    // Nobody needs WAL from before the first backup.
    let size = pg::wal::SegmentSize::new(1 << 20).unwrap();
    let first = judge.backups[0].span().start_lsn;
    let segment = |name: &ObjectName| name.last_part().parse::<pg::wal::SegmentName>().ok();
    let last = names.iter().filter_map(segment).max();
    let is_idle =
        |name: &ObjectName| segment(name).is_some_and(|one| one.end(size) <= first || Some(one) == last);
    let is_small = |name: &ObjectName| name.as_str().ends_with(".backup");
    let mut packs = 0;
    for name in names {
        for (what, bytes) in damages(&judge.scene.memory, &name) {
            let memory = Arc::new(judge.scene.memory.snapshot());
            memory.damage(&name, bytes.clone());
            let findings = judge.findings(&memory).await;
            let case = format!("{name} {what}: {findings:#?}");
            let room = name.as_str().split('/').nth(2).unwrap_or("");
            // A slot may have been removed, and its ciphertext is for whoever has its key to judge; without a host that remembers, the newest
            // backup, or the end of the WAL, can go without a trace.
            let silent = name.as_str().starts_with("keys/")
                || name == newest && bytes.is_none()
                || (room == "partial" || is_idle(&name) || is_small(&name)) && bytes.is_none()
                // What tells nothing any more, or only prune something.
                || room == "proofs" || room == "claims";
            let about = findings.iter().filter(|finding| is_about(finding, &name)).count();
            assert!(silent || about > 0, "{case}");
            if name.as_str().starts_with("packs/") {
                let hurt: BTreeSet<String> =
                    damage(&findings).into_iter().flat_map(|f| f.backups.clone()).collect();
                assert_eq!(hurt, judge.needing(&name), "{case}");
                let files = findings.iter().flat_map(|finding| &finding.files);
                assert!(files.clone().all(|file| hurt.contains(&file.backup)), "{case}");
                packs += 1;
            }
            if ["keys", "partial", "proofs"].iter().any(|small| name.as_str().contains(small)) {
                assert!(damage(&findings).is_empty(), "{case}");
            }
            if !name.as_str().starts_with("repository") && room != "backups" {
                let others = damage(&findings).into_iter().filter(|finding| !is_about(finding, &name));
                assert_eq!(others.count(), 0, "{case}");
            }
        }
    }
    assert!(packs >= 20, "{packs} cases of packs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_chunk_is_named_by_file_and_bytes_and_remembered_until_it_is_whole() {
    let judge = Judge::new().await;
    let scene = &judge.scene;
    let relation = scene::text(&scene.server, "select pg_relation_filepath('t')");
    let full = &judge.backups[0];
    let mut entries = scene.repository.entries(full);
    let at = loop {
        let entry = entries.next().await.unwrap().unwrap();
        if entry.path == relation.as_bytes() {
            break scene.repository.span_extents(&entry, 0).await.unwrap()[0];
        }
    };
    let name = layout::pack(at.pack);
    let good = scene.memory.bytes(&name).unwrap();
    let table = scene.repository.table(at.pack, None).await.unwrap();
    let mut bad = good.to_vec();
    bad[table.chunks[at.chunk as usize].offset as usize + 7] ^= 1;
    scene.memory.damage(&name, Some(bad.into()));

    let report = judge.verify(&scene.memory).await.report;
    let found =
        report.findings.iter().find(|finding| finding.object.as_deref() == Some(name.as_str())).unwrap();
    let hurt = found.files.iter().find(|file| file.backup == full.id && file.path == relation).unwrap();
    assert_eq!((hurt.from, hurt.blocks.0), (0, 0));
    assert!(hurt.to > 8192 && found.consequence.contains("cannot be restored"), "{found:#?}");
    let known = known_damage(&scene.repository, &scene.cluster).await.unwrap();
    assert_eq!(known.packs, [at.pack]);
    assert!(known.backups.contains(&full.id));
    assert_eq!(report.never_proved, 1, "a damaged pack is looked at again");

    scene.memory.damage(&name, Some(good));
    assert_eq!(judge.verify(&scene.memory).await.report.findings, []);
    assert_eq!(known_damage(&scene.repository, &scene.cluster).await.unwrap().packs, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_twentieth_each_night_is_everything_in_twenty_nights() {
    let judge = Judge::new().await;
    let scene = &judge.scene;
    let mut request = judge.request();
    request.budget = Some(Budget::Percent(5.0));
    let (mut night, mut bytes) = (jiff::Timestamp::now(), 0);
    for number in 0..20 {
        night += jiff::SignedDuration::from_hours(24);
        scene.memory.set_clock(night);
        let report = verify(&scene.repository, &request, Arc::new(Silent)).await.unwrap().report;
        assert!(number > 2 || report.bytes_read < report.bytes / 2, "a night reads a part: {report:?}");
        assert_eq!(report.findings, []);
        bytes = report.bytes;
    }
    request.budget = Some(Budget::Bytes(1));
    let report = verify(&scene.repository, &request, Arc::new(Silent)).await.unwrap().report;
    assert_eq!((report.never_proved, report.bytes), (0, bytes));
    let stored = scene.memory.names().iter().filter(|name| name.as_str().contains("/proofs/")).count();
    assert!((1..=8).contains(&stored), "{stored} proofs");

    // Now the one that was proved longest ago comes first, and what was proved lately is left out.
    scene.memory.set_clock(night + jiff::SignedDuration::from_hours(24));
    let oldest = report.oldest_proof.unwrap();
    let next = verify(&scene.repository, &request, Arc::new(Silent)).await.unwrap().report;
    assert!(next.oldest_proof.unwrap() >= oldest && next.packs_proved + next.segments_proved == 1);
    request.budget = None;
    request.older_than = Some(Duration::from_secs(60 * 86_400));
    let idle = verify(&scene.repository, &request, Arc::new(Silent)).await.unwrap().report;
    assert_eq!(idle.bytes_read, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storage_that_fails_is_never_called_damaged_and_never_clean() {
    let judge = Judge::new().await;
    let cluster = &judge.scene.cluster;
    let (mut stopped, mut flipped) = (0, 0);
    for fault in [Fault::Fail, Fault::Refuse, Fault::Flip(400), Fault::Truncate(100)] {
        for skip in 0..60 {
            let memory = Arc::new(judge.scene.memory.snapshot());
            let faulty = Arc::new(Faulty::new(memory));
            faulty.add(Rule { calls: Calls::Reads, skip, hit: 1, fault: fault.clone() });
            let repository = judge.scene.readable(faulty.clone());
            let case = format!("{fault:?} {skip}");
            let is_failure = matches!(fault, Fault::Fail | Fault::Refuse);
            match verify(&repository, &judge.request(), Arc::new(Silent)).await {
                Ok(Verified { report, stopped: None }) => {
                    // A reading in one piece is longer than what a run asks for.
                    assert!(!is_failure || skip > 12, "{case}: clean");
                    let hurt = damage(&report.findings);
                    assert!(hurt.is_empty() || !is_failure, "{case}: {hurt:#?}");
                    flipped += usize::from(!is_failure && hurt.is_empty());
                }
                Ok(Verified { report, stopped: Some(error) }) => {
                    assert!(!report.complete && is_failure, "{case}: {}", chain(&error));
                    assert!(damage(&report.findings).is_empty(), "{case}: {:#?}", report.findings);
                    stopped += 1;
                }
                Err(error) => {
                    assert!(!matches!(error, VerifyError::WriterOnly), "{case}");
                    stopped += usize::from(is_failure);
                }
            }
            faulty.clear();
            if is_failure {
                faulty.add(Rule {
                    calls: Calls::Reads,
                    skip: skip % 10,
                    hit: u64::MAX,
                    fault: fault.clone(),
                });
                assert!(
                    check(&repository, cluster).await.is_err(),
                    "{case}: a check that saw nothing is clean"
                );
            }
        }
    }
    assert!(stopped > 30 && flipped > 20, "{stopped} stopped, {flipped} looked twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_proved_before_an_interruption_is_written_down() {
    let judge = Judge::new().await;
    let request = judge.request();
    request.stop.store(true, std::sync::atomic::Ordering::Release);
    let ended = verify(&judge.scene.repository, &request, Arc::new(Silent)).await.unwrap();
    assert!(matches!(ended.stopped, Some(VerifyError::Interrupted)) && !ended.report.complete);

    // The storage goes away in the middle of the packs.
    let faulty = Arc::new(Faulty::new(judge.scene.memory.clone()));
    faulty.add(Rule {
        calls: Calls::Of(storage::Call::ReadTail),
        skip: 4,
        hit: u64::MAX,
        fault: Fault::Fail,
    });
    let repository: Arc<Repository> = judge.scene.readable(faulty.clone());
    let request = VerifyRequest { workers: 1, ..judge.request() };
    let ended = verify(&repository, &request, Arc::new(Silent)).await.unwrap();
    assert!(ended.stopped.is_some());
    faulty.clear();
    let again = verify(&repository, &request, Arc::new(Silent)).await.unwrap();
    assert!(again.stopped.is_none() && again.report.never_proved == 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_credential_checks_headers_and_verifies_nothing() {
    let judge = Judge::new().await;
    let scene = &judge.scene;
    let access = Access::Write(scene.keyring.writer.clone());
    let memory = Arc::new(scene.memory.snapshot());
    let repository = scene.opened(memory.clone(), access, None);
    let report = check(&repository, &scene.cluster).await.unwrap();
    assert_eq!((report.backups, report.findings.len(), report.not_looked_at.len()), (2, 0, 1));
    let name = layout::manifest(&scene.cluster, &judge.backups[0].id);
    let mut bad = memory.bytes(&name).unwrap().to_vec();
    bad[50] ^= 1;
    memory.damage(&name, Some(bad.into()));
    let report = check(&repository, &scene.cluster).await.unwrap();
    assert_eq!(report.findings[0].backups, [judge.backups[0].id.clone()]);
    let refused = verify(&repository, &judge.request(), Arc::new(Silent)).await;
    assert!(matches!(refused, Err(VerifyError::WriterOnly)));
}
