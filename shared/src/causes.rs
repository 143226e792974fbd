//! One line in the log for one cause, however many connections have it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// A cause that lasts is logged again after this time.
const REMINDER: Duration = Duration::from_mins(1);

/// Causes that were logged.
#[derive(Debug, Default)]
pub struct Causes(Mutex<BTreeMap<String, Instant>>);

impl Causes {
    /// None yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(Mutex::new(BTreeMap::new()))
    }

    /// Whether to log a cause; if so, it counts as logged.
    pub fn deserves_line(&self, cause: &str, now: Instant) -> bool {
        let mut logged = self.lock();
        logged.retain(|_, at| now.duration_since(*at) < REMINDER);
        let is_new = !logged.contains_key(cause);
        if is_new {
            logged.insert(cause.to_owned(), now);
        }
        is_new
    }

    /// From now on, every cause is logged again.
    pub fn are_over(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_logged_once_until_it_is_over_or_lasts() {
        let (causes, now) = (Causes::new(), Instant::now());
        let lines = ["refused", "refused", "silent"].map(|cause| causes.deserves_line(cause, now));
        assert_eq!(lines, [true, false, true]);
        assert!(causes.deserves_line("refused", now + REMINDER));
        causes.are_over();
        assert!(causes.deserves_line("refused", now + REMINDER));
    }
}
