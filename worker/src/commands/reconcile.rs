//! `worker reconcile`: looks for every event that ingest accepted.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use futures_util::{StreamExt, TryStreamExt};
use mongodb::bson::{Document, doc};
use serde::Serialize;
use serde_json::{Map, Value, json};
use shared::env::Env;
use shared::partition::{MAX_PARTITIONS, WorkQueue};
use shared::publisher::Publisher;
use shared::status::{self, ANNOUNCE_INTERVAL, Announcement, Peers};
use shared::table::{Column, Table};
use shared::topology::{self, UNROUTABLE};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::backfill::page::Seen;
use super::erase::documents::SCAN_TIMEOUT;
use super::set_aside::message;
use super::set_aside::queue::{self, Queue, QueueError};
use super::{CommandError, backfill, parse_duration, printable, progress, say};
use crate::settings::{Settings, Tenant};
use crate::store::Store;
use crate::store::failure::Failure;

/// Longest wait for an answer of MongoDB.
const DEADLINE: Duration = Duration::from_mins(1);
/// Keys asked for at once.
const KEYS: usize = 1000;
/// Pause before what is missing is looked for again.
const PAUSE: Duration = Duration::from_millis(500);

/// What to compare.
#[derive(Debug, Args)]
#[command(after_help = "Example: worker reconcile --accepted ingest.log --wait 1m")]
pub struct Arguments {
    /// Only this tenant; several may be given [default: all]
    #[arg(long, value_name = "TENANT", value_delimiter = ',')]
    tenant: Vec<String>,
    /// The accepted events: a file of ingest's logs, written with `RUST_LOG=info,ingest::routes=debug`, or of
    /// event keys, one a line, with a single --tenant; - for standard input. Without it the command only
    /// shows numbers
    #[arg(long, value_name = "FILE")]
    accepted: Option<PathBuf>,
    /// How long to wait for events that no worker has stored yet
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_duration)]
    wait: Duration,
    /// Write JSON, an object per tenant
    #[arg(long)]
    json: bool,
}

/// What is known of a tenant's events.
#[derive(Debug, Serialize)]
struct Account {
    tenant: String,
    /// Different events that were accepted, if that is known.
    accepted: Option<usize>,
    /// The first and the last time of the log that was read.
    #[serde(skip_serializing_if = "Option::is_none")]
    log_from: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    log_to: Option<String>,
    /// Entries of the ledger.
    stored: u64,
    /// Of these, the events that `worker backfill` has brought.
    backfilled: u64,
    /// Events that wait in the work queues.
    queued: u32,
    /// Events that workers have in hand.
    in_workers: usize,
    /// Webhooks in the spools of those ingests that are there, of any tenant.
    in_spools: u64,
    /// Dead letters.
    dead: u32,
    /// Webhooks in quarantine.
    quarantined: u32,
    /// Messages in `unroutable`, of any tenant.
    unroutable: u32,
    /// Keys of accepted events that are neither stored nor dead, in quarantine or unroutable.
    missing: Vec<String>,
}

/// Runs the command.
pub async fn run(arguments: Arguments, env: Env, out: &mut impl Write) -> Result<(), CommandError> {
    let settings = Settings::read(env)?;
    let mut tenants: Vec<Tenant> = settings.tenants.clone();
    if !arguments.tenant.is_empty() {
        let find = |name: &String| {
            let known = settings.tenants.iter().find(|known| known.name == *name).cloned();
            known.ok_or_else(|| CommandError::UnknownTenant(name.clone()))
        };
        tenants = arguments.tenant.iter().map(find).collect::<Result<_, _>>()?;
    }
    let mut all = Vec::new();
    for tenant in &tenants {
        all.push(Accepted::of(tenant, &settings).await?);
    }
    let is_asked_for = !arguments.tenant.is_empty();
    let times = match &arguments.accepted {
        Some(path) => read_accepted(path, &mut all, is_asked_for).await?,
        None => None,
    };
    let broker = queue::connect(settings.rabbitmq.clone()).await?;
    let mut missing = 0;
    let mut table = Table::new(COLUMNS);
    for accepted in all {
        let number = arguments.accepted.is_some().then_some(accepted.number);
        let mut account = account(accepted, &broker, arguments.wait).await?;
        account.accepted = number;
        (account.log_from, account.log_to) = times.clone().unzip();
        missing += account.missing.len();
        if arguments.json {
            say(out, json!(account))?;
        } else {
            say(out, rows(&mut table, &account))?;
        }
    }
    if let (Some((from, to)), false) = (&times, arguments.json) {
        say(out, printable(&format!("the log is from {from} to {to}")))?;
    }
    broker.link().close().await;
    match missing {
        0 => Ok(()),
        _ => Err(CommandError::Incomplete(format!(
            "{missing} accepted events are missing; if a queue or a spool of ingest isn't empty, they may be there"
        ))),
    }
}

