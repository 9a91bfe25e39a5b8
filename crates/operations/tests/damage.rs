//! S10: every object of a small repository deleted, truncated, flipped, exchanged: each damage is named by its object,
//! or what is restored is exact.
//!
//! A slice of the cases runs always; `PGKEEP_TEST_ALL_DAMAGE=1` runs every byte of the small objects.
#![allow(clippy::unwrap_used, missing_docs)]

mod scene;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use operations::catalogue;
use operations::monitor::Silent;
use operations::restore::{execute, plan};
use pg::wal::FileName;
use repository::description::Description;
use repository::keys::SlotKey;
use repository::manifest::Manifest;
use repository::{Repository, Secret};
use scene::{Scene, chain, open_folder, tree};
use storage::{Memory, ObjectName};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
enum Kind {
    Pack,
    Manifest,
    Partial,
    Wal,
    Identity,
    /// Tells only prune something, and only while its backup is the newest.
    Claim,
    Slot,
    Description,
}

impl Kind {
    fn of(name: &ObjectName) -> Self {
        let parts: Vec<&str> = name.as_str().split('/').collect();
        match parts[..] {
            ["packs", ..] => Self::Pack,
            ["keys", _] => Self::Slot,
            ["repository"] => Self::Description,
            [_, _, "backups", _] => Self::Manifest,
            [_, _, "partial", ..] => Self::Partial,
            [_, _, "claims", _] => Self::Claim,
            [_, _, "wal", ..] => Self::Wal,
            [_, _, "identity"] => Self::Identity,
            _ => panic!("no case for {name}"),
        }
    }
}

/// One damage: what becomes of which objects.
struct Case {
    what: String,
    changes: Vec<(ObjectName, Option<Bytes>)>,
}

struct Judge {
    scene: Scene,
    backups: Vec<Manifest>,
    trees: HashMap<String, BTreeMap<PathBuf, (u32, String)>>,
    wal: HashMap<ObjectName, (FileName, Vec<u8>)>,
    into: PathBuf,
    folder: tempfile::TempDir,
}

impl Judge {
    async fn new() -> Self {
        let (scene, backups) = Scene::with_every_kind().await;
        let mut wal = HashMap::new();
        for name in scene.memory.names().into_iter().filter(|name| Kind::of(name) == Kind::Wal) {
            let file: FileName = name.as_str().rsplit('/').next().unwrap().parse().unwrap();
            let content = scene.repository.fetch_wal(&scene.cluster, &file).await.unwrap().1;
            wal.insert(name, (file, content));
        }
        let folder = open_folder();
        let into = folder.path().join("data");
        let mut judge = Self { scene, backups, trees: HashMap::new(), wal, into, folder };
        for backup in judge.backups.clone() {
            let whole = judge.scene.readable(judge.scene.memory.clone());
            let tree = judge.restore(&whole, Some(&backup.id)).await.unwrap();
            judge.trees.insert(backup.id, tree.1);
        }
        judge
    }

    /// Restores a backup, or the newest that can be; its id and everything in the directory.
    async fn restore(
        &self,
        repository: &Arc<Repository>,
        backup: Option<&str>,
    ) -> Result<(String, BTreeMap<PathBuf, (u32, String)>), String> {
        let mut request = self.scene.restore_request(&self.into);
        request.backup = backup.map(str::to_owned);
        let restored = async {
            let plan = plan(repository.clone(), request).await?;
            let id = plan.backup.clone();
            execute(plan, Arc::new(Silent)).await?;
            Ok((id, tree(&self.into)))
        };
        let result = restored.await.map_err(|error: operations::restore::RestoreError| chain(&error));
        if result.is_err() && self.into.exists() {
            assert!(!self.into.join("global/pg_control").exists(), "a failed restore could be started");
        }
        drop(std::fs::remove_dir_all(&self.into));
        result
    }

    /// Opens the damaged repository with each key; what was said against it, and the repository if one opened.
    async fn open(&self, memory: &Arc<Memory>) -> (Vec<String>, Option<Arc<Repository>>) {
        let mut said = Vec::new();
        let mut opened = None;
        for key in &self.scene.keys {
            let secret = Secret::Key(SlotKey::parse(&key.to_text()).unwrap());
            let result = match Repository::describe(&**memory).await {
                Ok(description) => Repository::open(memory.clone(), description, &secret, None).await,
                Err(error) => Err(error),
            };
            match result {
                Ok(repository) => opened = Some(Arc::new(repository)),
                Err(error) => said.push(format!("repository: {}", chain(&error))),
            }
        }
        if let Some(repository) = &opened {
            said.extend(repository.slots().await.unwrap().1);
        }
        (said, opened)
    }

