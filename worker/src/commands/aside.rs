//! `worker dead …` and `worker quarantine …`: looking at what was set aside, putting it back, throwing it away.

use std::collections::HashSet;
use std::io::{self, IsTerminal, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use futures_util::future::join_all;
use indicatif::ProgressBar;
use lapin::message::BasicGetMessage;
use serde::Serialize;
use serde_json::json;
use shared::env::Env;
use shared::publisher::{Message, Publisher};
use shared::verify::Keys;
use shared::{amqp, partition, tenant, topology};

use super::letter::{self, Filter, Letter, Replay, Unfit};
use super::queue::{self, Queue, QueueError, WINDOW};
use super::{CommandError, now_ms, printable, progress, say};

/// Longest wait for the confirm of a replayed message.
const CONFIRM_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// Bodies published and not confirmed yet, in bytes.
const WINDOW_BYTES: usize = 1 << 20;

/// Which queue of a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aside {
    /// Events that could not be stored.
    Dead,
    /// Webhooks that could not be used.
    Quarantine,
}

impl Aside {
    fn queue(self, tenant: &str) -> String {
        match self {
            Self::Dead => topology::dead_queue(tenant),
            Self::Quarantine => topology::quarantine_queue(tenant),
        }
    }
}

/// What can be done with dead letters.
#[derive(Debug, Subcommand)]
pub enum DeadCommand {
    /// As with the quarantine.
    #[command(flatten)]
    Any(AsideCommand),
    /// Puts messages back on their way to the workers
    ///
    /// Each is removed once RabbitMQ has confirmed the new one. An event keeps its key, so it counts once however often it
    /// is replayed.
    Replay(Change),
}

/// What can be done with quarantined webhooks.
#[derive(Debug, Subcommand)]
pub enum QuarantineCommand {
    /// As with dead letters.
    #[command(flatten)]
    Any(AsideCommand),
    /// Puts webhooks on their way to the workers, if they are events after all
    ///
    /// Each is removed once RabbitMQ has confirmed the event. What was not kept whole, or is no JSON object, stays.
    Replay {
        /// Which.
        #[command(flatten)]
        change: Change,
        /// Only what the tenant's signing keys, as they are now, find well signed
        #[arg(long)]
        reverify: bool,
    },
}

/// What can be done with all of them.
#[derive(Debug, Subcommand)]
pub enum AsideCommand {
    /// Lists the messages, a line each, the oldest first
    List(Selection),
    /// Shows the messages with headers and body
    Show(Selection),
    /// Removes messages for good
    Drop(Change),
}

/// Which messages, and how the answer is written.
#[derive(Debug, Args)]
pub struct Selection {
    /// Only this tenant; several may be given [default: all]
    #[arg(long, value_name = "TENANT", value_delimiter = ',')]
    tenant: Vec<String>,
    #[command(flatten)]
    filter: Filter,
    /// Write JSON, an object a line
    #[arg(long)]
    json: bool,
}

/// Which messages to change.
#[derive(Debug, Args)]
pub struct Change {
    #[command(flatten)]
    selection: Selection,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
}

/// What came of a change, for a tenant.
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

/// A command, taken apart.
#[derive(Debug)]
pub struct Task {
    aside: Aside,
    action: Action,
    change: Change,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    List,
    Show,
    Replay { reverify: bool },
    Drop,
}

impl From<DeadCommand> for Task {
    fn from(command: DeadCommand) -> Self {
        match command {
            DeadCommand::Any(command) => Self::of(Aside::Dead, command),
            DeadCommand::Replay(change) => {
                Self { aside: Aside::Dead, action: Action::Replay { reverify: false }, change }
            }
        }
    }
}

impl From<QuarantineCommand> for Task {
    fn from(command: QuarantineCommand) -> Self {
        match command {
            QuarantineCommand::Any(command) => Self::of(Aside::Quarantine, command),
            QuarantineCommand::Replay { change, reverify } => {
                Self { aside: Aside::Quarantine, action: Action::Replay { reverify }, change }
            }
        }
    }
}

impl Task {
    fn of(aside: Aside, command: AsideCommand) -> Self {
        let looking = |selection| Change { selection, dry_run: true };
        let (action, change) = match command {
            AsideCommand::List(selection) => (Action::List, looking(selection)),
            AsideCommand::Show(selection) => (Action::Show, looking(selection)),
            AsideCommand::Drop(change) => (Action::Drop, change),
        };
        Self { aside, action, change }
    }
}

/// Runs a command.
pub async fn run(task: Task, mut env: Env, out: &mut impl Write) -> Result<(), CommandError> {
    let Task { aside, action, change } = task;
    let selection = &change.selection;
    // No MongoDB is needed, so that tenants are known by their names alone.
    let url = amqp::url(&mut env);
    let known = tenant::served(&mut env);
    let partitions = partition::partitions(&mut env);
    let is_named = !selection.tenant.is_empty();
    let tenants = if is_named { selection.tenant.clone() } else { known };
    let keys: Vec<Keys> = tenants.iter().map(|tenant| Keys::read(&mut env, tenant)).collect();
    let url = env.finish(url)?;
    let broker = queue::connect(url).await?;
    for (tenant, keys) in tenants.into_iter().zip(keys) {
        let name = aside.queue(&tenant);
        let Some(mut queue) = Queue::open(&broker, &name).await? else {
            if is_named {
                return Err(CommandError::NoQueue(name));
            }
            continue;
        };
        let work = Work { aside, action, tenant: &tenant, keys, broker: &broker, partitions };
        let done = match action {
            Action::List | Action::Show => work.look(&mut queue, selection, out).await,
            Action::Replay { .. } | Action::Drop => work.change(&mut queue, &change, out).await,
        };
        let closed = queue.close().await;
        done?;
        closed?;
    }
    broker.link().close().await;
    Ok(())
}

