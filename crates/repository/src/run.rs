//! Runs: what was done on a cluster, when, for which scheduled moment, and how it ended.
//!
//! When and how stands in the object's header, so that a host which cannot read knows it too and does nothing twice; what it
//! did and why it failed is sealed.

use jiff::Timestamp;
use prost::Message;

use crate::content::ContentError;
use crate::layout::{self, ClusterName};
use crate::note::shortened;
use crate::repository::{Repository, RepositoryError};
use crate::seal::{Header, Kind, SealError, open_stream, seal_stream};
use crate::secrets::parse_hex;

/// Runs of one kind that stay: more than a year of daily ones.
pub const KEPT: usize = 400;
/// Bytes of what a run did, and of why it failed, that are kept of each.
const TEXT_MAX: usize = 4 << 10;
/// No run is larger.
const RUN_LIMIT: u64 = 16 << 10;
const TIME: &str = "%Y%m%dT%H%M%S";

/// One run of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// What ran: a word of letters, `backup`.
    pub job: String,
    /// When, by the host's clock.
    pub began: Timestamp,
    /// When it ended, by the same.
    pub ended: Timestamp,
    /// The scheduled moment that it was for; `None` for one that somebody asked for.
    pub due: Option<Timestamp>,
    /// The exit code; 0 is good.
    pub code: u8,
    /// Where it ran.
    pub host: String,
    /// What it did, in a line; empty where that cannot be read.
    pub did: String,
    /// Why it failed, with what to do.
    pub why: String,
}

impl Run {
    /// How long it took, in seconds; 0 where the clock was set back.
    pub fn seconds(&self) -> i64 {
        self.ended.duration_since(self.began).as_secs().max(0)
    }
}

#[derive(Clone, PartialEq, Message)]
struct Head {
    #[prost(sfixed64, tag = "1")]
    began_us: i64,
    #[prost(sfixed64, tag = "2")]
    ended_us: i64,
    /// 0 for none.
    #[prost(sfixed64, tag = "3")]
    due_us: i64,
    #[prost(uint32, tag = "4")]
    code: u32,
    #[prost(string, tag = "5")]
    host: String,
}

#[derive(Clone, PartialEq, Message)]
struct Body {
    #[prost(string, tag = "1")]
    did: String,
    #[prost(string, tag = "2")]
    why: String,
}

impl Repository {
    /// Writes down what ran, and lets the oldest of its kind go when there are many.
    pub async fn record_run(&self, cluster: &ClusterName, run: &Run) -> Result<(), RepositoryError> {
        let unique = u32::from_le_bytes(storage::chance::bytes());
        let id = format!("{}-{}-{unique:08x}", run.job, run.began.strftime(TIME));
        let name = layout::run(cluster, &id);
        let head = Head {
            began_us: run.began.as_microsecond(),
            ended_us: run.ended.as_microsecond(),
            due_us: run.due.map_or(0, Timestamp::as_microsecond),
            code: run.code.into(),
            host: shortened(&run.host, 100).to_owned(),
        };
        let body = Body {
            did: shortened(&run.did, TEXT_MAX).to_owned(),
            why: shortened(&run.why, TEXT_MAX).to_owned(),
        };
        let (head, body) = (head.encode_to_vec(), body.encode_to_vec());
        let object = seal_stream(self.access().writer(), Kind::Run, &name, &head, &body);
        self.storage().create(&name, &[object]).await?;
        let ids = self.run_ids(cluster, Some(&run.job)).await?;
        for id in ids.iter().skip(KEPT) {
            if let Err(error) = self.storage().remove(&layout::run(cluster, id)).await {
                tracing::debug!(%error, "the record of an old run stays");
            }
        }
        Ok(())
    }

    /// The newest runs, of one job or of all, at most so many, the newest first. One that is damaged is passed over.
    pub async fn runs(
        &self,
        cluster: &ClusterName,
        job: Option<&str>,
        count: usize,
    ) -> Result<Vec<Run>, RepositoryError> {
        let mut runs = Vec::new();
        for id in self.run_ids(cluster, job).await?.iter().take(count) {
            match self.run(cluster, id).await {
                Ok(run) => runs.extend(run),
                Err(error) if error.is_damage() => tracing::warn!(%error, "a damaged record is passed over"),
                Err(error) => return Err(error),
            }
        }
        Ok(runs)
    }

    /// The ids of runs, the newest first.
    async fn run_ids(
        &self,
        cluster: &ClusterName,
        job: Option<&str>,
    ) -> Result<Vec<String>, RepositoryError> {
        let prefix = layout::runs(cluster);
        let entries = self.storage().list(&prefix).await?;
        let ids = entries.iter().filter_map(|entry| entry.name.as_str().strip_prefix(&prefix));
        let mut ids: Vec<(String, String)> = ids
            .filter_map(|id| parts(id).map(|(of, time)| (of, time, id)))
            .filter(|(of, _, _)| job.is_none_or(|job| job == *of))
            .map(|(_, time, id)| (time.to_owned(), id.to_owned()))
            .collect();
        ids.sort_unstable_by(|a, b| b.cmp(a));
        Ok(ids.into_iter().map(|(_, id)| id).collect())
    }

