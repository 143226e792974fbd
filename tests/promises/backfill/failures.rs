//! A contact, MongoDB or a run that fails costs no other contact, and is named.

use std::time::Duration;

use mongodb::bson::{DateTime, Document, doc};
use penstock_tests::broker::Broker;
use penstock_tests::database::Database;
use penstock_tests::poll;
use penstock_tests::process::{Process, Worker, until_idle};
use penstock_tests::relay::Fault;
use penstock_tests::respond_api::{Habit, Mischief, RespondApi};
use penstock_tests::stack::Place;
use serde_json::{Value, json};

use super::{api, backfill, settings};

/// An API that has this many contacts with a message each.
fn api_with(contacts: u64) -> RespondApi {
    let api = api();
    for id in 1..=contacts {
        api.put_contact(json!({"id": id, "phone": format!("+15550{id:06}")}));
        api.put_message(
            json!({"messageId": 1_700_000_000_000_000 + id * 1_000_000, "contactId": id, "channelId": 7,
                "traffic": "incoming", "message": {"type": "text", "text": "hi"}}),
            None,
        );
    }
    api
}

/// What is kept of a run.
async fn kept(place: &Place) -> Document {
    let runs = Database::of(place, "faster").await.0.collection::<Document>("penstock_backfill");
    runs.find_one(doc! {}).await.unwrap().unwrap_or_default()
}

/// A number that is kept of how far the run is.
async fn count(place: &Place, name: &str) -> i64 {
    let run = kept(place).await;
    let counts = run.get_document("place").and_then(|place| place.get_document("counts"));
    counts.ok().and_then(|counts| counts.get_i64(name).ok()).unwrap_or_default()
}

