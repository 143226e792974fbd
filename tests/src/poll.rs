//! Waiting for a condition, with a deadline.

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// Longest wait for a value to change, unless a promise names a time for all.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Polls until `probe` gives what is `wanted`. Fails with the last value if that hasn't changed for a
/// minute: how long work takes is a matter of the machine, whether it goes on is not.
pub async fn until<T: PartialEq + Debug>(what: &str, wanted: T, probe: impl AsyncFnMut() -> T) {
    poll(what, wanted, (PATIENCE, PATIENCE * 5), probe).await;
}

/// As [`until`], within a time of the caller's choice.
pub async fn until_within<T: PartialEq + Debug>(
    what: &str,
    wanted: T,
    patience: Duration,
    probe: impl AsyncFnMut() -> T,
) {
    poll(what, wanted, (patience, patience), probe).await;
}

async fn poll<T: PartialEq + Debug>(
    what: &str,
    wanted: T,
    (unchanged, in_all): (Duration, Duration),
    mut probe: impl AsyncFnMut() -> T,
) {
    let started = Instant::now();
    let (mut changed, mut last) = (started, None);
    loop {
        let value = probe().await;
        if value == wanted {
            return;
        }
        if last.as_ref() != Some(&value) {
            changed = Instant::now();
        }
        let is_late = changed.elapsed() > unchanged || started.elapsed() > in_all;
        assert!(!is_late, "{what}: is {value:?}, not {wanted:?}, after {:?}", started.elapsed());
        last = Some(value);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
