//! How much evidence is kept? A flood of unusable requests must neither fill RabbitMQ nor push older evidence
//! out of the quarantine. Pure.

use std::time::{Duration, Instant};

/// A piece of evidence costs one for each begun part of this size: the quarantine's bound of 1 GiB, over its
/// bound of 100,000 messages. In bytes.
const PART_BYTES: usize = 10 << 10;
/// Dropped evidence is reported this often.
const REPORT_INTERVAL: Duration = Duration::from_mins(1);

/// A token bucket.
#[derive(Debug)]
pub struct Allowance {
    burst: f64,
    per_second: f64,
    left: f64,
    updated: Instant,
    dropped: u64,
    reported: Option<Instant>,
}

/// What to do with a piece of evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is kept.
    Keep,
    /// It isn't. If this is the time to report it: how many there were since the last report.
    Drop(Option<u64>),
}

impl Allowance {
    /// This many at once, and this many a second from then on.
    #[must_use]
    pub fn new(burst: u32, per_second: u32, now: Instant) -> Self {
        let burst = f64::from(burst);
        let per_second = f64::from(per_second);
        Self { burst, per_second, left: burst, updated: now, dropped: 0, reported: None }
    }

    /// Decides about evidence of this size.
    pub fn spend(&mut self, bytes: usize, now: Instant) -> Decision {
        let gained = now.saturating_duration_since(self.updated).as_secs_f64() * self.per_second;
        (self.left, self.updated) = ((self.left + gained).min(self.burst), now);
        #[expect(clippy::cast_precision_loss, reason = "bodies are bounded")]
        let parts = (bytes / PART_BYTES + 1) as f64;
        // A piece that is larger than the whole bucket empties it.
        let cost = parts.min(self.burst.max(1.0));
        if self.left >= cost {
            self.left -= cost;
            return Decision::Keep;
        }
        self.dropped += 1;
        let due = self.reported.is_none_or(|at| now.saturating_duration_since(at) >= REPORT_INTERVAL);
        if !due {
            return Decision::Drop(None);
        }
        self.reported = Some(now);
        Decision::Drop(Some(std::mem::take(&mut self.dropped)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_kept_and_then_so_many_a_second() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut allowance = Allowance::new(3, 2, start);
        let kept = |allowance: &mut Allowance, at| {
            (0..10).filter(|_| allowance.spend(100, at) == Decision::Keep).count()
        };
        assert_eq!(kept(&mut allowance, start), 3);
        assert_eq!(kept(&mut allowance, start + second), 2);
        assert_eq!(kept(&mut allowance, start + 100 * second), 3, "no more than a burst");
        assert_eq!(kept(&mut Allowance::new(0, 0, start), start + second), 0);
    }

    #[test]
    fn large_evidence_costs_more() {
        let start = Instant::now();
        let mut allowance = Allowance::new(10, 0, start);
        assert_eq!(allowance.spend(64 << 10, start), Decision::Keep);
        assert!(matches!(allowance.spend(64 << 10, start), Decision::Drop(_)));
        assert_eq!(allowance.spend(PART_BYTES, start), Decision::Keep);
        assert_eq!(Allowance::new(10, 0, start).spend(1 << 20, start), Decision::Keep, "however large");
    }

    #[test]
    fn what_is_dropped_is_reported_once_a_minute() {
        let start = Instant::now();
        let mut allowance = Allowance::new(0, 0, start);
        let mut dropped = |seconds| allowance.spend(1, start + Duration::from_secs(seconds));
        assert_eq!(dropped(0), Decision::Drop(Some(1)));
        assert_eq!(dropped(1), Decision::Drop(None));
        assert_eq!(dropped(60), Decision::Drop(Some(2)));
    }
}
