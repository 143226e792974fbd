//! `worker queues migrate`: queues that an older version declared get the arguments of this one.
//!
//! RabbitMQ never changes a queue's arguments. So new messages go to another queue instead, the copy, and the
//! messages of the queue are moved there. Then the queue is deleted and declared with the new arguments, and
//! all messages are moved back. The queues that exist show which steps are left, and each step may be done
//! twice: so a killed migration continues when it is started again. A message that was moved, but not removed
//! before the kill, is there twice; its event key makes that harmless.

use std::io::Write;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::json;
use shared::address::Address;
use shared::env::Env;
use shared::partition::{self, MAX_PARTITIONS};
use shared::publisher::PublishError;
use shared::table::{self, Column, Table};
use shared::tenant;
use shared::tenant_queue::TenantQueue;
use shared::topology::WEBHOOKS_EXCHANGE;
use tokio::time::sleep;

use super::set_aside::queue::{self, QueueError};
use super::{CommandError, say};

mod broker;

pub(super) use broker::lock;
use broker::{Broker, Destination, Queue};

/// How long RabbitMQ may still use the state before: a node of a cluster may use an old binding, and messages
/// that a killed migration had in hand may still return.
const SETTLING_TIME: Duration = Duration::from_secs(2);

/// What can be done with queues.
#[derive(Debug, Subcommand)]
pub enum QueuesCommand {
    /// Gives queues that an older version declared the arguments of this one
    ///
    /// Moves their messages, each with RabbitMQ's confirm, in their order. Stop the workers and the console
    /// before; ingest may run. If it fails or is killed, run it again.
    #[command(after_help = "Example: worker queues migrate --dry-run")]
    Migrate(Arguments),
}

/// Which queues, and how the answer is written.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Only this tenant; several may be given [default: all]
    #[arg(long, value_name = "TENANT", value_delimiter = ',')]
    tenant: Vec<String>,
    /// Only say which queues would be migrated
    #[arg(long)]
    dry_run: bool,
    /// Write JSON, an object per queue
    #[arg(long)]
    json: bool,
}

/// Why queues can't be migrated.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    /// RabbitMQ, or the way there, failed.
    #[error("not all could be done: please run it again")]
    Queue(#[from] QueueError),
    /// RabbitMQ didn't take a message.
    #[error("a message could not be moved, and stays where it is: please run it again")]
    Publish(#[from] PublishError),
    /// Somebody consumes it.
    #[error("{0} is being consumed: stop the workers of this tenant first")]
    Consumed(String),
    /// Another migration is running.
    #[error("another migration is running")]
    Running,
}

/// A queue with something left to do.
#[derive(Debug, Serialize)]
struct Task {
    queue: String,
    /// Messages that are in it, or in its copy.
    messages: u32,
    #[serde(skip)]
    tenant: String,
    #[serde(skip)]
    work: Work,
}

/// What is left to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    /// All of it.
    Replace(TenantQueue),
    /// The queue is as it should be, but messages are still in its copy.
    Return(TenantQueue),
    /// This version has no such queue: its messages go to the queues that replace it.
    Retire,
}

impl Work {
    /// What a queue needs.
    fn of(queue: TenantQueue, found: &Found) -> Option<Self> {
        match found {
            Found { has_other_arguments: true, .. } => Some(Self::Replace(queue)),
            Found { copy: Some(_), .. } => Some(Self::Return(queue)),
            _ => None,
        }
    }
}

/// What there is of a queue.
struct Found {
    queue: Option<Queue>,
    copy: Option<Queue>,
    has_other_arguments: bool,
}

/// Version 0.1 had one work queue per tenant.
fn retired_queue(tenant: &str) -> String {
    format!("webhooks.{tenant}")
}

/// Queues of a tenant that there are only until a migration is done: they have other queues' messages.
pub(super) fn transitional(tenant: &str) -> impl Iterator<Item = String> {
    let copies = TenantQueue::all(MAX_PARTITIONS).map(|queue| queue.copy_name(tenant));
    copies.chain([retired_queue(tenant)])
}

