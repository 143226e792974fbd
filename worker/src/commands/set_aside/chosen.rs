//! The messages of a queue that a filter takes.

use indicatif::ProgressBar;
use lapin::message::BasicGetMessage;

use super::message::{Filter, SetAside};
use super::queue::{Queue, QueueError};
use crate::commands::{now_ms, progress};

/// The messages that a filter takes.
#[derive(Debug)]
pub struct Chosen<'a> {
    tenant: &'a str,
    filter: &'a Filter,
    now_ms: i64,
    left: u64,
    bar: ProgressBar,
}

impl<'a> Chosen<'a> {
    /// Those that this filter takes, with a progress bar or without.
    pub fn new(tenant: &'a str, filter: &'a Filter, queue: &Queue, with_bar: bool) -> Self {
        // Lines of the answer and a bar on the same terminal would get into each other's way.
        let bar = if with_bar { progress(tenant, queue.length.into()) } else { ProgressBar::hidden() };
        Self { tenant, filter, now_ms: now_ms(), left: filter.limit.unwrap_or(u64::MAX), bar }
    }

    /// The next of them.
    pub async fn next(
        &mut self,
        queue: &mut Queue,
    ) -> Result<Option<(SetAside, BasicGetMessage)>, QueueError> {
        while self.left > 0
            && let Some(message) = queue.next().await?
        {
            self.bar.inc(1);
            let letter = SetAside::of(self.tenant, &message.properties, &message.data);
            let is_about = || self.filter.is_about(self.tenant, &message.properties, &message.data);
            if self.filter.takes(&letter, self.now_ms) && is_about() {
                self.left -= 1;
                return Ok(Some((letter, message)));
            }
        }
        self.bar.finish_and_clear();
        Ok(None)
    }
}
