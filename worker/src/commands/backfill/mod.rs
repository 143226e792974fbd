//! `worker backfill`: reads what webhooks have missed from respond.io's API, or says whether anything is
//! missing.
//!
//! It reads contacts page by page, and the messages of each, the newest first, back to the beginning of the
//! span. What MongoDB lacks is published to the tenant's work queues, marked as backfilled. A webhook about
//! the same message or contact always wins, whenever it comes. So a backfill may run at any time, any number
//! of times, beside live traffic.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::json::Json;
use clap::Args;
use shared::env::{Env, Problems};
use shared::event::body_digest;
use shared::publisher::PublishError;
use shared::tenant;

use super::set_aside::queue::{self, QueueError};
use super::{CommandError, now_ms, parse_duration, rfc3339};
use crate::decode::{BACKFILLED, moment};
use crate::settings::{Settings, Tenant};
use crate::store::Store;
use crate::store::failure::Failure;

mod answer;
pub mod api;
pub mod audit;
pub mod event;
pub mod known;
pub mod lease;
pub mod pace;
pub mod page;
pub mod plan;
pub mod progress;
pub mod publish;
mod run;
mod shown;
pub mod walk;

use answer::Answer;
use api::{Api, ApiError};
use lease::Lease;
use progress::{Place, Task};
use publish::Outlet;
use run::{Mode, Run};
use walk::Source;

/// Contacts that are read at the same time: their requests share the rate, and don't wait for each other's
/// answers.
const AT_ONCE: usize = 8;
/// What to bring back.
#[derive(Debug, Args)]
#[command(after_help = "Example: worker backfill --tenant vip --since 2026-11-20T08:00Z --dry-run")]
pub struct Arguments {
    /// The tenant
    #[arg(long, value_name = "TENANT")]
    tenant: String,
    /// Messages from this moment on, such as 2026-11-20T08:00Z [default: all]
    #[arg(long, value_name = "TIME", value_parser = parse_moment)]
    since: Option<i64>,
    /// Messages before this moment [default: now]
    #[arg(long, value_name = "TIME", value_parser = parse_moment)]
    until: Option<i64>,
    /// Only contacts whose ids are in this file, one a line; - for standard input
    #[arg(long, value_name = "FILE")]
    contacts: Option<PathBuf>,
    /// Change nothing: count what respond.io and MongoDB have, and name what is missing or different. Exit
    /// with 0 if nothing is missing
    #[arg(long)]
    dry_run: bool,
    /// Only this many contacts, drawn at random
    #[arg(long, value_name = "NUMBER", requires = "dry_run", conflicts_with = "contacts")]
    sample: Option<usize>,
    /// With --dry-run: how long to wait for events that no worker has stored yet
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_duration)]
    wait: Duration,
    /// Begin from the start, not where an earlier run stopped
    #[arg(long, conflicts_with = "dry_run")]
    anew: bool,
    /// Write JSON, an object a line
    #[arg(long)]
    json: bool,
}