/// Runs the command.
pub async fn run(command: QueuesCommand, mut env: Env, out: &mut impl Write) -> Result<(), CommandError> {
    let QueuesCommand::Migrate(arguments) = command;
    let address = Address::read(&mut env);
    let served = tenant::served(&mut env);
    let partitions = partition::partitions(&mut env);
    let is_named = !arguments.tenant.is_empty();
    let tenants = if is_named { arguments.tenant } else { served };
    let publisher = queue::connect(env.finish(address)?).await?;
    let migration = Migration { broker: Broker::new(publisher), partitions };
    // Before it looks: another migration would change what there is.
    let lock = if arguments.dry_run { None } else { Some(migration.broker.lock().await?) };
    if is_named {
        migration.check_names(&tenants).await?;
    }
    let tasks = migration.find(&tenants).await?;
    if !arguments.dry_run {
        migration.migrate(&tasks).await?;
    }
    drop(lock);
    migration.broker.close().await;
    let mut table = Table::new(COLUMNS);
    let done = if arguments.dry_run { "would be migrated" } else { "migrated" };
    for task in &tasks {
        let mut row = || table.row(&[task.queue.as_str(), &task.messages.to_string(), done]);
        say(out, if arguments.json { json!(task).to_string() } else { row() })?;
    }
    if tasks.is_empty() && !arguments.json {
        say(out, format!("{}: all queues have the arguments of this version", table::NONE))?;
    }
    Ok(())
}

const COLUMNS: [Column; 3] =
    [Column::text("QUEUE", 28), Column::number("MESSAGES", 8), Column::text("STATE", 0)];

struct Migration {
    broker: Broker,
    partitions: u16,
}

impl Migration {
    /// Each of these tenants has a queue at least: else its name is wrong.
    async fn check_names(&self, tenants: &[String]) -> Result<(), CommandError> {
        for tenant in tenants {
            let queues = TenantQueue::all(MAX_PARTITIONS).map(|queue| queue.name(tenant));
            let mut has_queue = false;
            for name in queues.chain(transitional(tenant)) {
                has_queue =
                    has_queue || self.broker.find(&name).await.map_err(MigrationError::from)?.is_some();
            }
            if !has_queue {
                return Err(CommandError::NoQueue(TenantQueue::Dead.name(tenant)));
            }
        }
        Ok(())
    }

    /// What is left to do for these tenants.
    async fn find(&self, tenants: &[String]) -> Result<Vec<Task>, MigrationError> {
        let mut tasks = Vec::new();
        for tenant in tenants {
            let (of_tenant, consumed) = self.find_for(tenant).await?;
            let is_replaced = of_tenant.iter().any(|task| matches!(task.work, Work::Replace(_)));
            if let (true, Some(name)) = (is_replaced, consumed) {
                return Err(MigrationError::Consumed(name));
            }
            tasks.extend(of_tenant);
        }
        Ok(tasks)
    }

    /// What is left to do for a tenant, and one of its queues that is being consumed.
    async fn find_for(&self, tenant: &str) -> Result<(Vec<Task>, Option<String>), MigrationError> {
        let (mut tasks, mut consumed) = (Vec::new(), None);
        // Also those that an earlier `WEBHOOK_WORKERS` has left behind: workers consume them.
        for queue in TenantQueue::all(MAX_PARTITIONS) {
            let name = queue.name(tenant);
            let found = self.look_at(tenant, queue).await?;
            if found.queue.as_ref().is_some_and(|queue| queue.consumers > 0) {
                consumed = Some(name.clone());
            }
            if let Some(work) = Work::of(queue, &found) {
                let messages = [found.queue, found.copy].iter().flatten().map(|queue| queue.messages).sum();
                tasks.push(Task { queue: name, messages, tenant: tenant.to_owned(), work });
            }
        }
        tasks.extend(self.find_retired(tenant).await?);
        Ok((tasks, consumed))
    }

    async fn look_at(&self, tenant: &str, queue: TenantQueue) -> Result<Found, MigrationError> {
        let there = self.broker.find(&queue.name(tenant)).await?;
        let copy = self.broker.find(&queue.copy_name(tenant)).await?;
        let has_other_arguments = there.is_some() && self.broker.has_other_arguments(queue, tenant).await?;
        Ok(Found { queue: there, copy, has_other_arguments })
    }

