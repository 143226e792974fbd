//! The operators' commands: they list, replay and drop set-aside messages, compute documents again, and name
//! accepted events that are missing.

use lapin::BasicProperties;
use mongodb::bson::{Document, doc};
use penstock_tests::broker::Broker;
use penstock_tests::database::{Database, readable};
use penstock_tests::http::{post_received, send};
use penstock_tests::poll;
use penstock_tests::process::{Ingest, Worker, operate, operate_well, run, until_idle};
use penstock_tests::stack::Place;
use reqwest::Method;
use serde_json::{Value, json};

const RECEIVED_AT_MS: i64 = 1_792_000_000_000;

/// Some events about the same few contacts.
fn event(n: u64) -> Vec<u8> {
    let contact = json!({"id": n % 5, "phone": format!("+155501{}", n % 5), "firstName": format!("name {n}"), "tags": [n]});
    let event = match n % 6 {
        0 => {
            json!({"event_id": n.to_string(), "event_type": "comment.created", "contact": contact, "text": n})
        }
        1 => {
            json!({"event_id": n.to_string(), "event_type": "contact.lifecycle.updated", "contact": contact, "lifecycle": n})
        }
        2 => json!({"event_id": n.to_string(), "event_type": "contact.updated", "contact": contact}),
        3 => {
            json!({"event_id": n.to_string(), "event_type": "conversation.closed", "contact": contact, "conversation": {"category": n}})
        }
        _ => json!({"event_id": n.to_string(), "event_type": "message.received", "contact": contact,
            "channel": {"id": n % 3, "name": format!("channel {}", n % 3)},
            "message": {"messageId": n / 2, "timestamp": 1_791_000_000 + n, "status": [{"value": "sent", "timestamp": n}],
                "message": {"type": "image"}}}),
    };
    event.to_string().into_bytes()
}

async fn publish(broker: &Broker, tenants: &[&str], numbers: std::ops::Range<u64>) {
    for n in numbers {
        for tenant in tenants {
            broker.publish_event(tenant, "any", RECEIVED_AT_MS + i64::try_from(n).unwrap(), &event(n)).await;
        }
    }
}

