//! Settings are those of the Flask bridge, and what is wrong with them is said at once.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use mongodb::bson::doc;
use penstock_tests::broker::Broker;
use penstock_tests::database::Database;
use penstock_tests::http::{get, post_received, send};
use penstock_tests::poll;
use penstock_tests::process::{Ingest, Process, Worker, run};
use penstock_tests::stack::Place;
use reqwest::Method;
use sha2::Sha256;

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
async fn what_python_dotenv_ignores_is_ignored_and_the_environment_names_the_file_that_counts() {
    let place = Place::new().await;
    let env_file = "what is this\nMONGO_URI=mongodb://h/d\nexport HOST = ${NONE:-::1}\nA='B' C\nSPOOL_DIR='a\\'b'\nPORT=80\nPORT\nSIGNING_KEYS=file\n";
    std::fs::write(place.folder.join(".env"), env_file).unwrap();
    std::fs::write(place.folder.join("keys"), "mounted").unwrap();
    for binary in ["ingest", "worker"] {
        let (status, said) = check(binary, &place, &[]);
        assert_eq!(status, Some(0), "{binary}: {said}");
        let ignored = |line: &str| said.contains(&format!("warning: .env: line {line} can't be understood"));
        assert!(ignored("1") && ignored("4"), "{binary}: {said}");
    }
    let output = run("ingest", &place.folder, &["settings"], &[("SIGNING_KEYS_FILE", "keys")]);
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<String> =
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    for line in [
        "HOST ::1 (.env)",
        "SPOOL_DIR a'b (.env)",
        "PORT 8000 (default)",
        "SIGNING_KEYS (not shown) (file keys)",
    ] {
        assert!(lines.iter().any(|shown| shown == line), "{line}: {text}");
    }
    place.remove().await;
}

