//! Whatever is received is stored, as it was said, where it belongs.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use penstock_tests::broker::{self, Broker, header};
use penstock_tests::database::{Database, readable};
use penstock_tests::http::{metric, post_received};
use penstock_tests::poll;
use penstock_tests::process::{Ingest, Worker, until_idle};
use penstock_tests::stack::Place;
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
