//! The spool keeps what it has acknowledged, whatever happens to the process or the disk.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use penstock_tests::broker::{Broker, header};
use penstock_tests::database::Database;
use penstock_tests::http::{get, metric, post, post_received};
use penstock_tests::load::{Load, Report};
use penstock_tests::poll;
use penstock_tests::process::{Ingest, Process, Worker, run};
use penstock_tests::relay::Fault;
use penstock_tests::stack::Place;
use serde_json::{Value, json};

const NOWHERE: (&str, &str) = ("AMQP_URL", "amqp://127.0.0.1:1/%2f");

fn event(n: u64) -> String {
    json!({"event_id": n.to_string(), "event_type": "message.received", "contact": {"id": 1},
        "message": {"messageId": n, "message": {"text": "a text of usual length ".repeat(30)}}})
    .to_string()
}

async fn records(ingest: &Ingest) -> Option<f64> {
    metric(&ingest.admin, "ingest_spool_records", &[]).await
}

async fn writable(ingest: &Ingest) -> Option<f64> {
    metric(&ingest.admin, "ingest_spool_writable", &[]).await
}

#[tokio::test]
async fn an_ingest_killed_with_webhooks_in_its_spool_loses_none() {
    let place = Place::new().await;
    let spool = place.folder.join("the-spool");
    let spool = ("SPOOL_DIR", spool.to_str().unwrap());
    let mut report = Report::default();
    for _ in 0..3 {
        let ingest = Ingest::start_unconnected(&place, &[NOWHERE, spool]).await;
        let load = Load::start(&ingest.url, 8, Duration::from_millis(5));
        load.until_more(200).await;
        ingest.process.crash().await;
        report.extend(load.stop().await);
    }
    let (ingest, worker) = (Ingest::start(&place, &[spool]).await, Worker::start(&place, &[]).await);
    poll::until("the spool is empty", Some(0.0), async || records(&ingest).await).await;
    report.assert_stored_once(&Database::of(&place, "faster").await).await;
    worker.process.stop().await;
    place.remove().await;
}

#[tokio::test]
async fn a_spooled_webhook_keeps_bytes_and_time_of_receipt() {
    let place = Place::new().await;
    let (relay, url) = place.relay().await;
    relay.set(Fault::Cut);
    let ingest = Ingest::start_unconnected(&place, &[("AMQP_URL", &url)]).await;
    let body = "{ \"event_id\":\"spooled\", \"event_type\":\"call.ended\" }";
    post_received(&ingest.path("/webhook/vip/lifecycle"), body).await;
    assert_eq!(
        post(&ingest.path("/webhook/vip"), "[]").await.body,
        json!({"status": "quarantined", "reason": "not_an_object"})
    );
    let health = get(&ingest.path("/health")).await.body;
    assert_eq!((&health["spool"]["records"], &health["status"]), (&json!(2), &json!("degraded")));
    let shown = metric(&ingest.admin, "ingest_accepted_total", &[("tenant", "vip"), ("via", "spool")]).await;
    assert_eq!(shown, Some(1.0));

    relay.set(Fault::None);
    poll::until("the spool is empty", Some(0.0), async || records(&ingest).await).await;
    let broker = Broker::connect(&place.amqp_url).await;
    let message = broker.next_event("vip").await;
    let key = broker.queue_of("vip", body.as_bytes()).await.routing_key("vip", "call.ended");
    assert_eq!((message.data.as_slice(), message.routing_key.as_str()), (body.as_bytes(), key.as_str()));
    assert_eq!(message.properties.message_id().as_ref().unwrap().as_str(), "spooled");
    assert_eq!(header(&message.properties, "stream").as_deref(), Some("lifecycle"));
    let received: u64 = header(&message.properties, "received_at_ms").unwrap().parse().unwrap();
    assert_eq!(message.properties.timestamp(), &Some(received / 1000));
    let evidence = broker.next("quarantine.vip").await;
    assert_eq!(header(&evidence.properties, "reason").as_deref(), Some("not_an_object"));
    place.remove().await;
}

