//! What a load has seen: who was answered, and after how long.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::client::Answer;

/// Longest time that is told apart, in microseconds.
const LONGEST: u64 = 120_000_000;
/// Significant digits of times.
const DIGITS: u8 = 3;

/// An event on its way.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// When it should have been sent.
    pub due: Instant,
    /// When it was sent.
    pub sent: Instant,
    /// When it was answered.
    pub answered: Instant,
}

/// What a load has seen.
#[derive(Debug)]
pub struct Tally {
    /// Numbers of the events that were answered 200 `received`, and when.
    pub received: Vec<(u64, Instant)>,
    /// Numbers of those that may have arrived, or not.
    pub uncertain: Vec<u64>,
    /// How often there was another answer, or none.
    pub odd: BTreeMap<String, u64>,
    /// Events whose turn never came.
    pub unsent: u64,
    /// From when an event should have been sent until it was answered, in microseconds.
    pub corrected: Histogram<u64>,
    /// From when it was sent.
    pub uncorrected: Histogram<u64>,
    /// From when it should have been sent until it was.
    pub late: Histogram<u64>,
    /// What was due before isn't in the times: ingest and worker were still cold.
    pub measured_from: Instant,
}

/// A histogram of microseconds.
pub fn histogram() -> Histogram<u64> {
    // These bounds are always accepted, and so is the fallback.
    Histogram::new_with_bounds(1, LONGEST, DIGITS).or_else(|_| Histogram::new(DIGITS)).expect("fixed bounds")
}

/// Enters a time.
pub fn enter(histogram: &mut Histogram<u64>, time: Duration) {
    histogram.saturating_record(u64::try_from(time.as_micros()).unwrap_or(LONGEST).max(1));
}

/// A percentile in milliseconds.
pub fn percentile(histogram: &Histogram<u64>, percent: f64) -> f64 {
    crate::number::float(histogram.value_at_percentile(percent)) / 1000.0
}

/// The longest time in milliseconds.
pub fn longest(histogram: &Histogram<u64>) -> f64 {
    crate::number::float(histogram.max()) / 1000.0
}

impl Tally {
    /// Nothing seen yet; what is due before `measured_from` isn't timed.
    pub fn new(measured_from: Instant) -> Self {
        Self {
            received: Vec::new(),
            uncertain: Vec::new(),
            odd: BTreeMap::new(),
            unsent: 0,
            corrected: histogram(),
            uncorrected: histogram(),
            late: histogram(),
            measured_from,
        }
    }

    /// Enters an answer.
    pub fn record(&mut self, n: u64, times: &Times, answer: Answer) {
        match answer {
            Answer::Received => self.received.push((n, times.answered)),
            Answer::Odd(what) => {
                self.uncertain.push(n);
                *self.odd.entry(what).or_default() += 1;
            }
        }
        if times.due >= self.measured_from {
            enter(&mut self.corrected, times.answered - times.due);
            enter(&mut self.uncorrected, times.answered - times.sent);
            enter(&mut self.late, times.sent - times.due);
        }
    }

    /// Enters an event whose turn hasn't come: all that is known is that it takes longer than that.
    pub fn give_up(&mut self, waited: Duration) {
        self.unsent += 1;
        enter(&mut self.corrected, waited);
    }

    /// Adds what another has seen.
    pub fn add(&mut self, other: Self) {
        self.received.extend(other.received);
        self.uncertain.extend(other.uncertain);
        for (what, count) in other.odd {
            *self.odd.entry(what).or_default() += count;
        }
        self.unsent += other.unsent;
        // They have the same bounds, so that adding can't fail.
        let _ = self.corrected.add(other.corrected);
        let _ = self.uncorrected.add(other.uncorrected);
        let _ = self.late.add(other.late);
    }

    /// Number of events that were answered 200 `received`.
    pub fn accepted(&self) -> u64 {
        self.received.len() as u64
    }

    /// What else was answered, for people; none if nothing was.
    pub fn oddities(&self) -> Option<String> {
        let mut parts: Vec<_> = self.odd.iter().map(|(what, count)| format!("{count} × {what}")).collect();
        if self.unsent > 0 {
            parts.push(format!("{} × not sent in time", self.unsent));
        }
        (!parts.is_empty()).then(|| parts.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_for_a_connection_counts() {
        let due = Instant::now();
        let after = |ms| due + Duration::from_millis(ms);
        let mut tally = Tally::new(due);
        tally.record(1, &Times { due, sent: after(90), answered: after(100) }, Answer::Received);
        assert!((percentile(&tally.corrected, 50.0) - 100.0).abs() < 0.2);
        assert!((percentile(&tally.uncorrected, 50.0) - 10.0).abs() < 0.1);
        assert!((percentile(&tally.late, 50.0) - 90.0).abs() < 0.2);
    }

    #[test]
    fn what_is_due_before_the_measurement_is_not_timed() {
        let now = Instant::now();
        let mut tally = Tally::new(now + Duration::from_secs(1));
        tally.record(1, &Times { due: now, sent: now, answered: now }, Answer::Received);
        assert_eq!((tally.accepted(), tally.corrected.len()), (1, 0));
    }

    #[test]
    fn oddities_are_told() {
        let now = Instant::now();
        let (mut all, mut one) = (Tally::new(now), Tally::new(now));
        let times = Times { due: now, sent: now, answered: now };
        one.record(7, &times, Answer::Odd("503".into()));
        all.record(8, &times, Answer::Odd("503".into()));
        all.add(one);
        assert_eq!(all.oddities().as_deref(), Some("2 × 503"));
        assert_eq!(all.uncertain, [8, 7]);
    }
}