const COLUMNS: [Column; 11] = [
    Column::text("TENANT", 10),
    Column::number("ACCEPTED", 8),
    Column::number("STORED", 8),
    Column::number("BACKFILLED", 10),
    Column::number("QUEUED", 8),
    Column::number("IN WORKERS", 10),
    Column::number("IN SPOOLS", 9),
    Column::number("DEAD", 6),
    Column::number("QUARANTINED", 11),
    Column::number("UNROUTABLE", 10),
    Column::number("MISSING", 7),
];

/// The numbers of a tenant, and below them what is missing.
fn rows(table: &mut Table<11>, account: &Account) -> String {
    let Account { tenant, accepted, missing, .. } = account;
    let row = table.row(&[
        tenant.clone(),
        accepted.map_or("-".to_owned(), |accepted| accepted.to_string()),
        account.stored.to_string(),
        account.backfilled.to_string(),
        account.queued.to_string(),
        account.in_workers.to_string(),
        account.in_spools.to_string(),
        account.dead.to_string(),
        account.quarantined.to_string(),
        account.unroutable.to_string(),
        missing.len().to_string(),
    ]);
    let missing = missing.iter().map(|key| format!("\n  missing: {}", printable(key)));
    std::iter::once(row).chain(missing).collect()
}

async fn account(accepted: Accepted, broker: &Publisher, wait: Duration) -> Result<Account, CommandError> {
    let Accepted { tenant: Tenant { name: tenant, .. }, store, mut missing, .. } = accepted;
    let until = Instant::now() + wait;
    for name in [topology::dead_queue(&tenant), topology::quarantine_queue(&tenant), UNROUTABLE.to_owned()] {
        forget_kept(broker, &name, &tenant, &mut missing).await?;
    }
    while !missing.is_empty() && Instant::now() < until {
        sleep(PAUSE).await;
        forget_stored(&store, &mut missing).await?;
    }
    if !missing.is_empty() {
        // Some may have died meanwhile.
        forget_kept(broker, &topology::dead_queue(&tenant), &tenant, &mut missing).await?;
    }
    let stored = count(&store, doc! {}).await?;
    let backfilled = count(&store, backfill::event::entries()).await?;
    // Before the workers: what they take meanwhile is counted twice rather than not at all.
    let queued = queued(broker, &tenant).await?;
    let peers = peers(broker).await?;
    Ok(Account {
        accepted: None,
        log_from: None,
        log_to: None,
        stored,
        backfilled,
        queued,
        in_workers: in_workers(&peers, &tenant),
        in_spools: in_spools(&peers),
        dead: queue::length(broker, &topology::dead_queue(&tenant)).await?,
        quarantined: queue::length(broker, &topology::quarantine_queue(&tenant)).await?,
        unroutable: queue::length(broker, UNROUTABLE).await?,
        tenant,
        missing: missing.into_iter().collect(),
    })
}

async fn count(store: &Store, entries: Document) -> Result<u64, Failure> {
    let count = timeout(SCAN_TIMEOUT, store.ledger().count_documents(entries).into_future()).await;
    Ok(count.map_err(|_| Failure::TimedOut(SCAN_TIMEOUT))??)
}