    /// `None` if it is gone.
    async fn run(&self, cluster: &ClusterName, id: &str) -> Result<Option<Run>, RepositoryError> {
        let name = layout::run(cluster, id);
        let object = match self.storage().read_all(&name, RUN_LIMIT).await {
            Err(storage::StorageError::NotFound { .. }) => return Ok(None),
            other => other?,
        };
        let bad = |what| RepositoryError::Content { place: name.to_string(), source: ContentError { what } };
        let header = Header::parse(self.access().writer(), Kind::Run, &name, &object)?;
        let head = Head::decode(&header.public[..]).map_err(|_| bad("head of a run"))?;
        let body = match open_stream(self.access(), Kind::Run, &name, &object) {
            Ok((_, body)) => Body::decode(&body[..]).map_err(|_| bad("body of a run"))?,
            Err(SealError::NoPrivateKey { .. }) => Body::default(),
            Err(error) => return Err(error.into()),
        };
        let time = |us: i64| Timestamp::from_microsecond(us).map_err(|_| bad("time of a run"));
        let (job, _) = parts(id).ok_or_else(|| bad("name of a run"))?;
        Ok(Some(Run {
            job: job.to_owned(),
            began: time(head.began_us)?,
            ended: time(head.ended_us)?,
            due: if head.due_us == 0 { None } else { Some(time(head.due_us)?) },
            code: u8::try_from(head.code).unwrap_or(u8::MAX),
            host: head.host,
            did: body.did,
            why: body.why,
        }))
    }
}

/// The job and the time in an id.
fn parts(id: &str) -> Option<(&str, &str)> {
    let (rest, unique) = id.rsplit_once('-')?;
    parse_hex::<4>(unique)?;
    let (job, time) = rest.rsplit_once('-')?;
    (!job.is_empty()).then_some((job, time))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use storage::Memory;

    use super::*;
    use crate::description::Description;
    use crate::secrets::{Access, Keyring, RepositoryId};

    fn run(job: &str, second: i64) -> Run {
        let at = |second| Timestamp::from_second(1_800_000_000 + second).unwrap();
        Run {
            job: job.to_owned(),
            began: at(second),
            ended: at(second + 5),
            due: (second % 2 == 0).then(|| at(second - 1)),
            code: (second % 3) as u8,
            host: "db1, process 7".into(),
            did: "stored 3 MB".into(),
            why: "no answer".into(),
        }
    }

    async fn made() -> (Arc<Memory>, Repository, ClusterName) {
        let (memory, keyring) = (Arc::new(Memory::default()), Keyring::generate(RepositoryId::random()));
        let description = Description::new(&keyring.writer, Timestamp::now(), true);
        Repository::create(memory.clone(), keyring.clone(), &[], description.clone(), None).await.unwrap();
        let host = Repository::assemble(memory.clone(), description, Access::Full(keyring), None);
        (memory, host, ClusterName::new("main").unwrap())
    }

    #[tokio::test]
    async fn runs_come_back_newest_first_and_a_writer_reads_when_and_how() {
        let (memory, host, cluster) = made().await;
        for second in 0..3 {
            host.record_run(&cluster, &run("backup", second)).await.unwrap();
            host.record_run(&cluster, &run("verify", second * 10)).await.unwrap();
        }
        let jobs = host.runs(&cluster, Some("backup"), 2).await.unwrap();
        assert_eq!(jobs, [run("backup", 2), run("backup", 1)]);
        let all = host.runs(&cluster, None, 100).await.unwrap();
        let when: Vec<_> = all.iter().map(|run| run.began.as_second() - 1_800_000_000).collect();
        assert_eq!(when, [20, 10, 2, 1, 0, 0]);

        let access = Access::Write(host.access().writer().clone());
        let writer = Repository::assemble(memory, host.description().clone(), access, None);
        let blind = Run { did: String::new(), why: String::new(), ..run("backup", 2) };
        assert_eq!(writer.runs(&cluster, Some("backup"), 1).await.unwrap(), [blind]);
    }

    #[tokio::test]
    async fn only_so_many_stay_of_each_job_and_what_is_damaged_is_passed_over() {
        let (memory, host, cluster) = made().await;
        host.record_run(&cluster, &run("verify", 0)).await.unwrap();
        for second in 0..KEPT as i64 + 3 {
            host.record_run(&cluster, &run("backup", second)).await.unwrap();
        }
        let kept = host.runs(&cluster, Some("backup"), 1000).await.unwrap();
        assert_eq!((kept.len(), kept.last()), (KEPT, Some(&run("backup", 3))));
        assert_eq!(host.runs(&cluster, Some("verify"), 1000).await.unwrap().len(), 1);
        let newest =
            memory.names().into_iter().rfind(|name| name.as_str().contains("/runs/backup-")).unwrap();
        memory.damage(&newest, Some(bytes::Bytes::from_static(b"cut")));
        assert_eq!(host.runs(&cluster, Some("backup"), 1).await.unwrap(), []);
        assert_eq!(host.runs(&cluster, Some("backup"), 2).await.unwrap().len(), 1);
    }
}