#[tokio::test]
async fn two_processes_never_share_a_spool() {
    let place = Place::new().await;
    let spool = place.folder.join("shared");
    let settings = [NOWHERE, ("SPOOL_DIR", spool.to_str().unwrap())];
    let first = Ingest::start_unconnected(&place, &settings).await;
    let mut second = Process::start(&place, "ingest", &settings);
    assert_eq!(second.ended().await.code(), Some(1));
    assert!(second.log_text().contains("another process uses the spool"), "{}", second.log_text());
    post_received(&first.path("/webhook/faster"), "{}").await;
    place.remove().await;
}

#[tokio::test]
async fn without_a_usable_spool_webhooks_go_through_rabbitmq_all_the_same() {
    let place = Place::new().await;
    // An earlier ingest has left something.
    let left = place.folder.join("left");
    let left_spool = left.join("spool");
    let earlier = [NOWHERE, ("SPOOL_DIR", left_spool.to_str().unwrap())];
    let earlier = Ingest::start_unconnected(&place, &earlier).await;
    post_received(&earlier.path("/webhook/vip"), "{}").await;
    earlier.process.crash().await;
    // Nobody, not even root, can make a folder within a file.
    let (file, spool) = (place.folder.join("file"), place.folder.join("file/spool"));
    std::fs::write(&file, "").unwrap();
    let ingest = Ingest::start(&place, &[("SPOOL_DIR", spool.to_str().unwrap())]).await;
    assert_eq!(writable(&ingest).await, Some(0.0));
    assert_eq!(get(&format!("{}/readyz", ingest.admin)).await.status, 200, "others may be no better off");
    assert!(ingest.process.log_text().contains("the spool can't be written"));
    post_received(&ingest.path("/webhook/faster"), "{}").await;

    std::fs::remove_file(&file).unwrap();
    std::fs::rename(&left, &file).unwrap();
    poll::until("it is usable", Some(1.0), async || writable(&ingest).await).await;
    let broker = Broker::connect(&place.amqp_url).await;
    poll::until("what was left is published", Some(1), async || broker.waiting("vip").await).await;

    // With no room at all, there is nothing but RabbitMQ either.
    let none = Ingest::start(&place, &[("SPOOL_MAX_BYTES", "0")]).await;
    assert_eq!(writable(&none).await, Some(0.0));
    post_received(&none.path("/webhook/faster"), "{}").await;
    place.remove().await;
}

#[tokio::test]
async fn a_damaged_spool_is_set_aside_and_ingest_starts() {
    let place = Place::new().await;
    let spool = place.folder.join("damaged");
    std::fs::create_dir(&spool).unwrap();
    std::fs::write(spool.join("spool.db"), [0xA5; 50_000]).unwrap();
    let ingest = Ingest::start_unconnected(&place, &[NOWHERE, ("SPOOL_DIR", spool.to_str().unwrap())]).await;
    post_received(&ingest.path("/webhook/faster"), "{}").await;
    assert_eq!(metric(&ingest.admin, "ingest_spool_corruptions", &[]).await, Some(1.0));
    assert!(ingest.process.log_text().contains("set the damaged spool aside"));
    let names =
        std::fs::read_dir(&spool).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    assert!(names.into_iter().any(|name| name.starts_with("corrupt-spool-2")));
    place.remove().await;
}

