//! Operators see what happens and act, with nothing but a browser; nobody else does.

use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use mongodb::bson::{Document, doc};
use penstock_tests::broker::Broker;
use penstock_tests::console::{Console, Operator, Page, TOKEN, encoded};
use penstock_tests::database::Database;
use penstock_tests::http::{post_received, send};
use penstock_tests::poll;
use penstock_tests::process::{Ingest, Worker, operate_with};
use penstock_tests::relay::Fault;
use penstock_tests::stack::{OwnRabbit, Place};
use reqwest::Method;
use serde_json::json;
use sha2::Sha256;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const MARKUP: &str = r#"<script>alert(1)</script><img src=x onerror="alert(2)">"#;

pub fn message(key: &str, id: &str, text: &str) -> String {
    json!({
        "event_id": key, "event_type": "message.received",
        "contact": {"id": 4711, "phone": "+15550100142", "firstName": "Ada"},
        "channel": {"id": 5, "name": "WhatsApp"},
        "message": {"messageId": id, "timestamp": 1_791_792_900, "message": {"type": "text", "text": text}},
    })
    .to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_gets_in_without_the_token() {
    let place = Place::new().await;
    let console = Console::start(&place, &[]).await;
    for path in ["/", "/live", "/runbook", "/t/vip/events?key=a%2Fb", "/t/vip/dead", "/t/none/events"] {
        let page = console.ask(Method::GET, path, &[("cookie", "penstock_console=guessed")], &[]).await;
        assert_eq!(page.status, 303, "{path}");
        assert!(page.location().starts_with("/login"), "{path}: {}", page.location());
    }
    let login = console.ask(Method::GET, "/login", &[], &[]).await;
    assert!(login.html.contains("Token"), "{}", login.html);
    let enter = async |token: &str| {
        let form = [("name", "Ada"), ("token", token), ("next", "/t/vip/events?key=k")];
        console.ask(Method::POST, "/login", &[], &form).await
    };
    assert_eq!(enter("").await.status, 403);
    assert_eq!(enter(&TOKEN[1..]).await.status, 403);
    let entered = enter(TOKEN).await;
    assert_eq!((entered.status, entered.location()), (303, "/t/vip/events?key=k"));
    let cookie = &entered.headers["set-cookie"];
    assert!(cookie.contains("; HttpOnly") && cookie.contains("; SameSite=Strict"), "{cookie}");
    let ada = console.log_in("Ada").await;
    assert!(ada.open("/").await.html.contains("Ada"));
    assert_eq!(ada.get("/t/none/events").await.status, 404);
    // Ended by herself.
    let csrf = ada.csrf().await;
    assert_eq!(ada.post("/logout", &[("csrf", &csrf)]).await.location(), "/login");
    assert_eq!(ada.get("/").await.location(), "/login?ended=1");
    // Two were wrong above.
    for _ in 0..3 {
        assert_eq!(enter("wrong").await.status, 403);
    }
    assert_eq!(enter(TOKEN).await.status, 429, "guessing is slow");
    let log = console.process.log_text();
    assert!(log.contains("logged in") && log.contains("wrong token") && !log.contains(TOKEN), "{log}");
    console.process.stop().await;
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_ends_the_earlier_session_and_leads_nowhere_else() {
    let place = Place::new().await;
    let console = Console::start(&place, &[]).await;
    let ada = console.log_in("Ada").await;
    let enter = async |next: &str| {
        let form = [("name", "Ada"), ("token", TOKEN), ("next", next)];
        console.ask(Method::POST, "/login", &[("cookie", &ada.cookie)], &form).await
    };
    for elsewhere in ["//evil.example", "/t/vip\r\nx: y", "https://evil.example"] {
        let entered = enter(elsewhere).await;
        assert_eq!((entered.status, entered.location()), (303, "/"), "{elsewhere}");
        assert!(!entered.headers.contains_key("x"), "{:?}", entered.headers);
    }
    assert_eq!(ada.get("/").await.location(), "/login?ended=1");
    place.remove().await;
}

/// As many connections as the console takes must not wait for clients that send nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_form_that_is_too_slow_or_too_large_is_given_up() {
    let place = Place::new().await;
    let console = Console::start(&place, &[]).await;
    let large = "x".repeat(100 << 10);
    let refused = console.ask(Method::POST, "/login", &[], &[("name", &large)]).await;
    assert!(refused.status == 400 && refused.html.contains("too large"), "{refused:?}");
    let mut slow = TcpStream::connect(console.url.trim_start_matches("http://")).await.unwrap();
    let begun = "POST /login HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99\r\n\
        content-type: application/x-www-form-urlencoded\r\nconnection: close\r\n\r\nname=";
    slow.write_all(begun.as_bytes()).await.unwrap();
    let mut answer = String::new();
    slow.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("too slowly"), "{answer}");
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_token_it_is_for_this_machine_alone() {
    let place = Place::new().await;
    let refused = operate_with(&place, &["console"], &[("CONSOLE_HOST", "0.0.0.0")]);
    assert_eq!(refused.status, 64);
    assert!(refused.errors.contains("CONSOLE_TOKEN: is not set"), "{}", refused.errors);
    let console = Console::start(&place, &[("CONSOLE_TOKEN", "")]).await;
    let ada = console.log_in("Ada").await;
    ada.open("/").await;
    // Another site whose name leads here.
    let rebound = [("host", "evil.example"), ("cookie", ada.cookie.as_str())];
    assert_eq!(console.ask(Method::GET, "/", &rebound, &[]).await.status, 404);
    assert_eq!(console.ask(Method::POST, "/login", &rebound[..1], &[("name", "Eve")]).await.status, 404);
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_forbids_what_is_not_ours() {
    let place = Place::new().await;
    let console = Console::start(&place, &[]).await;
    let ada = console.log_in("Ada").await;
    for path in ["/login", "/", "/t/vip/events", "/none", "/style.css", "/console.js", "/runbook"] {
        let headers = ada.get(path).await.headers;
        let policy = &headers["content-security-policy"];
        for part in
            ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "form-action 'self'"]
        {
            assert!(policy.contains(part) && !policy.contains("unsafe"), "{path}: {policy}");
        }
        assert_eq!(headers["x-content-type-options"], "nosniff", "{path}");
    }
    for path in ["/", "/t/vip/events", "/t/vip/dead", "/t/vip/conversation", "/runbook"] {
        let html = ada.open(path).await.html;
        assert!(!html.contains("http://") || path == "/runbook", "{path}: nothing from elsewhere");
        assert!(!html.contains("style=") && !html.contains("onclick"), "{path}");
    }
    place.remove().await;
}

/// An event and its documents, all of whose texts are markup.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_found_and_whatever_they_hold_is_text() {
    let place = Place::new().await;
    let (ingest, _worker) = (Ingest::start(&place, &[]).await, Worker::start(&place, &[]).await);
    let key = format!("k\"{MARKUP}");
    post_received(&ingest.path("/webhook/faster"), message(&key, "m<1>", MARKUP)).await;
    post_received(&ingest.path("/webhook/faster"), message("plain", "m2", "Hello")).await;
    let call = json!({"event_id": "call", "event_type": "call.ended", "call": {"id": "c"}}).to_string();
    post_received(&ingest.path("/webhook/faster"), call).await;
    Database::of(&place, "faster").await.until_stored(3).await;
    let console = Console::start(&place, &[]).await;
    let ada = console.log_in(MARKUP).await;
    let found = async |field: &str, value: &str| {
        let page = ada.open(&format!("/t/faster/events?{}", encoded(&[(field, value)]))).await;
        assert!(
            !page.html.contains("<script>alert") && !page.html.contains("<img"),
            "{field}: {}",
            page.html
        );
        page.html.matches("data-label=\"Event key\"").count()
    };
    for (field, value, expected) in [
        ("key", "plain", 1),
        ("key", key.as_str(), 1),
        ("key", "none", 0),
        ("message", "m2", 1),
        ("message", "m<1>", 1),
        ("contact", "+15550100142", 2),
        ("contact", "15550100142", 2),
        ("contact", "4711", 2),
        ("contact", MARKUP, 0),
        ("type", "call.ended", 1),
        ("type", "message.received", 2),
        ("from", "2001-01-01T00:00", 3),
        ("to", "2001-01-01T00:00", 0),
    ] {
        assert_eq!(found(field, value).await, expected, "{field} {value}");
    }
    let event = ada.open(&format!("/t/faster/event?{}", encoded(&[("key", &key)]))).await.html;
    assert!(!event.contains("<script>alert") && !event.contains("<img"), "{event}");
    for shown in ["&#60;script&#62;", "<b>messages</b> m&#60;1&#62;", "<b>conversations</b> +15550100142"] {
        assert!(event.contains(shown), "{shown}: {event}");
    }
    let body = ada.get(&format!("/t/faster/event/body?{}", encoded(&[("key", &key)]))).await;
    assert_eq!(body.html, message(&key, "m<1>", MARKUP));
    assert!(body.headers["content-type"].starts_with("text/plain"), "{:?}", body.headers);
    assert!(body.headers["content-disposition"].starts_with("attachment"), "{:?}", body.headers);
    for asked in ["+15550100142", "4711", "m2"] {
        let chat = ada.open(&format!("/t/faster/conversation?{}", encoded(&[("chat", asked)]))).await.html;
        assert!(chat.contains("Hello") && chat.contains("Ada") && !chat.contains("<script>alert"), "{chat}");
    }
    // The contact has another phone since: the latest conversation is shown, and leads to the other.
    let moved = message("moved", "m3", "My new phone")
        .replace("+15550100142", "+15550100143")
        .replace("1791792900", "1791792999");
    post_received(&ingest.path("/webhook/faster"), moved).await;
    Database::of(&place, "faster").await.until_stored(4).await;
    let chat = ada.open("/t/faster/conversation?chat=4711").await.html;
    let other = "/t/faster/conversation?chat=%2B15550100142";
    assert!(chat.contains("My new phone") && chat.contains(other), "{chat}");
    for path in ["/t/faster/dead?skip=18446744073709551615", "/t/faster/events?before=1.18446744073709551615"]
    {
        ada.open(path).await;
    }
    let absent = ada.get("/t/faster/event?key=none").await;
    assert!(absent.status == 404 && absent.html.contains("No stored event has this key"), "{}", absent.html);
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_follow_each_other() {
    let place = Place::new().await;
    let (ingest, _worker) = (Ingest::start(&place, &[]).await, Worker::start(&place, &[]).await);
    for n in 0..120 {
        post_received(&ingest.path("/webhook/faster"), message(&format!("e{n:03}."), &n.to_string(), "x"))
            .await;
    }
    Database::of(&place, "faster").await.until_stored(120).await;
    let console = Console::start(&place, &[]).await;
    let ada = console.log_in("Ada").await;
    // An index that appears between two pages would change the order within a moment.
    poll::until("the indexes are made", false, async || {
        ada.open("/t/faster/events").await.html.contains("The indexes for searching")
    })
    .await;
    let (mut seen, mut next) = (Vec::new(), "/t/faster/events?contact=4711".to_owned());
    for expected in [50, 50, 20] {
        let page = ada.open(&next).await.html;
        let keys: Vec<String> = (0..120).map(|n| format!("e{n:03}.")).collect();
        let here: Vec<_> = keys.into_iter().filter(|key| page.contains(&format!("{key}</a>"))).collect();
        assert_eq!(here.len(), expected);
        seen.extend(here);
        let links: Vec<_> = page
            .split("href=\"")
            .filter(|rest| rest.split('>').next().is_some_and(|tag| tag.contains("rel=\"next\"")))
            .collect();
        assert_eq!(links.len(), usize::from(expected == 50));
        next =
            links.first().map_or(String::new(), |rest| rest.split('"').next().unwrap().replace("&#38;", "&"));
    }
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), 120);
    place.remove().await;
}

