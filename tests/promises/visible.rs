//! Operators see the state of everything, and no personal data.

use std::time::Duration;

use lapin::types::FieldTable;
use penstock_tests::broker::Broker;
use penstock_tests::database::Database;
use penstock_tests::http::{get, metric, metrics, post_received};
use penstock_tests::poll;
use penstock_tests::process::{Ingest, Process, Worker, run};
use penstock_tests::relay::Fault;
use penstock_tests::stack::Place;
use serde_json::{Value, json};

#[tokio::test]
async fn every_series_exists_from_the_start() {
    let place = Place::new().await;
    let (ingest, worker) = (Ingest::start(&place, &[]).await, Worker::start(&place, &[]).await);
    let writable = async || metric(&ingest.admin, "ingest_spool_writable", &[]).await;
    poll::until("the spool is open", Some(1.0), writable).await;
    let ingest_metrics = metrics(&ingest.admin).await;
    for series in [
        r#"http_server_request_duration_seconds_bucket{http_response_status_code="200",http_route="/webhook/{tenant}",le="0.0005"} 0"#,
        r#"http_server_request_duration_seconds_count{http_response_status_code="503",http_route="/webhook/{tenant}/{stream}"} 0"#,
        r#"ingest_accepted_total{tenant="faster",via="broker"} 0"#,
        r#"ingest_accepted_total{tenant="vip",via="spool"} 0"#,
        r#"ingest_quarantined_total{reason="too_deep",tenant="vip"} 0"#,
        r#"ingest_quarantined_total{reason="invalid_signature",tenant="faster"} 0"#,
        "ingest_refused_total 0",
        "ingest_lost_total 0",
        "ingest_refusal_budget_left 10",
        r#"ingest_publish_total{outcome="confirmed"} 0"#,
        r#"ingest_publish_total{outcome="timed_out"} 0"#,
        "ingest_publish_duration_seconds_count 0",
        "ingest_spool_records 0",
        "ingest_spool_bytes 0",
        "ingest_spool_oldest_age_seconds 0",
        "ingest_spool_commit_duration_seconds_count 0",
        "ingest_spool_waiting 0",
        "ingest_publishes_in_flight 0",
        "amqp_connection_up 1",
        "amqp_connection_blocked 0",
        "process_resident_memory_bytes ",
    ] {
        assert!(ingest_metrics.lines().any(|line| line.starts_with(series)), "{series}\n{ingest_metrics}");
    }
    poll::until("RabbitMQ is connected", Some(1.0), async || {
        metric(&worker.admin, "amqp_connection_up", &[]).await
    })
    .await;
    let worker_metrics = metrics(&worker.admin).await;
    for series in [
        r#"worker_events_total{event_type="message.received",outcome="stored",tenant="faster"} 0"#,
        r#"worker_events_total{event_type="message.sent",outcome="backfilled",tenant="vip"} 0"#,
        r#"worker_events_total{event_type="unknown",outcome="dead",tenant="vip"} 0"#,
        r#"worker_events_total{event_type="call.ended",outcome="duplicate",tenant="vip"} 0"#,
        "worker_batch_size_count 0",
        "worker_commit_duration_seconds_count 0",
        r#"worker_event_age_seconds_count{tenant="vip"} 0"#,
        r#"worker_breaker_state{state="closed",tenant="faster"} 1"#,
        r#"worker_breaker_state{state="half_open",tenant="faster"} 0"#,
        r#"worker_breaker_state{state="open",tenant="vip"} 0"#,
        "worker_retries_total 0",
        r#"worker_conflicts_total{tenant="faster"} 0"#,
        r#"worker_oldest_in_hand_seconds{tenant="vip"} 0"#,
        r#"worker_oldest_waiting_seconds{tenant="vip"} 0"#,
        r#"worker_refusing_queues{tenant="faster"} 0"#,
        r#"worker_tenant_up{tenant="vip"} "#,
        r#"worker_abandoned_transactions_total{tenant="vip"} 0"#,
        r#"worker_dead_lettered_total{reason="stuck",tenant="faster"} 0"#,
        r#"worker_dead_lettered_total{reason="refused_by_mongodb",tenant="vip"} 0"#,
        "worker_in_flight 0",
        "worker_in_flight_bytes 0",
        "amqp_connection_blocked 0",
        "process_resident_memory_bytes ",
    ] {
        assert!(worker_metrics.lines().any(|line| line.starts_with(series)), "{series}\n{worker_metrics}");
    }
    place.remove().await;
}