#[tokio::test]
async fn when_nothing_can_take_it_the_budget_of_refusals_is_spent_and_then_webhooks_are_lost_aloud() {
    let place = Place::new().await;
    let (relay, url) = place.relay().await;
    relay.set(Fault::Cut);
    let settings = [
        ("AMQP_URL", url.as_str()),
        ("SPOOL_MAX_BYTES", "1048576"),
        ("REFUSAL_BUDGET", "3"),
        ("REFUSAL_WINDOW", "1h"),
    ];
    let ingest = Ingest::start_unconnected(&place, &settings).await;
    let url = ingest.path("/webhook/faster/incoming");
    let large = json!({"event_id": "large", "text": "x".repeat(900_000)}).to_string();
    post_received(&url, large).await;
    let too_much = |n: u64| {
        json!({"event_id": format!("lost-{n}"), "event_type": "comment.created", "text": "x".repeat(200_000)})
            .to_string()
    };
    // What isn't worth saving is answered all the same.
    let unusable = post(&url, "[".repeat(200_000)).await;
    assert_eq!((unusable.status, &unusable.body["reason"]), (200, &json!("too_deep")));
    assert_eq!(
        metric(
            &ingest.admin,
            "ingest_evidence_dropped_total",
            &[("tenant", "faster"), ("reason", "too_deep")]
        )
        .await,
        Some(1.0)
    );
    for left in (0..3).rev() {
        let refused = post(&url, too_much(0)).await;
        assert_eq!((refused.status, refused.headers["retry-after"].as_str()), (503, "30"));
        assert_eq!(get(&ingest.path("/health")).await.body["refusals"], json!({"budget": 3, "left": left}));
    }
    for n in 1..=2 {
        let lost = post(&url, too_much(n)).await;
        assert_eq!((lost.status, lost.body), (200, json!({"status": "lost"})));
    }
    for (name, value) in
        [("ingest_refused_total", 3.0), ("ingest_lost_total", 2.0), ("ingest_refusal_budget_left", 0.0)]
    {
        assert_eq!(metric(&ingest.admin, name, &[]).await, Some(value), "{name}");
    }
    let log = ingest.process.log_lines();
    let lost: Vec<&Value> =
        log.iter().filter(|line| line["message"].as_str().unwrap_or("").starts_with("LOST")).collect();
    assert_eq!(lost.len(), 2);
    assert_eq!(
        (&lost[0]["level"], &lost[0]["event_key"], &lost[0]["event_type"]),
        (&json!("ERROR"), &json!("lost-1"), &json!("comment.created"))
    );
    assert_eq!(get(&ingest.path("/health")).await.body["status"], "unhealthy");
    assert_eq!(get(&format!("{}/readyz", ingest.admin)).await.status, 200, "refusals have a budget");

    relay.set(Fault::None);
    poll::until("the spool is empty", Some(0.0), async || records(&ingest).await).await;
    post_received(&url, too_much(9)).await;
    poll::until("it takes more", Some(1.0), async || writable(&ingest).await).await;
    place.remove().await;
}

#[tokio::test]
async fn a_full_disk_stops_the_spool_and_a_drain_still_works() {
    let place = Place::new().await;
    let (relay, url) = place.relay().await;
    relay.set(Fault::Cut);
    let disk = place.folder.join("disk");
    std::fs::create_dir(&disk).unwrap();
    // A file system of 24 MiB in a mount namespace of ingest's own, which ends with it.
    let script = format!("mount -t tmpfs -o size=24m tmpfs {disk} && exec \"$0\"", disk = disk.display());
    let ingest = Ingest::start_within(
        &place,
        &["unshare", "--map-root-user", "--mount", "sh", "-c", &script],
        &[
            ("AMQP_URL", &url),
            ("SPOOL_DIR", disk.join("spool").to_str().unwrap()),
            ("REFUSAL_BUDGET", "1000"),
        ],
    )
    .await;
    let inside = format!("/proc/{}/root{}", ingest.process.pid(), disk.display());
    let webhooks = ingest.path("/webhook/faster");
    for n in 0..50 {
        post_received(&webhooks, event(n)).await;
    }
    fill(Path::new(&inside).join("filler").as_path());
    poll::until("it shows", Some(0.0), async || writable(&ingest).await).await;
    assert_eq!(post(&webhooks, event(50)).await.status, 503);

    // Draining needs room too, and has it.
    relay.set(Fault::None);
    poll::until("the spool is empty", Some(0.0), async || records(&ingest).await).await;
    let worker = Worker::start(&place, &[]).await;
    let database = Database::of(&place, "faster").await;
    database.until_stored(50).await;
    post_received(&webhooks, event(51)).await;
    std::fs::remove_file(Path::new(&inside).join("filler")).unwrap();
    poll::until("it takes more again", Some(1.0), async || writable(&ingest).await).await;
    relay.set(Fault::Cut);
    post_received(&webhooks, event(52)).await;
    relay.set(Fault::None);
    database.until_stored(52).await;
    worker.process.stop().await;
    place.remove().await;
}

