//! Connections to RabbitMQ and MongoDB can be encrypted, and are made to nobody whose certificate isn't
//! trusted.

use penstock_tests::certificates::Certificates;
use penstock_tests::database::Database;
use penstock_tests::http::{get, post_received};
use penstock_tests::poll;
use penstock_tests::process::{Ingest, Worker, run};
use penstock_tests::replica_set::ReplicaSet;
use penstock_tests::stack::{OwnRabbit, Place};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_go_through_encrypted_connections() {
    let common = Place::new().await;
    let certificates = Certificates::make(&common.folder);
    let authority = certificates.authority();
    let (rabbit, amqps) = OwnRabbit::start_with(&certificates).await;
    let set = ReplicaSet::encrypted(&certificates).await;
    let place = &rabbit.place;
    let mongo =
        format!("mongodb://localhost:{}/?directConnection=true&tls=true", set.members[0].address.port());
    let trusting = format!("{mongo}&tlsCAFile={authority}");
    let known = [("AMQP_URL", amqps.as_str()), ("SSL_CERT_FILE", &authority), ("MONGO_URI", &trusting)];
    let (ingest, worker) = (Ingest::start(place, &known).await, Worker::start(place, &known).await);
    post_received(&ingest.path("/webhook/faster"), r#"{"event_id":"secret"}"#).await;
    Database::on(&set.uri(), place, "faster").await.until_stored(1).await;

    // The same without knowing the authority.
    let unknown = [("AMQP_URL", amqps.as_str()), ("MONGO_URI", &mongo)];
    let stranger = Ingest::start_unconnected(place, &unknown).await;
    let refused = async || stranger.process.log_text().contains("can't use RabbitMQ");
    poll::until("RabbitMQ isn't trusted", true, refused).await;
    assert_ne!(get(&stranger.path("/health")).await.body["broker"]["connected"], true);
    let plain = [("AMQP_URL", place.amqp_url.as_str()), ("MONGO_URI", &mongo)];
    let stranger = Worker::start(place, &plain).await;
    let refused = async || stranger.process.log_text().contains("MongoDB refuses us");
    poll::until("MongoDB isn't trusted", true, refused).await;

    // Known by the file `.env` alone.
    std::fs::write(place.folder.join(".env"), format!("SSL_CERT_FILE={authority}\n")).unwrap();
    let by_file = (Ingest::start(place, &unknown).await, Worker::start(place, &unknown).await);
    worker.process.stop().await;
    post_received(&by_file.0.path("/webhook/faster"), r#"{"event_id":"by file"}"#).await;
    Database::on(&set.uri(), place, "faster").await.until_stored(2).await;
    let broken = [("AMQP_URL", amqps.as_str()), ("SSL_CERT_FILE", "/nowhere/ca.crt")];
    let check = run("ingest", &place.folder, &["--check"], &broken);
    let said = String::from_utf8(check.stderr).unwrap();
    assert!(
        check.status.code() == Some(64) && said.starts_with("SSL_CERT_FILE: /nowhere/ca.crt: "),
        "{said}"
    );
    by_file.1.process.stop().await;
    common.remove().await;
}
