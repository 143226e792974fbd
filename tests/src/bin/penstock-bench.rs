//! How fast is Penstock on this machine? Run by `deploy/local/bench`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use penstock_tests::database::Database;
use penstock_tests::http::{client, metric};
use penstock_tests::process::{Ingest, Process, Worker};
use penstock_tests::stack::Place;
use reqwest::Client;
use serde_json::json;
use tokio::task::JoinSet;

/// Clients that post one event after the other.
const CLIENTS: usize = 64;
/// How long the clients post.
const LOAD: Duration = Duration::from_secs(10);
/// The same while RabbitMQ is away.
const SPOOL_LOAD: Duration = Duration::from_secs(5);
/// Events posted one at a time, to see how long a single one takes.
const SINGLE_EVENTS: usize = 300;
/// Contacts that the events are about.
const CONTACTS: u64 = 10_000;

static NEXT: AtomicU64 = AtomicU64::new(0);

#[tokio::main]
async fn main() {
    let place = Place::new().await;
    with_everything(&place).await;
    without_rabbitmq(&place).await;
    place.remove().await;
}

async fn with_everything(place: &Place) {
    let ingest = Ingest::start(place, &[("RUST_LOG", "warn,ingest=info")]).await;
    let url = Arc::new(ingest.path("/webhook/faster/incoming"));
    let database = Database::of(place, "faster").await;

    println!("accepting alone, {CLIENTS} clients, {LOAD:?} ...");
    let (accepted, replies) = load(&url, CLIENTS, LOAD).await;
    report("accepted", accepted, LOAD);
    percentiles("reply", replies);

    println!("storing the backlog, one worker ...");
    let worker = Worker::start(place, &[("RUST_LOG", "warn,worker=info")]).await;
    let started = Instant::now();
    until_stored(&database, accepted).await;
    report("stored", accepted, started.elapsed());

    println!("one event at a time ...");
    let (mut replies, mut stored, http) = (Vec::new(), Vec::new(), client());
    for _ in 0..SINGLE_EVENTS {
        let (id, body) = event();
        let sent = Instant::now();
        post(&http, &url, body).await;
        replies.push(sent.elapsed());
        let replied = Instant::now();
        while database.find("webhook_events", &id).await.is_none() {}
        stored.push(replied.elapsed());
    }
    percentiles("reply", replies);
    percentiles("from 200 to MongoDB", stored);

    println!("everything at once, {CLIENTS} clients, {LOAD:?} ...");
    let before = database.count("webhook_events").await;
    let started = Instant::now();
    let (accepted, replies) = load(&url, CLIENTS, LOAD).await;
    report("accepted", accepted, LOAD);
    percentiles("reply", replies);
    until_stored(&database, before + accepted).await;
    report("stored", accepted, started.elapsed());
    println!("  peak memory: ingest {}, worker {}", memory(&ingest.process), memory(&worker.process));
    worker.process.stop().await;
    ingest.process.stop().await;
}

async fn without_rabbitmq(place: &Place) {
    for clients in [1, 16, 64] {
        println!("RabbitMQ away, {clients} clients, {SPOOL_LOAD:?} ...");
        let ingest = Ingest::start_unconnected(place, &[("AMQP_URL", "amqp://127.0.0.1:1/%2f")]).await;
        let url = Arc::new(ingest.path("/webhook/faster/incoming"));
        let (accepted, replies) = load(&url, clients, SPOOL_LOAD).await;
        report("spooled", accepted, SPOOL_LOAD);
        percentiles("reply", replies);
        let of_commits = async |what: &str| {
            let name = format!("ingest_spool_commit_duration_seconds_{what}");
            metric(&ingest.admin, &name, &[]).await.unwrap_or_default()
        };
        let (sum, count) = (of_commits("sum").await, of_commits("count").await);
        #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
        let group = accepted as f64 / count;
        println!(
            "  commits: {:.2} ms each, of {group:.1} records; peak memory {}",
            sum / count * 1e3,
            memory(&ingest.process)
        );
        ingest.process.crash().await;
    }
}

fn memory(process: &Process) -> String {
    format!("{} MiB", process.peak_memory() >> 20)
}

fn event() -> (String, String) {
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let id = format!("bench-{n}");
    let body = json!({
        "event_id": id, "event_type": "message.received",
        "contact": {"id": n % CONTACTS, "firstName": "Amina", "lastName": "Example", "phone": format!("+1555{:07}", n % CONTACTS),
            "email": "amina@example.com", "language": "fr", "profilePic": null, "countryCode": "US", "status": "open",
            "assignee": {"id": 7, "firstName": "Marek", "email": "marek@example.com"}, "created_at": 1_791_792_891, "tags": ["a", "b"]},
        "message": {"messageId": 1_791_792_900_000_000 + n, "channelMessageId": format!("wamid.{n:024x}"), "contactId": n % CONTACTS,
            "channelId": 55310, "traffic": "incoming", "timestamp": 1_791_792_900_037_u64,
            "message": {"type": "text", "text": "Hello, is the oak table still there? ".repeat(8)}},
        "channel": {"id": 55310, "name": "WhatsApp", "source": "whatsapp_cloud", "meta": "{\"phone\":\"+15550100900\"}", "created_at": 1_738_576_800},
        "sender": {"type": "contact", "source": "contact"},
    });
    (id, body.to_string())
}

async fn post(client: &Client, url: &str, body: String) {
    let answer = client.post(url).body(body).send().await.expect("an answer");
    let (status, text) = (answer.status(), answer.text().await.unwrap_or_default());
    assert!(status == 200 && text.contains("received"), "{status} {text}");
}

/// Number of events answered 200, and how long each reply took.
async fn load(url: &Arc<String>, number: usize, time: Duration) -> (u64, Vec<Duration>) {
    let (mut clients, until, http) = (JoinSet::new(), Instant::now() + time, client());
    for _ in 0..number {
        let (url, http) = (url.clone(), http.clone());
        clients.spawn(async move {
            let mut replies = Vec::new();
            while Instant::now() < until {
                let (_, body) = event();
                let sent = Instant::now();
                post(&http, &url, body).await;
                replies.push(sent.elapsed());
            }
            replies
        });
    }
    let replies: Vec<Duration> = clients.join_all().await.into_iter().flatten().collect();
    (replies.len() as u64, replies)
}

async fn until_stored(database: &Database, events: u64) {
    while database
        .0
        .collection::<mongodb::bson::Document>("webhook_events")
        .estimated_document_count()
        .await
        .unwrap_or(0)
        < events
    {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn report(what: &str, events: u64, after: Duration) {
    println!("  {what}: {events} events, {:.0}/s", events as f64 / after.as_secs_f64());
}

fn percentiles(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |per_mille: usize| times[(times.len() - 1) * per_mille / 1000];
    println!("  {what}: median {:.1?}, p99 {:.1?}, slowest {:.1?}", at(500), at(990), at(1000));
}
