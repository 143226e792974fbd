//! Traces go to an OpenTelemetry collector if one is named, and nothing else depends on it.

use penstock_tests::broker;
use penstock_tests::collector::Collector;
use penstock_tests::console::Console;
use penstock_tests::database::Database;
use penstock_tests::http::{metric, post_received, send};
use penstock_tests::poll;
use penstock_tests::process::{Ingest, Worker};
use penstock_tests::stack::Place;
use reqwest::Method;
use serde_json::json;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

#[tokio::test(flavor = "multi_thread")]
async fn both_binaries_tell_a_collector_of_their_part_in_the_callers_trace() {
    let (place, collector) = (Place::new().await, Collector::start());
    let settings = [("OTEL_EXPORTER_OTLP_ENDPOINT", &*collector.url), ("OTEL_BSP_SCHEDULE_DELAY", "100")];
    let (ingest, worker) = (Ingest::start(&place, &settings).await, Worker::start(&place, &settings).await);
    let traceparent = format!("00-{TRACE}-{CALLER}-01");
    let body = json!({"event_id": "traced", "event_type": "contact.updated", "contact": {"id": 1, "phone": "+15550100"}});
    let headers = [("traceparent", traceparent.as_str())];
    let answer = send(Method::POST, &ingest.path("/webhook/faster"), &headers, body.to_string()).await;
    assert_eq!(answer.status, 200);

    poll::until("two spans", 2, async || collector.of_trace(TRACE).len()).await;
    let spans = collector.of_trace(TRACE);
    let of = |service: &str| spans.iter().find(|span| span.service == service).expect("its span");
    let (received, stored) = (of("penstock-ingest"), of("penstock-worker"));
    assert_eq!((&*received.name, &*received.parent), ("POST /webhook/{tenant}", CALLER));
    let queue = broker::queue_of("faster", body.to_string().as_bytes(), 4);
    let name = format!("process {}", queue.name("faster"));
    assert_eq!((&stored.name, &stored.parent), (&name, &received.id));
    for (span, expected) in [
        (received, "http.response.status_code=200"),
        (received, "messaging.message.id=traced"),
        (stored, "messaging.message.id=traced"),
        (stored, "penstock.tenant=faster"),
        (stored, "penstock.outcome=stored"),
    ] {
        assert!(span.attributes.iter().any(|attribute| attribute == expected), "{span:?}");
        assert!(span.took > 0, "{span:?}");
    }
    assert!(!format!("{spans:?}").contains("15550100"), "{spans:?}");
    let database = Database::of(&place, "faster").await;
    let entry = database.get("webhook_events", "traced").await;
    assert_eq!(entry.get_str("trace_id").unwrap(), TRACE);
    let console = Console::start(&place, &[]).await;
    assert!(console.log_in("Ada").await.open("/t/faster/event?key=traced").await.html.contains(TRACE));

    // What a caller doesn't record can't be found by its id.
    let unrecorded = traceparent.replace("-01", "-00");
    let body = json!({"event_id": "unrecorded"}).to_string();
    send(Method::POST, &ingest.path("/webhook/faster"), &[("traceparent", &unrecorded)], body).await;
    database.until_stored(2).await;
    assert!(!database.get("webhook_events", "unrecorded").await.contains_key("trace_id"));

    // The rest is sent when a process ends.
    post_received(&ingest.path("/webhook/faster"), json!({"event_id": "last"}).to_string()).await;
    ingest.process.stop().await;
    worker.process.stop().await;
    place.remove().await;
}

#[tokio::test]
async fn webhooks_do_not_depend_on_the_collector() {
    let place = Place::new().await;
    let settings =
        [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1"), ("OTEL_BSP_SCHEDULE_DELAY", "100")];
    let (ingest, worker) = (Ingest::start(&place, &settings).await, Worker::start(&place, &settings).await);
    for n in 0..20 {
        post_received(&ingest.path("/webhook/faster"), json!({"event_id": format!("e{n}")}).to_string())
            .await;
    }
    let database = Database::of(&place, "faster").await;
    poll::until("all stored", 20, async || database.count("webhook_events").await).await;
    for (binary, admin) in [("ingest", &ingest.admin), ("worker", &worker.admin)] {
        // A delivery that comes back has another span.
        let failed =
            async || metric(admin, "trace_spans_total", &[("outcome", "failed")]).await >= Some(20.0);
        poll::until(&format!("spans of {binary} dropped"), true, failed).await;
    }
    for process in [ingest.process, worker.process] {
        let told = process.log_text().matches("can't export traces").count();
        assert_eq!(told, 1, "{}", process.log_text());
        process.stop().await;
    }
    place.remove().await;
}

#[tokio::test]
async fn without_a_collector_nothing_is_recorded() {
    let place = Place::new().await;
    let ingest = Ingest::start(&place, &[]).await;
    post_received(&ingest.path("/webhook/faster"), r#"{"event_id":"a"}"#).await;
    let recorded = metric(&ingest.admin, "trace_spans_total", &[("outcome", "recorded")]).await;
    assert_eq!(recorded, Some(0.0));
    ingest.process.stop().await;
    place.remove().await;
}
