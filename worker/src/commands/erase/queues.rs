//! Dead letters, quarantined webhooks and unroutable messages of a person.

use std::time::Duration;

use lapin::message::BasicGetMessage;
use mongodb::bson::DateTime;
use shared::topology;
use tokio::time::sleep;

use super::who::Person;
use super::{Erased, Erasure};
use crate::commands::CommandError;
use crate::commands::set_aside::message;
use crate::commands::set_aside::queue::{Queue, QueueError};
use crate::consume::delivery::envelope;
use crate::decode::Event;
use crate::person;

/// While somebody else looks into a queue, some of its messages are out of it: then it is read again after a
/// pause, this many times.
const LOOKS: u32 = 3;
const PAUSE: Duration = Duration::from_secs(1);

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
            for _ in 0..LOOKS {
                let Some(mut queue) = Queue::open(self.broker, &name).await? else { break };
                let removed = erased.removed.entry(name.clone()).or_default();
                let looked = self.messages(&mut queue, person, at, removed).await;
                let length = queue.length;
                queue.close().await?;
                if self.dry_run || looked? == length {
                    break;
                }
                sleep(PAUSE).await;
            }
        }
        Ok(())
    }

    /// Looks at the messages of a queue, and says how many there were.
    async fn messages(
        &self,
        queue: &mut Queue,
        person: &Person,
        at: DateTime,
        removed: &mut u64,
    ) -> Result<u32, QueueError> {
        let mut looked = 0;
        while let Some(message) = queue.next().await? {
            looked += 1;
            if self.is_meant(&message, person, at) {
                if !self.dry_run {
                    queue.remove(&message).await?;
                }
                *removed += 1;
            }
        }
        Ok(looked)
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