/// Messages that break a rule of the customer's own.
async fn dead_letters(place: &Place, number: u32) -> (Ingest, Worker, Database) {
    let (ingest, worker) = (Ingest::start(place, &[]).await, Worker::start(place, &[]).await);
    let database = Database::of(place, "faster").await;
    poll::until("collections are made", true, async || {
        database.0.list_collection_names().await.unwrap().contains(&"messages".to_owned())
    })
    .await;
    rule(&database, doc! {"never": 1}).await;
    for n in 0..number {
        let body = message(&format!("dead-{n}"), &n.to_string(), MARKUP);
        post_received(&ingest.path("/webhook/faster"), body).await;
    }
    let broker = Broker::connect(&place.amqp_url).await;
    poll::until("they are dead", Some(number), async || broker.depth("dead.faster").await).await;
    (ingest, worker, database)
}

/// Makes a rule for messages, as a customer may.
pub async fn rule(database: &Database, rule: Document) {
    database.0.run_command(doc! {"collMod": "messages", "validator": rule}).await.unwrap();
}

/// Sends the form of a page that asks.
async fn apply(ada: &Operator<'_>, question: &Page) -> Page {
    let mut form = Vec::new();
    for name in ["csrf", "action", "id"] {
        form.extend(question.inputs(name).into_iter().map(|value| (name, value)));
    }
    // The first is that of the form that logs out.
    form.remove(0);
    let form: Vec<(&str, &str)> = form.iter().map(|(name, value)| (*name, value.as_str())).collect();
    ada.post("/t/faster/dead/apply", &form).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_are_counted_then_replayed_or_dropped() {
    let place = Place::new().await;
    let (_ingest, _worker, database) = dead_letters(&place, 5).await;
    let broker = Broker::connect(&place.amqp_url).await;
    let console = Console::start(&place, &[]).await;
    let ada = console.log_in("Ada").await;
    poll::until("the overview tells of them", true, async || {
        ada.open("/").await.html.contains("5 events of faster could not be stored")
    })
    .await;
    let list = ada.open("/t/faster/dead").await;
    let ids = list.inputs("id");
    assert_eq!(ids.len(), 5, "{}", list.html);
    assert!(
        list.html.contains("refused_by_mongodb") && list.html.contains("5 of 5 messages"),
        "{}",
        list.html
    );
    assert_eq!(ada.open("/t/faster/dead").await.inputs("id"), ids, "looking changes nothing");
    assert!(ada.open("/t/faster/dead?key=dead-3").await.html.contains("1 of 5 messages"));
    let shown = ada.open(&format!("/t/faster/dead/message?id={}", ids[0])).await.html;
    assert!(shown.contains("&#60;script&#62;") && !shown.contains("<script>alert"), "{shown}");
    assert!(shown.contains("Trace id") && shown.contains("121"), "{shown}");

    // One is dropped.
    let question =
        ada.open(&format!("/t/faster/dead/confirm?action=drop&scope=selected&id={}", ids[0])).await;
    assert!(question.html.contains("Drop 1 message of faster?"), "{}", question.html);
    assert_eq!(broker.depth("dead.faster").await, Some(5), "asking changes nothing");
    let done = apply(&ada, &question).await;
    assert!(done.html.contains("1 dropped."), "{}", done.html);
    assert_eq!(broker.depth("dead.faster").await, Some(4));
    let again = apply(&ada, &question).await;
    assert!(again.html.contains("somebody was faster"), "{}", again.html);

    // The cause is removed, and all others are replayed.
    rule(&database, doc! {}).await;
    let question = ada.open("/t/faster/dead/confirm?action=replay&scope=all&reason=refused_by_mongodb").await;
    assert!(question.html.contains("Replay 4 messages of faster?"), "{}", question.html);
    let grace = console.log_in("Grace").await;
    let hers = grace.open("/t/faster/dead/confirm?action=replay&scope=all").await;
    let (done, too_late) = tokio::join!(apply(&ada, &question), apply(&grace, &hers));
    let replayed = [&done, &too_late].map(|page| page.html.matches(">replayed<").count());
    assert_eq!(replayed.iter().sum::<usize>(), 4, "each once: {replayed:?}");
    database.until_stored(4).await;
    assert_eq!((broker.depth("dead.faster").await, database.count("messages").await), (Some(0), 4));
    let logged: Vec<_> =
        console.process.log_lines().into_iter().filter(|line| line["action"] == "drop").collect();
    assert_eq!(
        (&logged[0]["by"], &logged[0]["done"], &logged[0]["queue"]),
        (&"Ada".into(), &1.into(), &"dead.faster".into())
    );
    assert!(!console.process.log_text().contains("alert("), "no body is logged");
    place.remove().await;
}

/// Also if it is confirmed twice, or while more comes, or if another event has the same key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_confirmed_is_done_with_what_was_counted_and_no_other() {
    let place = Place::new().await;
    let (ingest, _worker, _database) = dead_letters(&place, 3).await;
    let broker = Broker::connect(&place.amqp_url).await;
    let console = Console::start(&place, &[]).await;
    let ada = console.log_in("Ada").await;
    let question = ada.open("/t/faster/dead/confirm?action=drop&scope=all").await;
    assert!(question.html.contains("Drop 3 messages of faster?"), "{}", question.html);
    for (key, id) in [("later", "10"), ("dead-0", "11")] {
        post_received(&ingest.path("/webhook/faster"), message(key, id, "Hello")).await;
    }
    poll::until("more is dead", Some(5), async || broker.depth("dead.faster").await).await;
    let list = ada.open("/t/faster/dead").await;
    assert_eq!(list.inputs("id").len(), 5, "another body is another message: {}", list.html);
    let done = apply(&ada, &question).await;
    assert!(done.html.contains("3 dropped."), "{}", done.html);
    let again = apply(&ada, &question).await;
    assert!(again.html.contains("somebody was faster"), "{}", again.html);
    assert_eq!(broker.depth("dead.faster").await, Some(2));
    let logged: Vec<_> = console.process.log_lines();
    let mut dropped: Vec<_> = logged
        .iter()
        .filter(|line| line["message"] == "dropped by an operator")
        .map(|line| (line["event_key"].as_str().unwrap(), line["by"].as_str().unwrap()))
        .collect();
    dropped.sort_unstable();
    assert_eq!(dropped, [("dead-0", "Ada"), ("dead-1", "Ada"), ("dead-2", "Ada")]);
    place.remove().await;
}

