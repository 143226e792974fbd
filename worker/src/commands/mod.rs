//! `worker dead|quarantine|queues|rebuild|reconcile|backfill|console|settings`: what operators do by hand, while workers run or not.

use std::io::{self, Write};
use std::time::Duration;

use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};
use shared::env::{Env, Problems};
use shared::publisher::PublishError;
use shared::setting;

use crate::console;
use crate::settings::Settings;
use crate::store::failure::Failure;

pub mod backfill;
pub mod queues;
pub mod rebuild;
pub mod reconcile;
pub mod set_aside;

use backfill::BackfillError;
use queues::{MigrationError, QueuesCommand};
use set_aside::queue::QueueError;
use set_aside::{DeadCommand, QuarantineCommand};

/// What operators can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Looks after the dead letters: events that could not be stored.
    #[command(subcommand)]
    Dead(DeadCommand),
    /// Looks after the quarantine: webhooks that could not be used.
    #[command(subcommand)]
    Quarantine(QuarantineCommand),
    /// Looks after the queues themselves.
    #[command(subcommand)]
    Queues(QueuesCommand),
    /// Computes a tenant's documents anew from `webhook_events`, while workers go on.
    Rebuild(rebuild::Arguments),
    /// Compares what ingest has accepted with what is stored, queued, dead and quarantined.
    Reconcile(reconcile::Arguments),
    /// Brings messages and contacts that MongoDB lacks from respond.io's API, or says which these are.
    Backfill(backfill::Arguments),
    /// Serves pages for operators: what happens, and putting dead letters back.
    Console,
    /// Shows every setting: its value, and where that comes from. Secrets are not shown.
    Settings,
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
        Command::Console => console::run(env).await,
        Command::Settings => settings(env, out),
    }
}

fn settings(mut env: Env, out: &mut impl Write) -> Result<(), CommandError> {
    Settings::read_from(&mut env);
    console::settings::own(&mut env);
    write!(out, "{}", setting::in_force(&env)).map_err(unwritten)?;
    Ok(env.finish(())?)
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

/// A line of text from others, fit for a terminal: control characters could make it do things.
fn printable(text: &str) -> String {
    let escaped = |c: char| if c.is_control() { c.escape_unicode().collect() } else { c.to_string() };
    text.chars().map(escaped).collect()
}

/// A moment as people read it, and as programs do.
pub(crate) fn rfc3339(ms: i64) -> String {
    mongodb::bson::DateTime::from_millis(ms).try_to_rfc3339_string().unwrap_or_default()
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    shared::env::parse_duration(text).ok_or_else(|| "is not a duration like 90s, 30m, 12h or 30d".to_owned())
}

pub(crate) fn now_ms() -> i64 {
    mongodb::bson::DateTime::now().timestamp_millis()
}
