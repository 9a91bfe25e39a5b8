//! Being told to end.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::failure::{Failure, Outcome};

/// Becomes true at SIGTERM or SIGINT. At a second one `again` is called.
pub fn stop_signal(again: impl FnOnce() + Send + 'static) -> Outcome<watch::Receiver<bool>> {
    let cannot = |error| Failure::caused("listen for signals", &error);
    let mut terminate = signal(SignalKind::terminate()).map_err(cannot)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot)?;
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        next().await;
        sender.send_replace(true);
        next().await;
        again();
    });
    Ok(receiver)
}
