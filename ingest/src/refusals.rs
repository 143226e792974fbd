//! How many webhooks were refused lately: respond.io disables a webhook after about 30 in 30 minutes.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The refusals of a sliding window.
#[derive(Debug)]
pub struct Refusals {
    budget: usize,
    window: Duration,
    // Never more than `budget`: the oldest in the window are all that matter.
    recent: VecDeque<Instant>,
}

impl Refusals {
    /// No refusal yet, of `budget` within `window`.
    #[must_use]
    pub fn new(budget: usize, window: Duration) -> Self {
        Self { budget, window, recent: VecDeque::new() }
    }

    /// Notes a refusal.
    pub fn note(&mut self, now: Instant) {
        self.forget(now);
        if self.recent.len() < self.budget {
            self.recent.push_back(now);
        }
    }

    /// Refusals left in the window.
    pub fn left(&mut self, now: Instant) -> usize {
        self.forget(now);
        self.budget - self.recent.len()
    }

    fn forget(&mut self, now: Instant) {
        while self.recent.front().is_some_and(|at| now.duration_since(*at) >= self.window) {
            self.recent.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_forgotten_after_the_window() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut refusals = Refusals::new(2, 10 * second);
        refusals.note(start);
        refusals.note(start + 5 * second);
        refusals.note(start + 6 * second);
        assert_eq!(refusals.left(start + 9 * second), 0);
        assert_eq!(refusals.left(start + 10 * second), 1);
        assert_eq!(refusals.left(start + 15 * second), 2);
    }
}
