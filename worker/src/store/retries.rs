//! What follows when an attempt to write a batch fails. Pure.

use std::time::Duration;

use super::failure::{Class, Failure};

/// First and longest pause while MongoDB fails.
const HOLD: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// Longest pause after a conflict with another writer.
const CONFLICT_PAUSE: Duration = Duration::from_millis(50);
/// After this many failures of infrastructure, the batch may be the cause, rather than MongoDB.
const SUSPECT_FAILURES: u32 = 3;
/// After this time of conflicts the batch is suspect, too: it delays events that don't conflict.
const SUSPECT_TIME: Duration = Duration::from_secs(10);

/// What to do with the batch.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Try it again after this time.
    Again(Duration),
    /// If MongoDB passes a probe, the batch is the cause: halve it. Else try it again after this time.
    HalveIfProbed(Duration),
    /// MongoDB refuses one of the events: find it.
    Halve,
}

/// How the attempts to write a batch have failed so far.
#[derive(Debug)]
pub struct Attempts {
    pause: Duration,
    failures: u32,
    duplicate_keys: u32,
}

impl Default for Attempts {
    fn default() -> Self {
        Self { pause: HOLD.0, failures: 0, duplicate_keys: 0 }
    }
}

impl Attempts {
    /// Another one failed, this long after the first one began.
    pub fn failed(&mut self, failure: &Failure, elapsed: Duration) -> (Class, Next) {
        self.duplicate_keys = if failure.is_duplicate_key() { self.duplicate_keys + 1 } else { 0 };
        let class = failure.class(self.duplicate_keys);
        self.failures += u32::from(class == Class::Infrastructure);
        let is_suspect = self.failures >= SUSPECT_FAILURES || elapsed >= SUSPECT_TIME;
        let next = match class {
            Class::Data => Next::Halve,
            Class::Infrastructure if is_suspect => Next::HalveIfProbed(self.longer_pause()),
            Class::Infrastructure | Class::Configuration => Next::Again(self.longer_pause()),
            Class::Conflict if is_suspect => Next::HalveIfProbed(conflict_pause()),
            Class::Conflict => Next::Again(conflict_pause()),
        };
        (class, next)
    }

    fn longer_pause(&mut self) -> Duration {
        let jittered = self.pause.mul_f64(0.5 + fastrand::f64() / 2.0);
        self.pause = (self.pause * 2).min(HOLD.1);
        jittered
    }
}

fn conflict_pause() -> Duration {
    CONFLICT_PAUSE.mul_f64(fastrand::f64())
}

/// After a batch with duplicates, this many batches are read before they are written: duplicates rarely come
/// alone.
const BATCHES_READ_FOR: u32 = 16;

/// Whether a queue's events are taken for new, which saves reading what each of them alone has.
#[derive(Debug, Default)]
pub struct Novelty {
    read_for: u32,
}

impl Novelty {
    /// Whether the next batch is taken for new; asked once for each batch.
    pub fn is_presumed(&mut self) -> bool {
        let is_presumed = self.read_for == 0;
        self.read_for = self.read_for.saturating_sub(1);
        is_presumed
    }

    /// A batch that was taken for new had an event that isn't.
    pub fn is_refuted(&mut self) {
        self.read_for = BATCHES_READ_FOR;
    }
}

/// If this many events in a row are refused with the same code, and none is stored in between, the cause
/// isn't the events.
const REFUSALS_IN_A_ROW: u32 = 10;

/// Events that a queue's MongoDB has refused since it last stored one.
#[derive(Debug, Default)]
pub struct Refusals {
    code: Option<i32>,
    in_a_row: u32,
}

impl Refusals {
    /// An event was refused; returns whether so many were refused in a row that the queue should hold the
    /// next ones.
    pub fn record_refusal(&mut self, code: Option<i32>) -> bool {
        self.in_a_row = if self.code == code { self.in_a_row + 1 } else { 1 };
        self.code = code;
        self.in_a_row >= REFUSALS_IN_A_ROW
    }

    /// An event was stored.
    pub fn record_success(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMED_OUT: Failure = Failure::TimedOut(Duration::from_secs(5));
    const SOON: Duration = Duration::from_millis(10);

    fn refused(code: i32) -> Failure {
        Failure::Refused { collection: String::new(), code, words: String::new() }
    }

    fn class(attempts: &mut Attempts, failure: &Failure) -> Class {
        attempts.failed(failure, SOON).0
    }

    #[test]
    fn only_duplicate_keys_in_a_row_make_a_duplicate_key_a_matter_of_data() {
        let (mut attempts, duplicate, conflict) = (Attempts::default(), refused(11000), refused(112));
        for _ in 0..4 {
            assert_eq!(class(&mut attempts, &TIMED_OUT), Class::Infrastructure);
            assert_eq!(class(&mut attempts, &conflict), Class::Conflict);
        }
        for _ in 0..2 {
            for _ in 0..4 {
                assert_eq!(class(&mut attempts, &duplicate), Class::Conflict);
            }
            assert_eq!(class(&mut attempts, &conflict), Class::Conflict);
        }
        for _ in 0..4 {
            class(&mut attempts, &duplicate);
        }
        assert_eq!(attempts.failed(&duplicate, SOON), (Class::Data, Next::Halve));
    }

    #[test]
    fn a_batch_is_suspect_after_three_failures_or_ten_seconds() {
        let is_suspect = |(_, next): (Class, Next)| matches!(next, Next::HalveIfProbed(_));
        let mut attempts = Attempts::default();
        let suspects: Vec<_> = (0..3).map(|_| is_suspect(attempts.failed(&TIMED_OUT, SOON))).collect();
        assert_eq!(suspects, [false, false, true]);
        let mut attempts = Attempts::default();
        assert!(!is_suspect(attempts.failed(&refused(112), SOON)));
        assert!(is_suspect(attempts.failed(&refused(112), SUSPECT_TIME)));
        assert!(!is_suspect(attempts.failed(&Failure::NoReplicaSet, SUSPECT_TIME)), "somebody has to act");
    }

    #[test]
    fn pauses_grow_to_ten_seconds() {
        let mut attempts = Attempts::default();
        let pauses: Vec<_> = (0..20).map(|_| attempts.longer_pause()).collect();
        assert!(pauses[0] <= HOLD.0 && pauses[19] >= HOLD.1 / 2);
        assert!(pauses.iter().all(|pause| *pause >= HOLD.0 / 2 && *pause <= HOLD.1));
    }

    #[test]
    fn after_an_event_that_was_here_before_the_next_batches_are_read_for() {
        let mut novelty = Novelty::default();
        assert!(novelty.is_presumed() && novelty.is_presumed());
        novelty.is_refuted();
        assert!((0..BATCHES_READ_FOR).all(|_| !novelty.is_presumed()));
        assert!(novelty.is_presumed());
    }

    #[test]
    fn ten_refusals_of_one_code_in_a_row_are_no_accident() {
        let mut refusals = Refusals::default();
        assert!((0..9).all(|_| !refusals.record_refusal(Some(121))));
        assert!(!refusals.record_refusal(Some(17262)), "another code");
        assert!((0..8).all(|_| !refusals.record_refusal(Some(17262))));
        assert!(refusals.record_refusal(Some(17262)));
        refusals.record_success();
        assert!(!refusals.record_refusal(Some(17262)));
    }
}