/// Work on a tenant's queue.
struct Work<'a> {
    aside: Aside,
    action: Action,
    tenant: &'a str,
    keys: Keys,
    broker: &'a Publisher,
    partitions: u16,
}

impl Work<'_> {
    async fn look(
        &self,
        queue: &mut Queue,
        selection: &Selection,
        out: &mut impl Write,
    ) -> Result<(), CommandError> {
        let mut chosen = Chosen::new(self.tenant, &selection.filter, queue, !io::stdout().is_terminal());
        let mut met = Met::default();
        while let Some((letter, message)) = chosen.next(queue).await? {
            if self.aside == Aside::Dead && !met.is_first(&letter) {
                continue;
            }
            match (self.action == Action::Show, selection.json) {
                (false, false) => say(out, letter.line())?,
                (false, true) => say(out, json!(letter))?,
                (true, false) => say(out, shown(&letter, &message))?,
                (true, true) => say(out, shown_as_json(&letter, &message))?,
            }
        }
        Ok(())
    }

    async fn change(
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
    fn replacement(&self, message: &BasicGetMessage) -> Result<Option<Replay>, Unfit> {
        let (tenant, properties) = (self.tenant, &message.properties);
        let replay = match (self.aside, self.action) {
            (Aside::Dead, Action::Replay { .. }) => letter::of_dead_letter(properties),
            (Aside::Quarantine, Action::Replay { reverify }) => {
                letter::of_quarantined(tenant, properties, &message.data, reverify.then_some(&self.keys))
            }
            _ => return Ok(None),
        };
        replay.map(Some)
    }

    /// Publishes what there is to be published, and removes each message whose replacement was confirmed.
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

    async fn publish(&self, replay: &Replay, message: &BasicGetMessage) -> Result<(), CommandError> {
        let Replay { event_type, properties } = replay;
        let queue = partition::queue_of_body(self.tenant, &message.data, self.partitions);
        let (key, body) = (queue.routing_key(self.tenant, event_type), message.data.clone());
        let message = Message::new(topology::WEBHOOKS_EXCHANGE, key, properties.clone(), body);
        let message = message.map_err(QueueError::Name)?;
        Ok(self.broker.publish(message, CONFIRM_TIMEOUT).await?)
    }
}

/// The messages that a filter takes.
struct Chosen<'a> {
    tenant: &'a str,
    filter: &'a Filter,
    now_ms: i64,
    left: u64,
    bar: ProgressBar,
}

/// Event keys that were met. A letter that a worker has published without hearing the confirm has a twin, which RabbitMQ
/// has made of the rejected delivery: for whoever looks at them they are one.
#[derive(Debug, Default)]
struct Met(HashSet<String>);

impl Met {
    fn is_first(&mut self, letter: &Letter) -> bool {
        letter.key.as_ref().is_none_or(|key| self.0.insert(key.clone()))
    }
}

impl<'a> Chosen<'a> {
    fn new(tenant: &'a str, filter: &'a Filter, queue: &Queue, with_bar: bool) -> Self {
        // Lines of the answer and a bar on the same terminal would get into each other's way.
        let bar = if with_bar { progress(tenant, queue.length.into()) } else { ProgressBar::hidden() };
        Self { tenant, filter, now_ms: now_ms(), left: filter.limit.unwrap_or(u64::MAX), bar }
    }

    async fn next(&mut self, queue: &mut Queue) -> Result<Option<(Letter, BasicGetMessage)>, QueueError> {
        while self.left > 0
            && let Some(message) = queue.next().await?
        {
            self.bar.inc(1);
            let letter = Letter::of(self.tenant, &message.properties, &message.data);
            if self.filter.takes(&letter, self.now_ms) {
                self.left -= 1;
                return Ok(Some((letter, message)));
            }
        }
        self.bar.finish_and_clear();
        Ok(None)
    }
}

fn shown(letter: &Letter, message: &BasicGetMessage) -> String {
    let headers = letter::headers(&message.properties).into_iter();
    let headers: String =
        headers.map(|(name, value)| printable(&format!("  {name}: {value}")) + "\n").collect();
    let body: Vec<_> = String::from_utf8_lossy(&message.data).lines().map(printable).collect();
    format!("{}\n{headers}\n{}\n", letter.line(), body.join("\n"))
}

fn shown_as_json(letter: &Letter, message: &BasicGetMessage) -> serde_json::Value {
    let mut shown = json!(letter);
    shown["headers"] = letter::headers(&message.properties).into();
    match std::str::from_utf8(&message.data) {
        Ok(body) => shown["body"] = body.into(),
        Err(_) => shown["body_base64"] = STANDARD.encode(&message.data).into(),
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_letters_of_one_event_are_one() {
        let letter = |key: Option<&str>| Letter { key: key.map(str::to_owned), ..Letter::default() };
        let mut met = Met::default();
        let mut is_first = |key| met.is_first(&letter(key));
        assert_eq!([is_first(Some("a")), is_first(Some("b")), is_first(Some("a"))], [true, true, false]);
        assert_eq!([is_first(None), is_first(None)], [true, true], "who knows");
    }
}