/// What a run with `--check` says.
fn check(binary: &str, place: &Place, settings: &[(&str, &str)]) -> (Option<i32>, String) {
    let output = run(binary, &place.folder, &["--check"], settings);
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[tokio::test]
async fn what_the_bridge_took_is_taken_with_a_warning() {
    let place = Place::new().await;
    let uri = format!(
        "'{}&socketTimeoutMS=20000&uuidRepresentation=standard&compressors=zlib&retryWrites=True&w=1&w=majority'",
        place.mongo_uri
    );
    let database = place.database("faster");
    let settings = [
        ("MONGO_URI", uri.as_str()),
        ("VIP_MONGO_URI", &uri),
        ("DB_NAME", &database),
        ("VIP_DB_NAME", &database),
        ("WEBHOOK_WORKERS", "\"2\""),
        ("SIGNING_KEYS", "\"k3y=\""),
        ("VIP_SIGNING_KEY", "other"),
        ("TEST_MODE", "1"),
    ];
    for (binary, named) in [
        (
            "worker",
            &["socketTimeoutMS", "uuidRepresentation", "compressors", "retryWrites", "VIP_DB_NAME"][..],
        ),
        ("worker", &["TEST_MODE", "MONGO_URI: the quotes", "WEBHOOK_WORKERS: the quotes"]),
        ("ingest", &["TEST_MODE", "SIGNING_KEYS: the quotes", "did you mean VIP_SIGNING_KEYS?"]),
    ] {
        let (status, said) = check(binary, &place, &settings);
        assert_eq!(status, Some(0), "{said}");
        for name in named {
            assert!(
                said.lines().any(|line| line.starts_with("warning: ") && line.contains(name)),
                "{name}: {said}"
            );
        }
        assert!(!said.contains("k3y"), "{said}");
    }
    let (ingest, worker) = (Ingest::start(&place, &settings).await, Worker::start(&place, &settings).await);
    let mut mac = Hmac::<Sha256>::new_from_slice(b"k3y=").unwrap();
    mac.update(b"{}");
    let signature = STANDARD.encode(mac.finalize().into_bytes());
    let signed = [("X-Webhook-Signature", signature.as_str())];
    assert_eq!(
        send(Method::POST, &ingest.path("/webhook/faster"), &signed, "{}").await.body["status"],
        "received"
    );
    post_received(&ingest.path("/webhook/vip"), "{}").await;
    Database::of(&place, "faster").await.until_stored(2).await;
    assert!(worker.process.log_text().contains("TEST_MODE"));
    place.remove().await;
}

#[tokio::test]
async fn what_passes_the_check_starts_and_what_does_not_is_named() {
    let place = Place::new().await;
    for (uri, named) in [
        ("mongodb://u:hunter2@h/?tlsCAFile=/nowhere/at/all", "/nowhere/at/all"),
        ("mongodb://u:hunter2@a,b/?directConnection=true", "directConnection"),
        ("mongodb://u:hunter2@h/?heartbeatFrequencyMS=100", "heartbeatFrequencyMS"),
        ("mongodb://u:hunter2@h/?authMechanism=GSSAPI", "authMechanism"),
        ("mongodb://u:hunter2@h:hunter2/", "percent-encode"),
    ] {
        std::fs::write(place.folder.join(".env"), format!("MONGO_URI={uri}\n")).unwrap();
        let (status, said) = check("worker", &place, &[("DB_NAME", "d")]);
        assert_eq!(status, Some(64), "{uri}: {said}");
        assert!(said.starts_with("MONGO_URI: ") && said.trim_end().ends_with("(.env)"), "{said}");
        assert!(said.lines().count() == 1 && said.contains(named) && !said.contains("hunter2"), "{said}");
    }
    place.remove().await;
}

#[tokio::test]
async fn settings_are_shown_with_where_they_come_from_and_without_secrets() {
    let place = Place::new().await;
    std::fs::write(
        place.folder.join(".env"),
        "MONGO_URI=mongodb://u:hunter2@h/d\nSIGNING_KEYS=hunter2\nPORT=8080\n",
    )
    .unwrap();
    std::fs::write(place.folder.join("url"), "amqp://u:hunter2@h/v\n").unwrap();
    let settings =
        [("TEST_MODE", "True"), ("AMQP_URL_FILE", "url"), ("BATCH_SIZE", "7"), ("MONGO_MAX_POOL_SIZE", "5")];
    for (binary, expected) in [
        (
            "ingest",
            &["AMQP_URL (not shown) (file url)", "PORT 8080 (.env)", "SIGNING_KEYS (not shown) (.env)"][..],
        ),
        (
            "ingest",
            &[
                "TEST_MODE true (environment)",
                "WEBHOOK_WORKERS 4 (default)",
                "VIP_SIGNING_KEYS (not set) (default)",
            ],
        ),
        (
            "worker",
            &["MONGO_URI (not shown) (.env)", "BATCH_SIZE 7 (environment)", "ADMIN_PORT 9101 (default)"],
        ),
        ("worker", &["MONGO_MIN_POOL_SIZE 5 (default)", "CIRCUIT_BREAKER_TIMEOUT 60 (default)"]),
    ] {
        let output = run(binary, &place.folder, &["settings"], &settings);
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert_eq!(output.status.code(), Some(0), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
        let lines: Vec<String> =
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        for line in expected {
            assert!(lines.iter().any(|shown| shown == line), "{line}: {text}");
        }
    }
    place.remove().await;
}

#[tokio::test]
async fn indexes_that_get_in_the_way_are_named_once() {
    let place = Place::new().await;
    let database = Database::of(&place, "faster").await;
    let index = async |collection: &str, index| {
        let command = doc! {"createIndexes": collection, "indexes": [index]};
        database.0.run_command(command).await.unwrap();
    };
    index("messages", doc! {"name": "by_event", "key": {"event_id": 1}, "unique": true}).await;
    index("contacts", doc! {"name": "names", "key": {"firstName": "text", "email": "text"}}).await;
    index("conversations", doc! {"name": "fine", "key": {"summary": "text"}, "language_override": "none"})
        .await;
    index("internal_notes", doc! {"name": "also_fine", "key": {"event_id": 1}, "unique": true}).await;
    let worker = Worker::start(&place, &[]).await;
    let warnings = async || {
        let lines = worker.process.log_lines();
        lines
            .into_iter()
            .filter(|line| line["message"].to_string().contains("make writes fail"))
            .collect::<Vec<_>>()
    };
    poll::until("a warning", 1, async || warnings().await.len()).await;
    let warning = &warnings().await[0];
    let indexes = warning["indexes"].as_str().unwrap();
    assert_eq!((&warning["level"], &warning["tenant"]), (&"WARN".into(), &"faster".into()));
    assert!(
        indexes.contains("by_event of messages: ") && indexes.contains("names of contacts: "),
        "{indexes}"
    );
    assert!(!indexes.contains("fine"), "{indexes}");
    worker.process.stop().await;
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
    ];
    for (binary, named) in [
        ("ingest", &["PORT", "ADMIN_PORT", "AMQP_URL", "PUBLISH_TIMEOUT"][..]),
        ("worker", &["ADMIN_PORT", "AMQP_URL", "MONGO_URI", "BATCH_SIZE"]),
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
