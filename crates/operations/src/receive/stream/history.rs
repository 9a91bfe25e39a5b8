//! The histories of the server's timelines, which are stored before WAL that needs them.

use jiff::Timestamp;
use pg::TimelineId;
use pg::timeline::TimelineHistory;
use pg::wal::FileName;
use repository::archive::WalInfo;
use server::connection::{Replication, ServerError};

use super::super::store::Store;
use super::{Broken, Stream};
use crate::failpoint;

impl Stream {
    /// The history of the server's timeline; every history file on the way is stored before WAL that needs it.
    pub(super) fn history(
        &self,
        replication: &mut Replication,
        timeline: TimelineId,
    ) -> Result<TimelineHistory, Broken> {
        if timeline == TimelineId::FIRST {
            return Ok(TimelineHistory::root(timeline));
        }
        let content = replication.timeline_history(timeline)?;
        let history = TimelineHistory::parse(timeline, &content)
            .map_err(|error| ServerError::UnexpectedAnswer { what: error.to_string() })?;
        self.store_history(timeline, &content)?;
        for ancestor in history.lineage().filter(|one| *one != timeline && *one != TimelineId::FIRST) {
            // The server may have lost it since; then whoever archived it then has it.
            if let Ok(content) = replication.timeline_history(ancestor) {
                self.store_history(ancestor, &content)?;
            }
        }
        Ok(history)
    }

    fn store_history(&self, timeline: TimelineId, content: &[u8]) -> Result<(), Broken> {
        let file = FileName::History(timeline);
        let info = WalInfo::new(&file, content.len() as u64, Timestamp::now());
        let Store { repository, cluster, .. } = &*self.store;
        let stored = self.handle.block_on(repository.store_wal(cluster, &file, content, &info, 1));
        failpoint::reach("receive.history-stored");
        stored.map(drop).map_err(|error| self.repository_failed(error))
    }
}