    async fn find_retired(&self, tenant: &str) -> Result<Option<Task>, MigrationError> {
        let name = retired_queue(tenant);
        match self.broker.find(&name).await? {
            Some(queue) if queue.consumers > 0 => Err(MigrationError::Consumed(name)),
            Some(queue) => {
                let (tenant, messages) = (tenant.to_owned(), queue.messages);
                Ok(Some(Task { queue: name, messages, tenant, work: Work::Retire }))
            }
            None => Ok(None),
        }
    }

    async fn migrate(&self, tasks: &[Task]) -> Result<(), MigrationError> {
        if tasks.is_empty() {
            return Ok(());
        }
        let mut turns = Vec::new();
        for Task { queue, work, .. } in tasks {
            if matches!(work, Work::Replace(TenantQueue::Dead | TenantQueue::Quarantine)) {
                turns.push(self.broker.turn(queue).await?);
            }
        }
        for task in tasks {
            self.divert(task).await?;
        }
        sleep(SETTLING_TIME).await;
        for task in tasks {
            self.replace(task).await?;
        }
        for task in tasks {
            self.lead_back(task).await?;
        }
        sleep(SETTLING_TIME).await;
        for task in tasks {
            self.bring_back(task).await?;
        }
        Ok(())
    }

    /// Leads new messages to the copy of a queue. Until the queue's binding is gone they go to both, which is
    /// harmless.
    async fn divert(&self, Task { queue: name, tenant, work, .. }: &Task) -> Result<(), MigrationError> {
        let Work::Replace(queue) = work else { return Ok(()) };
        self.broker.declare_copy(*queue, tenant).await?;
        self.broker.unbind(name, queue.exchange(), &queue.binding_key(tenant)).await
    }

    /// Declares the queue anew, once the old one is empty.
    async fn replace(&self, Task { queue: name, tenant, work, .. }: &Task) -> Result<(), MigrationError> {
        if let Work::Replace(queue) = work {
            self.broker.move_all(name, &Destination::Copy(*queue), tenant).await?;
            self.broker.delete(name).await?;
        }
        match work {
            Work::Replace(queue) | Work::Return(queue) => self.broker.declare(*queue, tenant).await,
            Work::Retire => self.broker.declare_all(tenant, self.partitions).await,
        }
    }

    /// Leads new messages to their own queues.
    async fn lead_back(&self, Task { queue: name, tenant, work, .. }: &Task) -> Result<(), MigrationError> {
        match work {
            Work::Replace(queue) | Work::Return(queue) => {
                let (copy, key) = (queue.copy_name(tenant), queue.binding_key(tenant));
                self.broker.unbind(&copy, queue.exchange(), &key).await
            }
            Work::Retire => self.broker.unbind(name, WEBHOOKS_EXCHANGE, &format!("{tenant}.#")).await,
        }
    }

    /// Brings the other messages there, too.
    async fn bring_back(&self, Task { queue: name, tenant, work, .. }: &Task) -> Result<(), MigrationError> {
        let (from, to) = match work {
            Work::Replace(queue) | Work::Return(queue) => {
                (queue.copy_name(tenant), Destination::Home(*queue))
            }
            Work::Retire => (name.clone(), Destination::WorkQueues(self.partitions)),
        };
        self.broker.move_all(&from, &to, tenant).await?;
        self.broker.delete(&from).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_to_do_follows_from_what_there_is() {
        let queue = |messages| Some(Queue { messages, consumers: 0 });
        let work = |found: &Found| Work::of(TenantQueue::Dead, found);
        let found = |there, copy, has_other_arguments| Found { queue: there, copy, has_other_arguments };
        assert_eq!(work(&found(queue(1), None, false)), None);
        assert_eq!(work(&found(None, None, false)), None);
        let replace = Some(Work::Replace(TenantQueue::Dead));
        assert_eq!(work(&found(queue(1), None, true)), replace);
        assert_eq!(work(&found(queue(1), queue(1), true)), replace, "killed while it was emptied");
        let back = Some(Work::Return(TenantQueue::Dead));
        assert_eq!(work(&found(None, queue(1), false)), back, "killed when it was deleted");
        assert_eq!(work(&found(queue(0), queue(0), false)), back, "killed before the copy was deleted");
    }
}