fn keys(letters: &[Value]) -> Vec<&str> {
    letters.iter().map(|letter| letter["key"].as_str().unwrap_or("-")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_are_listed_shown_replayed_and_dropped() {
    let place = Place::new().await;
    let ingest = Ingest::start(&place, &[]).await;
    let worker = Worker::start(&place, &[]).await;
    let broker = Broker::connect(&place.amqp_url).await;
    let (ill, well) = (Database::of(&place, "faster").await, Database::of(&place, "vip").await);
    // A rule of the customer's own, which all messages break.
    poll::until("collections are made", true, async || {
        ill.0.list_collection_names().await.unwrap().contains(&"messages".to_owned())
    })
    .await;
    let rule = |rule: Document| ill.0.run_command(doc! {"collMod": "messages", "validator": rule});
    rule(doc! {"never": 1}).await.unwrap();
    for n in 0..12 {
        for tenant in ["faster", "vip"] {
            post_received(&ingest.path(&format!("/webhook/{tenant}")), event(n)).await;
        }
    }
    broker.publish_event("faster", "any", RECEIVED_AT_MS, b"no event").await;
    poll::until("five are dead", Some(5), async || broker.depth("dead.faster").await).await;
    well.until_stored(12).await;

    let listed = operate_well(&place, &["dead", "list", "--json"]).json();
    assert_eq!(operate_well(&place, &["dead", "list", "--json"]).json(), listed, "looking changes nothing");
    let mut refused = keys(&listed);
    refused.sort_unstable();
    assert_eq!(refused, ["-", "10", "11", "4", "5"]);
    let letter = listed.iter().find(|letter| letter["key"] == "4").unwrap();
    assert_eq!((&letter["tenant"], &letter["event_type"]), (&json!("faster"), &json!("message.received")));
    assert_eq!((&letter["reason"], &letter["attempts"]), (&json!("refused_by_mongodb"), &json!(1)));
    assert_eq!(letter["error"], "messages: DocumentValidationFailure (121)");
    assert!(letter["set_aside_at"].as_str() > letter["received_at"].as_str());
    let text = operate_well(&place, &["dead", "list", "--tenant", "faster"]).out;
    assert!(text.lines().count() == 6 && text.contains("refused_by_mongodb") && !text.contains("firstName"));
    assert!(text.starts_with("SET ASIDE AT  "), "{text}");
    assert_eq!(operate_well(&place, &["dead", "list", "--tenant", "vip"]).out, "none\n");
    for (filter, expected) in [
        (&["--reason", "no_event"][..], 1),
        (&["--event-type", "message.received"], 4),
        (&["--key", "4", "--key", "10", "--key", "99"], 2),
        (&["--limit", "2"], 2),
        (&["--older-than", "1h"], 0),
        (&["--newer-than", "1h", "--reason", "refused_by_mongodb,no_event"], 5),
        (&["--tenant", "vip"], 0),
    ] {
        let arguments = [&["dead", "list", "--json"], filter].concat();
        assert_eq!(operate_well(&place, &arguments).json().len(), expected, "{filter:?}");
    }
    let shown = operate_well(&place, &["dead", "show", "--key", "4", "--json"]).json();
    assert_eq!(shown[0]["body"].as_str().unwrap().as_bytes(), event(4));
    assert_eq!(shown[0]["headers"]["stream"], "any");
    assert!(operate_well(&place, &["dead", "show", "--key", "4"]).out.contains("firstName"));

    // The cause is still there: they come back, once.
    let replayed =
        operate_well(&place, &["dead", "replay", "--event-type", "message.received", "--json"]).json();
    assert_eq!((&replayed[0]["tenant"], &replayed[0]["done"]), (&json!("faster"), &json!(4)));
    poll::until("they are dead again", Some(5), async || broker.depth("dead.faster").await).await;
    rule(doc! {}).await.unwrap();
    let dry = operate_well(&place, &["dead", "replay", "--dry-run"]).out;
    assert!(dry.contains("5 of 5 would be replayed"), "{dry}");
    assert_eq!(broker.depth("dead.faster").await, Some(5));
    operate_well(&place, &["dead", "replay", "--tenant", "faster", "--reason", "refused_by_mongodb"]);
    ill.until_stored(12).await;
    assert_eq!(broker.depth("dead.faster").await, Some(1));
    until_idle(&broker, &[&worker]).await;
    let (mut replayed, mut expected) = (ill.dump().await, well.dump().await);
    for dump in [&mut replayed, &mut expected] {
        for entry in dump.get_mut("webhook_events").unwrap().values_mut() {
            // The two tenants received them at different times.
            entry.remove("received_at");
        }
        for collection in ["conversations", "contacts", "internal_notes"] {
            for document in dump.get_mut(collection).unwrap().values_mut() {
                for timed in ["_merge", "lifecycle_history", "last_internal_note_at", "closed_at"] {
                    document.remove(timed);
                }
            }
        }
    }
    assert_eq!(replayed["messages"], expected["messages"]);
    assert_eq!(replayed["conversations"], expected["conversations"]);

    let dropped = operate_well(&place, &["dead", "drop", "--all", "--json"]).json();
    assert_eq!((&dropped[0]["done"], &dropped[0]["left"]), (&json!(1), &json!(0)));
    assert_eq!(broker.depth("dead.faster").await, Some(0));
    let typo = operate(&place, &["dead", "list", "--tenant", "fastre"]);
    assert_eq!(typo.status, 1);
    assert!(typo.errors.contains("dead.fastre"), "{}", typo.errors);
    assert_eq!(broker.depth("dead.fastre").await, None, "no queue is left behind");
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quarantined_webhooks_are_replayed_if_they_are_events_after_all() {
    let place = Place::new().await;
    let settings = [("SIGNING_KEYS", "wrong"), ("MAX_BODY_BYTES", "1000")];
    let (ingest, worker) = (Ingest::start(&place, &settings).await, Worker::start(&place, &[]).await);
    let broker = Broker::connect(&place.amqp_url).await;
    let large = format!(r#"{{"event_id":"large","text":"{}"}}"#, "x".repeat(70_000));
    for body in [r#"{"event_id":"fine","event_type":"call.ended","call":{"id":"c"}}"#, "[]", large.as_str()] {
        let answer = send(
            Method::POST,
            &ingest.path("/webhook/faster/incoming"),
            &[("x-webhook-signature", "bad")],
            body.to_owned(),
        )
        .await;
        assert_eq!(answer.body["status"], "quarantined");
    }
    // On a busy machine one may have gone through the spool.
    poll::until("all are there", Some(3), async || broker.depth("quarantine.faster").await).await;
    let listed = operate_well(&place, &["quarantine", "list", "--json"]).json();
    let reasons: Vec<_> = listed.iter().map(|letter| letter["reason"].as_str().unwrap()).collect();
    assert_eq!(reasons, ["invalid_signature", "invalid_signature", "body_too_large"]);
    assert_eq!((&listed[2]["bytes"], &listed[2]["body_bytes"]), (&json!(64 << 10), &json!(large.len())));
    let replayed = operate_well(&place, &["quarantine", "replay", "--unverified", "--json"]).json();
    assert_eq!((&replayed[0]["selected"], &replayed[0]["done"]), (&json!(3), &json!(1)));
    assert_eq!(replayed[0]["skipped"].as_array().unwrap().len(), 2);
    let database = Database::of(&place, "faster").await;
    database.until_stored(1).await;
    let entry = database.get("webhook_events", "fine").await;
    assert_eq!(entry.get_str("signature").unwrap(), "untrusted", "an operator has let it in");
    assert_eq!(entry.get_str("stream").unwrap(), "incoming");
    database.get("calls", "c").await;
    assert_eq!(broker.depth("quarantine.faster").await, Some(2));
    let dropped = operate_well(&place, &["quarantine", "drop", "--reason", "body_too_large"]).out;
    assert!(dropped.contains("faster: 1 of 2 dropped"), "{dropped}");
    worker.process.stop().await;
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_are_rebuilt_while_workers_go_on() {
    let place = Place::new().await;
    let worker = Worker::start(&place, &[("BATCH_SIZE", "10")]).await;
    let broker = Broker::connect(&place.amqp_url).await;
    let (rebuilt, reference) = (Database::of(&place, "faster").await, Database::of(&place, "vip").await);
    publish(&broker, &["faster", "vip"], 0..200).await;
    rebuilt.until_stored(200).await;
    reference.until_stored(200).await;
    until_idle(&broker, &[&worker]).await;
    let before = rebuilt.dump().await;
    assert_eq!(before, reference.dump().await);
    let nothing = operate_well(&place, &["rebuild", "--tenant", "faster", "--dry-run", "--json"]).json();
    assert_eq!((&nothing[0]["inserted"], &nothing[0]["updated"]), (&json!(0), &json!(0)), "{nothing:?}");

    let collection = |name: &str| rebuilt.0.collection::<Document>(name);
    collection("messages").delete_many(doc! {"_id": {"$in": ["2", "5"]}}).await.unwrap();
    let garbage = doc! {"$set": {"message_count": 999, "contact.firstName": "garbage", "media_counts": {}}};
    collection("conversations").update_many(doc! {}, garbage).await.unwrap();
    collection("contacts").drop().await.unwrap();
    let note = doc! {"$unset": {"text": 1}};
    collection("internal_notes").update_many(doc! {}, note).await.unwrap();
    // What it prints may be kept in a log.
    for format in [&[][..], &["--json"]] {
        let named = operate_well(
            &place,
            &[&["rebuild", "--tenant", "faster", "--dry-run", "--names-only"], format].concat(),
        )
        .out;
        assert!(named.contains("message_count") && named.contains("conversations"), "{named}");
        assert!(!named.contains("garbage") && !named.contains("+155501"), "{named}");
    }
    let dry = operate_well(&place, &["rebuild", "--tenant", "faster", "--dry-run", "--json"]).json();
    let (summary, changes) = dry.split_last().unwrap();
    assert_eq!(
        (&summary["inserted"], &summary["failed"]),
        (&json!(7), &json!([])),
        "2 messages and 5 contacts"
    );
    assert_eq!(json!(changes.len()), json!(7 + summary["updated"].as_u64().unwrap()));
    let conversation = changes.iter().find(|change| change["_id"] == "+1555011").unwrap();
    assert_eq!(conversation["before"]["message_count"], 999);
    assert_eq!(
        conversation["after"]["message_count"],
        before["conversations"]["+1555011"].get_i32("message_count").unwrap()
    );
    assert_eq!(rebuilt.count("contacts").await, 0);

    // More events come in for the same conversations all the while.
    let publishing = async {
        for some in 0..40 {
            publish(&broker, &["faster", "vip"], 200 + some * 10..210 + some * 10).await;
        }
    };
    let rebuilding = tokio::spawn({
        let place = place.clone();
        async move {
            for _ in 0..3 {
                operate_well(&place, &["rebuild", "--tenant", "faster"]);
            }
        }
    });
    let ((), done) = tokio::join!(publishing, rebuilding);
    done.unwrap();
    rebuilt.until_stored(600).await;
    reference.until_stored(600).await;
    until_idle(&broker, &[&worker]).await;
    let (rebuilt_dump, reference_dump) = (rebuilt.dump().await, reference.dump().await);
    for (name, documents) in &reference_dump {
        for (id, document) in documents {
            assert_eq!(rebuilt_dump[name].get(id), Some(document), "{name} {id}");
        }
    }
    assert_eq!(rebuilt_dump, reference_dump);
    let indexes = collection("contacts").list_index_names().await.unwrap();
    assert!(indexes.contains(&"phone".to_owned()), "{indexes:?}");
    let unknown = operate(&place, &["rebuild", "--tenant", "fastre"]);
    assert_eq!(unknown.status, 1);
    collection("webhook_events").insert_one(doc! {"_id": "nothing else"}).await.unwrap();
    let unreadable = operate(&place, &["rebuild", "--tenant", "faster"]);
    assert!(unreadable.status == 1 && unreadable.out.contains("1 entries"), "{}", unreadable.out);
    assert!(unreadable.errors.contains("can't be read"), "{}", unreadable.errors);
    worker.process.stop().await;
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_accepted_and_is_nowhere_is_named() {
    let place = Place::new().await;
    let settings = [("RUST_LOG", "info,ingest::routes=debug")];
    let (ingest, worker) = (Ingest::start(&place, &settings).await, Worker::start(&place, &[]).await);
    for n in 0..20 {
        post_received(&ingest.path("/webhook/faster"), event(n)).await;
    }
    post_received(&ingest.path("/webhook/vip"), event(0)).await;
    let database = Database::of(&place, "faster").await;
    database.until_stored(20).await;
    let log = place.folder.join("accepted.log");
    // Another ingest's log may be in it.
    let foreign =
        r#"{"timestamp":"2026-01-02T03:04:05Z","message":"received","tenant":"other","event_key":"k"}"#;
    std::fs::write(&log, format!("{foreign}\n{}", ingest.process.log_text())).unwrap();
    let log = log.to_str().unwrap();
    let nothing = place.folder.join("info.log");
    std::fs::write(&nothing, "{\"message\":\"connected\"}\n").unwrap();
    let answer = operate(&place, &["reconcile", "--accepted", nothing.to_str().unwrap()]);
    assert!(answer.status == 1 && answer.errors.contains("names no event"), "{}", answer.errors);
    let account = |tenant: &str, wait: &str| {
        let arguments = ["reconcile", "--tenant", tenant, "--accepted", log, "--wait", wait, "--json"];
        let answer = operate(&place, &arguments);
        (answer.status, answer.json().remove(0))
    };
    let (status, faster) = account("faster", "10s");
    assert_eq!((status, &faster["accepted"], &faster["stored"]), (0, &json!(20), &json!(20)));
    assert_eq!(
        (&faster["queued"], &faster["in_workers"], &faster["missing"]),
        (&json!(0), &json!(0), &json!([]))
    );
    database.0.collection::<Document>("webhook_events").delete_one(doc! {"_id": "7"}).await.unwrap();
    let (status, faster) = account("faster", "0s");
    assert_eq!((status, &faster["missing"]), (1, &json!(["7"])));
    assert_eq!(faster["log_from"], "2026-01-02T03:04:05Z");
    assert!(faster["log_to"].as_str() > faster["log_from"].as_str(), "{faster}");
    let all = operate(&place, &["reconcile", "--accepted", log]);
    assert!(all.status == 1 && all.errors.contains("tenant \"other\""), "{}", all.errors);
    let broker = Broker::connect(&place.amqp_url).await;
    let properties = BasicProperties::default().with_message_id("7".into());
    broker.publish_as("", "unroutable", properties, &event(7)).await;
    let (status, faster) = account("faster", "0s");
    assert_eq!((status, &faster["unroutable"], &faster["missing"]), (0, &json!(1), &json!([])));
    broker.take("unroutable").await.unwrap();

    // What waits in the queue isn't missing for long.
    worker.process.stop().await;
    post_received(&ingest.path("/webhook/faster"), event(7)).await;
    let numbers = operate_well(&place, &["reconcile", "--json"]).json();
    assert_eq!((&numbers[0]["queued"], &numbers[0]["accepted"]), (&json!(1), &Value::Null));
    let worker = Worker::start(&place, &[]).await;
    assert_eq!(account("faster", "30s").0, 0);
    assert_eq!(
        readable(database.get("webhook_events", "7").await.into())["body"].as_str().unwrap().as_bytes(),
        event(7)
    );
    worker.process.stop().await;
    place.remove().await;
}

#[test]
fn every_command_explains_itself() {
    for binary in ["ingest", "worker"] {
        assert_explained(binary, &[]);
    }
}

/// Asserts that a command's help has an example, and so with its subcommands.
fn assert_explained(binary: &str, command: &[&str]) {
    let output = run(binary, &std::env::temp_dir(), &[command, &["--help"]].concat(), &[]);
    let help = String::from_utf8(output.stdout).unwrap();
    let called = [&[binary][..], command].concat().join(" ");
    assert!(output.status.success() && help.contains(&format!("Usage: {called}")), "{called}: {help}");
    assert!(help.contains(&format!("Example: {called}")), "{called}: {help}");
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    for subcommand in listed.map_while(|line| line.split_whitespace().next()).filter(|name| *name != "help") {
        assert_explained(binary, &[command, &[subcommand]].concat());
    }
}

#[test]
fn every_command_that_changes_something_can_be_tried_first() {
    for command in ["dead replay", "dead drop", "quarantine replay", "quarantine drop", "queues migrate"]
        .into_iter()
        .chain(["events replay", "rebuild", "backfill", "erase"])
    {
        let arguments: Vec<&str> = command.split(' ').chain(["--help"]).collect();
        let output = run("worker", &std::env::temp_dir(), &arguments, &[]);
        let help = String::from_utf8(output.stdout).unwrap();
        assert!(help.contains("--dry-run") && help.contains("--json"), "{command}: {help}");
    }
}