/// Removes the keys that the ledger has.
async fn forget_stored(store: &Store, keys: &mut BTreeSet<String>) -> Result<(), Failure> {
    let all: Vec<String> = keys.iter().cloned().collect();
    for some in all.chunks(KEYS) {
        let ledger = store.ledger();
        let find = ledger.find(doc! {"_id": {"$in": some}}).projection(doc! {"_id": 1});
        let found = async { find.await?.try_collect::<Vec<Document>>().await };
        let found = timeout(DEADLINE, found).await.map_err(|_| Failure::TimedOut(DEADLINE))??;
        for entry in found {
            keys.remove(entry.get_str("_id").unwrap_or_default());
        }
    }
    Ok(())
}

/// Removes the keys of a tenant's messages in a queue.
async fn forget_kept(
    broker: &Publisher,
    name: &str,
    tenant: &str,
    keys: &mut BTreeSet<String>,
) -> Result<(), QueueError> {
    if keys.is_empty() {
        return Ok(());
    }
    let Some(mut queue) = Queue::open(broker, name).await? else { return Ok(()) };
    let bar = progress(name, queue.length.into());
    while !keys.is_empty()
        && let Some(message) = queue.next().await?
    {
        bar.inc(1);
        let headers = message::headers(&message.properties);
        let is_of_tenant = headers.get("tenant").is_none_or(|of| of == tenant);
        if let (Some(key), true) = (message.properties.message_id(), is_of_tenant) {
            keys.remove(key.as_str());
        }
    }
    bar.finish_and_clear();
    queue.close().await
}

/// What waits in all work queues that a tenant may have, also those that an earlier `WEBHOOK_WORKERS` left
/// behind.
async fn queued(broker: &Publisher, tenant: &str) -> Result<u32, QueueError> {
    let mut queued = 0;
    for queue in WorkQueue::all(MAX_PARTITIONS) {
        queued += queue::length(broker, &queue.name(tenant)).await?;
    }
    Ok(queued)
}

/// What ingests and workers say of themselves.
async fn peers(broker: &Publisher) -> Result<Vec<Announcement>, QueueError> {
    let session = broker.link().session().ok_or(QueueError::NotConnected)?;
    let mut announcements = timeout(DEADLINE, status::subscribe(&session)).await??;
    let until = Instant::now() + 2 * ANNOUNCE_INTERVAL;
    let mut peers = Peers::default();
    while let Ok(Some(delivery)) = timeout_at(until, announcements.next()).await {
        if let Ok(announcement) = serde_json::from_slice(&delivery?.data) {
            peers.record(announcement, Instant::now().into_std());
        }
    }
    Ok(peers.alive(Instant::now().into_std()).cloned().collect())
}

fn in_workers(peers: &[Announcement], tenant: &str) -> usize {
    let statuses = peers.iter().filter_map(|peer| peer.served()?.get(tenant));
    statuses.map(|status| status.in_flight).sum()
}

fn in_spools(peers: &[Announcement]) -> u64 {
    peers.iter().filter_map(Announcement::spool).map(|spool| spool.records).sum()
}

/// A tenant's accepted events, as far as they are read: only those that the ledger lacks are kept.
struct Accepted {
    tenant: Tenant,
    store: Store,
    seen: Seen,
    /// How many there are, each counted once.
    number: usize,
    /// Those that weren't looked for yet.
    unsure: BTreeSet<String>,
    missing: BTreeSet<String>,
}

impl Accepted {
    async fn of(tenant: &Tenant, settings: &Settings) -> Result<Self, CommandError> {
        let store = Store::open(tenant, settings).await?;
        let (unsure, missing) = (BTreeSet::new(), BTreeSet::new());
        Ok(Self { tenant: tenant.clone(), store, seen: Seen::default(), number: 0, unsure, missing })
    }

    async fn add(&mut self, key: String) -> Result<(), Failure> {
        self.number += usize::from(self.seen.is_new(&key));
        self.unsure.insert(key);
        if self.unsure.len() >= KEYS { self.look().await } else { Ok(()) }
    }

    async fn look(&mut self) -> Result<(), Failure> {
        forget_stored(&self.store, &mut self.unsure).await?;
        self.missing.append(&mut self.unsure);
        Ok(())
    }
}

/// The first and the last time in a log.
type Times = Option<(String, String)>;

