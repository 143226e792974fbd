//! Dead letters, quarantined webhooks and unroutable messages of a person, and what is in queues that a
//! migration has left behind. What is in work queues the tombstones keep from being stored.

use lapin::message::BasicGetMessage;
use mongodb::bson::DateTime;
use shared::topology;

use super::who::Person;
use super::{Erased, Erasure};
use crate::commands::CommandError;
use crate::commands::queues;
use crate::commands::set_aside::message;
use crate::commands::set_aside::queue::{self, Queue, QueueError};
use crate::consume::delivery::envelope;
use crate::decode::Event;
use crate::person;

impl Erasure<'_> {
    /// Removes messages that were received before this moment.
    pub(super) async fn messages_in_queues(
        &self,
        person: &Person,
        at: DateTime,
        erased: &mut Erased,
    ) -> Result<(), CommandError> {
        let tenant = &self.tenant;
        for name in [
            topology::dead_queue(tenant),
            topology::quarantine_queue(tenant),
            topology::UNROUTABLE.to_owned(),
        ] {
            self.messages_in(name, person, at, erased).await?;
        }
        let mut left_behind = Vec::new();
        for name in queues::transitional(tenant) {
            if queue::length(self.broker, &name).await? > 0 {
                left_behind.push(name);
            }
        }
        if left_behind.is_empty() {
            return Ok(());
        }
        // A migration deletes a queue from which all messages are taken.
        let _lock = queues::lock(self.broker).await?;
        for name in left_behind {
            self.messages_in(name, person, at, erased).await?;
        }
        Ok(())
    }

    async fn messages_in(
        &self,
        name: String,
        person: &Person,
        at: DateTime,
        erased: &mut Erased,
    ) -> Result<(), CommandError> {
        let Some(mut queue) = Queue::open(self.broker, &name).await? else { return Ok(()) };
        let looked = self.messages(&mut queue, person, at, erased.removed.entry(name).or_default()).await;
        queue.close().await?;
        Ok(looked?)
    }

    /// Removes messages of a queue.
    async fn messages(
        &self,
        queue: &mut Queue,
        person: &Person,
        at: DateTime,
        removed: &mut u64,
    ) -> Result<(), QueueError> {
        while let Some(message) = queue.next().await? {
            if self.is_meant(&message, person, at) {
                if !self.dry_run {
                    queue.remove(&message).await?;
                }
                *removed += 1;
            }
        }
        Ok(())
    }

    fn is_meant(&self, message: &BasicGetMessage, person: &Person, at: DateTime) -> bool {
        let headers = message::headers(&message.properties);
        let is_of_tenant = headers.get("tenant").is_none_or(|tenant| *tenant == *self.tenant);
        let envelope = envelope(&self.tenant, &message.properties);
        let (received_at, body) = (envelope.received_at_ms, &message.data);
        is_of_tenant
            && match Event::decode(body, envelope) {
                Ok(event) => {
                    person::came_at(&event) < at.timestamp_millis()
                        && !person::names(&event).is_disjoint(&person.names)
                }
                // Only the beginning of it may have been kept, or it never was an event.
                Err(_) => received_at < at.timestamp_millis() && person::is_named_in(&person.names, body),
            }
    }
}
