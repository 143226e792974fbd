//! Waiting for a condition, with a deadline.

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// Longest wait unless a promise names another.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Polls until `probe` gives what is `wanted`, and fails with the last value otherwise.
pub async fn until<T: PartialEq + Debug>(what: &str, wanted: T, probe: impl AsyncFnMut() -> T) {
    until_within(what, wanted, PATIENCE, probe).await;
}

/// As [`until`], with a deadline of the caller's choice.
pub async fn until_within<T: PartialEq + Debug>(
    what: &str,
    wanted: T,
    patience: Duration,
    mut probe: impl AsyncFnMut() -> T,
) {
    let deadline = Instant::now() + patience;
    loop {
        let value = probe().await;
        if value == wanted {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: is {value:?}, not {wanted:?}, after {patience:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
