//! The watch over how much WAL the server keeps for us: a slot must never fill its disk.

use std::sync::Arc;
use std::time::Duration;

use server::connection::{Connection, ServerError};
use server::facts::Slot;
use tokio::time::sleep;

use super::host::Host;
use super::store::Store;
use super::{Notice, ReceiveRequest, Tell};

/// How often the slot is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// So many looks may pass in which nothing becomes less, before a receiver that stores is taken for too slow.
const PATIENT_LOOKS: u32 = 12;

/// Looks at the slot on the chosen host for ever, warns when it comes near its limit and tells the host when it is past it.
pub(super) async fn watch(host: Arc<Host>, request: ReceiveRequest, store: Arc<Store>) {
    let mut session = None;
    let mut judge = Judge { least: None, warned: false, told_unlimited: false };
    loop {
        sleep(LOOK_EVERY).await;
        let Some((number, settings)) = host.chosen() else { continue };
        let name = request.slot.clone();
        let open = session.take().filter(|(of, _)| *of == number);
        let looked = tokio::task::spawn_blocking(move || -> Result<_, ServerError> {
            let connection = match open {
                Some((_, connection)) => connection,
                None => Connection::connect(&settings)?,
            };
            let slot = Slot::named(&connection, &name)?;
            Ok((connection, slot))
        });
        // The receiving thread tells of a server that does not answer.
        let Ok(Ok((connection, slot))) = looked.await else { continue };
        session = Some((number, connection));
        let Some(slot) = slot else {
            // The next one of this name is another slot.
            judge.least = None;
            continue;
        };
        let failing = store.down_for().is_some();
        if judge.judge(&slot, request.slot_limit, failing, &request.slot, &store.tell) {
            host.set_over_limit(number);
        }
    }
}

struct Judge {
    /// The least that was kept since it was more than the limit, and how many looks ago that was.
    least: Option<(u64, u32)>,
    warned: bool,
    told_unlimited: bool,
}

impl Judge {
    /// True when the slot is to be dropped: it is past its limit, and what is kept does not become less. A receiver that was
    /// away for long catches up, and must be let; one failure of the storage does not change that, but one that is down
    /// (`failing`) does.
    fn judge(&mut self, slot: &Slot, limit: Option<u64>, failing: bool, name: &str, tell: &Tell) -> bool {
        if slot.safe_wal_size.is_none() && !slot.is_lost() && !self.told_unlimited {
            self.told_unlimited = true;
            tell(Notice::Warning(
                "max_slot_wal_keep_size is not set: if pgkeep does not run, nothing keeps the slot from filling the \
                 server's disk; set it to what the disk can spare"
                    .to_owned(),
            ));
        }
        let mib = |bytes: u64| bytes >> 20;
        let near = limit.is_some_and(|limit| slot.retained_bytes > limit / 2)
            || slot.wal_status.as_deref() == Some("unreserved");
        if near && !self.warned {
            let left = slot
                .safe_wal_size
                .map(|safe| format!(", the server gives it up after {} MiB more", safe >> 20));
            let text = format!("the server keeps {} MiB of WAL for slot {name}", mib(slot.retained_bytes));
            tell(Notice::Warning(text + left.as_deref().unwrap_or_default()));
        }
        self.warned = near;
        let Some(limit) = limit.filter(|limit| slot.retained_bytes > *limit) else {
            self.least = None;
            return false;
        };
        self.least = match self.least {
            Some((least, looks)) if slot.retained_bytes >= least => Some((least, looks + 1)),
            _ => Some((slot.retained_bytes, 0)),
        };
        if !failing && self.least.is_none_or(|(_, looks)| looks < PATIENT_LOOKS) {
            return false;
        }
        tell(Notice::Warning(format!(
            "the server keeps {} MiB of WAL for slot {name}, more than the limit of {} MiB",
            mib(slot.retained_bytes),
            mib(limit)
        )));
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn slot(retained: u64, safe: Option<i64>) -> Slot {
        let wal_status = Some("reserved".to_owned());
        Slot {
            name: "keep".to_owned(),
            active: true,
            wal_status,
            restart_lsn: pg::Lsn::new(1),
            retained_bytes: retained,
            safe_wal_size: safe,
        }
    }

    #[test]
    fn a_lost_slot_is_not_taken_for_one_without_a_limit() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let sink = told.clone();
        let tell: Tell = Arc::new(move |notice| sink.lock().unwrap().push(notice));
        let mut judge = Judge { least: None, warned: false, told_unlimited: false };
        let lost = Slot { wal_status: Some("lost".to_owned()), restart_lsn: None, ..slot(0, None) };
        assert!(!judge.judge(&lost, Some(100 << 20), false, "keep", &tell));
        assert!(told.lock().unwrap().is_empty(), "{:?}", told.lock().unwrap());
        assert!(!judge.judge(&slot(0, None), Some(100 << 20), false, "keep", &tell));
        assert_eq!(told.lock().unwrap().len(), 1);
    }

    #[test]
    fn a_slot_is_warned_of_once_and_dropped_past_its_limit() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let sink = told.clone();
        let tell: Tell = Arc::new(move |notice| sink.lock().unwrap().push(notice));
        let mut judge = Judge { least: None, warned: false, told_unlimited: false };
        let mut look = |retained: u64, safe, failing| {
            judge.judge(&slot(retained << 20, safe), Some(100 << 20), failing, "keep", &tell)
        };
        assert!(!look(10, Some(1 << 30), true) && told.lock().unwrap().is_empty());
        assert!(!look(60, Some(1 << 30), true) && !look(61, Some(1 << 30), true));
        assert_eq!(told.lock().unwrap().len(), 1);
        // It catches up, however long that takes.
        assert!((101..200).rev().all(|retained| !look(retained, Some(1 << 30), false)));
        // It does not.
        assert!((1..PATIENT_LOOKS).all(|_| !look(150, Some(1 << 30), false)));
        assert!(look(150, Some(1 << 30), false));
        assert!(!look(90, Some(1 << 30), true) && look(101, None, true));
        let texts: Vec<String> = told.lock().unwrap().iter().map(|notice| format!("{notice:?}")).collect();
        assert!(texts[0].contains("keeps 60 MiB") && texts[0].contains("after 1024 MiB more"), "{texts:?}");
        assert!(texts[1].contains("keeps 150 MiB") && texts[1].contains("more than the limit"), "{texts:?}");
        assert!(texts[2].contains("max_slot_wal_keep_size is not set"), "{texts:?}");
        assert!(texts[3].contains("keeps 101 MiB"), "{texts:?}");
    }
}