/// Fills a disk to the last byte.
fn fill(path: &Path) {
    use std::io::Write;
    let mut file = std::fs::File::create(path).unwrap();
    for size in [1 << 20, 1 << 12, 1] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
}

#[tokio::test]
async fn what_a_lost_replica_left_can_be_listed_exported_and_drained() {
    let place = Place::new().await;
    let spool = place.folder.join("left");
    let spool = ("SPOOL_DIR", spool.to_str().unwrap());
    let ingest = Ingest::start_unconnected(&place, &[NOWHERE, spool]).await;
    for n in 0..5 {
        post_received(&ingest.path("/webhook/faster"), event(n)).await;
    }
    ingest.process.crash().await;
    let command = |arguments: &[&str], amqp: (&str, &str)| {
        let arguments = [&["spool"], arguments].concat();
        let output = run("ingest", &place.folder, &arguments, &[spool, amqp]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8(output.stdout).unwrap()
    };
    let objects = |text: String| -> Vec<Value> {
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let listed = objects(command(&["list", "--json"], NOWHERE));
    assert_eq!((listed.len(), &listed[4]["key"], &listed[4]["tenant"]), (5, &json!("4"), &json!("faster")));
    let table = command(&["list"], NOWHERE);
    assert!(table.starts_with("RECEIVED AT  ") && table.lines().count() == 6, "{table}");
    let exported = objects(command(&["export"], NOWHERE));
    assert_eq!((&exported[3]["body"], &exported[3]["headers"]["stream"]), (&json!(event(3)), &json!("any")));
    let amqp = ("AMQP_URL", place.amqp_url.as_str());
    assert_eq!(command(&["drain"], amqp), "5 of 5 published, 0 left\n");
    assert_eq!(command(&["list"], NOWHERE), "none\n");
    assert_eq!(Broker::connect(&place.amqp_url).await.waiting("faster").await, Some(5));
    place.remove().await;
}

/// Executes SQL in a spool, as another process could.
fn execute(spool: &Path, sql: &str) {
    let script = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=30).executescript(sys.argv[2])";
    let done = Command::new("python3").args(["-c", script]).arg(spool.join("spool.db")).arg(sql).status();
    assert!(done.expect("python3 starts").success());
}

const NO_DELETES: &str =
    "CREATE TRIGGER stuck BEFORE DELETE ON records BEGIN SELECT RAISE(FAIL, 'stuck'); END";

#[tokio::test]
async fn records_that_cannot_be_deleted_are_published_once_and_hold_up_none_behind_them() {
    const RECORDS: u64 = 300;
    let place = Place::new().await;
    let folder = place.folder.join("the-spool");
    let spool = ("SPOOL_DIR", folder.to_str().unwrap());
    let ingest = Ingest::start_unconnected(&place, &[NOWHERE, spool]).await;
    for n in 0..RECORDS {
        post_received(&ingest.path("/webhook/faster"), event(n)).await;
    }
    ingest.process.crash().await;
    execute(&folder, NO_DELETES);
    let ingest = Ingest::start(&place, &[spool]).await;
    let confirmed = async || {
        metric(&ingest.admin, "ingest_publish_total", &[("outcome", "confirmed")]).await.unwrap_or_default()
    };
    poll::until("all are published", true, async || confirmed().await >= RECORDS as f64).await;
    assert_eq!((confirmed().await, records(&ingest).await), (RECORDS as f64, Some(RECORDS as f64)));
    let waiting = Broker::connect(&place.amqp_url).await.waiting("faster").await;
    assert_eq!(waiting.map(u64::from), Some(RECORDS));
    execute(&folder, "DROP TRIGGER stuck");
    poll::until("they are deleted", Some(0.0), async || records(&ingest).await).await;
    assert_eq!(confirmed().await, RECORDS as f64);
    ingest.process.stop().await;
    place.remove().await;
}

#[tokio::test]
async fn draining_ends_although_a_damaged_record_cannot_be_deleted() {
    let place = Place::new().await;
    let folder = place.folder.join("the-spool");
    let spool = ("SPOOL_DIR", folder.to_str().unwrap());
    let ingest = Ingest::start_unconnected(&place, &[NOWHERE, spool]).await;
    for n in 0..2 {
        post_received(&ingest.path("/webhook/faster"), event(n)).await;
    }
    ingest.process.crash().await;
    execute(&folder, &format!("UPDATE records SET body = 'changed' WHERE id = 1; {NO_DELETES}"));
    let amqp = ("AMQP_URL", place.amqp_url.as_str());
    let output = run("ingest", &place.folder, &["spool", "drain"], &[spool, amqp]);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "0 of 2 published, 2 left\n");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(Broker::connect(&place.amqp_url).await.waiting("faster").await, Some(1), "published once");
    let names = std::fs::read_dir(&folder).unwrap().map(|file| file.unwrap().file_name());
    let aside = names.filter(|name| name.to_string_lossy().starts_with("damaged-records-")).count();
    assert_eq!(aside, 1);
    place.remove().await;
}

