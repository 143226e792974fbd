//! The rate of requests to respond.io's API, and its pauses.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Lets requests through: at most this many a second, without a burst, and none during a pause.
#[derive(Debug)]
pub struct Pace {
    gap: Duration,
    times: Mutex<Times>,
}

#[derive(Debug)]
struct Times {
    next_turn: Instant,
    held_until: Instant,
}

impl Pace {
    /// This many turns a second.
    #[must_use]
    pub fn new(per_second: u32) -> Self {
        let now = Instant::now();
        let times = Times { next_turn: now, held_until: now };
        Self { gap: Duration::from_secs(1) / per_second.max(1), times: Mutex::new(times) }
    }

    /// Waits for a turn.
    pub async fn turn(&self) {
        loop {
            let turn = self.next_turn();
            sleep_until(turn).await;
            // Another request may have been told to wait meanwhile: that holds for all.
            if self.times.lock().unwrap_or_else(PoisonError::into_inner).held_until <= turn {
                return;
            }
        }
    }

    fn next_turn(&self) -> Instant {
        let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = times.next_turn.max(times.held_until).max(Instant::now());
        times.next_turn = turn + self.gap;
        turn
    }

    /// Gives no turn for this long.
    pub fn hold(&self, pause: Duration) {
        let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        times.held_until = times.held_until.max(Instant::now() + pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn turns_keep_their_distance_and_are_not_saved_up() {
        let (pace, start) = (Pace::new(4), Instant::now());
        for _ in 0..5 {
            pace.turn().await;
        }
        assert_eq!(start.elapsed(), Duration::from_secs(1));
        tokio::time::advance(Duration::from_mins(1)).await;
        let start = Instant::now();
        for _ in 0..5 {
            pace.turn().await;
        }
        assert_eq!(start.elapsed(), Duration::from_secs(1), "no burst after a quiet minute");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_gets_a_turn_while_it_is_held_nor_all_at_once_after_it() {
        let (pace, start) = (Pace::new(4), Instant::now());
        pace.turn().await;
        let waiting = async {
            tokio::join!(pace.turn(), pace.turn(), pace.turn());
            start.elapsed()
        };
        let holding = async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            pace.hold(Duration::from_secs(10));
        };
        let (elapsed, ()) = tokio::join!(waiting, holding);
        assert_eq!(elapsed, Duration::from_millis(10_501));
    }
}
