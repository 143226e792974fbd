//! Whatever is received is stored, as it was said, where it belongs.

use std::time::Duration;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use penstock_tests::broker::{self, Broker, header};
use penstock_tests::database::{Database, readable};
use penstock_tests::feed::burst;
use penstock_tests::http::{metric, post_received};
use penstock_tests::poll;
use penstock_tests::process::{Ingest, Worker, until_idle};
use penstock_tests::relay::{Fault, Relay};
use penstock_tests::stack::{Place, is_long_run};
use serde_json::{Value, json};
use shared::partition::WorkQueue;

#[tokio::test]
async fn tenants_are_kept_apart() {
    let place = Place::new().await;
    let (ingest, worker) = (Ingest::start(&place, &[]).await, Worker::start(&place, &[]).await);
    let body =
        |text: &str| json!({"event_type": "comment.created", "contact": {"id": 1}, "text": text}).to_string();
    post_received(&ingest.path("/webhook/faster"), body("for faster")).await;
    post_received(&ingest.path("/webhook/vip"), body("for vip")).await;
    // The same body under both tenants is two events.
    post_received(&ingest.path("/webhook/faster"), body("for both")).await;
    post_received(&ingest.path("/webhook/vip"), body("for both")).await;
    for (tenant, own) in [("faster", "for faster"), ("vip", "for vip")] {
        let database = Database::of(&place, tenant).await;
        database.until_stored(2).await;
        let mut texts: Vec<_> = database.all("internal_notes").await.into_values().collect();
        texts.sort_by_key(|note| note.get_str("text").unwrap() != own);
        assert_eq!(texts.len(), 2);
        assert_eq!(texts[0].get_str("text").unwrap(), own);
        assert_eq!(database.get("conversations", "1").await.get_i32("internal_note_count").unwrap(), 2);
    }
    worker.process.stop().await;
    place.remove().await;
}

#[tokio::test]
async fn text_with_a_dollar_and_awkward_names_are_stored_as_sent() {
    let place = Place::new().await;
    let (ingest, worker) = (Ingest::start(&place, &[]).await, Worker::start(&place, &[]).await);
    let awkward = json!({
        "type": "text", "text": "$set", "$where": {"$gt": 1}, "a.b": {"$c.d": ["$e", {"": null}]}, "$ref": 1, "$id": 2,
        "__proto__": {}, "_id": "x", "nul": "\0", "big": [1, -2, 2_147_483_648_u64, 9_223_372_036_854_775_807_u64, 1.5],
    });
    let message = json!({
        "event_id": "$event", "event_type": "message.received",
        "contact": {"id": "$1", "phone": "$phone.number", "firstName": "$firstName", "email": "{$ne:1}", "assignee": {"$name": "$x"}},
        "message": {"messageId": "$m.1", "timestamp": 1_700_000_000, "message": awkward},
        "channel": {"id": "$c", "name": "$channel", "$meta": {"a.b": 1}},
    });
    let attachment = json!({
        "event_type": "message.received", "contact": {"phone": "$phone.number"},
        "message": {"messageId": "$m.2", "message": {"type": "attachment", "attachment": {"type": "$kind.of"}}},
    });
    let contact = json!({
        "event_type": "contact.updated",
        "contact": {"id": "$1", "firstName": "$$ROOT", "utm.source": "$utm", "$where": "1", "": 0, "tags": ["$tag"]},
    });
    for body in [&message, &attachment, &contact] {
        post_received(&ingest.path("/webhook/faster"), body.to_string()).await;
    }
    let database = Database::of(&place, "faster").await;
    database.until_stored(3).await;
    let stored = readable(database.get("messages", "$m.1").await.into());
    assert_eq!((&stored["raw_message"], &stored["sender"]), (&awkward, &json!("$phone.number")));
    let conversation = readable(database.get("conversations", "$phone.number").await.into());
    assert_eq!(conversation["contact"]["firstName"], Value::Null, "the later snapshot has none");
    assert_eq!(conversation["assignee"], json!({"$name": "$x"}));
    assert_eq!(conversation["channel_info"]["$meta"], json!({"a.b": 1}));
    assert_eq!(conversation["media_counts"], json!({"$kind.of": 1}));
    let contact = readable(database.get("contacts", "$1").await.into());
    assert_eq!(contact["firstName"], "$$ROOT");
    let fields = json!([{"name": "", "value": 0}, {"name": "$where", "value": "1"}, {"name": "utm.source", "value": "$utm"}]);
    assert_eq!((&contact["custom_fields"], &contact["tags"]), (&fields, &json!(["$tag"])));
    assert_eq!(readable(database.get("webhook_events", "$event").await.into())["body"], message.to_string());
    assert_eq!(metric(&worker.admin, "worker_retries_total", &[]).await, Some(0.0));
    worker.process.stop().await;
    place.remove().await;
}

