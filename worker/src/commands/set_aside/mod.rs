//! `worker dead …` and `worker quarantine …`: list, show, replay and drop set-aside messages.

use std::io::Write;

use clap::{Args, Subcommand};
use shared::address::Address;
use shared::env::Env;
use shared::publisher::Publisher;
use shared::table::{self, Table};
use shared::verify::Keys;
use shared::{partition, tenant, topology};

use super::{CommandError, say};

pub mod change;
pub mod chosen;
pub mod look;
pub mod message;
pub mod queue;

use chosen::Chosen;
use message::Filter;
use queue::Queue;

/// Which queue of a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Events that could not be stored.
    Dead,
    /// Webhooks that could not be used.
    Quarantine,
}

impl Kind {
    /// The queue's name.
    #[must_use]
    pub fn queue(self, tenant: &str) -> String {
        match self {
            Self::Dead => topology::dead_queue(tenant),
            Self::Quarantine => topology::quarantine_queue(tenant),
        }
    }
}

/// What can be done with dead letters.
#[derive(Debug, Subcommand)]
pub enum DeadCommand {
    /// Lists the messages, a line each, the oldest first
    #[command(after_help = "Example: worker dead list --tenant vip --older-than 1h")]
    List(Selection),
    /// Shows the messages with headers and body
    #[command(after_help = "Example: worker dead show --limit 1")]
    Show(Selection),
    /// Publishes messages to the work queues again
    ///
    /// Each message is removed after RabbitMQ has confirmed the new one. An event keeps its key, so it counts
    /// once, however often it is replayed.
    #[command(after_help = "Example: worker dead replay --reason refused_by_mongodb --dry-run")]
    Replay(Change),
    /// Removes messages for good
    #[command(after_help = "Example: worker dead drop --reason no_event --dry-run")]
    Drop(Removal),
}

/// What can be done with quarantined webhooks.
#[derive(Debug, Subcommand)]
pub enum QuarantineCommand {
    /// Lists the messages, a line each, the oldest first
    #[command(after_help = "Example: worker quarantine list --reason invalid_signature")]
    List(Selection),
    /// Shows the messages with headers and body
    #[command(after_help = "Example: worker quarantine show --limit 1")]
    Show(Selection),
    /// Publishes quarantined webhooks to the work queues, if their signature is good now
    ///
    /// Each webhook is removed after RabbitMQ has confirmed the event. A webhook stays if it was not kept
    /// whole, isn't a JSON object, or has a signature that none of the tenant's signing keys makes.
    #[command(after_help = "Example: worker quarantine replay --tenant vip --dry-run")]
    Replay {
        /// Which.
        #[command(flatten)]
        change: Change,
        /// Check signatures with the present signing keys (the default)
        #[arg(long)]
        reverify: bool,
        /// Also replay webhooks whose signature isn't good: anybody may have sent them, so look at them first
        #[arg(long, conflicts_with = "reverify")]
        unverified: bool,
    },
    /// Removes messages for good
    #[command(after_help = "Example: worker quarantine drop --older-than 30d --dry-run")]
    Drop(Removal),
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

/// Which messages to remove.
#[derive(Debug, Args)]
pub struct Removal {
    #[command(flatten)]
    change: Change,
    /// All messages, where no filter says which
    #[arg(long, required_unless_present_any = ["key", "reason", "event_type", "message", "contact", "since", "until", "older_than", "newer_than", "limit", "dry_run"])]
    all: bool,
}

/// A command, taken apart.
#[derive(Debug)]
pub struct Task {
    kind: Kind,
    action: Action,
    change: Change,
}

/// What to do with messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A line each.
    List,
    /// With headers and body.
    Show,
    /// Publish them to the work queues.
    Replay {
        /// Only those whose signature fits a signing key.
        reverify: bool,
    },
    /// Delete them.
    Drop,
}

