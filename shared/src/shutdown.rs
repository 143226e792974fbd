//! One path to the end, for every signal.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::env::Env;

/// How much longer `TERMINATION_GRACE`, the time from SIGTERM to SIGKILL, is than stopping may take; a
/// problem, if it is shorter. Where it isn't set, nobody knows, and it has no end. `needed` depends on the
/// setting `decided_by`.
pub fn spare_grace(env: &mut Env, needed: Duration, decided_by: &str) -> Duration {
    let given = env.duration_if_set("TERMINATION_GRACE").unwrap_or(Duration::MAX);
    if given < needed && !env.is_wrong(decided_by) {
        env.problem(format!("TERMINATION_GRACE: stopping may take {needed:?} with these settings"));
    }
    given.saturating_sub(needed)
}

/// A token that is cancelled on the first SIGTERM or SIGINT. A second signal ends the process at once.
pub fn on_signal() -> std::io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (stop, stopping) = (CancellationToken::new(), CancellationToken::new());
    let requested = stop.clone();
    tokio::spawn(async move {
        loop {
            let signal = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            if stopping.is_cancelled() {
                info!(signal, "told to stop again, stopping at once");
                std::process::exit(1);
            }
            info!(signal, "stopping");
            stopping.cancel();
            requested.cancel();
        }
    });
    Ok(stop)
}