#[tokio::test]
async fn a_folder_without_a_spool_is_not_taken_for_an_empty_one() {
    let place = Place::new().await;
    let folder = place.folder.join("nothing");
    let spool = ("SPOOL_DIR", folder.to_str().unwrap());
    for command in ["list", "export", "drain"] {
        let output = run("ingest", &place.folder, &["spool", command], &[spool, NOWHERE]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{command}: {said}");
        assert!(said.starts_with("ingest: SPOOL_DIR: ") && said.contains("has no spool"), "{said}");
        assert!(!folder.exists(), "{command} made one");
    }
    place.remove().await;
}

#[tokio::test]
async fn a_stopping_ingest_drains_no_longer_than_it_is_given() {
    let place = Place::new().await;
    let (relay, url) = place.relay().await;
    relay.set(Fault::Cut);
    let spool = place.folder.join("the-spool");
    let spool = ("SPOOL_DIR", spool.to_str().unwrap());
    let settings = [("AMQP_URL", url.as_str()), ("DRAIN_DELAY", "0s"), ("TERMINATION_GRACE", "26s"), spool];
    let ingest = Ingest::start_unconnected(&place, &settings).await;
    let load = Load::start(&ingest.url, 16, Duration::from_millis(1));
    poll::until("many are spooled", true, async || records(&ingest).await > Some(4000.0)).await;
    let report = load.stop().await;

    // 64 records in two tenths of a second: not all of them in the six seconds that are left.
    relay.set(Fault::Delay(Duration::from_millis(100)));
    let spooled = records(&ingest).await;
    poll::until("draining has begun", true, async || records(&ingest).await < spooled).await;
    ingest.process.stop().await;

    let left = run("ingest", &place.folder, &["spool", "list", "--json"], &[spool]);
    assert!(!left.stdout.is_empty(), "it had time for all, which shows nothing");
    let (ingest, worker) = (Ingest::start(&place, &[spool]).await, Worker::start(&place, &[]).await);
    poll::until("the spool is empty", Some(0.0), async || records(&ingest).await).await;
    report.assert_stored_once(&Database::of(&place, "faster").await).await;
    worker.process.stop().await;
    place.remove().await;
}

/// A command that becomes ingest, whose system calls are then traced, or interfered with.
fn traced<'a>(options: &[&'a str]) -> Vec<&'a str> {
    [&["strace", "-D", "-f", "-qq"], options].concat()
}

#[tokio::test]
async fn a_webhook_is_synced_to_the_disk_before_it_is_answered() {
    let place = Place::new().await;
    let trace = place.folder.join("trace");
    let options = ["-y", "-e", "trace=fsync,fdatasync", "-o", trace.to_str().unwrap()];
    let ingest = Ingest::start_within(&place, &traced(&options), &[NOWHERE]).await;
    let syncs = || {
        let text = std::fs::read_to_string(&trace).unwrap();
        text.lines().filter(|line| line.contains("sync(") && line.contains("spool.db-wal")).count()
    };
    post_received(&ingest.path("/webhook/faster"), event(0)).await;
    for n in 1..=20 {
        let before = syncs();
        post_received(&ingest.path("/webhook/faster"), event(n)).await;
        assert!(syncs() > before, "{n}");
    }
    place.remove().await;
}