#[tokio::test]
async fn events_are_counted_where_they_pass() {
    let place = Place::new().await;
    let (ingest, worker) = (Ingest::start(&place, &[]).await, Worker::start(&place, &[]).await);
    let body = json!({"event_type": "conversation.opened", "contact": {"id": 1}}).to_string();
    for _ in 0..3 {
        post_received(&ingest.path("/webhook/vip"), body.clone()).await;
    }
    let counted = async |outcome| {
        let labels = [("tenant", "vip"), ("event_type", "conversation.opened"), ("outcome", outcome)];
        metric(&worker.admin, "worker_events_total", &labels).await
    };
    poll::until("duplicates", Some(2.0), async || counted("duplicate").await).await;
    assert_eq!(counted("stored").await, Some(1.0));
    assert_eq!(
        metric(&worker.admin, "worker_event_age_seconds_count", &[("tenant", "vip")]).await,
        Some(1.0)
    );
    let accepted =
        metric(&ingest.admin, "ingest_accepted_total", &[("tenant", "vip"), ("via", "broker")]).await;
    assert_eq!(accepted, Some(3.0));
    let replies = [("http_route", "/webhook/{tenant}"), ("http_response_status_code", "200")];
    let name = "http_server_request_duration_seconds_count";
    assert_eq!(metric(&ingest.admin, name, &replies).await, Some(3.0));
    place.remove().await;
}

#[tokio::test]
async fn health_shows_the_whole_pipeline() {
    let place = Place::new().await;
    let ingest = Ingest::start(&place, &[]).await;
    let health = async || get(&ingest.path("/health")).await.body;
    poll::until("it hears itself alone", json!(0), async || health().await["queue"]["workers"].clone()).await;
    let alone = health().await;
    assert_eq!(alone["status"], "degraded");
    assert_eq!(alone["mongodb"], json!({"faster": "unknown", "vip": "unknown"}));
    post_received(&ingest.path("/webhook/faster"), "{}").await;
    poll::until("the waiting event shows", json!(1), async || health().await["queue"]["size"].clone()).await;

    let workers =
        [Worker::start(&place, &[]).await, Worker::start(&place, &[("WEBHOOK_WORKERS", "6")]).await];
    // Six batches can be written at the same time, since the larger number counts.
    poll::until("both workers show", json!([2, 6]), async || {
        let queue = health().await["queue"].clone();
        json!([queue["worker_processes"], queue["workers"]])
    })
    .await;
    let shown = json!({"size": 0, "dead": 0, "quarantined": 0, "partitions": 6, "worker_processes": 2, "surplus_worker_processes": 0});
    poll::until("per tenant", shown, async || health().await["queue"]["tenants"]["vip"].clone()).await;
    let mut together = Value::Null;
    poll::until("all is well", json!("healthy"), async || {
        together = health().await;
        together["status"].clone()
    })
    .await;
    assert_eq!(together["mongodb"], json!({"faster": "connected", "vip": "connected"}));
    assert_eq!(together["circuit_breaker"]["status"], "CLOSED");
    let breaker = &together["circuit_breaker"]["tenants"]["vip"];
    assert_eq!(
        (&breaker["status"], &breaker["failures"], &breaker["threshold"]),
        (&json!("CLOSED"), &json!(0), &json!(10))
    );
    // The bridge's dashboards divide the two, and draw the others.
    assert!(together["queue"]["max_size"].as_u64() > Some(1000), "{together}");
    for number in ["half_open_successes", "time_since_last_failure"] {
        assert!(together["circuit_breaker"][number].is_u64() && breaker[number].is_u64(), "{together}");
    }
    assert!(together["endpoints"].is_array());
    assert_eq!(together["broker"]["connected"], true);
    assert_eq!(
        together["spool"],
        json!({"records": 0, "bytes": 0, "oldest_age_seconds": 0, "writable": true, "left_to_copy": 0})
    );
    poll::until("nothing waits", json!(0), async || health().await["queue"]["size"].clone()).await;
    for worker in workers {
        // Without HOSTNAME, a process is named by what it is.
        let name = get(&format!("{}/health", worker.admin)).await.body["worker"].clone();
        assert!(name.as_str().is_some_and(|name| name.starts_with("worker-")), "{name}");
        worker.process.stop().await;
    }
    poll::until("they have left", json!(0), async || health().await["queue"]["workers"].clone()).await;
    assert_eq!(get(&format!("{}/health", ingest.admin)).await.body["status"], "degraded");
    place.remove().await;
}