#[tokio::test]
async fn ugly_but_valid_bodies_are_stored() {
    let place = Place::new().await;
    let (ingest, worker) = (Ingest::start(&place, &[]).await, Worker::start(&place, &[]).await);
    let deep = format!(
        r#"{{"event_type":"message.sent","message":{{"messageId":"deep","message":{}1{}}}}}"#,
        r#"{"a":"#.repeat(126),
        "}".repeat(126)
    );
    let numbers = r#"{"event_type":"message.sent","message":{"messageId":98765432109876543210987,"message":{"n":[1e400,123456789012345678901234567890,-0.0]}}}"#;
    let surrogates = "\u{feff}{\"event_type\":\"message.sent\",\"message\":{\"messageId\":\"s\",\"message\":{\"text\":\"\\ud83d x\",\"k\\u0000\":1}}}";
    let large = format!(
        r#"{{"event_type":"message.sent","message":{{"messageId":"large","message":{{"n":[{}0]}}}}}}"#,
        "0,".repeat(500_000)
    );
    let typed = r#"{"event_type":7,"event_id":["x"],"message":"hi","contact":"no"}"#;
    for body in [&deep, numbers, surrogates, &large, typed] {
        post_received(&ingest.path("/webhook/faster"), body.to_owned()).await;
    }
    let database = Database::of(&place, "faster").await;
    database.until_stored(5).await;
    let message = readable(database.get("messages", "98765432109876543210987").await.into());
    assert_eq!(message["raw_message"]["n"], json!(["1e+400", "123456789012345678901234567890", -0.0]));
    let message = readable(database.get("messages", "s").await.into());
    assert_eq!(message["raw_message"], json!({"text": "\u{fffd} x", "k\u{fffd}": 1}));
    assert_eq!(
        database
            .get("messages", "large")
            .await
            .get_document("raw_message")
            .unwrap()
            .get_array("n")
            .unwrap()
            .len(),
        500_001
    );
    // The worker has to read the deep one back when there is news of it.
    let news = r#"{"event_type":"message.sent","message":{"messageId":"deep","status":[{"value":"read"}]}}"#;
    post_received(&ingest.path("/webhook/faster"), news).await;
    database.until_stored(6).await;
    let read = mongodb::bson::doc! {"_id": "deep", "status.value": "read"};
    let messages = database.0.collection::<mongodb::bson::Document>("messages");
    assert_eq!(messages.count_documents(read).await.unwrap(), 1);
    assert!(
        database
            .all("webhook_events")
            .await
            .values()
            .any(|event| event.get_str("body").ok() == Some(surrogates))
    );
    worker.process.stop().await;
    place.remove().await;
}