    /// Everything that is said about a damaged repository; panics where what it gives is neither refused nor exact.
    async fn examine(&self, memory: Arc<Memory>, case: &Case) -> Vec<String> {
        let (mut said, opened) = self.open(&memory).await;
        let Some(repository) = opened else { return said };
        let cluster = &self.scene.cluster;
        match catalogue::list(&repository, cluster).await {
            Ok(list) => {
                said.extend(list.damaged.iter().map(|damaged| format!("{} {}", damaged.id, damaged.why)));
                said.extend(list.chain);
            }
            Err(error) => said.push(chain(&error)),
        }
        match catalogue::status(&repository, cluster, jiff::Timestamp::now()).await {
            Ok(status) => said.extend(status.problems.into_iter().map(|problem| problem.what)),
            Err(error) => said.push(chain(&error)),
        }
        let kinds: Vec<Kind> = case.changes.iter().map(|change| Kind::of(&change.0)).collect();
        for (name, _) in &case.changes {
            if let Some((file, content)) = self.wal.get(name) {
                match repository.fetch_wal(cluster, file).await {
                    Ok((_, given)) => assert!(given == *content, "{}: other WAL was given", case.what),
                    Err(error) => said.push(chain(&error)),
                }
            }
        }
        let mut wanted: Vec<Option<&str>> = self
            .backups
            .iter()
            .filter(|backup| kinds[0] == Kind::Manifest || self.names(backup, case))
            .map(|backup| Some(backup.id.as_str()))
            .collect();
        if kinds[0] != Kind::Pack {
            wanted.push(None);
        }
        for backup in wanted {
            match self.restore(&repository, backup).await {
                Ok((id, tree)) => assert!(tree == self.trees[&id], "{}: {id} restored wrongly", case.what),
                Err(error) => said.push(error),
            }
        }
        said
    }

    /// Whether the backup needs one of the packs that the case changes.
    fn names(&self, backup: &Manifest, case: &Case) -> bool {
        backup.packs.iter().any(|pack| {
            let name = repository::layout::pack(pack.id().unwrap());
            pack.live > 0 && case.changes.iter().any(|change| change.0 == name)
        })
    }

    /// Whether silence about this damage would be wrong.
    fn must_be_named(&self, kind: Kind, case: &Case) -> bool {
        let deleted = case.changes[0].1.is_none();
        match kind {
            // Without a host that remembers, the newest backup or the end of the WAL can go without a trace.
            Kind::Manifest => !deleted || case.changes[0].0.as_str().ends_with(&self.backups[0].id),
            Kind::Pack => self.backups.iter().any(|backup| self.names(backup, case)),
            Kind::Wal => true,
            // Cut by its line end it still says the same.
            Kind::Description => {
                let changed = case.changes[0].1.as_ref().and_then(|bytes| Description::decode(bytes).ok());
                changed.as_ref() != Some(&self.scene.description)
            }
            // Absent means "nothing was ever stored", which a restore need not mind.
            Kind::Identity => !deleted,
            Kind::Slot | Kind::Partial | Kind::Claim => false,
        }
    }

    async fn run(&self, cases: &[Case]) {
        for case in cases {
            let memory = Arc::new(self.scene.memory.snapshot());
            for (name, bytes) in &case.changes {
                memory.damage(name, bytes.clone());
            }
            let said = self.examine(memory, case).await;
            let last = |name: &ObjectName| name.as_str().rsplit('/').next().unwrap().to_owned();
            let named =
                case.changes.iter().any(|(name, _)| said.iter().any(|text| text.contains(&last(name))));
            let kind = Kind::of(&case.changes[0].0);
            assert!(named || !self.must_be_named(kind, case), "{}: not named in {said:#?}", case.what);
        }
    }

    fn cases(&self, all: bool) -> Vec<Case> {
        let mut cases = Vec::new();
        let names = self.scene.memory.names();
        for name in &names {
            let kind = Kind::of(name);
            let bytes = self.scene.memory.bytes(name).unwrap();
            let mut add = |what: String, changed: Option<Bytes>| {
                cases.push(Case { what: format!("{name} {what}"), changes: vec![(name.clone(), changed)] });
            };
            add("deleted".into(), None);
            for keep in [0, bytes.len() / 2, bytes.len() - 1] {
                add(format!("cut to {keep} bytes"), Some(bytes.slice(..keep)));
            }
            add("longer".into(), Some([&bytes[..], b"x"].concat().into()));
            for at in flips(kind, bytes.len(), all) {
                let mut flipped = bytes.to_vec();
                flipped[at] ^= 1 << (at % 8);
                add(format!("flipped at {at}"), Some(flipped.into()));
            }
            let next = names.iter().filter(|other| Kind::of(other) == kind && *other > name).nth(0);
            let Some(next) = next else { continue };
            let other = self.scene.memory.bytes(next).unwrap();
            add(format!("replaced by {next}"), Some(other.clone()));
            let changes = vec![(name.clone(), Some(other)), (next.clone(), Some(bytes.clone()))];
            cases.push(Case { what: format!("{name} exchanged with {next}"), changes });
        }
        cases
    }
}

/// Where an object is flipped: at its ends, at places of its header, and evenly between; `all` means every byte of what
/// is not content.
fn flips(kind: Kind, len: usize, all: bool) -> Vec<usize> {
    let count = match (kind, all) {
        (Kind::Pack, false) => 7,
        (_, false) => 3,
        (Kind::Pack, true) => 61,
        (Kind::Wal, true) => 150,
        (_, true) => len,
    };
    let mut places: Vec<usize> = (0..count).map(|n| n * len / count).collect();
    places.extend([0, 9, 60, len - 9, len - 1].into_iter().filter(|at| *at < len));
    places.sort_unstable();
    places.dedup();
    places
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s10_every_damaged_object_is_named_or_the_restore_is_exact() {
    let judge = Judge::new().await;
    let all = std::env::var_os("PGKEEP_TEST_ALL_DAMAGE").is_some();
    let cases = judge.cases(all);
    let kinds: std::collections::BTreeSet<Kind> = judge.scene.memory.names().iter().map(Kind::of).collect();
    assert_eq!(kinds.len(), 8, "a repository with every kind of object: {kinds:?}");
    assert!(cases.len() > if all { 5000 } else { 200 }, "{} cases", cases.len());
    judge.run(&cases).await;
    drop(judge.folder);
}