/// A frozen server is noticed within five seconds, by its silence; by a deadline only after fifteen.
const UNKNOWN_WITHIN: Duration = Duration::from_secs(8);

#[tokio::test]
async fn what_a_frozen_rabbitmq_doesnt_tell_is_unknown() {
    let place = Place::new().await;
    let (relay, url) = place.relay().await;
    let worker = Worker::start(&place, &[]).await;
    let ingest = Ingest::start(&place, &[("AMQP_URL", &url)]).await;
    let broker = Broker::connect(&place.amqp_url).await;
    broker.publish("webhooks.aside", "dead.vip", FieldTable::default(), b"{}").await;
    broker.publish("webhooks.aside", "quarantine.vip", FieldTable::default(), b"{}").await;
    let queue = async || {
        let queue = get(&ingest.path("/health")).await.body["queue"].clone();
        json!([
            queue["size"],
            queue["worker_processes"],
            queue["dead"],
            queue["tenants"]["vip"]["quarantined"]
        ])
    };
    poll::until("all is known", json!([0, 1, 1, 1]), queue).await;
    relay.set(Fault::Stall);
    poll::until_within("nothing is known", json!([null, null, null, null]), UNKNOWN_WITHIN, queue).await;
    relay.set(Fault::None);
    poll::until("all is known again", json!([0, 1, 1, 1]), queue).await;
    worker.process.stop().await;
    place.remove().await;
}

#[tokio::test]
async fn a_frozen_mongodb_of_an_idle_tenant_is_unknown() {
    let place = Place::new().await;
    let (relay, uri) = place.mongo_relay().await;
    let settings = [("MONGO_URI", uri.as_str()), ("MONGO_TIMEOUT", "30s")];
    let (ingest, worker) = (Ingest::start(&place, &[]).await, Worker::start(&place, &settings).await);
    let mongodb = async |url: String| get(&url).await.body["mongodb"].clone();
    let urls = [ingest.path("/health"), format!("{}/health", worker.admin)];
    for url in &urls {
        let both = json!({"faster": "connected", "vip": "connected"});
        poll::until("both are connected", both, async || mongodb(url.clone()).await).await;
    }
    relay.set(Fault::Stall);
    for url in &urls {
        let one = json!({"faster": "unknown", "vip": "connected"});
        poll::until_within("one is silent", one, UNKNOWN_WITHIN, async || mongodb(url.clone()).await).await;
    }
    relay.set(Fault::None);
    place.remove().await;
}

#[tokio::test]
async fn probes_tell_alive_from_ready() {
    let place = Place::new().await;
    let nowhere = [("AMQP_URL", "amqp://127.0.0.1:1/%2f")];
    let ingest = Ingest::start_unconnected(&place, &nowhere).await;
    let worker = Worker::start_unconnected(&place, &nowhere).await;
    for (admin, ready) in [(&ingest.admin, 200), (&worker.admin, 503)] {
        assert_eq!(get(&format!("{admin}/livez")).await.status, 200);
        assert_eq!(get(&format!("{admin}/readyz")).await.status, ready);
    }
    place.remove().await;
}

