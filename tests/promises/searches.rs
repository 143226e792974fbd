//! What isn't stored is searched for by the same fields as what is: on the pages, and by commands.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use penstock_tests::broker::Broker;
use penstock_tests::console::{Console, encoded};
use penstock_tests::process::{Worker, operate_well};
use penstock_tests::stack::Place;
use reqwest::Method;
use serde_json::json;

/// 2026-10-14T17:46:40Z
const SET_ASIDE_AT_MS: i64 = 1_792_000_000_000;

/// Puts a message into a queue of set-aside ones, so many hours after the first.
async fn set_aside(broker: &Broker, queue: &str, key: &str, hours: i64, body: &str) {
    let mut headers = FieldTable::default();
    headers.insert("reason".into(), AMQPValue::LongString("stuck".into()));
    headers.insert("failed_at_ms".into(), AMQPValue::LongLongInt(SET_ASIDE_AT_MS + hours * 3_600_000));
    let properties = BasicProperties::default().with_message_id(key.into()).with_headers(headers);
    broker.publish_as("", queue, properties.with_type("message.sent".into()), body.as_bytes()).await;
}

fn message(contact: u64, id: &str) -> String {
    json!({"event_type": "message.sent", "contact": {"id": contact, "phone": format!("+1555010{contact}")},
        "message": {"messageId": id, "message": {"type": "text", "text": "hello"}}})
    .to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_set_aside_is_found_by_message_contact_and_time() {
    let place = Place::new().await;
    let worker = Worker::start(&place, &[]).await;
    let broker = Broker::connect(&place.amqp_url).await;
    for queue in ["dead.faster", "quarantine.faster"] {
        set_aside(&broker, queue, "a", 0, &message(4711, "m1")).await;
        set_aside(&broker, queue, "b", 1, &message(4712, "m2")).await;
        set_aside(&broker, queue, "c", 2, "no event").await;
    }
    let console = Console::start(&place, &[]).await;
    let ada = console.log_in("Ada").await;
    for (fields, expected) in [
        (&[("message", "m1")][..], &["a"][..]),
        (&[("contact", "4712")], &["b"]),
        (&[("contact", "+1 555 010 4711")], &["a"]),
        (&[("contact", "4711"), ("message", "m2")], &[]),
        (&[("from", "2026-10-14T18:00")], &["b", "c"]),
        (&[("to", "2026-10-14T18:00"), ("type", "message.sent")], &["a"]),
        (&[("key", "c")], &["c"]),
    ] {
        for queue in ["dead", "quarantine"] {
            let search = [fields, &[("outcome", queue)]].concat();
            let there = ada.get(&format!("/t/faster/events?{}", encoded(&search))).await;
            assert_eq!(there.status, 303);
            let found = ada.open(there.location()).await;
            let count = format!("{} of 3 messages", expected.len());
            assert!(found.html.contains(&count), "{fields:?}: {}", found.html);
            for key in expected {
                assert!(found.html.contains(&format!(">{key}</a>")), "{fields:?}: {}", found.html);
            }
        }
    }
    let question =
        ada.open("/t/faster/dead/confirm?action=drop&scope=all&contact=4711&to=2026-10-14T18%3A00").await;
    assert!(question.html.contains("Drop 1 message of faster?"), "{}", question.html);
    assert_eq!(question.inputs("id").len(), 1);
    for wrong in ["from=yesterday", "newer=yesterday"] {
        let page = ada.open(&format!("/t/faster/dead?{wrong}")).await.html;
        assert!(page.contains("yesterday&#34; is no"), "{page}");
    }

    let list =
        |filter: &[&str]| operate_well(&place, &[&["dead", "list", "--json"], filter].concat()).json().len();
    assert_eq!(
        (list(&["--contact", "4711"]), list(&["--message", "m2"]), list(&["--message", "m3"])),
        (1, 1, 0)
    );
    assert_eq!(list(&["--since", "2026-10-14T18:00Z", "--until", "2026-10-14T19:00Z"]), 1);
    let dropped = operate_well(&place, &["dead", "drop", "--contact", "+15550104712"]).out;
    assert!(dropped.contains("faster: 1 of 3 dropped"), "{dropped}");
    worker.process.stop().await;
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_says_how_much_of_a_long_queue_it_has_looked_at() {
    let place = Place::new().await;
    let worker = Worker::start(&place, &[]).await;
    let broker = Broker::connect(&place.amqp_url).await;
    for n in 0..1010 {
        set_aside(&broker, "dead.faster", &n.to_string(), 0, "{}").await;
    }
    let console = Console::start(&place, &[]).await;
    let ada = console.log_in("Ada").await;
    let is_told =
        |page: &str| page.contains("sees the oldest ") && page.contains(" of 1\u{202f}010 messages");
    let list = ada.open("/t/faster/dead?key=1005").await.html;
    assert!(list.contains("<p>0 messages.") && is_told(&list), "{list}");
    let absent = ada.get("/t/faster/event?key=1005").await.html;
    assert!(is_told(&absent), "it may be one that the page doesn't see: {absent}");
    let question = ada.open("/t/faster/dead/confirm?action=drop&scope=all").await.html;
    assert!(is_told(&question), "{question}");
    worker.process.stop().await;
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_method_is_answered_with_a_page() {
    let place = Place::new().await;
    let console = Console::start(&place, &[]).await;
    let ada = console.log_in("Ada").await;
    for (method, path) in [
        (Method::GET, "/t/faster/dead/apply"),
        (Method::GET, "/logout"),
        (Method::POST, "/t/faster/events"),
        (Method::PUT, "/login"),
        (Method::DELETE, "/"),
    ] {
        let answer = console.ask(method.clone(), path, &[("cookie", &ada.cookie)], &[]).await;
        assert_eq!(answer.status, 405, "{method} {path}");
        assert!(answer.html.contains("To the overview"), "{method} {path}: {}", answer.html);
    }
    place.remove().await;
}
