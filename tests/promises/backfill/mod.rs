//! What webhooks have missed comes back from respond.io's API, and the same command proves that nothing is
//! missing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use mongodb::bson::{Bson, Document, doc};
use penstock_tests::broker::Broker;
use penstock_tests::certificates::Certificates;
use penstock_tests::database::Database;
use penstock_tests::http::metric;
use penstock_tests::poll;
use penstock_tests::process::{Answer, Process, Worker, operate_with, until_idle};
use penstock_tests::respond_api::{Habit, Mischief, RespondApi, TOKEN};
use penstock_tests::stack::{Place, is_long_run};
use serde_json::{Value, json};

mod failures;
mod traffic;

use traffic::{Phase, Traffic, channel, publish, user};

/// An API with users and channels, and what a command needs to reach it.
fn api() -> RespondApi {
    let api = RespondApi::start();
    api.put_user(user());
    [7, 8].into_iter().for_each(|id| api.put_channel(channel(id)));
    api
}

fn settings<'a>(api: &'a RespondApi, rate: &'a str) -> [(&'a str, &'a str); 3] {
    [("RESPOND_API_URL", &api.url), ("RESPOND_API_TOKEN", TOKEN), ("RESPOND_API_RATE", rate)]
}

fn backfill(place: &Place, arguments: &[&str], settings: &[(&str, &str)]) -> Answer {
    let arguments = [&["backfill", "--tenant", "faster", "--json"], arguments].concat();
    operate_with(place, &arguments, settings)
}

