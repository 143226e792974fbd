//! `worker reconcile`: looks for every event that ingest accepted.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use futures_util::{StreamExt, TryStreamExt};
use mongodb::bson::{Document, doc};
use serde::{Deserialize, Serialize};
use serde_json::json;
use shared::env::Env;
use shared::partition::{MAX_PARTITIONS, WorkQueue};
use shared::publisher::Publisher;
use shared::status::{self, ANNOUNCE_INTERVAL, Announcement, Peers};
use shared::table::{Column, Table};
use shared::topology;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::erase::documents::SCAN_TIMEOUT;
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
    /// Keys of accepted events that are neither stored nor dead nor in quarantine.
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
    let accepted = match &arguments.accepted {
        Some(path) => Some(read_accepted(path, &tenants, &settings.tenants)?),
        None => None,
    };
    let broker = queue::connect(settings.rabbitmq.clone()).await?;
    let (mut accepted, mut missing) = (accepted, 0);
    let mut table = Table::new(COLUMNS);
    for tenant in &tenants {
        let keys = accepted.as_mut().map(|accepted| accepted.remove(&tenant.name).unwrap_or_default());
        let account = account(tenant, &settings, &broker, keys, arguments.wait).await?;
        missing += account.missing.len();
        if arguments.json {
            say(out, json!(account))?;
        } else {
            say(out, rows(&mut table, &account))?;
        }
    }
    broker.link().close().await;
    match missing {
        0 => Ok(()),
        _ => Err(CommandError::Incomplete(format!(
            "{missing} accepted events are missing; if a queue or a spool of ingest isn't empty, they may be there"
        ))),
    }
}

const COLUMNS: [Column; 10] = [
    Column::text("TENANT", 10),
    Column::number("ACCEPTED", 8),
    Column::number("STORED", 8),
    Column::number("BACKFILLED", 10),
    Column::number("QUEUED", 8),
    Column::number("IN WORKERS", 10),
    Column::number("IN SPOOLS", 9),
    Column::number("DEAD", 6),
    Column::number("QUARANTINED", 11),
    Column::number("MISSING", 7),
];

/// The numbers of a tenant, and below them what is missing.
fn rows(table: &mut Table<10>, account: &Account) -> String {
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
        missing.len().to_string(),
    ]);
    let missing = missing.iter().map(|key| format!("\n  missing: {}", printable(key)));
    std::iter::once(row).chain(missing).collect()
}

