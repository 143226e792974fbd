//! A person who was erased is gone, and nothing comes back that was received before; what is received later
//! is new.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use futures_util::future::join_all;
use lapin::types::{AMQPValue, FieldTable};
use mongodb::bson::{DateTime, Document, doc};
use penstock_tests::broker::Broker;
use penstock_tests::console::Console;
use penstock_tests::database::{COLLECTIONS, Database};
use penstock_tests::http::{metric, post};
use penstock_tests::poll;
use penstock_tests::process::{
    Answer, Ingest, Process, Worker, operate, operate_well, operate_with, start_unread, until_idle,
};
use penstock_tests::respond_api::{RespondApi, TOKEN};
use penstock_tests::stack::{Place, is_long_run};
use reqwest::Method;
use serde_json::{Value, json};
use shared::partition::LARGE_BODY;

/// Long before now.
const RECEIVED_AT_MS: i64 = 1_792_000_000_000;
const PHONE: &str = "+15550100999";
/// Contacts with that phone.
const CONTACTS: [u64; 2] = [70_070, 70_071];
const TYPES: [&str; 5] =
    ["message.received", "comment.created", "contact.updated", "contact.lifecycle.updated", "call.ended"];

fn now_ms() -> i64 {
    i64::try_from(SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap()
}

/// An event of each kind in turn, with this number in its ids.
fn event(contact: &Value, n: u64) -> Vec<u8> {
    let event_type = TYPES.get(usize::try_from(n % 7).unwrap()).copied().unwrap_or("group.joined");
    // Some are so large that they take another queue.
    let padding = if n % 35 == 7 { "x".repeat(LARGE_BODY) } else { String::new() };
    let event = json!({"event_id": format!("e{n}"), "event_type": event_type, "contact": contact, "text": "a note",
        "channel": {"id": 5, "name": "WhatsApp"}, "call": {"id": n, "end_time": 1_791_000_000 + n}, "lifecycle": n,
        "message": {"messageId": n, "timestamp": 1_791_000_000 + n, "message": {"type": "image", "text": padding}}});
    event.to_string().into_bytes()
}

/// The person, with a phone or without: then the conversation is another one, and so may the queue be.
fn contact(id: u64, n: u64) -> Value {
    json!({"id": id, "phone": (n % 3 != 1).then_some(PHONE), "firstName": "Ada"})
}

/// The person, as one contact.
fn ada(n: u64) -> Value {
    contact(CONTACTS[0], n)
}

/// The person, as several contacts.
fn person(n: u64) -> Value {
    contact(CONTACTS[usize::try_from(n / 7 % 2).unwrap()], n)
}

fn other(n: u64) -> Value {
    json!({"id": 7, "phone": "+15550100998", "firstName": format!("Bob {n}")})
}

async fn publish(broker: &Broker, tenants: &[&str], events: &[(i64, Vec<u8>)]) {
    for (received_at_ms, body) in events {
        for tenant in tenants {
            broker.publish_event(tenant, "any", *received_at_ms, body).await;
        }
    }
}

fn long_ago(range: std::ops::Range<u64>, contact: fn(u64) -> Value) -> Vec<(i64, Vec<u8>)> {
    range.map(|n| (RECEIVED_AT_MS + i64::try_from(n).unwrap(), event(&contact(n), n))).collect()
}

async fn count(database: &Database) -> BTreeMap<&'static str, u64> {
    let mut counts = BTreeMap::new();
    for collection in COLLECTIONS {
        counts.insert(collection, database.count(collection).await);
    }
    counts
}