/// Reads the accepted events of these tenants. Others are skipped if these were asked for; else one that this
/// worker doesn't know is an error. So is an empty list: otherwise nothing would seem to be missing.
async fn read_accepted(path: &Path, all: &mut [Accepted], is_asked_for: bool) -> Result<Times, CommandError> {
    let failed = |source| CommandError::Io { what: format!("can't read {}", path.display()), source };
    let reader: Box<dyn BufRead + Send> = if path == Path::new("-") {
        Box::new(BufReader::new(std::io::stdin()))
    } else {
        Box::new(BufReader::new(std::fs::File::open(path).map_err(failed)?))
    };
    let only = if let [one] = &*all { Some(one.tenant.name.clone()) } else { None };
    let bar = progress("looking into the ledger", 0);
    let (mut times, mut is_empty) = (None, true);
    for line in reader.lines() {
        let line = line.map_err(failed)?;
        let Line { at, event } = match read_line(&line, only.as_deref()) {
            Ok(read) => read,
            Err(line) => {
                let source = std::io::Error::other(format!("whose is {line:?}? Name one --tenant"));
                return Err(failed(source));
            }
        };
        times = widened(times, at);
        let Some((tenant, key)) = event else { continue };
        is_empty = false;
        match all.iter_mut().find(|accepted| accepted.tenant.name == tenant) {
            Some(accepted) => accepted.add(key).await?,
            None if is_asked_for => {}
            None => return Err(CommandError::UnknownTenant(tenant)),
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    if is_empty {
        let source = std::io::Error::other("it names no event; was ingest's RUST_LOG as the help says?");
        return Err(failed(source));
    }
    for accepted in all {
        accepted.look().await?;
    }
    Ok(times)
}

/// With this time, too. Times of a log are all written in the same way.
fn widened(times: Times, at: Option<String>) -> Times {
    match (times, at) {
        (None, Some(at)) => Some((at.clone(), at)),
        (Some((first, last)), Some(at)) => Some((first.min(at.clone()), last.max(at))),
        (times, None) => times,
    }
}

/// What a line says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Line {
    /// When, if it is a log's.
    at: Option<String>,
    /// Tenant and key of an event that was accepted.
    event: Option<(String, String)>,
}

/// Reads a line of a log, or a key of the only tenant; returns the line if it is a key and nobody knows
/// whose.
fn read_line(line: &str, only: Option<&str>) -> Result<Line, String> {
    let line = line.trim();
    if line.is_empty() {
        return Ok(Line::default());
    }
    if let Ok(logged) = serde_json::from_str::<Map<String, Value>>(line) {
        let text = |field: &str| logged.get(field).and_then(Value::as_str).map(str::to_owned);
        let is_accepted = matches!(text("message").as_deref(), Some("received" | "quarantined"));
        let event = text("tenant").zip(text("event_key")).filter(|_| is_accepted);
        return Ok(Line { at: text("timestamp"), event });
    }
    let tenant = only.ok_or_else(|| line.to_owned())?;
    Ok(Line { at: None, event: Some((tenant.to_owned(), line.to_owned())) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_and_plain_keys_are_read() {
        let log =
            r#"{"timestamp":"2026-01-02T03:04:05Z","message":"received","tenant":"vip","event_key":"k"}"#;
        let line = |at: Option<&str>, event: Option<(&str, &str)>| {
            let event = event.map(|(tenant, key)| (tenant.to_owned(), key.to_owned()));
            Ok(Line { at: at.map(str::to_owned), event })
        };
        let at = Some("2026-01-02T03:04:05Z");
        assert_eq!(read_line(log, None), line(at, Some(("vip", "k"))));
        assert_eq!(read_line(&log.replace("received", "lost"), None), line(at, None));
        assert_eq!(read_line(r#"{"message":"connected","timestamp":7}"#, None), line(None, None));
        assert_eq!(read_line(" k \n", Some("faster")), line(None, Some(("faster", "k"))));
        assert_eq!(read_line("k", None), Err("k".to_owned()));
        assert_eq!(read_line("", None), line(None, None));
    }

    #[test]
    fn the_first_and_the_last_time_are_kept() {
        let times = ["b", "a", "c"].into_iter().fold(None, |times, at| widened(times, Some(at.to_owned())));
        assert_eq!(widened(times, None), Some(("a".to_owned(), "c".to_owned())));
    }
}
