//! An address leads where it says, or is refused: none is replaced by another.

use penstock_tests::database::Database;
use penstock_tests::http::{get, metric, post_received};
use penstock_tests::process::{Ingest, Worker, run};
use penstock_tests::relay::{Fault, Relay};
use penstock_tests::stack::Place;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ipv6_addresses_lead_where_they_say() {
    let place = Place::new().await;
    let (credentials, rest) = place.amqp_url.split_once('@').unwrap();
    let (rabbitmq, vhost) = rest.split_once('/').unwrap();
    let relay = Relay::listen("[::1]:0", vec![rabbitmq.parse().unwrap()]).await;
    let url = format!("{credentials}@{}/{vhost}", relay.address);
    for host in ["::1", "[::1]", "[::]"] {
        let here = [("AMQP_URL", url.as_str()), ("HOST", host), ("ADMIN_HOST", host)];
        let (ingest, worker) = (Ingest::start(&place, &here).await, Worker::start(&place, &here).await);
        assert!(ingest.url.starts_with("http://[::"), "{}", ingest.url);
        post_received(&ingest.path("/webhook/faster"), format!(r#"{{"event_id":"{host}"}}"#)).await;
        let through_rabbitmq = [("tenant", "faster"), ("via", "broker")];
        assert_eq!(metric(&ingest.admin, "ingest_accepted_total", &through_rabbitmq).await, Some(1.0));
        assert_eq!(get(&format!("{}/livez", worker.admin)).await.status, 200);
        ingest.process.stop().await;
        worker.process.stop().await;
    }
    Database::of(&place, "faster").await.until_stored(3).await;
    relay.set(Fault::Cut);
    place.remove().await;
}

#[tokio::test]
async fn an_address_that_could_be_meant_otherwise_is_refused_by_the_check() {
    let place = Place::new().await;
    for (name, value, hint) in [
        ("AMQP_URL", "amqp://u:hunter2@h/", "for RabbitMQ's default one, which is called /, write /%2f"),
        ("AMQP_URL", "amqp://u:hunter2@h/v/", "leave it out if it isn't part of the name"),
        ("AMQP_URL", "amqp://u:1/hunter2@h/v", "percent-encoded"),
        ("AMQP_URL", "amqp://u:1#hunter2@h/v", "percent-encoded"),
        ("AMQP_URL", "amqp://u@h/v", "without a password"),
        ("AMQP_URL", "amqp://u:hunter2@/v", "names no host"),
        ("AMQP_URL", "amqp://::1/v", "an IPv6 address stands in brackets"),
        ("AMQP_URL", "amqps://u:hunter2@h/v?cacertfile=/ca.pem", "SSL_CERT_FILE"),
        ("ADMIN_HOST", "[::1]:9100", "ADMIN_PORT"),
        ("ADMIN_HOST", "127.0.0.300", "neither an address nor a name"),
    ] {
        for (binary, needed) in
            [("ingest", ("DRAIN_DELAY", "1s")), ("worker", ("MONGO_URI", "mongodb://h/d"))]
        {
            let output = run(binary, &place.folder, &["--check"], &[(name, value), needed]);
            let said = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(64), "{binary} {value}: {said}");
            assert!(
                said.starts_with(&format!("{name}: ")) && said.contains(hint),
                "{binary} {value}: {said}"
            );
            assert!(said.lines().count() == 1 && !said.contains("hunter2"), "{binary} {value}: {said}");
        }
    }
    let taken =
        run("ingest", &place.folder, &["--check"], &[("HOST", "[::]"), ("AMQP_URL", "amqp://[::1]//")]);
    assert_eq!(taken.status.code(), Some(0), "{}", String::from_utf8_lossy(&taken.stderr));
    place.remove().await;
}