#[tokio::test]
async fn what_is_no_event_or_refused_by_mongodb_goes_to_the_dead_letters_and_the_rest_is_stored() {
    let place = Place::new().await;
    let worker = Worker::start(&place, &[("BATCH_LINGER", "100ms")]).await;
    let (broker, database) = (Broker::connect(&place.amqp_url).await, Database::of(&place, "faster").await);
    poll::until("indexes are made", true, async || {
        database.0.list_collection_names().await.unwrap().len() == 8
    })
    .await;
    // A rule of the customer's own, which some events break.
    let rule =
        mongodb::bson::doc! {"collMod": "messages", "validator": {"channel_name": {"$ne": "forbidden"}}};
    database.0.run_command(rule).await.unwrap();
    let event = |n: u32, channel: &str| {
        json!({"event_id": n.to_string(), "event_type": "message.sent", "contact": {"id": n % 3},
            "message": {"messageId": n}, "channel": {"name": channel}})
        .to_string()
    };
    for n in 0..500 {
        let channel = if n % 50 == 7 { "forbidden" } else { "allowed" };
        broker.publish_event("faster", "any", 1_700_000_000_000, event(n, channel).as_bytes()).await;
    }
    broker.publish_event("faster", "any", 1_700_000_000_000, b"[not an event").await;
    database.until_stored(490).await;
    poll::until("dead letters", Some(11), async || broker.depth("dead.faster").await).await;
    let mut reasons = Vec::new();
    while let Some(letter) = broker.take("dead.faster").await {
        let reason = header(&letter.properties, "reason").unwrap();
        if reason == "refused_by_mongodb" {
            let body: Value = serde_json::from_slice(&letter.data).unwrap();
            assert_eq!(body["channel"]["name"], "forbidden");
            assert!(header(&letter.properties, "error").unwrap().contains("121"));
        }
        assert!(
            header(&letter.properties, "failed_at_ms").is_some()
                && header(&letter.properties, "attempts").is_some()
        );
        reasons.push(reason);
    }
    reasons.sort();
    assert_eq!(
        (reasons[0].as_str(), reasons[1..].to_vec()),
        ("no_event", vec!["refused_by_mongodb".to_owned(); 10])
    );
    assert_eq!(
        (database.count("messages").await, database.sum("conversations", "message_count").await),
        (490, 490)
    );
    until_idle(&broker, &[&worker]).await;
    let dead = [("tenant", "faster"), ("reason", "refused_by_mongodb")];
    assert_eq!(metric(&worker.admin, "worker_dead_lettered_total", &dead).await, Some(10.0));
    assert_eq!(metric(&worker.admin, "worker_redelivered_total", &[("tenant", "faster")]).await, Some(0.0));
    worker.process.stop().await;
    assert_eq!(broker.waiting("faster").await, Some(0));
    place.remove().await;
}