#[tokio::test]
async fn logs_are_json_and_hold_no_body_phone_or_password() {
    let place = Place::new().await;
    let verbose = [("TEST_MODE", "true"), ("RUST_LOG", "trace")];
    let (ingest, worker) = (Ingest::start(&place, &verbose).await, Worker::start(&place, &verbose).await);
    let body = json!({"event_id": "logged-1", "event_type": "message.received", "text": "private words",
        "contact": {"id": 7, "phone": "+15550107777", "email": "someone@example.com"}, "message": {"messageId": 7}});
    post_received(&ingest.path("/webhook/faster"), body.to_string()).await;
    let unusable = "{\"text\":\"private words\", +15550107777";
    penstock_tests::http::post(&ingest.path("/webhook/faster"), unusable).await;
    let database = Database::of(&place, "faster").await;
    poll::until("it is stored", 1, async || database.count("test_webhook_events").await).await;
    let is_quiet = |process: &Process| {
        let text = process.log_text();
        for secret in ["private words", "15550107777", "someone@example.com", "guest:guest"] {
            assert!(!text.contains(secret), "{secret} in the log of {}", process.binary);
        }
        // The last line may be half written.
        let whole = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
        for line in whole.lines().filter(|line| !line.is_empty()) {
            assert!(serde_json::from_str::<Value>(line).is_ok(), "not JSON: {line}");
        }
    };
    let trace_of = |process: &Process, message: &str| {
        let lines = process.log_lines();
        let line = lines.iter().find(|line| line["message"] == message && line["event_key"] == "logged-1");
        line.map(|line| line["trace_id"].clone())
    };
    poll::until("it is settled", true, async || trace_of(&worker.process, "settled").is_some()).await;
    assert_eq!(trace_of(&ingest.process, "received"), trace_of(&worker.process, "settled"));
    assert_eq!(trace_of(&worker.process, "settled").unwrap().as_str().map(str::len), Some(32));
    is_quiet(&ingest.process);
    is_quiet(&worker.process);
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_are_shown_nowhere() {
    let place = Place::new().await;
    let amqp = place.amqp_url.replace("guest:guest@", "guest:secret-1@");
    let settings = [
        ("AMQP_URL", amqp.as_str()),
        ("MONGO_URI", "mongodb://user:secret-2@127.0.0.1:1/d?replicaSet=rs0"),
        ("VIP_MONGO_URI", "mongodb://user:secret-3@127.0.0.1:1/d2"),
        ("SIGNING_KEYS", "secret-4"),
        ("RUST_LOG", "trace"),
        ("MONGO_TIMEOUT", "300ms"),
    ];
    let ingest = Ingest::start_unconnected(&place, &settings).await;
    let worker = Worker::start_unconnected(&place, &settings).await;
    for (process, message) in [(&ingest.process, "can't use RabbitMQ"), (&worker.process, "MongoDB fails")] {
        poll::until("it fails", true, async || process.log_text().contains(message)).await;
    }
    let mut shown = Vec::new();
    for (process, admin) in [(&ingest.process, &ingest.admin), (&worker.process, &worker.admin)] {
        shown.push(process.log_text());
        shown.push(penstock_tests::http::metrics(admin).await);
        shown.push(get(&format!("{admin}/health")).await.body.to_string());
        shown.push(get(&format!("{admin}/readyz")).await.body.to_string());
        shown.push(std::fs::read_to_string(format!("/proc/{}/cmdline", process.pid())).unwrap());
        let check =
            tokio::task::block_in_place(|| run(&process.binary, &place.folder, &["--check"], &settings));
        assert!(check.status.success());
        shown.push(String::from_utf8([check.stdout, check.stderr].concat()).unwrap());
    }
    for text in shown {
        assert!(!text.contains("secret-"), "{text}");
    }
    place.remove().await;
}

#[tokio::test]
async fn a_queue_of_the_same_name_with_other_arguments_is_named_and_can_be_replaced() {
    let place = Place::new().await;
    Broker::connect(&place.amqp_url).await.declare_classic("webhooks.vip.0").await;
    let ingest = Ingest::start_unconnected(&place, &[]).await;
    let log = async || ingest.process.log_text();
    let named = async || {
        log().await.contains("can't declare webhooks.vip.0") && log().await.contains("PRECONDITION_FAILED")
    };
    poll::until("the log says so", true, named).await;
    post_received(&ingest.path("/webhook/vip"), "{}").await;
    place.manage(reqwest::Method::DELETE, &format!("queues/{}/webhooks.vip.0", place.name), None).await;
    poll::until("RabbitMQ is used", Some(1.0), async || {
        metric(&ingest.admin, "amqp_connection_up", &[]).await
    })
    .await;
    place.remove().await;
}
