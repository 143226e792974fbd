//! `worker dead|quarantine|events|tail|send|…`: the operators' commands, whether workers run or not.

use std::io::{self, Write};
use std::time::Duration;

use clap::{CommandFactory, Subcommand};
use clap_complete::Shell;
use indicatif::{ProgressBar, ProgressStyle};
use shared::env::{Env, Problems};
use shared::publisher::PublishError;
use shared::setting;
use shared::text::printable;
pub(crate) use shared::text::rfc3339;

use crate::arguments::Arguments;
use crate::console;
use crate::settings::Settings;
use crate::store::failure::Failure;

pub mod address;
pub mod backfill;
pub mod compare;
pub mod doctor;
pub mod erase;
pub mod events;
pub mod http;
pub mod queues;
pub mod rebuild;
pub mod reconcile;
pub mod send;
pub mod set_aside;
pub mod tail;

use backfill::BackfillError;
use compare::ComparisonError;
use events::EventsCommand;
use queues::{MigrationError, QueuesCommand};
use send::SendError;
use set_aside::queue::QueueError;
use set_aside::{DeadCommand, QuarantineCommand};

/// What operators can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Lists, replays or drops dead letters: events that could not be stored.
    #[command(subcommand, after_help = "Example: worker dead list")]
    Dead(DeadCommand),
    /// Lists, replays or drops quarantined webhooks, which could not be used.
    #[command(subcommand, after_help = "Example: worker quarantine list")]
    Quarantine(QuarantineCommand),
    /// Migrates queues to the arguments of this version.
    #[command(subcommand, after_help = "Example: worker queues migrate --dry-run")]
    Queues(QueuesCommand),
    /// Searches the ledger of stored events.
    #[command(subcommand, after_help = "Example: worker events list --event-type message.received")]
    Events(EventsCommand),
    /// Shows events as they come, without delaying them.
    Tail(tail::Arguments),
    /// Checks servers, queues, policies, disk and clocks, and says what to do.
    Doctor(doctor::Arguments),
    /// Posts webhooks to ingest as respond.io would, to test the whole way to MongoDB.
    Send(send::Arguments),
    /// Computes a tenant's documents again from `webhook_events`, while workers run.
    Rebuild(rebuild::Arguments),
    /// Compares accepted events with those that are stored, queued, dead-lettered and quarantined.
    Reconcile(reconcile::Arguments),
    /// Compares the documents of two databases that got the same webhooks, such as the bridge's and a trial's.
    Compare(compare::Arguments),
    /// Reads messages and contacts that MongoDB lacks from respond.io's API and stores them, or lists them.
    Backfill(backfill::Arguments),
    /// Removes everything about a person, and makes workers drop older events about the person.
    ///
    /// Events that ingest receives later are stored.
    #[command(after_help = "Example: worker erase --tenant faster --phone '+1 555 010 0000' --dry-run")]
    Erase(erase::Arguments),
    /// Serves pages for operators: overview, search, dead letters, quarantine, erasures.
    #[command(after_help = "Example: worker console")]
    Console,
    /// Shows every setting, its value, and where the value comes from; hides secrets.
    #[command(after_help = "Example: worker settings")]
    Settings,
    /// Writes a script that lets a shell complete commands and options.
    #[command(after_help = "Example: worker completions bash > /etc/bash_completion.d/worker")]
    Completions {
        /// Which shell
        shell: Shell,
    },
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The settings are wrong.
    #[error("{0}")]
    Settings(#[from] Problems),
    /// RabbitMQ, or the way there, failed.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// RabbitMQ didn't take a message. It stays where it was.
    #[error("a message could not be replayed, and stays where it is")]
    Replay(#[from] PublishError),
    /// A tenant was named that isn't configured.
    #[error("tenant {0:?} is not configured")]
    UnknownTenant(String),
    /// A tenant was named that has no such queue.
    #[error("RabbitMQ has no queue {0:?}: is the tenant's name right?")]
    NoQueue(String),
    /// The given contact or phone leads to many persons.
    #[error("nothing was removed: {0} contacts and phones belong together, which is more than a person has")]
    ManyPersons(usize),
    /// The given contact or phone leads to several contacts, and nobody has said so.
    #[error(
        "nothing was removed: {0} contacts belong together. --dry-run lists them; if they are one person's, add --contacts {0}"
    )]
    ManyContacts(usize),
    /// MongoDB failed.
    #[error("MongoDB")]
    MongoDb(#[from] Failure),
    /// Something can't be read or written.
    #[error("{what}")]
    Io {
        /// What.
        what: String,
        /// Why not.
        source: io::Error,
    },
    /// It failed half way, and may be run again.
    #[error("not all could be done: please run it again")]
    Unfinished(#[source] Failure),
    /// Queues can't be migrated.
    #[error(transparent)]
    Migration(#[from] MigrationError),
    /// Two databases can't be compared.
    #[error(transparent)]
    Comparison(#[from] ComparisonError),
    /// A backfill fails.
    #[error(transparent)]
    Backfill(#[from] BackfillError),
    /// A backfill ended half way.
    #[error("stopped: run it again, and it continues from there")]
    Stopped(#[source] BackfillError),
    /// Nothing can be sent.
    #[error(transparent)]
    Send(#[from] SendError),
    /// It ran, and something failed or is missing; the answer says what.
    #[error("{0}")]
    Incomplete(String),
}

/// Runs a command, and writes its answer to `out`.
pub async fn run(command: Command, env: Env, out: &mut impl Write) -> Result<(), CommandError> {
    match command {
        Command::Dead(command) => set_aside::run(command.into(), env, out).await,
        Command::Quarantine(command) => set_aside::run(command.into(), env, out).await,
        Command::Queues(command) => queues::run(command, env, out).await,
        Command::Rebuild(arguments) => rebuild::run(arguments, env, out).await,
        Command::Reconcile(arguments) => reconcile::run(arguments, env, out).await,
        Command::Compare(arguments) => compare::run(arguments, env, out).await,
        Command::Backfill(arguments) => backfill::run(arguments, env, out).await,
        Command::Erase(arguments) => erase::run(arguments, env, out).await,
        Command::Console => console::run(env).await,
        Command::Events(command) => events::run(command, env, out).await,
        Command::Tail(arguments) => tail::run(arguments, env, out).await,
        Command::Doctor(arguments) => doctor::run(arguments, env, out).await,
        Command::Send(arguments) => send::run(arguments, env, out).await,
        Command::Settings => settings(env, out),
        Command::Completions { shell } => completions(shell, out),
    }
}

fn settings(mut env: Env, out: &mut impl Write) -> Result<(), CommandError> {
    Settings::read_from(&mut env);
    console::settings::own(&mut env);
    write!(out, "{}", setting::in_force(&env)).map_err(unwritten)?;
    Ok(env.finish(())?)
}

fn completions(shell: Shell, out: &mut impl Write) -> Result<(), CommandError> {
    // Into memory first: clap_complete panics if it can't write.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "worker", &mut script);
    out.write_all(&script).map_err(unwritten)
}

/// Writes a line of the answer.
fn say(out: &mut impl Write, line: impl std::fmt::Display) -> Result<(), CommandError> {
    writeln!(out, "{line}").map_err(unwritten)
}

fn unwritten(source: io::Error) -> CommandError {
    CommandError::Io { what: "can't write the answer".into(), source }
}

/// A bar on standard error, if that is a terminal.
fn progress(title: &str, length: u64) -> ProgressBar {
    let bar = ProgressBar::new(length).with_message(title.to_owned());
    // The template is a constant, and valid.
    if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {per_sec} {eta}") {
        bar.set_style(style);
    }
    bar
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    shared::env::parse_duration(text).ok_or_else(|| "is not a duration like 90s, 30m, 12h or 30d".to_owned())
}

pub(crate) fn now_ms() -> i64 {
    mongodb::bson::DateTime::now().timestamp_millis()
}