async fn account(
    tenant: &Tenant,
    settings: &Settings,
    broker: &Publisher,
    accepted: Option<BTreeSet<String>>,
    wait: Duration,
) -> Result<Account, CommandError> {
    let store = Store::open(tenant, settings).await?;
    let number = accepted.as_ref().map(BTreeSet::len);
    let mut missing = accepted.unwrap_or_default();
    let until = Instant::now() + wait;
    forget_stored(&store, &mut missing).await?;
    for name in [topology::dead_queue(&tenant.name), topology::quarantine_queue(&tenant.name)] {
        forget_kept(broker, &name, &mut missing).await?;
    }
    while !missing.is_empty() && Instant::now() < until {
        sleep(PAUSE).await;
        forget_stored(&store, &mut missing).await?;
    }
    if !missing.is_empty() {
        // Some may have died meanwhile.
        forget_kept(broker, &topology::dead_queue(&tenant.name), &mut missing).await?;
    }
    let stored = count(&store, doc! {}).await?;
    let backfilled = count(&store, backfill::event::entries()).await?;
    // Before the workers: what they take meanwhile is counted twice rather than not at all.
    let queued = queued(broker, &tenant.name).await?;
    let peers = peers(broker).await?;
    Ok(Account {
        tenant: tenant.name.clone(),
        accepted: number,
        stored,
        backfilled,
        queued,
        in_workers: in_workers(&peers, &tenant.name),
        in_spools: in_spools(&peers),
        dead: queue::length(broker, &topology::dead_queue(&tenant.name)).await?,
        quarantined: queue::length(broker, &topology::quarantine_queue(&tenant.name)).await?,
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
    let bar = progress("looking into the ledger", all.len() as u64);
    for some in all.chunks(KEYS) {
        bar.inc(some.len() as u64);
        let ledger = store.ledger();
        let find = ledger.find(doc! {"_id": {"$in": some}}).projection(doc! {"_id": 1});
        let found = async { find.await?.try_collect::<Vec<Document>>().await };
        let found = timeout(DEADLINE, found).await.map_err(|_| Failure::TimedOut(DEADLINE))??;
        for entry in found {
            keys.remove(entry.get_str("_id").unwrap_or_default());
        }
    }
    bar.finish_and_clear();
    Ok(())
}

/// Removes the keys of messages in a queue.
async fn forget_kept(broker: &Publisher, name: &str, keys: &mut BTreeSet<String>) -> Result<(), QueueError> {
    let Some(mut queue) = Queue::open(broker, name).await? else { return Ok(()) };
    let bar = progress(name, queue.length.into());
    while !keys.is_empty()
        && let Some(message) = queue.next().await?
    {
        bar.inc(1);
        if let Some(key) = message.properties.message_id() {
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

/// A line of ingest's log.
#[derive(Deserialize)]
struct Logged {
    message: String,
    tenant: String,
    event_key: String,
}

/// The accepted events, by tenant. An empty list is an error: otherwise nothing would seem to be missing.
fn read_accepted(
    path: &Path,
    tenants: &[Tenant],
    known: &[Tenant],
) -> Result<BTreeMap<String, BTreeSet<String>>, CommandError> {
    let failed = |source| CommandError::Io { what: format!("can't read {}", path.display()), source };
    let reader: Box<dyn BufRead> = if path == Path::new("-") {
        Box::new(std::io::stdin().lock())
    } else {
        Box::new(BufReader::new(std::fs::File::open(path).map_err(failed)?))
    };
    let only = if let [tenant] = tenants { Some(tenant.name.as_str()) } else { None };
    let mut accepted: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in reader.lines() {
        match accepted_by(&line.map_err(failed)?, only) {
            Ok(Some((tenant, _))) if known.iter().all(|known| known.name != tenant) => {
                return Err(CommandError::UnknownTenant(tenant));
            }
            Ok(Some((tenant, key))) => drop(accepted.entry(tenant).or_default().insert(key)),
            Ok(None) => {}
            Err(line) => {
                let source = std::io::Error::other(format!("whose is {line:?}? Name one --tenant"));
                return Err(failed(source));
            }
        }
    }
    if accepted.is_empty() {
        let source = std::io::Error::other("it names no event; was ingest's RUST_LOG as the help says?");
        return Err(failed(source));
    }
    Ok(accepted)
}

/// Tenant and key of an event that a line says was accepted; the line if it is a key of an unknown tenant.
fn accepted_by(line: &str, only: Option<&str>) -> Result<Option<(String, String)>, String> {
    let line = line.trim();
    if line.is_empty() {
        return Ok(None);
    }
    if serde_json::from_str::<serde_json::Map<_, _>>(line).is_ok() {
        let accepted = serde_json::from_str::<Logged>(line).ok();
        let accepted =
            accepted.filter(|logged| matches!(logged.message.as_str(), "received" | "quarantined"));
        return Ok(accepted.map(|logged| (logged.tenant, logged.event_key)));
    }
    let tenant = only.ok_or_else(|| line.to_owned())?;
    Ok(Some((tenant.to_owned(), line.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_and_plain_keys_are_read() {
        let log = r#"{"level":"DEBUG","message":"received","tenant":"vip","event_key":"k","via":"broker"}"#;
        assert_eq!(accepted_by(log, None), Ok(Some(("vip".to_owned(), "k".to_owned()))));
        assert_eq!(accepted_by(&log.replace("received", "lost"), None), Ok(None));
        assert_eq!(accepted_by(r#"{"message":"connected"}"#, None), Ok(None));
        assert_eq!(accepted_by(" k \n", Some("faster")), Ok(Some(("faster".to_owned(), "k".to_owned()))));
        assert_eq!(accepted_by("k", None), Err("k".to_owned()));
        assert_eq!(accepted_by("", None), Ok(None));
    }
}
