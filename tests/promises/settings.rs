//! Settings are those of the Flask bridge, and what is wrong with them is said at once.

use penstock_tests::broker::Broker;
use penstock_tests::database::Database;
use penstock_tests::http::{get, post_received};
use penstock_tests::process::{Ingest, Process, Worker, run};
use penstock_tests::stack::{Place, server_env, variable};

#[tokio::test]
async fn the_flask_bridges_env_file_works_unchanged() {
    let place = Place::new().await;
    let env_file = format!(
        "# MongoDB\nMONGO_URI={uri}\nDB_NAME='{faster}'\nVIP_MONGO_URI=\"{uri}\"\nVIP_DB_NAME={vip}   # the other one\n\
         PORT=0\nTEST_MODE=true\nexport WEBHOOK_WORKERS=2\nCIRCUIT_BREAKER_THRESHOLD=7\nCIRCUIT_BREAKER_TIMEOUT=60\n\
         CIRCUIT_BREAKER_HALF_OPEN_THRESHOLD=3\nSOME_TEXT=two words\n",
        uri = place.mongo_uri,
        faster = place.database("faster"),
        vip = place.database("vip"),
    );
    std::fs::write(place.folder.join(".env"), env_file).unwrap();
    let ingest = Ingest::start(&place, &[]).await;
    let mut worker = Process::start(&place, "worker", &[("AMQP_URL", &place.amqp_url)]);
    let admin = format!("http://{}", worker.address("admin").await);
    for tenant in ["faster", "vip"] {
        let body = r#"{"contact":{"id":"123","phone":"+1234567890"},"message":{"messageId":"msg_123"}}"#;
        post_received(&ingest.path(&format!("/webhook/{tenant}/incoming")), body).await;
        let database = Database::of(&place, tenant).await;
        penstock_tests::poll::until("the test_ collections", 1, async || {
            database.count("test_messages").await
        })
        .await;
        assert_eq!(database.count("messages").await, 0);
    }
    assert_eq!(get(&ingest.path("/health")).await.body["test_mode"], true);
    let health = get(&format!("{admin}/health")).await.body;
    assert_eq!((&health["partitions"], &health["tenants"]["vip"]["threshold"]), (&2.into(), &7.into()));
    worker.stop().await;
    place.remove().await;
}

#[tokio::test]
async fn a_tenant_of_ones_own_needs_no_more_than_its_settings() {
    let place = Place::new().await;
    let database = place.database("acme");
    let settings =
        [("TENANTS", "acme"), ("ACME_MONGO_URI", place.mongo_uri.as_str()), ("ACME_DB_NAME", &database)];
    let ingest = Ingest::start(&place, &settings).await;
    let _worker = Worker::start(&place, &settings).await;
    post_received(&ingest.path("/webhook/acme"), r#"{"n":1}"#).await;
    Database::of(&place, "acme").await.until_stored(1).await;
    assert_eq!(penstock_tests::http::post(&ingest.path("/webhook/faster"), "{}").await.status, 404);
    place.remove().await;
}

#[tokio::test]
async fn a_worker_serves_only_the_tenants_that_are_listed() {
    let place = Place::new().await;
    // It declares the queues of both.
    let ingest = Ingest::start(&place, &[]).await;
    let worker = Worker::start(&place, &[("TENANTS", "vip")]).await;
    for n in 0..20 {
        for tenant in ["faster", "vip"] {
            post_received(&ingest.path(&format!("/webhook/{tenant}")), format!(r#"{{"n":{n}}}"#)).await;
        }
    }
    Database::of(&place, "vip").await.until_stored(20).await;
    worker.process.stop().await;
    let broker = Broker::connect(&place.amqp_url).await;
    assert_eq!(broker.waiting("vip").await, Some(0));
    assert_eq!(broker.waiting("faster").await, Some(20));
    place.remove().await;
}

#[tokio::test]
async fn every_problem_is_named_at_once_and_the_status_is_64() {
    let place = Place::new().await;
    let bad = [
        ("PORT", "eighty"),
        ("ADMIN_PORT", "99999"),
        ("AMQP_URL", "amqp//user:hunter2@host"),
        ("PUBLISH_TIMEOUT", "250"),
        ("MONGO_URI", "mongo://user:hunter2@host"),
        ("BATCH_SIZE", "-1"),
        ("TEST_MODE", "perhaps"),
    ];
    for (binary, named) in [
        ("ingest", &["PORT", "ADMIN_PORT", "AMQP_URL", "PUBLISH_TIMEOUT", "TEST_MODE"][..]),
        ("worker", &["ADMIN_PORT", "AMQP_URL", "MONGO_URI", "DB_NAME", "BATCH_SIZE", "TEST_MODE"]),
    ] {
        for arguments in [&["--check"][..], &[]] {
            let output = run(binary, &place.folder, arguments, &bad);
            let text = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(64), "{binary}: {text}");
            for name in named {
                assert!(
                    text.lines().any(|line| line.contains(&format!("{name}:"))),
                    "{binary} {name}: {text}"
                );
            }
            assert!(!text.contains("hunter2"));
        }
    }
    place.remove().await;
}

#[tokio::test]
async fn a_good_configuration_passes_the_check_without_any_server() {
    let place = Place::new().await;
    let good = [
        ("MONGO_URI", "mongodb://127.0.0.1:1/?replicaSet=rs0"),
        ("DB_NAME", "d"),
        ("AMQP_URL", "amqp://127.0.0.1:1/%2f"),
    ];
    for binary in ["ingest", "worker"] {
        let check = run(binary, &place.folder, &["--check"], &good);
        assert_eq!(check.status.code(), Some(0), "{binary}: {}", String::from_utf8_lossy(&check.stderr));
        let version = run(binary, &place.folder, &["--version"], &[]);
        let text = String::from_utf8(version.stdout).unwrap();
        assert_eq!(text.trim(), format!("{binary} {}", env!("CARGO_PKG_VERSION")));
    }
    place.remove().await;
}

#[tokio::test]
async fn a_standalone_mongodb_is_refused_in_plain_words() {
    let place = Place::new().await;
    let stack = std::path::PathBuf::from(variable("PENSTOCK_STACK"));
    let pid = &server_env(&stack.join("mongod"))["MONGO_PID"];
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let data = place.folder.join("data");
    std::fs::create_dir(&data).unwrap();
    let mut mongod = std::process::Command::new("setpriv")
        .args([
            "--pdeathsig",
            "KILL",
            &format!("/proc/{pid}/exe"),
            "--nounixsocket",
            "--port",
            &port,
            "--dbpath",
        ])
        .arg(&data)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let address: std::net::SocketAddr = format!("127.0.0.1:{port}").parse().unwrap();
    penstock_tests::poll::until("mongod listens", true, async || {
        std::net::TcpStream::connect(address).is_ok()
    })
    .await;

    let uri = format!("mongodb://127.0.0.1:{port}/");
    let settings = [("AMQP_URL", place.amqp_url.as_str()), ("MONGO_URI", &uri), ("DB_NAME", "d")];
    let mut worker = Process::start(&place, "worker", &settings);
    let status = worker.ended().await;
    assert_eq!(status.code(), Some(1));
    assert!(worker.log_text().contains("replSet"), "{}", worker.log_text());
    mongod.kill().unwrap();
    mongod.wait().unwrap();
    place.remove().await;
}
