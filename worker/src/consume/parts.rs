//! A batch that can't be written as a whole: the parts to try, and the events to dead-letter. Pure.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::delivery::Receipt;
use crate::dead::Reason;
use crate::decode::Event;
use crate::store::failure::{Class, Failure};
use crate::store::retries::Attempts;

/// A single event that can't be written for this long, while MongoDB passes probes, is dead-lettered.
pub const STUCK_TIMEOUT: Duration = Duration::from_mins(2);

/// A part of a batch.
pub struct Part {
    /// Its events.
    pub events: Arc<[Event]>,
    /// Of their deliveries, in the same order.
    pub receipts: Vec<Receipt>,
    /// How often they could not be written.
    pub attempts: Attempts,
    /// Whether they are taken for new.
    pub is_new: bool,
}

impl Part {
    /// A part of which nothing was tried yet.
    #[must_use]
    pub fn new(events: Vec<Event>, receipts: Vec<Receipt>) -> Self {
        Self { events: events.into(), receipts, attempts: Attempts::default(), is_new: false }
    }

    /// Its first and its second half.
    #[must_use]
    pub fn halves(self) -> [Self; 2] {
        let (middle, mut first) = (self.events.len() / 2, self.receipts);
        let second = first.split_off(middle);
        [Self::new(self.events[..middle].to_vec(), first), Self::new(self.events[middle..].to_vec(), second)]
    }
}

/// What is left of a batch that can't be written as a whole.
pub struct Left {
    /// To be tried.
    pub parts: VecDeque<Part>,
    /// Events that stand alone and are dead letters, and why.
    pub refused: VecDeque<(Part, Reason, Failure)>,
    /// Since when what stands alone may count as stuck: one clock for all.
    pub stuck_since: Instant,
    /// Whether something of the batch was stored.
    pub any_stored: bool,
}

impl Left {
    /// What is left after the first failure.
    #[must_use]
    pub fn of(part: Part, class: Class, failure: Failure) -> Self {
        let (parts, refused) = (VecDeque::new(), VecDeque::new());
        let mut left = Self { parts, refused, stuck_since: Instant::now(), any_stored: false };
        left.sort(part, class, failure);
        left
    }

    /// Says how many parts and refused events there are, which shows whether a round has changed anything.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        (self.parts.len(), self.refused.len())
    }

    /// Halves a part that can't be written, or decides about the event that stands alone.
    pub fn sort(&mut self, part: Part, class: Class, failure: Failure) {
        if part.events.len() > 1 {
            self.parts.extend(part.halves());
        } else if let Some(reason) = reason(class, &failure, self.stuck_since.elapsed()) {
            self.refused.push_back((part, reason, failure));
        } else {
            self.parts.push_back(part);
        }
    }
}

/// Why an event that stands alone is a dead letter after such a failure, if it is.
fn reason(class: Class, failure: &Failure, stuck_for: Duration) -> Option<Reason> {
    match (class, failure) {
        (_, Failure::Panicked) => Some(Reason::Defect),
        (Class::Data, _) => Some(Reason::RefusedByMongodb),
        _ => (stuck_for >= STUCK_TIMEOUT).then_some(Reason::Stuck),
    }
}

#[cfg(test)]
mod tests {
    use lapin::BasicProperties;
    use shared::event::Stream;

    use super::*;
    use crate::decode::Envelope;
    use crate::state::QueueState;

    fn part(events: usize) -> Part {
        let queue = Arc::new(QueueState::default());
        let receipt = |tag| {
            let (properties, in_hand) = (BasicProperties::default(), queue.hold(1, Duration::ZERO));
            Receipt { tag, properties, redelivered: false, in_hand, span: None }
        };
        let event = |n| {
            let (stream, received_at_ms) = (Stream::Any, 1);
            let envelope = Envelope { tenant: "t", stream, received_at_ms, signature: "unsigned" };
            Event::decode(format!(r#"{{"event_id":"{n}"}}"#).as_bytes(), envelope).unwrap()
        };
        Part::new((1..=events).map(event).collect(), (1..=events as u64).map(receipt).collect())
    }

    fn keys(parts: &VecDeque<Part>) -> Vec<Vec<String>> {
        parts.iter().map(|part| part.events.iter().map(|event| event.key.clone()).collect()).collect()
    }

    fn refused() -> Failure {
        Failure::Refused { collection: String::new(), code: 121, words: String::new() }
    }

    #[test]
    fn a_part_is_halved_until_each_event_stands_alone() {
        let mut left = Left::of(part(3), Class::Data, refused());
        assert_eq!(keys(&left.parts), [vec!["1"], vec!["2", "3"]]);
        let pair = left.parts.pop_back().unwrap();
        assert_eq!(pair.receipts.iter().map(|receipt| receipt.tag).collect::<Vec<_>>(), [2, 3]);
        left.sort(pair, Class::Data, refused());
        assert_eq!(keys(&left.parts), [["1"], ["2"], ["3"]]);
        let alone = left.parts.pop_front().unwrap();
        left.sort(alone, Class::Data, refused());
        assert_eq!(left.counts(), (2, 1));
        assert_eq!(left.refused[0].1, Reason::RefusedByMongodb);
    }

    #[tokio::test(start_paused = true)]
    async fn what_stands_alone_is_stuck_after_two_minutes() {
        let conflict = || Failure::Refused { collection: String::new(), code: 112, words: String::new() };
        let mut left = Left::of(part(1), Class::Conflict, conflict());
        assert_eq!(left.counts(), (1, 0));
        tokio::time::advance(STUCK_TIMEOUT).await;
        let alone = left.parts.pop_front().unwrap();
        left.sort(alone, Class::Conflict, conflict());
        assert_eq!(left.refused[0].1, Reason::Stuck);
        let defect = Left::of(part(1), Class::Data, Failure::Panicked);
        assert_eq!(defect.refused[0].1, Reason::Defect);
    }
}
