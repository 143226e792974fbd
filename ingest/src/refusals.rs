//! How often may a webhook be refused? respond.io disables it after about 30 errors in 30 minutes.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The refusals of a sliding window.
#[derive(Debug)]
pub struct Refusals {
    budget: usize,
    window: Duration,
    recent: VecDeque<Instant>,
}

impl Refusals {
    /// No refusal yet, of `budget` within `window`.
    #[must_use]
    pub fn new(budget: usize, window: Duration) -> Self {
        Self { budget, window, recent: VecDeque::new() }
    }

    /// Takes a refusal out of the budget; false if none is left.
    pub fn spend(&mut self, now: Instant) -> bool {
        let affordable = self.left(now) > 0;
        if affordable {
            self.recent.push_back(now);
        }
        affordable
    }

    /// Refusals left in the window.
    pub fn left(&mut self, now: Instant) -> usize {
        while self.recent.front().is_some_and(|at| now.duration_since(*at) >= self.window) {
            self.recent.pop_front();
        }
        self.budget - self.recent.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_comes_back_after_the_window() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut refusals = Refusals::new(2, 10 * second);
        assert!(refusals.spend(start));
        assert!(refusals.spend(start + 5 * second));
        assert!(!refusals.spend(start + 6 * second));
        assert_eq!(refusals.left(start + 9 * second), 0);
        assert!(refusals.spend(start + 10 * second));
        assert!(!refusals.spend(start + 14 * second));
        assert_eq!(refusals.left(start + 20 * second), 2);
        assert!(!Refusals::new(0, second).spend(start));
    }
}