/// Keeps a run that was at the first page, with one contact done.
async fn keep_run(place: &Place, more: Document) {
    let now = DateTime::now();
    let counts = doc! {"contacts": 1_i64};
    let mut run = doc! {
        "_id": "run", "owner": "another", "renewed_at": now,
        "task": {"since": null, "until": null, "contacts": ""},
        "place": {"until": now, "cursor": null, "done": ["1"], "total": 2_i64, "counts": counts},
    };
    run.extend(more);
    let runs = Database::of(place, "faster").await.0.collection::<Document>("penstock_backfill");
    runs.insert_one(run).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_contact_that_the_api_cant_serve_is_named_and_the_others_come_back() {
    let (place, api) = (Place::new().await, api_with(4));
    let worker = Worker::start(&place, &[]).await;
    let broker = Broker::connect(&place.amqp_url).await;
    api.set_habit(2, Habit::Fails);
    for (arguments, name) in [(&["--dry-run", "--wait", "0s"][..], "missing"), (&[], "published_messages")] {
        let answer = backfill(&place, arguments, &settings(&api, "1000"));
        let lines = answer.json();
        let summary = lines.last().unwrap();
        assert_eq!((answer.status, &summary[name]), (1, &json!(3)), "{}", answer.errors);
        assert_eq!((&summary["failed"], &summary["complete"]), (&json!(1), &json!(true)));
        let failure = &summary["failures"][0];
        assert_eq!(failure["contact"], "2");
        assert!(failure["why"].as_str().unwrap().contains("500"), "{failure}");
    }
    until_idle(&broker, &[&worker]).await;
    assert_eq!(Database::of(&place, "faster").await.count("messages").await, 3);
    worker.process.stop().await;
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_that_is_stopped_tells_what_it_has_counted() {
    let (place, api) = (Place::new().await, api_with(40));
    Worker::start(&place, &[]).await.process.stop().await;
    // Users, channels, contacts twice, and some lists of messages.
    api.hold_after(4 + 16);
    let arguments = ["backfill", "--tenant", "faster", "--dry-run", "--json"];
    let mut running = Process::start_command(&place, &arguments, &settings(&api, "1000"));
    poll::until("it waits", true, async || api.requests().len() > 4 + 16).await;
    api.next(&[Mischief::Fails(401)]);
    api.let_go();
    assert!(!running.ended().await.success());
    let text = running.log_text();
    assert!(text.contains("refuses the token"), "{text}");
    let mut lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let summary = lines.rfind(|line| line.get("missing_contacts").is_some()).expect("a summary");
    assert!(summary["missing"].as_u64().unwrap() >= 16 - 8, "{summary}");
    assert_eq!(summary["complete"], false);
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mongodb_may_fail_for_a_while() {
    let (place, api) = (Place::new().await, api());
    Worker::start(&place, &[]).await.process.stop().await;
    let (mongodb, uri) = place.mongo_relay().await;
    (1..=40).for_each(|id| api.put_contact(json!({"id": id, "phone": format!("+15550{id:06}")})));
    api.hold_after(4);
    let arguments = ["backfill", "--tenant", "faster", "--dry-run", "--wait", "0s"];
    let settings = [&settings(&api, "1000")[..], &[("MONGO_URI", &uri)]].concat();
    let mut running = Process::start_command(&place, &arguments, &settings);
    poll::until("it waits", true, async || api.requests().len() > 4).await;
    mongodb.set(Fault::Cut);
    api.let_go();
    // Longer than the driver waits for another primary.
    tokio::time::sleep(Duration::from_secs(8)).await;
    mongodb.set(Fault::None);
    assert_eq!(running.ended().await.code(), Some(1));
    let text = running.log_text();
    assert!(text.contains("40 contacts, 40 of them missing"), "{text}");
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contacts_that_a_killed_run_could_not_read_are_named_by_the_next() {
    let (place, api) = (Place::new().await, api_with(40));
    let worker = Worker::start(&place, &[]).await;
    api.set_habit(2, Habit::Repeats);
    api.hold_after(4 + 20);
    let mut running =
        Process::start_command(&place, &["backfill", "--tenant", "faster"], &settings(&api, "1000"));
    poll::until("one has failed", 1, async || count(&place, "failed").await).await;
    running.signal("KILL");
    running.ended().await;
    api.let_go();
    let resumed = backfill(&place, &[], &settings(&api, "1000"));
    assert!(resumed.errors.contains("continues after"), "{}", resumed.errors);
    let failure = &resumed.json()[0]["failures"][0];
    assert_eq!((resumed.status, &failure["contact"]), (1, &json!("2")), "{}", resumed.errors);
    assert!(failure["why"].as_str().unwrap().contains("earlier run"), "{failure}");
    worker.process.stop().await;
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_begins_anew_forgets_the_earlier_one_at_once() {
    let (place, api) = (Place::new().await, api_with(2));
    Worker::start(&place, &[]).await.process.stop().await;
    keep_run(&place, doc! {}).await;
    // It waits while it counts the contacts.
    api.hold_after(2);
    let arguments = ["backfill", "--tenant", "faster", "--anew"];
    let mut running = Process::start_command(&place, &arguments, &settings(&api, "1000"));
    poll::until("it counts", true, async || api.requests().len() > 2).await;
    running.signal("KILL");
    running.ended().await;
    assert_eq!(count(&place, "contacts").await, 0, "{}", kept(&place).await);
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_whose_clock_is_behind_is_left_alone() {
    let (place, api) = (Place::new().await, api_with(2));
    Worker::start(&place, &[]).await.process.stop().await;
    let behind = |ms: i64| DateTime::from_millis(DateTime::now().timestamp_millis() - 3_600_000 + ms);
    keep_run(&place, doc! {"renewed_at": behind(0), "expires_at": behind(15_000)}).await;
    let runs = Database::of(&place, "faster").await.0.collection::<Document>("penstock_backfill");
    let renewing = tokio::spawn(async move {
        loop {
            let renewed = doc! {"renewed_at": behind(0), "expires_at": behind(15_000)};
            runs.update_one(doc! {"owner": "another"}, doc! {"$set": renewed}).await.unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    let second = backfill(&place, &[], &settings(&api, "1000"));
    renewing.abort();
    assert!(second.status == 1 && second.errors.contains("another backfill"), "{}", second.errors);
    assert_eq!(kept(&place).await.get_str("owner").unwrap(), "another");
    place.remove().await;
}
