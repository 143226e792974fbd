//! When each event of an open loop is due, and its release at that moment.
//!
//! The timers of tokio round up to milliseconds, which would make every answer look slower by up to one. So the pace
//! is kept by a thread that sleeps: Linux wakes it about 50 µs late, which is made up for. Measured on an idle machine, at
//! 1,000/s and at 5,000/s alike: 99 % of the events leave within 60 µs, for 2.5 % of a core per 1,000/s, making and signing included.
//! The report has a figure for it, as on a busy machine it is the scheduler that decides.
//!
//! Above 2,000/s, where being woken for each event would cost a good part of what the server takes for it, those that are due within half a
//! millisecond leave together, at its end. That they are late counts, as everything does.

use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;

use crate::event::{Event, Maker};

/// From the decision to start until the first event is due.
pub const LEAD: Duration = Duration::from_millis(5);
/// What is due within this time leaves together.
const TOGETHER: Duration = Duration::from_micros(500);
/// Linux lets a sleeping thread sleep so much longer.
const TIMER_SLACK: Duration = Duration::from_micros(50);

/// A constant rate of arrivals.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Events per second.
    pub rate: u64,
    /// Time at the beginning that isn't measured.
    pub warm: Duration,
    /// Time that is.
    pub time: Duration,
}

impl Pace {
    /// All of the time.
    pub fn total(&self) -> Duration {
        self.warm + self.time
    }

    /// Number of arrivals.
    pub fn arrivals(&self) -> u64 {
        let events = self.total().as_nanos() * u128::from(self.rate) / 1_000_000_000;
        u64::try_from(events).unwrap_or(u64::MAX)
    }

    /// When an event is due, from the start. Computed from its place, so that nothing adds up.
    fn due(&self, place: u64) -> Duration {
        let nanos = u128::from(place) * 1_000_000_000 / u128::from(self.rate);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// Number of events that leave together.
    fn together(&self) -> usize {
        let events = u128::from(self.rate) * TOGETHER.as_micros() / 1_000_000;
        usize::try_from(events).unwrap_or(usize::MAX).max(1)
    }
}

/// An event that is due.
#[derive(Debug)]
pub struct Shot {
    /// When it should be sent.
    pub due: Instant,
    /// What.
    pub event: Event,
}

/// Releases every event when it is due, or soon after. Each is made before.
pub fn run(pace: &Pace, start: Instant, maker: &Maker, shots: &UnboundedSender<Shot>) {
    let group = pace.together();
    for first in (0..pace.arrivals()).step_by(group) {
        let places = first..pace.arrivals().min(first + group as u64);
        let ready: Vec<_> =
            places.map(|place| Shot { due: start + pace.due(place), event: maker.make() }).collect();
        wait_until(ready.last().map_or(start, |last| last.due));
        for shot in ready {
            if shots.send(shot).is_err() {
                return;
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the moment itself is what is waited for")]
fn wait_until(due: Instant) {
    if let Some(time) = due.checked_duration_since(Instant::now() + TIMER_SLACK) {
        std::thread::sleep(time);
    }
    while Instant::now() < due {
        std::hint::spin_loop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_are_evenly_spread() {
        let pace = Pace { rate: 3000, warm: Duration::from_secs(1), time: Duration::from_secs(2) };
        assert_eq!(pace.arrivals(), 9000);
        assert_eq!(pace.due(0), Duration::ZERO);
        assert_eq!(pace.due(1), Duration::from_nanos(333_333));
        assert_eq!(pace.due(8999), Duration::from_nanos(2_999_666_666));
        assert_eq!([1000, 3000, 4000, 7000].map(|rate| Pace { rate, ..pace }.together()), [1, 1, 2, 3]);
    }
}