/// Why a backfill fails.
#[derive(Debug, thiserror::Error)]
pub enum BackfillError {
    /// The API can't be read.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// MongoDB failed.
    #[error("MongoDB")]
    MongoDb(#[from] Failure),
    /// RabbitMQ, or the way there, failed.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// RabbitMQ doesn't take an event.
    #[error("an event can't be published")]
    Publish(#[from] PublishError),
    /// There is a run already.
    #[error("another backfill of this tenant is running")]
    Busy,
    /// Another run has the lease now.
    #[error("another backfill of this tenant has taken over")]
    Taken,
    /// The end isn't after the beginning.
    #[error("--until is not after --since")]
    EmptySpan,
}

/// Runs the command.
pub async fn run(arguments: Arguments, mut env: Env, out: &mut impl Write) -> Result<(), CommandError> {
    let settings = Settings::read_from(&mut env);
    let names = tenant::spelled(&env, &arguments.tenant, "RESPOND_API_TOKEN");
    let settings = env.finish(settings)?;
    let known = settings.tenants.iter().find(|known| known.name == arguments.tenant).cloned();
    let known = known.ok_or_else(|| CommandError::UnknownTenant(arguments.tenant.clone()))?;
    let Some(token) = known.api_token.clone() else {
        let problems = vec![format!("{names}: is not set, and respond.io's API wants one")];
        return Err(Problems { problems, warnings: Vec::new() }.into());
    };
    let api = Api::new(settings.api.clone(), &token, settings.api_rate).map_err(BackfillError::from)?;
    let task = Task { since: arguments.since, until: arguments.until, contacts: String::new() };
    if task.since >= Some(Place::beginning(&task, now_ms()).until) {
        return Err(BackfillError::EmptySpan.into());
    }
    let source = match &arguments.contacts {
        Some(path) => Source::Named(read_ids(path)?),
        None => Source::All,
    };
    let command = Command { arguments, settings, tenant: known, api, source, task };
    if command.arguments.dry_run { command.audit(out).await } else { command.backfill(out).await }
}

struct Command {
    arguments: Arguments,
    settings: Settings,
    tenant: Tenant,
    api: Api,
    source: Source,
    task: Task,
}

impl Command {
    async fn backfill(mut self, out: &mut impl Write) -> Result<(), CommandError> {
        if let Source::Named(ids) = &self.source {
            self.task.contacts = body_digest(ids.join("\n").as_bytes(), BACKFILLED);
        }
        let store = Store::open(&self.tenant, &self.settings).await?;
        let broker = queue::connect(self.settings.rabbitmq.clone()).await?;
        let (tenant, partitions) = (self.tenant.name.clone(), self.settings.partitions);
        queue::declare_work(&broker, &tenant, partitions).await?;
        let outlet = Outlet { tenant: tenant.clone(), partitions, broker };
        let (lease, place) = Lease::take(&store, &self.task, self.arguments.anew).await?;
        if let Some(place) = &place {
            let done = place.counts.contacts;
            eprintln!(
                "{tenant}: continues after {done} contacts, with the messages before {}",
                rfc3339(place.until)
            );
        }
        let place = place.unwrap_or_else(|| Place::beginning(&self.task, now_ms()));
        let lost = lease.lost.clone();
        let mut run = Run::new(&self.api, &store, Mode::Publish(&outlet, &lease), self.task.clone(), place);
        let ran = tokio::select! {
            ran = run.all(&tenant, &self.source) => ran,
            () = lost.cancelled() => Err(BackfillError::Taken),
        };
        let (place, failures, _) = run.end();
        outlet.broker.link().close().await;
        let released = lease.release(ran.is_ok()).await;
        self.answer(&place, &failures, ran.is_ok()).published(out)?;
        ran.and(released).map_err(CommandError::Stopped)?;
        unread(place.counts.failed)
    }

    async fn audit(self, out: &mut impl Write) -> Result<(), CommandError> {
        let tenant = &self.tenant.name;
        let store = Store::open(&self.tenant, &self.settings).await?;
        let source = match self.arguments.sample {
            Some(number) => run::sample(&self.api, number).await.map_err(BackfillError::from)?,
            None => self.source.clone(),
        };
        let place = Place::beginning(&self.task, now_ms());
        let mut run = Run::new(&self.api, &store, Mode::Audit, self.task.clone(), place);
        let mut ran = run.all(tenant, &source).await;
        if ran.is_ok() {
            ran = run.wait_for_missing(self.arguments.wait).await;
        }
        let (place, failures, audit) = run.end();
        // Also if it failed half way: to count may have taken hours.
        self.answer(&place, &failures, ran.is_ok()).audited(&audit, out)?;
        ran?;
        let (missing, contacts) = (audit.total().missing, audit.missing_contacts());
        if missing + contacts > 0 {
            return Err(CommandError::Incomplete(format!(
                "{missing} messages and {contacts} contacts are missing"
            )));
        }
        unread(place.counts.failed)
    }

    fn answer<'a>(
        &'a self,
        place: &'a Place,
        failures: &'a [(String, String)],
        complete: bool,
    ) -> Answer<'a> {
        let Arguments { tenant, dry_run, json, .. } = &self.arguments;
        Answer { tenant, dry_run: *dry_run, json: *json, since: self.task.since, place, complete, failures }
    }
}

fn unread(failed: u64) -> Result<(), CommandError> {
    match failed {
        0 => Ok(()),
        _ => Err(CommandError::Incomplete(format!("{failed} contacts could not be read"))),
    }
}

/// Ids, one a line.
fn read_ids(path: &Path) -> Result<Vec<String>, CommandError> {
    let failed = |source| CommandError::Io { what: format!("can't read {}", path.display()), source };
    let reader: Box<dyn BufRead> = if path == Path::new("-") {
        Box::new(std::io::stdin().lock())
    } else {
        Box::new(BufReader::new(std::fs::File::open(path).map_err(failed)?))
    };
    let mut ids = Vec::new();
    for line in reader.lines() {
        let line = line.map_err(failed)?;
        let id = line.trim().trim_start_matches("id:");
        if !id.is_empty() {
            ids.push(id.to_owned());
        }
    }
    if ids.is_empty() {
        return Err(CommandError::Incomplete(format!("{} names no contact", path.display())));
    }
    Ok(ids)
}

/// A moment as people write it.
pub(in crate::commands) fn parse_moment(text: &str) -> Result<i64, String> {
    let read = moment::read(&Json::Text(text.into()));
    read.ok_or_else(|| "is not a moment like 2026-11-20T08:00Z".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_as_people_write_them() {
        for (text, at) in [
            ("2026-11-20T08:00Z", 1_795_161_600_000),
            ("2026-11-20T08:00:00.000Z", 1_795_161_600_000),
            ("2026-11-20T09:00+01:00", 1_795_161_600_000),
            ("2026-11-20 08:00Z", 1_795_161_600_000),
            ("2026-11-20", 1_795_132_800_000),
        ] {
            assert_eq!(parse_moment(text), Ok(at), "{text}");
        }
        assert!(parse_moment("yesterday").is_err());
    }
}