/// Messages such as no ingest sends: bodies, and what is said about them.
fn strange_messages() -> Vec<(Vec<u8>, BasicProperties)> {
    let text = |text: &str| AMQPValue::LongString(text.into());
    let plain = BasicProperties::default;
    let with = |name: &str, value| {
        let mut headers = FieldTable::default();
        headers.insert(name.into(), value);
        plain().with_headers(headers)
    };
    let deep = |levels: usize| {
        let message = format!("{}1{}", r#"{"a":"#.repeat(levels), "}".repeat(levels));
        format!(
            r#"{{"event_type":"message.sent","message":{{"messageId":"deep {levels}","message":{message}}}}}"#
        )
    };
    let long = "x".repeat(100_000);
    let bodies = [
        Vec::new(),
        b" \n".to_vec(),
        b"not JSON".to_vec(),
        b"[{\"event_type\":\"message.sent\"}]".to_vec(),
        b"null".to_vec(),
        b"\0\0\0".to_vec(),
        b"{\"event_type\":\"message.sent\",\"message\":{\"messageId\":\"\xff\"}}".to_vec(),
        b"{\"event_type\":\"message.sent\"".to_vec(),
        b"{\"a\":\"\0\"}".to_vec(),
        "[".repeat(100_000).into_bytes(),
        deep(100).into_bytes(),
        deep(127).into_bytes(),
        deep(200).into_bytes(),
        br#"{"$serde_json::private::Number":"x"}"#.to_vec(),
        br#"{"event_type":"call.ended","call":{"id":{"$serde_json::private::Number":"x"},"end_time":{"$serde_json::private::Number":"-"}}}"#.to_vec(),
        br#"{"event_type":"message.sent","message":{"messageId":1e999999999,"timestamp":-99999999999999999999999}}"#.to_vec(),
        br#"{"event_type":"conversation.closed","contact":{"id":1e400},"conversation":{"closedTime":9.9e999,"firstResponseTime":1e308}}"#.to_vec(),
        br#"{"event_type":"conversation.opened","contact":{"id":-0},"conversation":{"conversationOpenedAt":9007199254740993e3}}"#.to_vec(),
        br#"{"event_type":"contact.updated","contact":{"id":{},"phone":[[]],"tags":{"a":1},"assignee":"me","lifecycle":7}}"#.to_vec(),
        br#"{"event_type":"contact.lifecycle.updated","event_id":{},"contact":[],"lifecycle":[{}],"oldLifecycle":9}"#.to_vec(),
        br#"{"event_type":"comment.created","text":["no","text"],"mentionedUserIds":"x","contact":"y"}"#.to_vec(),
        format!(r#"{{"event_type":"message.sent","event_id":"{long}","contact":{{"phone":"{long}"}},"message":{{"messageId":"{long}"}}}}"#).into_bytes(),
        format!(r#"{{"event_type":"{long}","message":{{"messageId":"long type"}}}}"#).into_bytes(),
    ];
    let mut messages: Vec<_> = bodies.into_iter().map(|body| (body, plain())).collect();
    let envelopes = [
        with("received_at_ms", text("soon")),
        with("received_at_ms", AMQPValue::LongLongInt(i64::MAX)),
        with("received_at_ms", AMQPValue::LongLongInt(i64::MIN)),
        with("received_at_ms", AMQPValue::Timestamp(u64::MAX)),
        with("received_at_ms", AMQPValue::Double(1e308)),
        with("received_at_ms", AMQPValue::FieldTable(FieldTable::default())),
        with("stream", AMQPValue::Boolean(true)),
        with("stream", text("no such stream")),
        with("signature", AMQPValue::LongString(b"\xff\0"[..].into())),
        with("tenant", text("vip")),
        with("x-delivery-count", text("many")),
        plain().with_timestamp(u64::MAX),
        plain().with_timestamp(99_999_999_999),
        plain().with_message_id("m".repeat(255).into()).with_type("t".repeat(255).into()),
        plain().with_content_type("text/plain".into()).with_content_encoding("gzip".into()),
    ];
    for (n, properties) in envelopes.into_iter().enumerate() {
        let body = json!({"event_type": "message.sent", "contact": {"id": n}, "message": {"messageId": format!("envelope {n}"), "timestamp": 1_700_000_000}});
        messages.push((body.to_string().into_bytes(), properties));
    }
    messages
}

#[tokio::test]
async fn strange_messages_past_ingest_are_stored_or_dead_letters_and_harm_no_other() {
    let place = Place::new().await;
    let worker = Worker::start(&place, &[]).await;
    let (broker, database) = (Broker::connect(&place.amqp_url).await, Database::of(&place, "faster").await);
    let (strange, mut good) = (strange_messages(), 0);
    for (body, properties) in &strange {
        for _ in 0..5 {
            let event = json!({"event_id": format!("good {good}"), "event_type": "message.received", "contact": {"id": good % 3}, "message": {"messageId": format!("good {good}")}});
            broker.publish_event("faster", "any", 1_700_000_000_000, event.to_string().as_bytes()).await;
            good += 1;
        }
        let key = broker.queue_of("faster", body).await.routing_key("faster", "test");
        broker.publish_as("webhooks", &key, properties.clone(), body).await;
    }
    let all = good + strange.len() as u64;
    poll::until("each is stored or a dead letter", all, async || {
        let dead = broker.depth("dead.faster").await.unwrap();
        database.count("webhook_events").await + u64::from(dead)
    })
    .await;
    let messages = database.ids("messages").await;
    assert_eq!(messages.iter().filter(|id| id.starts_with("good")).count() as u64, good);
    let mut dead = 0;
    while let Some(letter) = broker.take("dead.faster").await {
        let body = String::from_utf8_lossy(&letter.data);
        assert_eq!(header(&letter.properties, "reason").as_deref(), Some("no_event"), "{body}");
        dead += 1;
    }
    println!("strange messages: {} stored, {dead} dead letters", strange.len() - dead);
    until_idle(&broker, &[&worker]).await;
    assert_eq!(metric(&worker.admin, "worker_redelivered_total", &[("tenant", "faster")]).await, Some(0.0));
    worker.process.stop().await;
    place.remove().await;
}

fn attachment(n: usize, zeros: usize) -> String {
    let list = vec!["0"; zeros].join(",");
    format!(
        r#"{{"event_id":"a{n}","event_type":"message.sent","contact":{{"id":{n}}},"message":{{"messageId":"a{n}","message":{{"type":"attachment","attachment":{{"n":[{list}]}}}}}}}}"#
    )
}

#[tokio::test]
async fn a_document_beyond_what_mongodb_takes_is_a_dead_letter_and_the_rest_is_stored() {
    let place = Place::new().await;
    // A million values take a debug build on a busy machine longer than the usual deadline.
    let worker = Worker::start(&place, &[("MONGO_TIMEOUT", "60s")]).await;
    let (broker, database) = (Broker::connect(&place.amqp_url).await, Database::of(&place, "faster").await);
    broker.publish_event("faster", "any", 1_700_000_000_000, attachment(0, 950_000).as_bytes()).await;
    for n in 1..=20 {
        broker.publish_event("faster", "any", 1_700_000_000_000, attachment(n, 3).as_bytes()).await;
    }
    let dead = async || broker.depth("dead.faster").await;
    poll::until_within("the dead letter", Some(1), Duration::from_secs(120), dead).await;
    database.until_stored(20).await;
    let letter = broker.next("dead.faster").await;
    assert_eq!(header(&letter.properties, "reason").as_deref(), Some("refused_by_mongodb"));
    assert_eq!(letter.data, attachment(0, 950_000).as_bytes());
    worker.process.stop().await;
    place.remove().await;
}

#[tokio::test]
async fn a_body_that_forges_a_number_is_stored_like_any_other() {
    let place = Place::new().await;
    let (ingest, worker) = (Ingest::start(&place, &[]).await, Worker::start(&place, &[]).await);
    for forged in
        ["ée", "é", "1e", "-", "99999999999999999999e99999999999", "0.0000000000000000000000000000001"]
    {
        let body = format!(
            r#"{{"event_type":"message.received","contact":{{"id":{{"$serde_json::private::Number":"{forged}-1"}}}},"message":{{"messageId":{{"$serde_json::private::Number":"{forged}"}}}}}}"#
        );
        post_received(&ingest.path("/webhook/faster"), body).await;
    }
    post_received(&ingest.path("/webhook/faster"), r#"{"$serde_json::private::Number":"1"}"#).await;
    Database::of(&place, "faster").await.until_stored(7).await;
    worker.process.stop().await;
    place.remove().await;
}

#[tokio::test]
async fn large_bodies_do_not_fill_the_workers_memory() {
    let place = Place::new().await;
    let ingest = Ingest::start(&place, &[]).await;
    // More than are in hand at a time.
    for n in 0..15 {
        post_received(&ingest.path("/webhook/faster"), attachment(n, 150_000)).await;
    }
    let worker = Worker::start(&place, &[("MONGO_TIMEOUT", "60s")]).await;
    Database::of(&place, "faster").await.until_stored(15).await;
    let peak = worker.process.peak_memory() >> 20;
    println!("peak: {peak} MiB");
    assert!(peak < 400, "{peak} MiB");
    worker.process.stop().await;
    place.remove().await;
}

#[tokio::test]
async fn a_backlog_of_large_bodies_does_not_fill_the_workers_memory_either() {
    const LARGE: usize = 500;
    const SMALL: usize = 200;
    let place = Place::new().await;
    let (broker, database) = (Broker::connect(&place.amqp_url).await, Database::of(&place, "faster").await);
    // From then on there are the queues.
    Worker::start(&place, &[]).await.process.stop().await;
    for n in 0..LARGE + SMALL {
        let padding = "x".repeat(if n < LARGE { 256 << 10 } else { 1 << 10 });
        let body = json!({"event_id": n.to_string(), "padding": padding}).to_string();
        broker.publish_event("faster", "any", 1_700_000_000_000, body.as_bytes()).await;
    }
    let worker = Worker::start(&place, &[]).await;
    let stored = async || database.count("webhook_events").await;
    poll::until_within("all are stored", (LARGE + SMALL) as u64, Duration::from_secs(120), stored).await;
    let peak = worker.process.peak_memory() >> 20;
    println!("peak: {peak} MiB");
    assert!(peak < 130, "{peak} MiB");
    until_idle(&broker, &[&worker]).await;
    assert_eq!(metric(&worker.admin, "worker_in_flight_bytes", &[]).await, Some(0.0));
    worker.process.stop().await;
    place.remove().await;
}

/// Events in the queue for large bodies, and in the others, of those that a worker is sent while MongoDB
/// stalls.
const BACKLOG: (u64, u64) = (40, 600);
/// Events before that, some for each partition.
const WARM: u64 = 40;
/// Deliveries of the queue for large bodies that a worker has in hand.
const LARGE_IN_HAND: u64 = 4;

/// A worker that has as much in hand as it wants, since MongoDB stalls.
async fn with_full_hands(place: &Place) -> (Worker, Relay) {
    let broker = Broker::connect(&place.amqp_url).await;
    let (relay, uri) = place.mongo_relay().await;
    let worker = Worker::start(place, &[("MONGO_URI", uri.as_str()), ("SHUTDOWN_GRACE", "5s")]).await;
    // Each queue begins with a single delivery in hand.
    burst(&broker, "faster", 0..WARM, WARM).await;
    broker.publish_event("faster", "any", 1, attachment(0, 40_000).as_bytes()).await;
    until_stored_and_idle(place, &worker, WARM + 1).await;
    relay.set(Fault::Stall);
    let (large, others) = BACKLOG;
    for n in 0..large + others {
        let padding = "x".repeat(if n < large { 256 << 10 } else { 32 << 10 });
        let body = json!({"event_id": format!("b{n}"), "padding": padding}).to_string();
        broker.publish_event("faster", "any", 1_700_000_000_000, body.as_bytes()).await;
    }
    let wanted = u32::try_from(LARGE_IN_HAND + others).expect("a few");
    let in_hand = async || metric(&worker.admin, "worker_in_flight", &[]).await;
    poll::until("few of the large ones are in hand, and all others", Some(f64::from(wanted)), in_hand).await;
    assert_eq!(broker.waiting("faster").await.map(u64::from), Some(large - LARGE_IN_HAND));
    (worker, relay)
}

async fn until_stored_and_idle(place: &Place, worker: &Worker, events: u64) {
    Database::of(place, "faster").await.until_stored(events).await;
    until_idle(&Broker::connect(&place.amqp_url).await, &[worker]).await;
}

async fn assert_backlog_stored(place: &Place, worker: Worker) {
    let (broker, database) = (Broker::connect(&place.amqp_url).await, Database::of(place, "faster").await);
    let all = WARM + 1 + BACKLOG.0 + BACKLOG.1;
    until_stored_and_idle(place, &worker, all).await;
    assert_eq!(metric(&worker.admin, "worker_in_flight_bytes", &[]).await, Some(0.0));
    assert_eq!(broker.depth("dead.faster").await, Some(0));
    worker.process.stop().await;
    assert_eq!(database.count("webhook_events").await, all);
}

#[tokio::test]
async fn large_bodies_are_taken_few_at_a_time() {
    let place = Place::new().await;
    let (worker, relay) = with_full_hands(&place).await;
    relay.set(Fault::None);
    assert_backlog_stored(&place, worker).await;
    place.remove().await;
}

#[tokio::test]
async fn a_worker_with_much_in_hand_can_be_stopped() {
    let place = Place::new().await;
    let (mut worker, _relay) = with_full_hands(&place).await;
    worker.process.signal("TERM");
    assert!(worker.process.ended().await.success());
    assert_backlog_stored(&place, Worker::start(&place, &[]).await).await;
    place.remove().await;
}

#[tokio::test]
async fn a_queue_that_was_deleted_is_declared_again() {
    let place = Place::new().await;
    let (ingest, worker) = (Ingest::start(&place, &[]).await, Worker::start(&place, &[]).await);
    let database = Database::of(&place, "faster").await;
    post_received(&ingest.path("/webhook/faster"), r#"{"n":1}"#).await;
    database.until_stored(1).await;
    place.manage(reqwest::Method::DELETE, &format!("queues/{}/webhooks.faster.0", place.name), None).await;
    // What comes meanwhile is unroutable, and not lost.
    let broker = Broker::connect(&place.amqp_url).await;
    poll::until("the queue is back", true, async || broker.depth("webhooks.faster.0").await.is_some()).await;
    let body = || format!(r#"{{"n":{}}}"#, fastrand::u64(..));
    let goes_there =
        |body: &String| broker::queue_of("faster", body.as_bytes(), 4) == WorkQueue::Partition(0);
    poll::until("it is bound, and events flow", true, async || {
        let body = std::iter::repeat_with(body).find(goes_there).expect("every fourth");
        post_received(&ingest.path("/webhook/faster"), body).await;
        database.count("webhook_events").await > 1
    })
    .await;
    worker.process.stop().await;
    place.remove().await;
}

#[tokio::test]
async fn a_document_that_grows_beyond_what_mongodb_takes_is_a_dead_letter_too() {
    let place = Place::new().await;
    let worker = Worker::start(&place, &[("MONGO_TIMEOUT", "60s")]).await;
    let (broker, database) = (Broker::connect(&place.amqp_url).await, Database::of(&place, "faster").await);
    broker.publish_event("faster", "any", 1_700_000_000_000, attachment(0, 3).as_bytes()).await;
    database.until_stored(1).await;
    let later = attachment(0, 950_000).replace(r#""event_id":"a0""#, r#""event_id":"later""#);
    broker.publish_event("faster", "any", 1_700_000_001_000, later.as_bytes()).await;
    let dead = async || broker.depth("dead.faster").await;
    poll::until_within("the dead letter", Some(1), Duration::from_secs(120), dead).await;
    broker.publish_event("faster", "any", 1_700_000_002_000, attachment(1, 3).as_bytes()).await;
    database.until_stored(2).await;
    worker.process.stop().await;
    place.remove().await;
}

#[tokio::test]
async fn an_index_that_is_in_the_way_does_not_keep_events_from_being_stored() {
    let place = Place::new().await;
    let database = Database::of(&place, "faster").await;
    let index = mongodb::bson::doc! {"name": "stored_at_ttl", "key": {"other": 1}};
    let create = mongodb::bson::doc! {"createIndexes": "webhook_events", "indexes": [index]};
    database.0.run_command(create).await.unwrap();
    let (ingest, worker) = (Ingest::start(&place, &[]).await, Worker::start(&place, &[]).await);
    post_received(&ingest.path("/webhook/faster"), r#"{"n":1}"#).await;
    database.until_stored(1).await;
    assert!(worker.process.log_text().contains("change the index stored_at_ttl by hand"));
    worker.process.stop().await;
    place.remove().await;
}

#[tokio::test]
async fn an_event_that_always_takes_too_long_holds_up_only_its_own_queue_and_only_for_two_minutes() {
    let place = Place::new().await;
    let (relay, uri) = place.mongo_relay().await;
    // Two seconds for the first event, a tenth of one for a batch of the others.
    relay.set(Fault::Narrow(4 << 20));
    // On a machine with much to do others miss this deadline too, now and then: that is not for the breaker
    // to judge here.
    let settings =
        [("MONGO_URI", uri.as_str()), ("MONGO_TIMEOUT", "1s"), ("CIRCUIT_BREAKER_THRESHOLD", "10000")];
    let worker = Worker::start(&place, &settings).await;
    let (broker, database) = (Broker::connect(&place.amqp_url).await, Database::of(&place, "faster").await);
    broker.publish_event("faster", "any", 1_700_000_000_000, attachment(0, 520_000).as_bytes()).await;
    let retries = async || metric(&worker.admin, "worker_retries_total", &[]).await > Some(2.0);
    poll::until("it is tried again and again", true, retries).await;
    let behind_it = attachment(1000, 40_000);
    broker.publish_event("faster", "any", 1, behind_it.as_bytes()).await;
    for n in 1..=64 {
        broker.publish_event("faster", "any", 1, attachment(n, n % 2 * 9000 + 3).as_bytes()).await;
    }
    let stored = async || database.count("webhook_events").await;
    poll::until("those of other queues are stored", 64, stored).await;
    // Of the queue for large bodies, this one and perhaps the one behind it.
    let settled = async || metric(&worker.admin, "worker_in_flight", &[]).await <= Some(2.0);
    poll::until("and settled", true, settled).await;
    assert_eq!(database.find("messages", "a0").await, None);
    assert_eq!(broker.depth("dead.faster").await, Some(0));
    if is_long_run() {
        let dead = async || broker.depth("dead.faster").await;
        poll::until_within("it is given up", Some(1), Duration::from_mins(4), dead).await;
        let letter = broker.next("dead.faster").await;
        assert_eq!(header(&letter.properties, "reason").as_deref(), Some("stuck"));
        assert_eq!(letter.data, attachment(0, 520_000).as_bytes());
        poll::until("the one behind it is stored", 65, stored).await;
    }
    place.remove().await;
}
