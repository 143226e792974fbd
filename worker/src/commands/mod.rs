//! `worker dead|quarantine|events|tail|send|…`: what operators do by hand, while workers run or not.

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
use events::EventsCommand;
use queues::{MigrationError, QueuesCommand};
use send::SendError;
use set_aside::queue::QueueError;
use set_aside::{DeadCommand, QuarantineCommand};

/// What operators can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Looks after the dead letters: events that could not be stored.
    #[command(subcommand, after_help = "Example: worker dead list")]
    Dead(DeadCommand),
    /// Looks after the quarantine: webhooks that could not be used.
    #[command(subcommand, after_help = "Example: worker quarantine list")]
    Quarantine(QuarantineCommand),
    /// Looks after the queues themselves.
    #[command(subcommand, after_help = "Example: worker queues migrate --dry-run")]
    Queues(QueuesCommand),
    /// Looks into the ledger of stored events.
    #[command(subcommand, after_help = "Example: worker events list --event-type message.received")]
    Events(EventsCommand),
    /// Shows events as they come, without holding anybody up.
    Tail(tail::Arguments),
    /// Looks at everything that `--check` can't know, and says what needs doing.
    Doctor(doctor::Arguments),
    /// Posts webhooks to ingest as respond.io would, to see that all of the way works.
    Send(send::Arguments),
    /// Computes a tenant's documents anew from `webhook_events`, while workers go on.
    Rebuild(rebuild::Arguments),
    /// Compares what ingest has accepted with what is stored, queued, dead and quarantined.
    Reconcile(reconcile::Arguments),
    /// Brings messages and contacts that MongoDB lacks from respond.io's API, or says which these are.
    Backfill(backfill::Arguments),
    /// Removes all that there is of a person, and sees to it that nothing of it comes back
    ///
    /// What is received later is new.
    #[command(after_help = "Example: worker erase --tenant faster --phone '+1 555 010 0000' --dry-run")]
    Erase(erase::Arguments),
    /// Serves pages for operators: what happens, and putting dead letters back.
    #[command(after_help = "Example: worker console")]
    Console,
    /// Shows every setting: its value, and where that comes from. Secrets are not shown.
    #[command(after_help = "Example: worker settings")]
    Settings,
    /// Writes what a shell needs to complete commands and options.
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
    /// What a person is looked for by leads to many.
    #[error("nothing was removed: {0} contacts and phones belong together, which is more than a person has")]
    ManyPersons(usize),
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
    /// It ended half way; to run it again does no harm.
    #[error("not all could be done: please run it again")]
    Unfinished(#[source] Failure),
    /// Queues can't be migrated.
    #[error(transparent)]
    Migration(#[from] MigrationError),
    /// A backfill fails.
    #[error(transparent)]
    Backfill(#[from] BackfillError),
    /// A backfill ended half way.
    #[error("stopped: run it again, and it goes on from there")]
    Stopped(#[source] BackfillError),
    /// Nothing can be sent.
    #[error(transparent)]
    Send(#[from] SendError),
    /// It was done, and some of it failed or is missing; the answer says what.
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
    // Into memory first: it panics where it can't write.
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
    // The template is ours, and fine.
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