async fn erased(worker: &Worker) -> f64 {
    let types = TYPES.into_iter().chain(["unknown"]);
    let of_type = types.map(async |event_type| {
        let labels = [("tenant", "faster"), ("outcome", "erased"), ("event_type", event_type)];
        metric(&worker.admin, "worker_events_total", &labels).await.unwrap()
    });
    join_all(of_type).await.into_iter().sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_that_there_is_of_a_person_is_removed_and_nothing_of_others_and_nothing_old_comes_back() {
    let place = Place::new().await;
    let (ingest, worker) = (Ingest::start(&place, &[]).await, Worker::start(&place, &[]).await);
    let broker = Broker::connect(&place.amqp_url).await;
    let (faster, vip) = (Database::of(&place, "faster").await, Database::of(&place, "vip").await);
    let (old, others) = (long_ago(0..70, person), long_ago(100..135, other));
    // Of vip the person never was.
    publish(&broker, &["faster", "vip"], &others).await;
    publish(&broker, &["faster"], &old).await;
    for text in ["no event of +15550100999", "no event of somebody else: +155501009990"] {
        broker.publish_event("faster", "any", RECEIVED_AT_MS, text.as_bytes()).await;
        post(&ingest.path("/webhook/faster"), format!("{{\"text\": \"{text}\"")).await;
    }
    faster.until_stored(105).await;
    vip.until_stored(35).await;
    for queue in ["dead.faster", "quarantine.faster"] {
        poll::until(queue, Some(2), async || broker.depth(queue).await).await;
    }
    until_idle(&broker, &[&worker]).await;

    let before = count(&faster).await;
    let erase = |arguments: &[&str]| {
        let arguments = [&["erase", "--tenant", "faster", "--json"], arguments].concat();
        let answer = operate_with(&place, &arguments, &[("RUST_LOG", "error")]);
        assert_eq!(answer.status, 0, "{}", answer.errors);
        (answer.json().remove(0), answer.errors)
    };
    let (dry, _) = erase(&["--phone", "+1 (555) 010-0999", "--dry-run"]);
    assert_eq!(dry["contact_ids"], json!(["70070", "70071"]));
    let several = operate(&place, &["erase", "--tenant", "faster", "--contact", "70071", "--contacts", "1"]);
    assert!(several.status == 1 && several.errors.contains("--contacts 2"), "{}", several.errors);
    assert_eq!(count(&faster).await, before, "nothing was removed");
    assert_eq!(faster.count("penstock_erased").await, 0);
    let (done, log) = erase(&["--contact", "70071"]);
    assert_eq!(done["removed"], dry["removed"]);
    assert_eq!((&done["contacts"], &done["phones"], &done["later"]), (&json!(2), &json!(1), &json!(0)));
    let after = count(&faster).await;
    for collection in COLLECTIONS {
        let removed = before[collection] - after[collection];
        assert_eq!(done["removed"][collection], json!(removed), "{collection}");
        assert!(removed > 0, "{collection}");
    }
    for queue in ["dead.faster", "quarantine.faster"] {
        assert_eq!(done["removed"][queue], json!(1), "{queue}");
        assert_eq!(broker.depth(queue).await, Some(1), "{queue}");
    }
    assert_eq!(faster.dump().await, vip.dump().await);
    assert!(
        log.contains("a person was erased") && !log.contains("0100999") && !log.contains("7007"),
        "{log}"
    );
    let tombstones = faster.ids("penstock_erased").await;
    assert_eq!(tombstones.len(), 3);
    assert!(tombstones.iter().all(|hash| hash.len() == 64), "{tombstones:?}");

    publish(&broker, &["faster"], &old).await;
    until_idle(&broker, &[&worker]).await;
    assert_eq!(erased(&worker).await, 70.0);
    operate_well(&place, &["rebuild", "--tenant", "faster"]);
    assert_eq!(faster.dump().await, vip.dump().await);
    let again = erase(&["--phone", PHONE]).0;
    assert!(again["removed"].as_object().unwrap().values().all(|number| *number == 0), "{again}");

    let now = now_ms();
    let new: Vec<_> = (200..235).map(|n| (now + i64::try_from(n).unwrap(), event(&person(n), n))).collect();
    publish(&broker, &["faster", "vip"], &new).await;
    faster.until_stored(70).await;
    vip.until_stored(70).await;
    assert_eq!(faster.dump().await, vip.dump().await);
    worker.process.stop().await;
    place.remove().await;
}

/// Events that were published, each with the time at which it was received.
type Published = Vec<(i64, Vec<u8>)>;

/// Publishes events of the person and of another until it is told to stop.
async fn flow(place: Place, first: u64, stop: Arc<AtomicBool>) -> (Published, Published) {
    let broker = Broker::connect(&place.amqp_url).await;
    let (mut of_person, mut of_other) = (Published::new(), Published::new());
    let mut n = first;
    while !stop.load(Ordering::Relaxed) {
        let is_person = !n.is_multiple_of(5);
        let event = (now_ms(), event(&if is_person { ada(n) } else { other(n) }, n));
        publish(&broker, &["faster"], std::slice::from_ref(&event)).await;
        if is_person {
            of_person.push(event)
        } else {
            of_other.push(event)
        }
        n += 1;
    }
    (of_person, of_other)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn while_webhooks_of_the_person_flow_exactly_those_received_before_are_gone() {
    let place = Place::new().await;
    let worker = Worker::start(&place, &[("BATCH_LINGER", "1ms")]).await;
    let broker = Broker::connect(&place.amqp_url).await;
    let (faster, vip) = (Database::of(&place, "faster").await, Database::of(&place, "vip").await);
    let stop = Arc::new(AtomicBool::new(false));
    let flows: Vec<_> =
        (1..=4).map(|n| tokio::spawn(flow(place.clone(), n * 1_000_000, stop.clone()))).collect();
    let mut last = Value::Null;
    for round in 1..=if is_long_run() { 5 } else { 1 } {
        // From the first event on, when nothing is there yet that both could write.
        let is_flowing = async || faster.count("webhook_events").await >= 30 * round;
        poll::until("webhooks flow", true, is_flowing).await;
        let arguments = ["erase", "--tenant", "faster", "--contact", "70070", "--json"];
        last = operate_well(&place, &arguments).json().remove(0);
        broker.publish_event("faster", "any", RECEIVED_AT_MS, &event(&ada(0), round)).await;
    }
    stop.store(true, Ordering::Relaxed);
    let (mut of_person, mut of_other) = (Published::new(), Published::new());
    for flow in flows {
        let (person, other) = flow.await.unwrap();
        of_person.extend(person);
        of_other.extend(other);
    }
    until_idle(&broker, &[&worker]).await;

    let at = DateTime::parse_rfc3339_str(last["received_before"].as_str().unwrap()).unwrap();
    let published = of_person.len();
    of_person.retain(|(received_at_ms, _)| *received_at_ms >= at.timestamp_millis());
    assert!(of_person.len() < published);
    // The same without any erasure.
    publish(&broker, &["vip"], &of_person).await;
    publish(&broker, &["vip"], &of_other).await;
    vip.until_stored((of_person.len() + of_other.len()) as u64).await;
    let (faster, vip) = (faster.dump().await, vip.dump().await);
    for collection in COLLECTIONS {
        let ids = |dump: &BTreeMap<String, BTreeMap<String, Document>>| {
            dump[collection].keys().cloned().collect::<Vec<_>>()
        };
        assert_eq!(ids(&faster), ids(&vip), "{collection}");
        for (id, document) in &vip[collection] {
            assert_eq!(&faster[collection][id], document, "{collection}");
        }
    }
    worker.process.stop().await;
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_erasure_that_was_killed_is_completed_by_another() {
    const MESSAGES: u64 = 30_000;
    let place = Place::new().await;
    let worker = Worker::start(&place, &[]).await;
    let broker = Broker::connect(&place.amqp_url).await;
    let faster = Database::of(&place, "faster").await;
    let collection = |name: &str| faster.0.collection::<Document>(name);
    // As the bridge has left them.
    let messages = (0..MESSAGES).map(|n| doc! {"_id": n.to_string(), "chat_id": PHONE, "contact_id": 70_070});
    collection("messages").insert_many(messages).await.unwrap();
    collection("contacts").insert_one(doc! {"_id": "70070", "phone": PHONE}).await.unwrap();
    collection("conversations").insert_one(doc! {"_id": PHONE, "contact": {"id": 70_070}}).await.unwrap();

    let arguments = ["erase", "--tenant", "faster", "--contact", "70070"];
    let mut killed = Process::start_command(&place, &arguments, &[]);
    poll::until("some are removed", true, async || faster.count("messages").await < MESSAGES).await;
    killed.signal("KILL");
    killed.ended().await;
    // It has kept workers from bringing anything back before it removed anything.
    let old = long_ago(0..14, ada);
    publish(&broker, &["faster"], &old).await;
    until_idle(&broker, &[&worker]).await;
    assert_eq!(erased(&worker).await, 14.0);

    operate_well(&place, &arguments);
    for (collection, number) in count(&faster).await {
        assert_eq!(number, 0, "{collection}");
    }
    worker.process.stop().await;
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backfill_brings_nothing_back_and_misses_nothing() {
    let (place, api) = (Place::new().await, RespondApi::start());
    let worker = Worker::start(&place, &[]).await;
    let broker = Broker::connect(&place.amqp_url).await;
    let faster = Database::of(&place, "faster").await;
    let settings =
        [("RESPOND_API_URL", api.url.as_str()), ("RESPOND_API_TOKEN", TOKEN), ("RESPOND_API_RATE", "100")];
    let backfill = |arguments: &[&str]| -> Answer {
        operate_with(&place, &[&["backfill", "--tenant", "faster", "--json"], arguments].concat(), &settings)
    };
    let message = |at_ms: i64| {
        let id = at_ms * 1000;
        json!({"messageId": id, "channelMessageId": "w", "contactId": 70_070, "channelId": 5, "traffic": "incoming",
            "message": {"type": "text", "text": "hi"}, "sender": {"source": "contact"}})
    };
    api.put_contact(json!({"id": 70_070, "phone": PHONE, "firstName": "Ada", "created_at": 1_788_000_000}));
    api.put_message(message(RECEIVED_AT_MS), None);
    let is_missing = backfill(&["--dry-run", "--wait", "0s"]);
    assert_eq!(is_missing.status, 1, "{}", is_missing.errors);

    operate_well(&place, &["erase", "--tenant", "faster", "--phone", PHONE]);
    let nothing = backfill(&["--dry-run", "--wait", "0s"]);
    assert_eq!(nothing.status, 0, "{}", nothing.out);
    assert_eq!(backfill(&[]).status, 0);
    until_idle(&broker, &[&worker]).await;
    for (collection, number) in count(&faster).await {
        assert_eq!(number, 0, "{collection}");
    }
    // What a backfill has published before, and what the person has sent since.
    let published = json!({"event_id": "backfill-1", "event_type": "message.received",
        "contact": {"id": 70_070, "phone": PHONE}, "message": {"messageId": 1, "timestamp": RECEIVED_AT_MS, "message": {"type": "text"}}});
    let headers = [("signature", "backfill"), ("stream", "any"), ("tenant", "faster")];
    broker.publish_with("faster", &headers, now_ms(), published.to_string().as_bytes()).await;
    let sent_at = now_ms();
    api.put_message(message(sent_at), None);
    assert_eq!(backfill(&[]).status, 0);
    until_idle(&broker, &[&worker]).await;
    assert_eq!(erased(&worker).await, 1.0);
    assert_eq!(faster.ids("messages").await, [(sent_at * 1000).to_string()]);
    assert_eq!(faster.ids("conversations").await, [PHONE]);
    worker.process.stop().await;
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_key_of_the_tombstones_nothing_old_is_stored() {
    let place = Place::new().await;
    let worker = Worker::start(&place, &[]).await;
    let broker = Broker::connect(&place.amqp_url).await;
    let faster = Database::of(&place, "faster").await;
    operate_well(&place, &["erase", "--tenant", "faster", "--phone", PHONE]);
    let keys = faster.0.collection::<Document>("penstock_erasure_key");
    let key = keys.find_one_and_delete(doc! {}).await.unwrap().unwrap();
    let refused = operate_with(&place, &["erase", "--tenant", "faster", "--phone", "1"], &[]);
    assert!(refused.status != 0 && refused.errors.contains("penstock_erasure_key"), "{}", refused.errors);
    publish(&broker, &["faster"], &long_ago(0..1, person)).await;
    let held = async || worker.process.log_text().contains("penstock_erasure_key is empty");
    poll::until("it says why it holds", true, held).await;
    // What came later needs no key.
    let new = |id: u64| json!({"event_id": "new", "contact": {"id": id}}).to_string();
    let held_in = broker.queue_of("faster", &event(&person(0), 0)).await;
    let mut id = 8;
    while broker.queue_of("faster", new(id).as_bytes()).await == held_in {
        id += 1;
    }
    let new = new(id);
    broker.publish_event("faster", "any", now_ms(), new.as_bytes()).await;
    faster.until_stored(1).await;
    keys.insert_one(key).await.unwrap();
    until_idle(&broker, &[&worker]).await;
    assert_eq!(faster.ids("webhook_events").await, ["new"]);
    worker.process.stop().await;
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_fences_nothing_old_is_stored() {
    let place = Place::new().await;
    let broker = Broker::connect(&place.amqp_url).await;
    let faster = Database::of(&place, "faster").await;
    Worker::start(&place, &[]).await.process.stop().await;
    operate_well(&place, &["erase", "--tenant", "faster", "--contact", "70070"]);
    // As in a restore that has left them out.
    faster.0.collection::<Document>("penstock_fences").drop().await.unwrap();
    let worker = Worker::start(&place, &[]).await;
    publish(&broker, &["faster"], &long_ago(0..7, ada)).await;
    until_idle(&broker, &[&worker]).await;
    assert_eq!((erased(&worker).await, faster.count("webhook_events").await), (7.0, 0));
    worker.process.stop().await;
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_command_has_taken_out_of_a_queue_is_not_forgotten() {
    const LETTERS: u32 = 40;
    let place = Place::new().await;
    let worker = Worker::start(&place, &[]).await;
    let broker = Broker::connect(&place.amqp_url).await;
    let faster = Database::of(&place, "faster").await;
    publish(&broker, &["faster"], &long_ago(0..1, person)).await;
    faster.until_stored(1).await;
    let body = format!("no event of {PHONE} {}", "x".repeat(8 << 10));
    for n in 0..LETTERS {
        broker.publish_event("faster", "any", RECEIVED_AT_MS, format!("{n} {body}").as_bytes()).await;
    }
    poll::until("dead letters", Some(LETTERS), async || broker.depth("dead.faster").await).await;

    // It waits for whoever reads its output, with messages in hand.
    let shown = start_unread(&place, &["dead", "show", "--tenant", "faster", "--json"]);
    let taken = async || broker.depth("dead.faster").await < Some(LETTERS);
    poll::until("messages are out", true, taken).await;
    let erase = ["erase", "--tenant", "faster", "--phone", PHONE, "--json"];
    let refused = operate(&place, &erase);
    assert!(refused.status == 1 && refused.errors.contains("reads dead.faster"), "{}", refused.errors);
    assert!(tokio::task::block_in_place(|| shown.wait_with_output()).unwrap().status.success());
    let erased = operate_well(&place, &erase);
    assert_eq!(erased.json()[0]["removed"]["dead.faster"], LETTERS, "{}", erased.out);
    assert_eq!(broker.depth("dead.faster").await, Some(0));
    worker.process.stop().await;
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_migration_or_a_backfill_has_left_behind_is_removed_too() {
    let place = Place::new().await;
    let worker = Worker::start(&place, &[]).await;
    let (broker, faster) = (Broker::connect(&place.amqp_url).await, Database::of(&place, "faster").await);
    let queues = ["migrating.dead.faster", "migrating.webhooks.faster.1", "webhooks.faster"];
    for queue in queues {
        let name = format!("queues/{}/{queue}", place.name);
        place.manage(Method::PUT, &name, Some(json!({"durable": true}))).await;
        for contact in [ada(0), other(0)] {
            let mut headers = FieldTable::default();
            headers.insert("received_at_ms".into(), AMQPValue::LongLongInt(RECEIVED_AT_MS));
            broker.publish("", queue, headers, &event(&contact, 0)).await;
        }
    }
    let run = doc! {"_id": "run", "place": {"done": ["7", "70070"], "failed": ["70070"]}};
    faster.0.collection::<Document>("penstock_backfill").insert_one(run).await.unwrap();
    let erase = ["erase", "--tenant", "faster", "--contact", "70070", "--json"];
    let dry = operate_well(&place, &[&erase[..], &["--dry-run"]].concat()).json().remove(0);
    for queue in queues {
        assert_eq!((&dry["removed"][queue], broker.depth(queue).await), (&json!(1), Some(2)), "{queue}");
    }
    let done = operate_well(&place, &erase).json().remove(0);
    assert_eq!(done["removed"], dry["removed"]);
    for queue in queues {
        assert_eq!(broker.depth(queue).await, Some(1), "{queue}");
    }
    let run = faster.get("penstock_backfill", "run").await;
    assert_eq!(run.get_document("place").unwrap(), &doc! {"done": ["7"], "failed": []});
    worker.process.stop().await;
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_console_counts_and_asks_before_it_erases() {
    let place = Place::new().await;
    let worker = Worker::start(&place, &[]).await;
    let (broker, faster) = (Broker::connect(&place.amqp_url).await, Database::of(&place, "faster").await);
    publish(&broker, &["faster"], &long_ago(0..7, person)).await;
    publish(&broker, &["faster"], &long_ago(100..107, other)).await;
    faster.until_stored(14).await;
    let console = Console::start(&place, &[]).await;
    let ada = console.log_in("Ada").await;
    let csrf = ada.csrf().await;
    let form = [("csrf", csrf.as_str()), ("phone", "+1 555 010 0999")];
    assert_eq!(ada.post("/t/faster/erase/apply", &form).await.status, 409, "nothing was counted");
    assert_eq!(ada.post("/t/faster/erase/count", &[("csrf", &csrf)]).await.status, 400);
    assert_eq!(ada.post("/t/faster/erase/count", &form[1..]).await.status, 403);
    assert_eq!(ada.post("/t/faster/erase/count", &form).await.location(), "/t/faster/erase");
    let shows = async |text: &str| ada.open("/t/faster/erase").await.html.contains(text);
    poll::until("it has counted", true, async || shows("Erase this person").await).await;
    assert_eq!(faster.count("webhook_events").await, 14);
    assert!(shows("Contacts: 70070").await, "the operator can look them up");
    let phone = ada.open("/t/faster/erase").await.inputs("phone").remove(0);
    let confirmed = [("csrf", csrf.as_str()), ("phone", phone.as_str())];
    assert_eq!(ada.post("/t/faster/erase/apply", &confirmed).await.status, 303);
    poll::until("they are gone", true, async || shows("Removed everything about the person").await).await;
    assert!(!shows("0100999").await);
    assert_eq!(faster.count("webhook_events").await, 7);
    assert_eq!(faster.ids("contacts").await, ["7"]);
    let log = console.process.log_lines();
    let line = log.iter().find(|line| line["message"] == "a person was erased").unwrap();
    assert_eq!((&line["by"], &line["tenant"]), (&json!("Ada"), &json!("faster")));
    assert!(!console.process.log_text().contains("0100999"));
    console.process.stop().await;
    worker.process.stop().await;
    place.remove().await;
}
