//! Whatever anybody sends, genuine webhooks are received, and operators can list and replay quarantined ones.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use penstock_tests::broker::{Broker, header};
use penstock_tests::database::Database;
use penstock_tests::http::{Answer, client, get, metric, post_received, send};
use penstock_tests::load::Load;
use penstock_tests::process::{Ingest, Worker, operate_well, operate_with, run_with_input, until_idle};
use penstock_tests::stack::Place;
use reqwest::Method;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

fn signature(key: &str, body: &[u8]) -> String {
    let mac = Hmac::<Sha256>::new_from_slice(key.as_bytes()).unwrap().chain_update(body);
    STANDARD.encode(mac.finalize().into_bytes())
}

async fn post_signed(url: &str, signature: &str, body: impl Into<reqwest::Body>) -> Answer {
    send(Method::POST, url, &[("x-webhook-signature", signature)], body).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_wrong_key_turned_away_is_put_back_with_the_right_one() {
    let place = Place::new().await;
    let ingest = Ingest::start(&place, &[("SIGNING_KEYS", "old key,other key")]).await;
    let worker = Worker::start(&place, &[]).await;
    let url = ingest.path("/webhook/faster/incoming");
    let body = |n: u32| json!({"event_id": n.to_string(), "event_type": "call.ended"}).to_string();
    for n in 0..3 {
        let signed = signature("new key", body(n).as_bytes());
        assert_eq!(post_signed(&url, &signed, body(n)).await.body["reason"], "invalid_signature");
    }
    assert_eq!(
        post_signed(&url, &signature("forged", b"{}"), body(3)).await.body["reason"],
        "invalid_signature"
    );
    assert_eq!(send(Method::POST, &url, &[], body(4)).await.body["reason"], "missing_signature");
    let answer = post_signed(&url, &signature("other key", body(5).as_bytes()), body(5)).await;
    assert_eq!(answer.body["status"], "received");
    let raw = [("tenant", "faster"), ("form", "raw")];
    assert_eq!(metric(&ingest.admin, "ingest_signatures_total", &raw).await, Some(1.0));

    let replay = ["quarantine", "replay", "--reverify", "--json"];
    let still_wrong = operate_with(&place, &replay, &[("SIGNING_KEYS", "old key")]).json();
    assert_eq!((&still_wrong[0]["selected"], &still_wrong[0]["done"]), (&json!(5), &json!(0)));
    let right = operate_with(&place, &replay, &[("SIGNING_KEYS", "old key,new key")]).json();
    assert_eq!((&right[0]["done"], &right[0]["left"]), (&json!(3), &json!(2)));
    let database = Database::of(&place, "faster").await;
    database.until_stored(4).await;
    for (key, form) in [("0", "raw"), ("5", "raw")] {
        assert_eq!(database.get("webhook_events", key).await.get_str("signature").unwrap(), form);
    }
    worker.process.stop().await;
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signed_body_written_in_another_way_is_the_same_event() {
    let place = Place::new().await;
    let ingest = Ingest::start(&place, &[("SIGNING_KEYS", "key")]).await;
    let worker = Worker::start(&place, &[]).await;
    let url = ingest.path("/webhook/faster");
    let post = async |signed: &str, sent: String| {
        let answer = post_signed(&url, &signature("key", signed.as_bytes()), sent.clone()).await;
        assert_eq!(answer.body["status"], "received", "{sent}");
    };
    let update = |id: u32, name: &str| {
        json!({"event_type": "contact.updated", "contact": {"id": id, "firstName": name}}).to_string()
    };
    let with_event_id = update(1, "Old").replacen('{', r#"{"event_id":"old","#, 1);
    // The third is signed in a form that it isn't sent in.
    let captured = [with_event_id, update(2, "Old"), update(3, "Old")];
    post(&captured[0], captured[0].clone()).await;
    post(&captured[1], captured[1].clone()).await;
    post(&captured[2], captured[2].replace(',', ", ")).await;
    for id in 1..=3 {
        post(&update(id, "New"), update(id, "New")).await;
    }
    let database = Database::of(&place, "faster").await;
    database.until_stored(6).await;
    let broker = Broker::connect(&place.amqp_url).await;
    until_idle(&broker, &[&worker]).await;
    let before = database.dump().await;

    for signed in &captured {
        for written in [
            signed.clone(),
            format!("{signed} "),
            signed.replace(':', " : "),
            signed.replace("Old", r"\u004fld"),
            format!("\u{feff}{signed}"),
        ] {
            post(signed, written).await;
        }
    }
    until_idle(&broker, &[&worker]).await;
    assert_eq!(database.dump().await, before);
    let labels = [("tenant", "faster"), ("event_type", "contact.updated"), ("outcome", "duplicate")];
    assert_eq!(metric(&worker.admin, "worker_events_total", &labels).await, Some(15.0));
    operate_well(&place, &["rebuild", "--tenant", "faster"]);
    assert_eq!(database.dump().await, before, "rebuilt");
    worker.process.stop().await;
    place.remove().await;
}

#[test]
fn a_signature_can_be_tried_by_hand() {
    let folder = std::env::temp_dir();
    let settings = [("FASTER_SIGNING_KEYS", "first,second secret")];
    let verify = |signature: &str, body: &str| {
        let arguments = ["verify", "--tenant", "faster", "--signature", signature];
        let output = run_with_input("ingest", &folder, &arguments, &settings, body);
        (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    };
    let good = signature("second secret", b"{ }");
    assert_eq!(verify(&good, "{ }"), (Some(0), "good: key 2 of faster, form raw\n".to_owned()));
    let compact = signature("first", b"{}");
    assert_eq!(verify(&compact, "{ }"), (Some(0), "good: key 1 of faster, form reserialised\n".to_owned()));
    let (status, text) = verify(&good, "{  }");
    assert!(status == Some(1) && text.contains("no key") && !text.contains("secret"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_unusable_requests_neither_fills_the_quarantine_nor_the_log() {
    let place = Place::new().await;
    let settings = [("SIGNING_KEYS", "key"), ("QUARANTINE_BURST", "20"), ("QUARANTINE_RATE", "0")];
    let ingest = Ingest::start(&place, &settings).await;
    let url = ingest.path("/webhook/faster");
    let ours = json!({"event_id": "ours", "by": "mistake"}).to_string();
    post_signed(&url, &signature("typo", ours.as_bytes()), ours.clone()).await;
    for n in 0..200 {
        let answer = post_signed(&url, "AAAA", n.to_string()).await;
        assert_eq!((answer.status, &answer.body["status"]), (200, &json!("quarantined")));
    }
    let broker = Broker::connect(&place.amqp_url).await;
    assert_eq!(broker.depth("quarantine.faster").await, Some(20));
    let first = broker.next("quarantine.faster").await;
    assert_eq!(first.data, ours.as_bytes(), "what was there first is still there");
    let labels = [("tenant", "faster"), ("reason", "invalid_signature")];
    assert_eq!(metric(&ingest.admin, "ingest_quarantined_total", &labels).await, Some(201.0));
    assert_eq!(metric(&ingest.admin, "ingest_evidence_dropped_total", &labels).await, Some(181.0));
    let lines = ingest.process.log_lines();
    assert_eq!(lines.iter().filter(|line| line["message"] == "quarantined").count(), 20);
    assert_eq!(lines.iter().filter(|line| line["dropped"] == 1).count(), 1);
    // A neighbour has room of its own, and the honest are received.
    post_received(&ingest.path("/webhook/vip"), "{}").await;
    assert_eq!(post_signed(&url, &signature("key", b"{}"), "{}").await.body["status"], "received");
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_over_a_limit_is_turned_away_and_told_of() {
    let place = Place::new().await;
    let ingest = Ingest::start(&place, &[]).await;
    let broker = Broker::connect(&place.amqp_url).await;
    let large: Vec<u8> =
        std::iter::repeat_n(b"0123456789abcdef".as_slice(), 200 << 10).flatten().copied().collect();
    let chunks = futures_util::stream::iter(
        large.clone().chunks(100_000).map(<[u8]>::to_vec).map(Ok::<_, std::io::Error>).collect::<Vec<_>>(),
    );
    for body in [reqwest::Body::from(large.clone()), reqwest::Body::wrap_stream(chunks)] {
        let answer = send(Method::POST, &ingest.path("/webhook/faster"), &[], body).await;
        assert_eq!((answer.status, &answer.body["reason"]), (200, &json!("body_too_large")));
        let evidence = broker.next("quarantine.faster").await;
        assert_eq!(evidence.data, large[..64 << 10]);
        assert_eq!(header(&evidence.properties, "body_bytes"), Some(large.len().to_string()));
        let digest: String = Sha256::digest(&large).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(header(&evidence.properties, "body_sha256"), Some(digest));
    }
    let address = ingest.url.trim_start_matches("http://").to_owned();
    // As many as actix-web takes, of which each proxy on the way may add some.
    let headers = |number: usize| (0..number).map(|n| format!("x-{n}: y\r\n")).collect::<String>();
    let request = format!(
        "POST /webhook/faster HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\nconnection: close\r\n{}\r\n{{}}",
        headers(93)
    );
    let mut stream = TcpStream::connect(&address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let many_headers: String = (0..500).map(|n| format!("x-{n}: y\r\n")).collect();
    let wide_header = format!("x-wide: {}\r\n", "y".repeat(300_000));
    let path = |path: &str, headers: &str| {
        format!("POST /webhook/{path} HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n{headers}\r\n{{}}")
    };
    for request in [
        path("faster", &many_headers),
        path("faster", &wide_header),
        path(&"f".repeat(100_000), ""),
        path(&"../".repeat(1000), ""),
        "\0\0\0\0\r\n\r\n".to_owned(),
        path("faster", "content-length: 3\r\n"),
        path("faster", "transfer-encoding: chunked, identity\r\n"),
    ] {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        let _ = stream.write_all(request.as_bytes()).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        // A server that has seen enough may close before all was sent.
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer);
        let beginning = request[..60.min(request.len())].to_owned();
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{beginning}: {answer}");
        post_received(&ingest.path("/webhook/faster"), "{}").await;
    }
    place.remove().await;
}

#[tokio::test]
async fn the_quarantine_is_bounded_and_drops_the_oldest() {
    let place = Place::new().await;
    let _ingest = Ingest::start(&place, &[]).await;
    let url = format!("{}/api/queues/{}/quarantine.faster", place.management_url, place.name);
    let queue: serde_json::Value = client().get(url).send().await.unwrap().json().await.unwrap();
    let bounds = [
        ("x-max-length", json!(100_000)),
        ("x-max-length-bytes", json!(1 << 30)),
        ("x-overflow", json!("drop-head")),
    ];
    for (name, bound) in bounds {
        assert_eq!(queue["arguments"][name], bound, "{name}");
    }
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strings_of_others_stay_strings() {
    let place = Place::new().await;
    let (ingest, worker) = (Ingest::start(&place, &[]).await, Worker::start(&place, &[]).await);
    let mut keys = Vec::new();
    for text in [
        "#",
        "*",
        "a.#",
        "message.received\n{\"level\":\"ERROR\"}",
        "\" OR 1",
        "ü",
        "$where",
        "a.b",
        "x\u{7f}",
    ] {
        let body = json!({"event_id": text, "event_type": text, "contact": {"id": text, "phone": text}});
        post_received(&ingest.path("/webhook/faster"), body.to_string()).await;
        keys.push(text);
    }
    let database = Database::of(&place, "faster").await;
    database.until_stored(keys.len() as u64).await;
    until_idle(&Broker::connect(&place.amqp_url).await, &[&worker]).await;
    let stored = database.ids("webhook_events").await;
    for key in keys {
        assert_eq!(stored.iter().any(|id| id == key), !key.contains(char::is_control), "{key:?}");
    }
    let unknown = [("tenant", "faster"), ("event_type", "unknown"), ("outcome", "stored")];
    assert_eq!(metric(&worker.admin, "worker_events_total", &unknown).await, Some(9.0));
    for process in [&ingest.process, &worker.process] {
        let text = process.log_text();
        assert!(text.lines().all(|line| line.starts_with("{\"timestamp\":")), "one object a line");
    }
    worker.process.stop().await;
    place.remove().await;
}

/// What a hostile sender does over and over while honest clients send signed events.
async fn beside_the_honest<F>(
    what: &str,
    settings: &[(&str, &str)],
    hostile: impl Fn(String) -> F,
    senders: usize,
    answered: &str,
) where
    F: Future<Output = String> + Send + 'static,
{
    let place = Place::new().await;
    let ingest = Ingest::start(&place, settings).await;
    let before = Load::start_signed(&ingest.url, 8, Duration::from_millis(20), "key");
    before.until_more(400).await;
    let quiet = before.stop().await;
    let mut flood = JoinSet::new();
    for _ in 0..senders {
        flood.spawn(hostile(ingest.url.clone()));
    }
    let load = Load::start_signed(&ingest.url, 8, Duration::from_millis(20), "key");
    let mut answers: BTreeMap<String, usize> = BTreeMap::new();
    let finished = async {
        while let Some(answer) = flood.join_next().await {
            *answers.entry(answer.unwrap()).or_default() += 1;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), finished).await.expect("the hostile are through");
    load.until_more(100).await;
    let report = load.stop().await;
    println!("{what}: answered {answers:?}");
    assert_eq!(answers, BTreeMap::from([(answered.to_owned(), senders)]), "{what}");
    println!("{}", quiet.summary("  honest before"));
    println!("{}", report.summary("  honest meanwhile"));
    println!("  peak memory {} MiB", ingest.process.peak_memory() >> 20);
    assert!(report.otherwise.is_empty(), "{what}: {:?}", report.otherwise);
    assert!(report.within(1000) < penstock_tests::http::PROVIDER_DEADLINE);
    assert!(ingest.process.peak_memory() < 256 << 20);
    let broker = Broker::connect(&place.amqp_url).await;
    println!("  {:?} in quarantine", broker.depth("quarantine.faster").await);
    let mut accepted = 0.0;
    for via in ["broker", "spool"] {
        let labels = [("tenant", "faster"), ("via", via)];
        accepted += metric(&ingest.admin, "ingest_accepted_total", &labels).await.unwrap_or_default();
    }
    #[expect(clippy::cast_precision_loss, reason = "some hundred")]
    let honest = (quiet.received.len() + report.received.len()) as f64;
    assert!((accepted - honest).abs() < 0.5, "nothing else got in: {accepted}, {honest}");
    place.remove().await;
}

const SIGNED: [(&str, &str); 2] = [("SIGNING_KEYS", "key"), ("QUARANTINE_BURST", "100")];

fn quarantined(reason: &str) -> String {
    format!("200 {}", json!({"status": "quarantined", "reason": reason}))
}

/// Posts again and again for as long as it takes, and tells the last answer.
async fn posts(url: String, times: usize, headers: &[(&str, &str)], body: Vec<u8>) -> String {
    let http = client();
    let mut last = String::new();
    for _ in 0..times {
        let mut request = http.post(format!("{url}/webhook/faster")).body(body.clone());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        last = match request.send().await {
            Ok(answer) => format!("{} {}", answer.status().as_u16(), answer.text().await.unwrap_or_default()),
            Err(_) => "closed".to_owned(),
        };
    }
    last
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_slow_clients() {
    let slow = |url: String| async move {
        let mut stream = TcpStream::connect(url.trim_start_matches("http://")).await.unwrap();
        let mut ticks = tokio::time::interval(Duration::from_millis(200));
        for byte in b"POST /webhook/faster HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{" {
            ticks.tick().await;
            if stream.write_all(&[*byte]).await.is_err() {
                break;
            }
        }
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        // actix-web looks after slow heads, too: if it is first, it says 408 before it closes.
        let answer = String::from_utf8_lossy(&answer);
        let said = answer.lines().next().filter(|line| !line.starts_with("HTTP/1.1 408"));
        said.unwrap_or("closed").to_owned()
    };
    beside_the_honest("200 slow clients", &SIGNED, slow, 200, "closed").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_bad_signatures() {
    let bad = |url| async move {
        let signature = STANDARD.encode([7; 32]);
        posts(url, 200, &[("x-webhook-signature", &signature)], br#"{"event_id":"forged"}"#.to_vec()).await
    };
    beside_the_honest("bad signatures", &SIGNED, bad, 16, &quarantined("invalid_signature")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_large_bodies() {
    let large = |url| async move {
        let body = format!("{{\"a\":[{}0]}}", "0,".repeat(520_000));
        let signature = STANDARD.encode([7; 32]);
        posts(url, 10, &[("x-webhook-signature", &signature)], body.into_bytes()).await
    };
    beside_the_honest("1 MiB bodies", &SIGNED, large, 8, &quarantined("invalid_signature")).await;
}

/// A request with a body of 1 MiB, the same element again and again, and a signature that is wrong.
fn large_request(element: &str) -> Arc<[u8]> {
    let elements = vec![element; ((1 << 20) - 7) / (element.len() + 1)].join(",");
    let (body, signature) = (format!(r#"{{"a":[{elements}]}}"#), STANDARD.encode([7; 32]));
    let head = format!("x-webhook-signature: {signature}\r\ncontent-length: {}", body.len());
    format!("POST /webhook/faster HTTP/1.1\r\nhost: x\r\n{head}\r\n\r\n{body}").into_bytes().into()
}

/// Sends each over its own connection, all at once. Returns the answers; a client that hangs up doesn't wait
/// for one. On a busy machine a body may take longer than ingest waits: then it answers 408 and closes,
/// perhaps while the client still writes.
async fn send_at_once(address: &str, request: &Arc<[u8]>, hangs_up: bool) -> BTreeMap<String, usize> {
    let mut senders = JoinSet::new();
    for _ in 0..64 {
        let (address, request) = (address.to_owned(), request.clone());
        senders.spawn(async move {
            let mut stream = TcpStream::connect(address).await?;
            stream.write_all(&request).await?;
            if hangs_up {
                return Ok("none".to_owned());
            }
            let mut answer = vec![0; 15];
            stream.read_exact(&mut answer).await?;
            Ok(String::from_utf8_lossy(&answer).into_owned())
        });
    }
    let mut answers = BTreeMap::new();
    for answer in senders.join_all().await {
        let answer = answer.unwrap_or_else(|error: std::io::Error| error.kind().to_string());
        *answers.entry(answer).or_default() += 1;
    }
    answers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_bodies_at_once_take_bounded_memory_also_if_their_senders_hang_up() {
    for element in ["0", r#"{"a":1}"#] {
        let place = Place::new().await;
        let ingest = Ingest::start(&place, &SIGNED).await;
        let address = ingest.url.trim_start_matches("http://");
        let (request, idle) = (large_request(element), ingest.process.peak_memory());
        for hangs_up in [false, true, true, true, false] {
            let started = Instant::now();
            let answers = send_at_once(address, &request, hangs_up).await;
            println!("64 × 1 MiB of {element}, hangs up: {hangs_up}: {answers:?} in {:?}", started.elapsed());
            // How long it waits is a matter of the machine, whether it is answered is not.
            let honest = reqwest::Client::new().post(ingest.path("/webhook/faster")).body("{}");
            let honest = honest.header("x-webhook-signature", signature("key", b"{}")).send().await.unwrap();
            assert_eq!(honest.json::<serde_json::Value>().await.unwrap()["status"], "received");
            let peak = ingest.process.peak_memory();
            println!("  an honest one after {:?}, peak memory {} MiB", started.elapsed(), peak >> 20);
        }
        let peak = ingest.process.peak_memory();
        assert!(peak < 512 << 20, "{} MiB, {} when idle", peak >> 20, idle >> 20);
        place.remove().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_bodies_over_the_limit() {
    let large = |url| async move { posts(url, 10, &[], vec![b'['; 4 << 20]).await };
    beside_the_honest("4 MiB bodies", &SIGNED, large, 8, &quarantined("body_too_large")).await;
}

#[tokio::test]
async fn a_connection_is_given_up_after_ten_thousand_requests() {
    let place = Place::new().await;
    let ingest = Ingest::start(&place, &[]).await;
    let mut stream = TcpStream::connect(ingest.url.trim_start_matches("http://")).await.unwrap();
    let request = "HEAD / HTTP/1.1\r\nhost: x\r\n\r\n";
    let (mut reader, mut writer) = stream.split();
    // All but the last at once, in a pipeline.
    let pipeline = request.repeat(9_999);
    let write = async { writer.write_all(pipeline.as_bytes()).await.unwrap() };
    let mut answers = String::new();
    let read = async {
        while answers.matches("\r\n\r\n").count() < 9_999 {
            let mut part = vec![0; 1 << 20];
            let length = reader.read(&mut part).await.unwrap();
            assert!(length > 0, "closed after {}", answers.matches("\r\n\r\n").count());
            answers.push_str(std::str::from_utf8(&part[..length]).unwrap());
        }
    };
    tokio::join!(write, read);
    assert!(!answers.contains("connection: close"));
    writer.write_all(request.as_bytes()).await.unwrap();
    let mut last = String::new();
    reader.read_to_string(&mut last).await.unwrap();
    assert!(last.starts_with("HTTP/1.1 200") && last.contains("connection: close"), "{last}");
    assert_eq!(get(&ingest.path("/")).await.status, 200);
    place.remove().await;
}