#[tokio::test]
async fn webhooks_are_taken_in_while_a_large_spool_is_being_checked() {
    let place = Place::new().await;
    let spool = place.folder.join("the-spool");
    let settings = [("SPOOL_DIR", spool.to_str().unwrap())];
    let earlier = Ingest::start_unconnected(&place, &[NOWHERE, settings[0]]).await;
    for n in 0..12 {
        let large = json!({"event_id": n.to_string(), "text": "x".repeat(50_000)}).to_string();
        post_received(&earlier.path("/webhook/vip"), large).await;
    }
    earlier.process.crash().await;

    // Read as slowly as if it were ten thousand times as large.
    let [file, wal] = ["spool.db", "spool.db-wal"].map(|name| spool.join(name));
    let log = place.folder.join("trace");
    let slowly = ["-e", "inject=pread64:delay_enter=50000", "-o", log.to_str().unwrap()];
    let options = [&["-P", file.to_str().unwrap(), "-P", wal.to_str().unwrap()], &slowly[..]].concat();
    let ingest = Ingest::start_within(&place, &traced(&options), &settings).await;
    let writable = async || get(&ingest.path("/health")).await.body["spool"]["writable"].clone();
    assert_eq!(writable().await, json!(false));
    let connected = async || metric(&ingest.admin, "amqp_connection_up", &[]).await;
    poll::until("RabbitMQ is connected", Some(1.0), connected).await;
    post_received(&ingest.path("/webhook/faster"), "{}").await;
    assert_eq!(writable().await, json!(false), "it is still being checked");
    let via = [("tenant", "faster"), ("via", "broker")];
    assert_eq!(metric(&ingest.admin, "ingest_accepted_total", &via).await, Some(1.0));
    let mut second = Process::start(&place, "ingest", &settings);
    assert_eq!(second.ended().await.code(), Some(1), "the folder is taken at once");

    poll::until("it is checked", json!(true), writable).await;
    poll::until("the spool is empty", Some(0.0), async || records(&ingest).await).await;
    assert_eq!(Broker::connect(&place.amqp_url).await.waiting("vip").await, Some(12));
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spool_that_the_disk_cannot_read_is_set_aside_and_what_can_be_read_is_published() {
    const EVENTS: u64 = 200;
    let place = Place::new().await;
    let (spool, log) = (place.folder.join("the-spool"), place.folder.join("trace"));
    let settings = [("SPOOL_DIR", spool.to_str().unwrap())];
    let earlier = Ingest::start_unconnected(&place, &[NOWHERE, settings[0]]).await;
    for n in 0..EVENTS {
        let large = json!({"event_id": n.to_string(), "text": "x".repeat(60_000)}).to_string();
        post_received(&earlier.path("/webhook/faster"), large).await;
    }
    earlier.process.stop().await;

    // More than SQLite keeps in memory, so the drain has to read again what is read once when the spool is
    // checked.
    let file = spool.join("spool.db");
    let pages = std::fs::metadata(&file).unwrap().len() / 4096;
    let one_fails = format!("inject=pread64:error=EIO:when={}", pages + 500);
    let options = ["-P", file.to_str().unwrap(), "-e", one_fails.as_str(), "-o", log.to_str().unwrap()];
    let ingest = Ingest::start_within(&place, &traced(&options), &settings).await;
    let worker = Worker::start(&place, &[]).await;
    Database::of(&place, "faster").await.until_stored(EVENTS).await;
    assert_eq!(metric(&ingest.admin, "ingest_spool_corruptions", &[]).await, Some(1.0));
    let copied = async || metric(&ingest.admin, "ingest_spool_left_to_copy", &[]).await;
    poll::until("nothing is left to be copied", Some(0.0), copied).await;
    poll::until("the spool is empty", Some(0.0), async || records(&ingest).await).await;
    let log = ingest.process.log_text();
    let said = |what: &str| log.find(what).unwrap_or_else(|| panic!("{what}: {log}"));
    assert!(said("setting its file aside") < said("copied what can be read"), "it is said before");
    worker.process.stop().await;
    place.remove().await;
}