/// Compares a document with that of an undisturbed run: times of messages within a second, and without these
/// fields.
fn assert_alike(what: &str, document: &Document, undisturbed: &Document, without: &[&str]) {
    let (mut document, mut undisturbed) = (document.clone(), undisturbed.clone());
    for name in ["ts", "first_message_ts", "last_message_ts"] {
        if let (Some(Bson::DateTime(at)), Some(Bson::DateTime(expected))) =
            (document.remove(name), undisturbed.remove(name))
        {
            let difference = at.timestamp_millis().abs_diff(expected.timestamp_millis());
            assert!(difference <= 1000, "{what}: {name} is {difference} ms off");
        }
    }
    for document in [&mut document, &mut undisturbed] {
        without.iter().for_each(|name| drop(document.remove(name)));
    }
    assert_eq!(document, undisturbed, "{what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_webhook_that_was_off_has_missed_comes_back() {
    let (contacts, messages, rate) = if is_long_run() { (500, 40_000, "400") } else { (50, 2000, "100") };
    let (place, api, traffic) = (Place::new().await, api(), Traffic::new(contacts, messages));
    let worker = Worker::start(&place, &[]).await;
    let broker = Broker::connect(&place.amqp_url).await;
    let settings = settings(&api, rate);
    // Of vip nothing is missed.
    traffic.happen(&api, Phase::Before);
    publish(&broker, &["faster", "vip"], &traffic.webhooks(Phase::Before)).await;
    traffic.happen(&api, Phase::Gap);
    publish(&broker, &["vip"], &traffic.webhooks(Phase::Gap)).await;
    until_idle(&broker, &[&worker]).await;

    let missed = traffic.numbers(Phase::Gap).len() as u64;
    let audit = backfill(&place, &["--dry-run", "--wait", "0s"], &settings);
    let lines = audit.json();
    let summary = lines.last().unwrap();
    assert_eq!((audit.status, &summary["missing"]), (1, &json!(missed)), "{}", audit.errors);
    assert_eq!((&summary["missing_contacts"], &summary["different"]), (&json!(contacts / 5), &json!(0)));
    let days = lines.iter().filter(|line| line.get("day").is_some());
    assert_eq!(days.map(|day| day["missing"].as_u64().unwrap()).sum::<u64>(), missed);
    assert_eq!(
        lines.iter().filter(|line| line.get("missing").is_some_and(Value::is_string)).count() as u64,
        missed.min(10_000)
    );

    let first = traffic.at_ms(traffic.numbers(Phase::Gap)[0]);
    let since = mongodb::bson::DateTime::from_millis(i64::try_from(first).unwrap() - 1000);
    let since = since.try_to_rfc3339_string().unwrap();
    let asked = api.requests().len();
    let arguments = ["backfill", "--tenant", "faster", "--since", &since];
    let half = usize::try_from(contacts).unwrap() / 2;
    api.hold_after(half);
    let mut running = Process::start_command(&place, &arguments, &settings);
    traffic.happen(&api, Phase::During);
    let during = traffic.webhooks(Phase::During);
    let (early, late) = during.split_at(during.len() / 2);
    publish(&broker, &["faster", "vip"], early).await;
    // What is read is published, too: so it takes the longer the more there is.
    let patience = poll::PATIENCE * if is_long_run() { 10 } else { 1 };
    let is_half_read = async || api.requests().len() > asked + half;
    poll::until_within("half of it is read", true, patience, is_half_read).await;
    // It is kept a little later.
    let database = Database::of(&place, "faster").await;
    let kept = async || {
        let run = database.0.collection::<Document>("penstock_backfill").find_one(doc! {}).await.unwrap();
        let run = run.expect("a run");
        let counts = run.get_document("place").and_then(|place| place.get_document("counts"));
        counts.ok().and_then(|counts| counts.get_i64("contacts").ok()).unwrap_or_default()
    };
    poll::until_within("some of it is kept", true, patience, async || kept().await > 0).await;
    assert!(running.peak_memory() < 128 << 20, "{} bytes", running.peak_memory());
    running.signal("KILL");
    assert!(!running.ended().await.success());
    api.let_go();
    let (kept, asked) = (u64::try_from(kept().await).unwrap(), api.requests().len());
    let (resumed, ()) = tokio::join!(
        async { backfill(&place, &["--since", &since], &settings) },
        publish(&broker, &["faster", "vip"], late),
    );
    assert_eq!(resumed.status, 0, "{}", resumed.errors);
    assert!(resumed.errors.contains("continues after"), "{}", resumed.errors);
    let requests = api.requests();
    let lists = requests[asked..].iter().filter_map(|(_, path)| path.split_once("/message/list"));
    let read: BTreeSet<&str> = lists.map(|(contact, _)| contact).collect();
    assert!(read.len() as u64 <= contacts - kept, "{} besides {kept} of {contacts} contacts", read.len());
    let summary = resumed.json().remove(0);
    assert_eq!((&summary["failed"], &summary["deleted"]), (&json!(0), &json!(0)));
    assert_eq!(summary["contacts"], json!(contacts), "of both runs");

    traffic.happen(&api, Phase::After);
    publish(&broker, &["faster", "vip"], &traffic.webhooks(Phase::After)).await;
    until_idle(&broker, &[&worker]).await;
    let audit = backfill(&place, &["--dry-run"], &settings);
    let summary = audit.json().pop().unwrap();
    assert_eq!(audit.status, 0, "{summary}");
    assert_eq!((&summary["respond_io"], &summary["mongodb"]), (&json!(messages), &json!(messages)));
    assert_eq!((&summary["missing"], &summary["different"]), (&json!(0), &json!(0)));
    assert!(summary["not_in_the_api"].to_string().contains("comments"));

    assert_undisturbed(&place).await;
    let faster = Database::of(&place, "faster").await;
    let ledger = faster.0.collection::<Document>("webhook_events");
    let marked = ledger.count_documents(doc! {"signature": "backfill"}).await.unwrap();
    assert!(marked >= missed + contacts / 5, "{marked} of {missed}");
    let counted = async |outcome| {
        let mut sum = 0.0;
        for event_type in ["message.received", "message.sent", "contact.created"] {
            let labels = [("tenant", "faster"), ("outcome", outcome), ("event_type", event_type)];
            sum += metric(&worker.admin, "worker_events_total", &labels).await.unwrap();
        }
        sum as u64
    };
    assert_eq!(counted("backfilled").await, marked);
    let account = operate_with(&place, &["reconcile", "--tenant", "faster", "--json"], &[]).json().remove(0);
    assert_eq!(account["backfilled"], json!(marked));
    // The bookkeeping of both kinds of events is right.
    let rebuilt =
        operate_with(&place, &["rebuild", "--tenant", "faster", "--dry-run", "--json"], &[]).json().remove(0);
    assert_eq!((&rebuilt["inserted"], &rebuilt["updated"]), (&json!(0), &json!(0)), "{rebuilt}");
    assert_eq!(rebuilt["backfilled"], json!(marked));
    worker.process.stop().await;
    place.remove().await;
}

/// The documents of faster are those of vip, but for what the API doesn't have.
async fn assert_undisturbed(place: &Place) {
    let (faster, vip) =
        (Database::of(place, "faster").await.dump().await, Database::of(place, "vip").await.dump().await);
    let ids = |dump: &BTreeMap<String, BTreeMap<String, Document>>, name: &str| {
        dump[name].keys().cloned().collect::<Vec<_>>()
    };
    for name in ["messages", "conversations", "contacts"] {
        assert_eq!(ids(&faster, name), ids(&vip, name), "{name}");
    }
    for (id, message) in &faster["messages"] {
        assert_alike(id, message, &vip["messages"][id], &["_merge", "event_id"]);
    }
    for (id, contact) in &faster["contacts"] {
        assert_alike(id, contact, &vip["contacts"][id], &["_merge"]);
    }
    let not_in_the_api = [
        "internal_note_count",
        "last_internal_note_at",
        "status",
        "opened_at",
        "opened_source",
        "first_incoming_message",
        "first_incoming_message_channel_id",
    ];
    for (id, conversation) in &faster["conversations"] {
        assert_alike(
            id,
            conversation,
            &vip["conversations"][id],
            &[&["_merge"], &not_in_the_api[..]].concat(),
        );
    }
    assert!(faster["internal_notes"].len() < vip["internal_notes"].len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_stay_within_the_rate() {
    let (place, api, traffic) = (Place::new().await, api(), Traffic::new(40, 80));
    let worker = Worker::start(&place, &[]).await;
    traffic.happen(&api, Phase::Gap);
    api.next(&[Mischief::TooMany(Some(1))]);
    let before = Instant::now();
    let answer = backfill(&place, &[], &settings(&api, "30"));
    assert_eq!(answer.status, 0, "{}", answer.errors);
    let requests = api.requests();
    assert!(requests.len() > 40, "{}", requests.len());
    // None can come earlier than its turn, however slow the machine is; a second was asked for after the
    // first.
    for (n, (came, _)) in requests.iter().enumerate().skip(1) {
        let turn = Duration::from_secs(1) + Duration::from_secs(1) * u32::try_from(n - 1).unwrap() / 30;
        assert!(*came - before >= turn, "request {n} came after {:?}", *came - before);
    }
    worker.process.stop().await;
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_that_misbehaves_is_coped_with() {
    let (place, api, traffic) = (Place::new().await, api(), Traffic::new(8, 16));
    let worker = Worker::start(&place, &[]).await;
    let broker = Broker::connect(&place.amqp_url).await;
    for phase in [Phase::Before, Phase::Gap, Phase::During, Phase::After] {
        traffic.happen(&api, phase);
    }
    for (contact, habit) in
        [(1, Habit::Deleted), (2, Habit::Repeats), (3, Habit::Loops), (4, Habit::BareCursor)]
    {
        api.set_habit(contact, habit);
        let ids = 0..250;
        ids.for_each(|n| {
            api.put_message(
                json!({"messageId": 1_700_000_000_000_000_u64 + contact * 1_000_000 + n, "contactId": contact,
            "channelId": 7, "traffic": "incoming", "message": {"type": "text", "text": n.to_string()}}),
                None,
            )
        });
    }
    // Ids as text, of which one tells no time; null fields; a full page with one message without content.
    api.put_contact(json!({"id": "9", "phone": "+1555", "firstName": null, "custom_fields": null, "tags": null, "assignee": null,
        "status": null, "lifecycle": null}));
    for n in 0..100_u64 {
        let content = if n == 50 { json!(null) } else { json!({"type": "text", "text": n.to_string()}) };
        let id = if n == 70 { "wamid".to_owned() } else { (1_700_000_000_000_000_u64 + n).to_string() };
        api.put_message(json!({"messageId": id, "contactId": "9", "channelId": "7", "traffic": "incoming", "message": content,
            "status": null, "sender": null, "channelMessageId": null}), Some(n));
    }
    api.next(&[
        Mischief::TooMany(Some(1)),
        Mischief::TooMany(None),
        Mischief::Fails(500),
        Mischief::Cut,
        Mischief::LastOfBudget,
        Mischief::Fails(503),
        Mischief::Cut,
    ]);
    let answer = backfill(&place, &[], &settings(&api, "1000"));
    let summary = answer.json().remove(0);
    assert_eq!(
        (answer.status, &summary["failed"], &summary["deleted"]),
        (1, &json!(2), &json!(1)),
        "{}",
        answer.errors
    );
    let failures = summary["failures"].to_string();
    assert!(failures.contains("repeats") && failures.contains("read before"), "{failures}");
    assert!(answer.errors.contains("2 contacts could not be read"), "{}", answer.errors);
    until_idle(&broker, &[&worker]).await;
    let database = Database::of(&place, "faster").await;
    let of_contact = async |id: Bson| {
        let messages = database.0.collection::<Document>("messages");
        messages.count_documents(doc! {"contact_id": id}).await.unwrap()
    };
    assert_eq!(of_contact(4.into()).await, 250 + 2, "pages by bare cursors");
    assert_eq!(of_contact("9".into()).await, 100);
    let undated = database.get("messages", "wamid").await;
    assert_eq!(
        undated.get_datetime("ts").unwrap().timestamp_millis(),
        1_700_000_000_000,
        "as its neighbours"
    );
    let conversation = database.get("conversations", "+1555").await;
    assert_eq!(conversation.get_i32("message_count").unwrap(), 100);
    // Again: only what can't be read is left.
    let again = backfill(&place, &[], &settings(&api, "1000")).json().remove(0);
    assert_eq!(
        (&again["published_messages"], &again["published_contacts"]),
        (&json!(0), &json!(0)),
        "{again}"
    );
    worker.process.stop().await;
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_is_said_plainly_and_the_token_never() {
    let (place, api) = (Place::new().await, api());
    let certificates = Certificates::make(&place.folder);
    let target = api.url.trim_start_matches("http://").trim_end_matches("/v2").parse().unwrap();
    let encrypted = format!("https://localhost:{}/v2", certificates.in_front_of(target).await.port());
    let authority = certificates.authority();
    api.put_contact(json!({"id": 1}));
    let wrong_path = api.url.replace("/v2", "/v3");
    let audit = |extra: &[(&str, &str)]| {
        let mut settings = settings(&api, "1000").to_vec();
        settings.retain(|(name, _)| !extra.iter().any(|(other, _)| other == name));
        settings.extend_from_slice(extra);
        settings.push(("RUST_LOG", "trace"));
        backfill(&place, &["--dry-run", "--wait", "0s"], &settings)
    };
    for (extra, status, words) in [
        (&[("RESPOND_API_TOKEN", "another-s3cret")][..], 1, "refuses the token (401)"),
        (&[("RESPOND_API_TOKEN", "")], 64, "RESPOND_API_TOKEN: is not set"),
        (&[("RESPOND_API_TOKEN", "s3cret s3cret")], 64, "RESPOND_API_TOKEN: has blanks"),
        (&[("RESPOND_API_URL", &wrong_path)], 1, "(404)"),
        (&[("RESPOND_API_URL", "respond.io")], 64, "RESPOND_API_URL: is not a URL"),
        (&[("RESPOND_API_URL", "http://127.0.0.1:1/v2")], 1, "can't be reached"),
        (&[("RESPOND_API_URL", &encrypted)], 1, "can't be reached"),
        (&[("RESPOND_API_URL", &encrypted), ("SSL_CERT_FILE", &authority)], 1, "1 contacts are missing"),
    ] {
        let answer = audit(extra);
        assert!(
            answer.status == status && answer.errors.contains(words),
            "{extra:?}: {} {}",
            answer.status,
            answer.errors
        );
        let all = answer.out + &*answer.errors;
        assert!(!all.contains(TOKEN) && !all.contains("s3cret"), "{all}");
    }
    // 401 and 404 are said at once, since time won't change them.
    assert_eq!(api.requests().iter().filter(|(_, path)| path.starts_with("/v3")).count(), 1);
    let unknown = backfill(
        &place,
        &["--since", "2026-11-20T08:00Z", "--until", "2026-11-20T08:00Z"],
        &settings(&api, "1000"),
    );
    assert!(unknown.status == 1 && unknown.errors.contains("not after"), "{}", unknown.errors);
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cursor_that_the_api_forgets_in_mid_run_costs_only_time() {
    const CONTACTS: u64 = 250;
    let (place, api) = (Place::new().await, api());
    let worker = Worker::start(&place, &[]).await;
    let broker = Broker::connect(&place.amqp_url).await;
    (1..=CONTACTS).for_each(|id| api.put_contact(json!({"id": id, "phone": format!("+15550{id:06}")})));
    // Two further pages are read to count the contacts.
    api.refuse_cursor(4);
    let run = backfill(&place, &[], &settings(&api, "1000"));
    assert_eq!(run.status, 0, "{}", run.errors);
    until_idle(&broker, &[&worker]).await;
    assert_eq!(Database::of(&place, "faster").await.count("contacts").await, CONTACTS);
    worker.process.stop().await;
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_run_at_a_time_and_contacts_can_be_chosen() {
    let (place, api, traffic) = (Place::new().await, api(), Traffic::new(40, 160));
    let worker = Worker::start(&place, &[]).await;
    let broker = Broker::connect(&place.amqp_url).await;
    for phase in [Phase::Before, Phase::Gap, Phase::During, Phase::After] {
        traffic.happen(&api, phase);
    }
    let list = place.folder.join("contacts");
    std::fs::write(&list, "id:3\n7\n\n99\n").unwrap();
    let listed = ["--contacts", list.to_str().unwrap()];
    let unknown = backfill(&place, &listed, &settings(&api, "1000"));
    let named = unknown.json().remove(0);
    assert_eq!((&named["contacts"], &named["failed"]), (&json!(2), &json!(1)), "99 doesn't exist");
    assert_eq!((unknown.status, &named["failures"][0]["contact"]), (1, &json!("99")));
    assert_eq!((&named["messages"], &named["published_contacts"]), (&json!(8), &json!(2)));
    until_idle(&broker, &[&worker]).await;
    std::fs::write(&list, "id:3\n7\n").unwrap();
    let audit = backfill(&place, &[&["--dry-run"], &listed[..]].concat(), &settings(&api, "1000"));
    assert_eq!(audit.status, 0, "{}", audit.errors);
    let sampled = backfill(&place, &["--dry-run", "--sample", "5", "--wait", "0s"], &settings(&api, "1000"));
    assert_eq!((sampled.status, &sampled.json().last().unwrap()["contacts"]), (1, &json!(5)));

    let mut slow = Process::start_command(&place, &["backfill", "--tenant", "faster"], &settings(&api, "1"));
    let database = Database::of(&place, "faster").await;
    let is_leased = async || {
        let run = database.0.collection::<Document>("penstock_backfill").find_one(doc! {}).await.unwrap();
        run.is_some_and(|run| run.contains_key("expires_at"))
    };
    poll::until("it has begun", true, is_leased).await;
    let second = backfill(&place, &[], &settings(&api, "1000"));
    assert!(second.status == 1 && second.errors.contains("another backfill"), "{}", second.errors);
    slow.signal("KILL");
    slow.ended().await;
    worker.process.stop().await;
    place.remove().await;
}
