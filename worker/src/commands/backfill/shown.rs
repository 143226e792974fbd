//! How far a run is, for people: a bar on a terminal, else a line now and then.

use std::io::{IsTerminal, stderr};
use std::time::Duration;

use indicatif::ProgressBar;
use tokio::time::Instant;

use super::progress::Counts;
use crate::commands::progress;

/// Pause between lines.
const LINES: Duration = Duration::from_mins(1);

/// What is shown on standard error.
pub struct Shown {
    tenant: String,
    bar: ProgressBar,
    total: Option<u64>,
    is_terminal: bool,
    started: Instant,
    done_at_start: u64,
    line_at: Instant,
}

impl Shown {
    /// Starts at this place.
    #[must_use]
    pub fn new(tenant: &str, total: Option<u64>, done: u64) -> Self {
        let bar = progress(tenant, total.unwrap_or(done));
        bar.set_position(done);
        bar.reset_eta();
        let now = Instant::now();
        let is_terminal = stderr().is_terminal();
        Self {
            tenant: tenant.to_owned(),
            bar,
            total,
            is_terminal,
            started: now,
            done_at_start: done,
            line_at: now,
        }
    }

    /// Another contact is done.
    pub fn update(&mut self, counts: &Counts) {
        let done = counts.done();
        self.bar.set_position(done);
        if !self.is_terminal && self.line_at.elapsed() >= LINES {
            self.line_at = Instant::now();
            let left = left(self.total, done, self.done_at_start, self.started.elapsed());
            let of = self.total.map(|total| format!(" of {total}")).unwrap_or_default();
            let left =
                left.map(|left| format!(", {} min left", left.as_secs().div_ceil(60))).unwrap_or_default();
            eprintln!("{}: {done}{of} contacts, {} messages{left}", self.tenant, counts.messages);
        }
    }

    /// Removes the bar.
    pub fn end(&self) {
        self.bar.finish_and_clear();
    }
}

/// How long the rest takes at the pace so far.
fn left(total: Option<u64>, done: u64, done_at_start: u64, elapsed: Duration) -> Option<Duration> {
    let (left, done) = (total?.saturating_sub(done), done.checked_sub(done_at_start)?);
    let each = elapsed.div_f64(if done == 0 { return None } else { f64::from(u32::try_from(done).ok()?) });
    Some(each.mul_f64(f64::from(u32::try_from(left).ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_is_estimated_by_what_this_run_has_done() {
        let second = Duration::from_secs(1);
        assert_eq!(left(Some(110), 60, 50, 10 * second), Some(50 * second));
        assert_eq!(left(Some(110), 50, 50, second), None);
        assert_eq!(left(None, 60, 50, second), None);
        assert_eq!(left(Some(50), 60, 50, second), Some(Duration::ZERO), "contacts that came meanwhile");
    }
}
