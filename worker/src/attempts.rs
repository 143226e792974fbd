//! The attempts to write one batch: what follows when one of them fails. Pure, so that it can be tested.

use std::time::Duration;

use crate::failure::{Class, Failure};

/// First and longest pause while MongoDB fails.
const HOLD: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// Longest pause after a conflict with another writer.
const CONFLICT_PAUSE: Duration = Duration::from_millis(50);
/// A batch that missed the deadline so often, while others were written, is cut in half.
const MISSED_DEADLINES: u32 = 3;

/// What to do with the batch.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Try it again after this time.
    Again(Duration),
    /// It takes too long as a whole.
    Halve,
    /// Find the event that can't be written.
    Refuse,
}

/// How the attempts have failed so far.
#[derive(Debug)]
pub struct Attempts {
    pause: Duration,
    conflicts: u32,
    duplicate_keys: u32,
    missed_deadlines: u32,
}

impl Default for Attempts {
    fn default() -> Self {
        Self { pause: HOLD.0, conflicts: 0, duplicate_keys: 0, missed_deadlines: 0 }
    }
}

impl Attempts {
    /// Another one failed. `others_pass` says whether other batches were written since the first attempt.
    pub fn failed(&mut self, failure: &Failure, others_pass: bool) -> (Class, Next) {
        self.duplicate_keys = if failure.is_duplicate_key() { self.duplicate_keys + 1 } else { 0 };
        self.missed_deadlines += u32::from(matches!(failure, Failure::TimedOut(_)));
        let class = failure.class(self.duplicate_keys);
        self.conflicts += u32::from(class == Class::Conflict);
        let next = match class {
            Class::Data => Next::Refuse,
            Class::Conflict => Next::Again(CONFLICT_PAUSE.mul_f64(fastrand::f64())),
            Class::Infrastructure if others_pass && self.missed_deadlines >= MISSED_DEADLINES => Next::Halve,
            Class::Infrastructure | Class::Configuration => Next::Again(self.longer_pause()),
        };
        (class, next)
    }

    /// How many of them were conflicts.
    #[must_use]
    pub fn conflicts(&self) -> u32 {
        self.conflicts
    }

    fn longer_pause(&mut self) -> Duration {
        let jittered = self.pause.mul_f64(0.5 + fastrand::f64() / 2.0);
        self.pause = (self.pause * 2).min(HOLD.1);
        jittered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUPLICATE_KEY: Failure = Failure::Refused { code: 11000 };
    const WRITE_CONFLICT: Failure = Failure::Refused { code: 112 };
    const TIMED_OUT: Failure = Failure::TimedOut(Duration::from_secs(5));

    #[test]
    fn only_duplicate_keys_in_a_row_make_a_duplicate_key_a_matter_of_data() {
        let mut attempts = Attempts::default();
        for _ in 0..4 {
            assert_eq!(attempts.failed(&TIMED_OUT, false).0, Class::Infrastructure);
            assert_eq!(attempts.failed(&WRITE_CONFLICT, false).0, Class::Conflict);
        }
        for _ in 0..4 {
            assert_eq!(attempts.failed(&DUPLICATE_KEY, false).0, Class::Conflict);
        }
        assert_eq!(attempts.failed(&WRITE_CONFLICT, false).0, Class::Conflict);
        for _ in 0..4 {
            assert_eq!(attempts.failed(&DUPLICATE_KEY, false).0, Class::Conflict);
        }
        assert_eq!(attempts.failed(&DUPLICATE_KEY, false), (Class::Data, Next::Refuse));
    }

    #[test]
    fn conflicts_are_counted() {
        let mut attempts = Attempts::default();
        for failure in [WRITE_CONFLICT, TIMED_OUT, WRITE_CONFLICT] {
            attempts.failed(&failure, false);
        }
        assert_eq!(attempts.conflicts(), 2);
    }

    #[test]
    fn what_is_too_slow_while_others_pass_is_halved() {
        let mut attempts = Attempts::default();
        let is_halved = |(_, next)| next == Next::Halve;
        assert!((0..9).all(|_| !is_halved(attempts.failed(&TIMED_OUT, false))), "MongoDB is down");
        assert!(!is_halved(attempts.failed(&WRITE_CONFLICT, true)));
        assert!(is_halved(attempts.failed(&TIMED_OUT, true)));
        let mut attempts = Attempts::default();
        let halved: Vec<_> = (0..3).map(|_| is_halved(attempts.failed(&TIMED_OUT, true))).collect();
        assert_eq!(halved, [false, false, true]);
    }

    #[test]
    fn pauses_grow_to_ten_seconds() {
        let mut attempts = Attempts::default();
        let pauses: Vec<_> = (0..20).map(|_| attempts.longer_pause()).collect();
        assert!(pauses[0] <= HOLD.0 && pauses[19] >= HOLD.1 / 2);
        assert!(pauses.iter().all(|pause| *pause >= HOLD.0 / 2 && *pause <= HOLD.1));
    }
}