/// RabbitMQ then silences everybody, and stops reading from those who publish.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alarm_of_rabbitmq_is_no_loss_and_takes_no_dead_letter_away() {
    let rabbit = OwnRabbit::start().await;
    let place = &rabbit.place;
    let (_ingest, _worker, database) = dead_letters(place, 3).await;
    rule(&database, doc! {}).await;
    let console = Console::start(place, &[]).await;
    let ada = console.log_in("Ada").await;
    let overview = async || ada.open("/").await.html;
    poll::until("ingest and worker are heard", true, async || {
        overview().await.contains("Webhooks are safe, but something needs you.")
    })
    .await;
    let question = ada.open("/t/faster/dead/confirm?action=replay&scope=all").await;
    tokio::task::block_in_place(|| rabbit.alarm(true));
    poll::until("nobody is heard", true, async || {
        let html = overview().await;
        assert!(!html.contains("Webhooks are not safe") && !html.contains("has no worker"), "{html}");
        html.contains("Whether webhooks are safe can&#39;t be seen from here.")
    })
    .await;
    apply(&ada, &question).await;
    let list = ada.open("/t/faster/dead").await;
    assert_eq!(list.inputs("id").len(), 3, "{}", list.html);
    tokio::task::block_in_place(|| rabbit.alarm(false));
    poll::until("they are heard again", true, async || overview().await.contains("Webhooks are safe")).await;
    database.until_stored(3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forms_that_are_not_ours_do_nothing() {
    let place = Place::new().await;
    let (_ingest, _worker, _database) = dead_letters(&place, 1).await;
    let console = Console::start(&place, &[]).await;
    let (ada, grace) = (console.log_in("Ada").await, console.log_in("Grace").await);
    let id = ada.open("/t/faster/dead").await.inputs("id").remove(0);
    let (csrf, hers) = (ada.csrf().await, grace.csrf().await);
    let path = "/t/faster/dead/apply";
    let form = |csrf: &'static str| [("action", "drop"), ("id", id.as_str()), ("csrf", csrf)];
    for page in [
        ada.post(path, &form("")).await,
        ada.post(path, &form("guessed")).await,
        ada.post(path, &[("action", "drop"), ("id", &id), ("csrf", &hers)]).await,
    ] {
        assert_eq!(page.status, 403, "{}", page.html);
    }
    let own = [("action", "drop"), ("id", id.as_str()), ("csrf", csrf.as_str())];
    let foreign = [("cookie", ada.cookie.as_str()), ("origin", "https://evil.example")];
    assert_eq!(console.ask(Method::POST, path, &foreign, &own).await.status, 403);
    let without_session = console.ask(Method::POST, path, &[], &own).await;
    assert_eq!(without_session.location(), "/login?ended=1");
    let by_address = ada.get(&format!("{path}?{}", encoded(&own))).await;
    assert!(matches!(by_address.status, 404 | 405), "{by_address:?}");
    let broker = Broker::connect(&place.amqp_url).await;
    assert_eq!(broker.depth("dead.faster").await, Some(1));
    let same = [("cookie", ada.cookie.as_str()), ("origin", console.url.as_str())];
    assert_eq!(console.ask(Method::POST, path, &same, &own).await.status, 200);
    assert_eq!(broker.depth("dead.faster").await, Some(0));
    place.remove().await;
}

/// How respond.io signs a body with a key.
pub fn signature(key: &str, body: &str) -> String {
    let mac = Hmac::<Sha256>::new_from_slice(key.as_bytes()).unwrap().chain_update(body);
    STANDARD.encode(mac.finalize().into_bytes())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quarantined_webhooks_that_verify_with_the_new_key_go_on() {
    let place = Place::new().await;
    let ingest = Ingest::start(&place, &[("SIGNING_KEYS", "the old key")]).await;
    let _worker = Worker::start(&place, &[]).await;
    let body = message("good", "1", "Hello");
    for (signature, body) in
        [(&*signature("the new key", &body), body), ("bad", message("bad", "2", "Hello"))]
    {
        let headers = [("x-webhook-signature", signature)];
        let answer = send(Method::POST, &ingest.path("/webhook/faster"), &headers, body).await;
        assert_eq!(answer.body["status"], "quarantined");
    }
    let console = Console::start(&place, &[("SIGNING_KEYS", "the new key")]).await;
    let ada = console.log_in("Ada").await;
    let list = ada.open("/t/faster/quarantine").await.html;
    let cell = |text: &str| format!("data-label=\"Signed by today's keys\">{text}");
    assert!(list.contains(&cell("yes")) && list.contains(&cell("no: no signing key")), "{list}");
    let question = ada.open("/t/faster/quarantine/confirm?action=replay&scope=all").await;
    let csrf = ada.csrf().await;
    let ids = question.inputs("id");
    let chosen = ids.iter().map(|id| ("id", id.as_str()));
    let form: Vec<_> = [("csrf", csrf.as_str()), ("action", "replay")].into_iter().chain(chosen).collect();
    let done = ada.post("/t/faster/quarantine/apply", &form).await.html;
    assert!(done.contains("1 replayed, 1 stay."), "{done}");
    let database = Database::of(&place, "faster").await;
    database.until_stored(1).await;
    database.get("messages", "1").await;
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_down_is_said_and_the_rest_stays_usable() {
    let place = Place::new().await;
    let (ingest, _worker) = (Ingest::start(&place, &[]).await, Worker::start(&place, &[]).await);
    for tenant in ["faster", "vip"] {
        post_received(&ingest.path(&format!("/webhook/{tenant}")), message("k", "1", "Hello")).await;
        Database::of(&place, tenant).await.until_stored(1).await;
    }
    let (rabbitmq, amqp_url) = place.relay().await;
    let (mongodb, mongo_uri) = place.mongo_relay().await;
    let console = Console::start(&place, &[("AMQP_URL", &amqp_url), ("MONGO_URI", &mongo_uri)]).await;
    let ada = console.log_in("Ada").await;
    let overview = async |words: &str| ada.open("/").await.html.contains(words);
    poll::until("all is well", true, async || overview("Webhooks are safe.").await).await;
    let in_time = async |path: &str, limit: u64| {
        let started = Instant::now();
        let page = ada.get(path).await;
        assert!(started.elapsed() < Duration::from_secs(limit), "{path}: {:?}", started.elapsed());
        page
    };

    mongodb.set(Fault::Stall);
    poll::until("the overview says so", true, async || {
        in_time("/", 5).await.html.contains("be seen: MongoDB didn&#39;t answer")
    })
    .await;
    let events = in_time("/t/faster/events", 10).await.html;
    assert!(events.contains("MongoDB did not answer"), "{events}");
    assert!(
        in_time("/t/vip/events", 5).await.html.contains("<td data-label=\"Event key\""),
        "another tenant"
    );
    assert!(in_time("/t/faster/dead", 5).await.html.contains("0 of 0 messages"));
    mongodb.set(Fault::None);

    rabbitmq.set(Fault::Cut);
    poll::until("the overview says so", true, async || overview("reach RabbitMQ. If ingest").await).await;
    let dead = in_time("/t/vip/dead", 5).await.html;
    assert!(dead.contains("RabbitMQ"), "{dead}");
    assert!(in_time("/t/vip/events", 5).await.html.contains("<td data-label=\"Event key\""));
    rabbitmq.set(Fault::None);
    poll::until("all is well again", true, async || overview("Webhooks are safe.").await).await;
    // Silent instead of gone.
    rabbitmq.set(Fault::Stall);
    let silent = in_time("/t/vip/dead", 15).await.html;
    assert!(silent.contains("RabbitMQ"), "{silent}");
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_can_be_hidden() {
    let place = Place::new().await;
    let (_ingest, _worker, database) = dead_letters(&place, 1).await;
    rule(&database, doc! {}).await;
    let console = Console::start(&place, &[("CONSOLE_BODIES", "off")]).await;
    let ada = console.log_in("Grace").await;
    let list = ada.open("/t/faster/dead").await;
    let id = &list.inputs("id")[0];
    let csrf = ada.csrf().await;
    let mut pages = vec![list.html.clone(), ada.open(&format!("/t/faster/dead/message?id={id}")).await.html];
    let form = [("csrf", csrf.as_str()), ("action", "replay"), ("id", id)];
    pages.push(ada.post("/t/faster/dead/apply", &form).await.html);
    database.until_stored(1).await;
    for path in ["events", "event?key=dead-0", "conversation?chat=4711"] {
        pages.push(ada.open(&format!("/t/faster/{path}")).await.html);
    }
    assert_eq!(ada.get("/t/faster/event/body?key=dead-0").await.status, 403);
    for page in pages {
        assert!(!page.contains("alert(") && !page.contains("Ada"), "{page}");
    }
    place.remove().await;
}
