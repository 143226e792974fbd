//! Connections of the public port: slow ones, silent ones, many, and those that ask for another protocol.

use std::time::Duration;

use penstock_tests::http::{metric, post_received};
use penstock_tests::poll;
use penstock_tests::process::{Ingest, until_connected};
use penstock_tests::relay::Fault;
use penstock_tests::stack::Place;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{interval, timeout};

/// Longer than any of ingest's deadlines, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
const GOOD: &str = "HEAD / HTTP/1.1\r\nhost: x\r\n\r\n";

async fn connect(ingest: &Ingest) -> TcpStream {
    TcpStream::connect(ingest.url.trim_start_matches("http://")).await.unwrap()
}

/// Sends this, and returns all that is answered until the connection is closed.
async fn answers(ingest: &Ingest, request: &str) -> String {
    let mut stream = connect(ingest).await;
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let closed = timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    closed.unwrap_or_else(|_| panic!("never closed: {request:?}")).unwrap();
    String::from_utf8(answer).unwrap()
}

async fn closed(ingest: &Ingest, reason: &str) -> Option<f64> {
    metric(&ingest.admin, "ingest_connections_closed_total", &[("reason", reason)]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_sender_does_not_finish_is_closed_without_a_word() {
    let place = Place::new().await;
    let ingest = Ingest::start(&place, &[]).await;
    let unknown = "POST /webhook/nobody HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n";
    let endless = "POST /nowhere HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{";
    let head = "POST /webhook/faster HTTP/1.1\r\nhost:";
    let requests = [
        (head.to_owned(), 0),
        (format!("{GOOD}{head}"), 1),
        (format!("{GOOD}{GOOD}{unknown}GET /nowhere HTT"), 3),
        (endless.to_owned(), 1),
        (format!("{GOOD}{endless}"), 2),
    ];
    let ends = requests.iter().map(|(request, _)| answers(&ingest, request));
    for (answer, (request, replies)) in futures_util::future::join_all(ends).await.iter().zip(&requests) {
        assert_eq!(answer.matches("HTTP/1.1 ").count(), *replies, "{request:?}: {answer}");
        assert!(!answer.contains(" 408 "), "{request:?}: {answer}");
    }
    #[expect(clippy::cast_precision_loss, reason = "a handful")]
    let all = requests.len() as f64;
    assert_eq!((closed(&ingest, "slow").await, closed(&ingest, "idle").await), (Some(all), Some(0.0)));
    place.remove().await;
}

#[tokio::test]
async fn who_takes_no_replies_is_closed() {
    let place = Place::new().await;
    let ingest = Ingest::start(&place, &[]).await;
    let mut stream = connect(&ingest).await;
    // More than the buffers in between take, of which nothing is read.
    let flood = async { while stream.write_all(GOOD.repeat(1000).as_bytes()).await.is_ok() {} };
    timeout(PATIENCE, flood).await.expect("it is closed");
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_connection_is_closed_after_the_keep_alive_without_a_word() {
    let place = Place::new().await;
    let ingest = Ingest::start(&place, &[("KEEP_ALIVE", "1s")]).await;
    let (silent, used) = tokio::join!(answers(&ingest, ""), answers(&ingest, GOOD));
    assert_eq!((silent.as_str(), used.matches("HTTP/1.1 ").count()), ("", 1), "{used}");
    assert_eq!(closed(&ingest, "idle").await, Some(2.0));
    // With more patience, both stay.
    let patient = Ingest::start(&place, &[]).await;
    let mut streams = [connect(&patient).await, connect(&patient).await];
    for round in 0..3 {
        tokio::time::sleep(Duration::from_millis(700)).await;
        for stream in streams.iter_mut().skip(usize::from(round < 2)) {
            stream.write_all(GOOD.as_bytes()).await.unwrap();
            let mut answer = [0; 15];
            stream.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"HTTP/1.1 200 OK");
            // The rest of it.
            while !stream
                .try_read(&mut [0; 4096])
                .is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
            {}
        }
    }
    place.remove().await;
}

/// Sends a head byte by byte, again and again.
async fn dribble(address: String) {
    let mut ticks = interval(Duration::from_secs(1));
    while let Ok(mut stream) = TcpStream::connect(&address).await {
        for byte in b"POST /webhook/faster HTTP/1.1\r\nhost: x\r\n" {
            ticks.tick().await;
            if stream.write_all(&[*byte]).await.is_err() {
                break;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_slow_clients_than_files_may_be_open_keep_nobody_out() {
    let place = Place::new().await;
    let (relay, url) = place.relay().await;
    let limited = ["prlimit", "--nofile=1024:1024"];
    let ingest = Ingest::start_within(&place, &limited, &[("AMQP_URL", &url)]).await;
    until_connected(&ingest.admin).await;
    assert_eq!(metric(&ingest.admin, "ingest_connections_max", &[]).await, Some(894.0));
    let address = ingest.url.trim_start_matches("http://");
    let mut slow: JoinSet<()> = (0..1100).map(|_| dribble(address.to_owned())).collect();
    poll::until("places become scarce", true, async || closed(&ingest, "full").await > Some(0.0)).await;
    for _ in 0..20 {
        post_received(&ingest.path("/webhook/faster"), "{}").await;
    }
    // Nor do they keep RabbitMQ out.
    relay.set(Fault::Cut);
    let up = async || metric(&ingest.admin, "amqp_connection_up", &[]).await;
    poll::until("RabbitMQ is gone", Some(0.0), up).await;
    relay.set(Fault::None);
    poll::until("RabbitMQ is back", Some(1.0), up).await;
    let by_broker = [("tenant", "faster"), ("via", "broker")];
    let before = metric(&ingest.admin, "ingest_accepted_total", &by_broker).await;
    poll::until("it takes events", true, async || {
        post_received(&ingest.path("/webhook/faster"), "{}").await;
        metric(&ingest.admin, "ingest_accepted_total", &by_broker).await > before
    })
    .await;
    // Those that are being closed count until they are gone.
    assert!(metric(&ingest.admin, "ingest_connections", &[]).await < Some(1024.0));
    slow.shutdown().await;
    place.remove().await;
}

#[tokio::test]
async fn a_soft_limit_of_open_files_is_raised() {
    let place = Place::new().await;
    let limited = ["prlimit", "--nofile=1024:4096"];
    let ingest = Ingest::start_within(&place, &limited, &[]).await;
    assert_eq!(metric(&ingest.admin, "ingest_connections_max", &[]).await, Some(3966.0));
    place.remove().await;
}

#[tokio::test]
async fn idle_connections_take_little_memory() {
    let place = Place::new().await;
    let ingest = Ingest::start(&place, &[]).await;
    let mut streams = Vec::new();
    let connect_all = async |count: usize, streams: &mut Vec<TcpStream>| {
        for _ in 0..count {
            streams.push(connect(&ingest).await);
        }
        #[expect(clippy::cast_precision_loss, reason = "some thousand")]
        let all = streams.len() as f64;
        poll::until("all are there", Some(all), async || {
            metric(&ingest.admin, "ingest_connections", &[]).await
        })
        .await;
        ingest.process.peak_memory()
    };
    // The first ones make the allocator take what it needs in any case.
    let before = connect_all(200, &mut streams).await;
    let after = connect_all(2000, &mut streams).await;
    println!("{} bytes for each of 2,000 idle connections", (after - before) / 2000);
    assert!((after - before) / 2000 < 32 << 10);
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offers_of_other_protocols_are_ignored_and_old_clients_are_served() {
    let place = Place::new().await;
    let ingest = Ingest::start(&place, &[]).await;
    let post = |version: &str, headers: &str| {
        format!("POST /webhook/faster HTTP/{version}\r\nhost: x\r\ncontent-length: 2\r\n{headers}\r\n{{}}")
    };
    let h2c =
        post("1.1", "connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n");
    let tls = post("1.1", "connection: upgrade\r\nupgrade: TLS/1.2\r\n");
    let last = post("1.1", "connection: close\r\n");
    let answer = answers(&ingest, &format!("{h2c}{tls}{last}")).await;
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 3, "{answer}");
    // Of this offer, the connection can't be saved, but the webhook is.
    let websocket = post("1.1", "connection: upgrade\r\nupgrade: websocket\r\n");
    let answer = answers(&ingest, &websocket).await;
    assert!(answer.contains(r#"{"status":"received"}"#), "{answer}");
    let answer = answers(&ingest, &post("1.0", "")).await;
    assert!(answer.contains(" 200 OK") && answer.contains(r#"{"status":"received"}"#), "{answer}");
    let (kept, last) = (post("1.0", "connection: keep-alive\r\n"), post("1.0", ""));
    let answer = answers(&ingest, &format!("{kept}{last}")).await;
    assert_eq!(answer.matches(" 200 OK").count(), 2, "{answer}");
    place.remove().await;
}
