//! `replay` and `drop`.

use std::io::Write;
use std::time::Duration;

use futures_util::future::join_all;
use lapin::message::BasicGetMessage;
use serde::Serialize;
use serde_json::json;
use shared::publisher::Message;
use shared::{partition, topology};

use super::message::{self, Replay, Unfit};
use super::queue::{self, Queue, QueueError, WINDOW};
use super::{Action, Change, Chosen, Kind, Work};
use crate::commands::{CommandError, printable, say};

/// Longest wait for the confirm of a replayed message.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(10);

/// Bodies published and not confirmed yet, in bytes.
const WINDOW_BYTES: usize = 1 << 20;

/// The result of a change, for a tenant.
#[derive(Debug, Default, Serialize)]
struct Changed {
    tenant: String,
    action: &'static str,
    dry_run: bool,
    /// Messages that were meant.
    selected: u64,
    /// Messages that were replayed or removed.
    done: u64,
    /// Messages that were meant, but are unfit.
    skipped: Vec<Skipped>,
    /// Messages that are still there.
    left: u64,
}

#[derive(Debug, Serialize)]
struct Skipped {
    key: Option<String>,
    why: String,
}

impl Work<'_> {
    pub(super) async fn change(
        &self,
        queue: &mut Queue,
        change: &Change,
        out: &mut impl Write,
    ) -> Result<(), CommandError> {
        let Change { selection, dry_run } = change;
        let action = if self.action == Action::Drop { "drop" } else { "replay" };
        let mut changed =
            Changed { tenant: self.tenant.to_owned(), action, dry_run: *dry_run, ..Changed::default() };
        let done = self.change_all(queue, change, &mut changed).await;
        changed.left = u64::from(queue.length) - if *dry_run { 0 } else { changed.done };
        let said = self.tell(&changed, queue.length, selection.json, out);
        done.and(said)
    }

    fn tell(&self, changed: &Changed, of: u32, json: bool, out: &mut impl Write) -> Result<(), CommandError> {
        if json {
            return say(out, json!(changed));
        }
        let would = if changed.dry_run { "would be " } else { "" };
        let past = if self.action == Action::Drop { "dropped" } else { "replayed" };
        say(out, format!("{}: {} of {of} {would}{past}", self.tenant, changed.done))?;
        for Skipped { key, why } in &changed.skipped {
            say(out, printable(&format!("  {} stays: {why}", key.as_deref().unwrap_or("-"))))?;
        }
        Ok(())
    }

    async fn change_all(
        &self,
        queue: &mut Queue,
        change: &Change,
        changed: &mut Changed,
    ) -> Result<(), CommandError> {
        if !change.dry_run && self.action != Action::Drop {
            queue::declare_work(self.broker, self.tenant, self.partitions).await?;
        }
        let mut chosen = Chosen::new(self.tenant, &change.selection.filter, queue, true);
        let mut window = Vec::new();
        loop {
            let next = chosen.next(queue).await?;
            let is_last = next.is_none();
            if let Some((letter, message)) = next {
                changed.selected += 1;
                match self.replacement(&message) {
                    Ok(replay) => window.push((message, replay)),
                    Err(unfit) => changed.skipped.push(Skipped { key: letter.key, why: unfit.to_string() }),
                }
            }
            let bytes: usize = window.iter().map(|(message, _)| message.data.len()).sum();
            if is_last || window.len() >= WINDOW as usize || bytes >= WINDOW_BYTES {
                let batch = std::mem::take(&mut window);
                if change.dry_run {
                    changed.done += batch.len() as u64;
                } else {
                    self.settle(queue, batch, &mut changed.done).await?;
                }
            }
            if is_last {
                return Ok(());
            }
        }
    }

    /// What is published in place of a message before it is removed; nothing if it is only to be removed.
    pub fn replacement(&self, message: &BasicGetMessage) -> Result<Option<Replay>, Unfit> {
        let (tenant, properties) = (self.tenant, &message.properties);
        let replay = match (self.kind, self.action) {
            (Kind::Dead, Action::Replay { .. }) => message::of_dead_letter(properties),
            (Kind::Quarantine, Action::Replay { reverify }) => {
                message::of_quarantined(tenant, properties, &message.data, reverify.then_some(&self.keys))
            }
            _ => return Ok(None),
        };
        replay.map(Some)
    }

    /// Publishes the replacements, and removes each message once its replacement is confirmed.
    async fn settle(
        &self,
        queue: &Queue,
        batch: Vec<(BasicGetMessage, Option<Replay>)>,
        done: &mut u64,
    ) -> Result<(), CommandError> {
        let settled = join_all(batch.iter().map(async |(message, replay)| {
            if let Some(replay) = replay {
                self.publish(replay, message).await?;
            }
            Ok::<_, CommandError>(queue.remove(message).await?)
        }))
        .await;
        *done += settled.iter().filter(|settled| settled.is_ok()).count() as u64;
        settled.into_iter().collect()
    }

    /// Puts a message's replacement on its way, and waits for the confirm.
    pub async fn publish(&self, replay: &Replay, message: &BasicGetMessage) -> Result<(), CommandError> {
        let Replay { event_type, properties } = replay;
        let event_key = properties.message_id().as_ref().map_or("", |key| key.as_str());
        let queue = partition::queue_of_body(event_key, &message.data, self.partitions);
        let (key, body) = (queue.routing_key(self.tenant, event_type), message.data.clone());
        let message = Message::new(topology::WEBHOOKS_EXCHANGE, key, properties.clone(), body);
        let message = message.map_err(QueueError::Name)?;
        Ok(self.broker.publish(message, CONFIRM_TIMEOUT).await?)
    }
}