impl From<DeadCommand> for Task {
    fn from(command: DeadCommand) -> Self {
        let (action, change) = match command {
            DeadCommand::List(selection) => (Action::List, selection.into()),
            DeadCommand::Show(selection) => (Action::Show, selection.into()),
            DeadCommand::Replay(change) => (Action::Replay { reverify: false }, change),
            DeadCommand::Drop(Removal { change, all: _ }) => (Action::Drop, change),
        };
        Self { kind: Kind::Dead, action, change }
    }
}

impl From<QuarantineCommand> for Task {
    fn from(command: QuarantineCommand) -> Self {
        let (action, change) = match command {
            QuarantineCommand::List(selection) => (Action::List, selection.into()),
            QuarantineCommand::Show(selection) => (Action::Show, selection.into()),
            QuarantineCommand::Replay { change, unverified, reverify: _ } => {
                (Action::Replay { reverify: !unverified }, change)
            }
            QuarantineCommand::Drop(Removal { change, all: _ }) => (Action::Drop, change),
        };
        Self { kind: Kind::Quarantine, action, change }
    }
}

impl From<Selection> for Change {
    /// Reading changes nothing.
    fn from(selection: Selection) -> Self {
        Self { selection, dry_run: true }
    }
}

/// Runs a command.
pub async fn run(task: Task, mut env: Env, out: &mut impl Write) -> Result<(), CommandError> {
    let Task { kind, action, change } = task;
    let selection = &change.selection;
    // No MongoDB is needed, so that tenants are known by their names alone.
    let address = Address::read(&mut env);
    let known = tenant::served(&mut env);
    let partitions = partition::partitions(&mut env);
    let is_named = !selection.tenant.is_empty();
    let tenants = if is_named { selection.tenant.clone() } else { known };
    let keys = keys(&mut env, &tenants, action, is_named);
    let broker = queue::connect(env.finish(address)?).await?;
    let mut table = Table::new(message::COLUMNS);
    let mut lines = 0;
    for (tenant, keys) in tenants.into_iter().zip(keys) {
        let name = kind.queue(&tenant);
        let Some(mut queue) = Queue::open(&broker, &name).await? else {
            if is_named {
                return Err(CommandError::NoQueue(name));
            }
            continue;
        };
        let work = Work { kind, action, tenant: &tenant, keys, broker: &broker, partitions };
        let done = match action {
            Action::List | Action::Show => {
                work.look(&mut queue, selection, &mut table, &mut lines, out).await
            }
            Action::Replay { .. } | Action::Drop => {
                lines += 1;
                work.change(&mut queue, &change, out).await
            }
        };
        let closed = queue.close_in_order().await;
        done?;
        closed?;
    }
    broker.link().close().await;
    if lines == 0 && !selection.json {
        say(out, table::NONE)?;
    }
    Ok(())
}

/// The signing keys, which only a replay with signatures needs; without a key, no signature is good.
fn keys(env: &mut Env, tenants: &[String], action: Action, is_named: bool) -> Vec<Keys> {
    if !matches!(action, Action::Replay { reverify: true }) {
        return vec![Keys::default(); tenants.len()];
    }
    let keys: Vec<Keys> = tenants.iter().map(|tenant| Keys::read(env, tenant)).collect();
    // Of all tenants, some may have none.
    let is_fine = if is_named { !keys.iter().any(Keys::is_empty) } else { !keys.iter().all(Keys::is_empty) };
    let missing = tenants.iter().zip(&keys).filter(|(_, keys)| keys.is_empty() && !is_fine);
    for (tenant, _) in missing {
        let name = tenant::spelled(env, tenant, "SIGNING_KEYS");
        if !env.is_wrong(&name) {
            env.problem(format!("{name}: is not set, but --reverify, the default, needs the keys of tenant {tenant}; --unverified needs none"));
        }
    }
    keys
}

/// Work on a tenant's queue.
pub struct Work<'a> {
    /// Which queue.
    pub kind: Kind,
    /// What to do.
    pub action: Action,
    /// The tenant.
    pub tenant: &'a str,
    /// Its signing keys, if they are needed.
    pub keys: Keys,
    /// Where its queues are.
    pub broker: &'a Publisher,
    /// The tenant's partitions.
    pub partitions: u16,
}
