//! What commands and logs say, and how.

use std::path::Path;
use std::process::{Command, Stdio};

use penstock_tests::poll;
use penstock_tests::process::{Process, operate_well, run};
use penstock_tests::stack::{Place, variable};

const NOWHERE: [(&str, &str); 2] =
    [("MONGO_URI", "mongodb://u:secret@a.example:1,b.example:2/?replicaSet=rs0"), ("DB_NAME", "d")];

#[tokio::test]
async fn whoever_reads_no_more_is_no_error() {
    let place = Place::new().await;
    for (binary, arguments) in [
        ("ingest", &["completions", "bash"][..]),
        ("ingest", &["settings"]),
        ("ingest", &["--check"]),
        ("worker", &["completions", "zsh"]),
        ("worker", &["settings"]),
        ("worker", &["--check"]),
    ] {
        let mut child = Command::new(Path::new(&variable("PENSTOCK_BIN")).join(binary))
            .args(arguments)
            .current_dir(&place.folder)
            .envs(NOWHERE)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !said.contains("panicked"), "{binary} {arguments:?}: {said}");
    }
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shells_can_complete_commands() {
    let place = Place::new().await;
    for shell in ["bash", "zsh", "fish"] {
        let script = operate_well(&place, &["completions", shell]).out;
        assert!(script.contains("quarantine") && script.contains("backfill"), "{shell}");
        let script = run("ingest", &place.folder, &["completions", shell], &[]);
        assert!(String::from_utf8(script.stdout).unwrap().contains("spool"), "{shell}");
    }
    place.remove().await;
}

#[tokio::test]
async fn the_check_and_every_start_say_what_is_in_force() {
    let place = Place::new().await;
    let said = |binary: &str| {
        let check = run(binary, &place.folder, &["--check"], &NOWHERE);
        assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
        String::from_utf8(check.stdout).unwrap()
    };
    let version = env!("CARGO_PKG_VERSION");
    let lines = [
        format!("worker {version}"),
        "settings: from the environment; there is no .env".to_owned(),
        "at their defaults: AMQP_URL".to_owned(),
        "RabbitMQ: 127.0.0.1:5672, virtual host /".to_owned(),
        "tenant faster: MongoDB a.example:1,b.example:2, database d".to_owned(),
        "limits: 4 work queues a tenant, batches of 200 events, ".to_owned(),
    ];
    let worker = said("worker");
    assert!(lines.iter().all(|line| worker.contains(line)) && !worker.contains("secret"), "{worker}");
    std::fs::write(place.folder.join(".env"), "SPOOL_DIR=elsewhere\nSIGNING_KEYS=k\n").unwrap();
    let ingest = said("ingest");
    for line in ["settings: from the environment and .env", "spool: elsewhere", "tenant vip: signatures off"]
    {
        assert!(ingest.contains(line), "{line}: {ingest}");
    }
    let nowhere = [("AMQP_URL", "amqp://u:p@127.0.0.1:1/v")];
    let mut process = Process::start(&place, "ingest", &nowhere);
    process.address("admin").await;
    let starting = process.log_lines().into_iter().find(|line| line["message"] == "starting").unwrap();
    let in_force = starting["in_force"].as_str().unwrap();
    assert!(in_force.contains("RabbitMQ: 127.0.0.1:1, virtual host v; spool: elsewhere"), "{in_force}");
    place.remove().await;
}

#[tokio::test]
async fn ports_that_clash_and_a_filter_that_matches_nothing_are_problems() {
    let place = Place::new().await;
    for (binary, setting, problem) in [
        ("ingest", ("PORT", "9100"), "ADMIN_PORT: is the public port too"),
        ("ingest", ("RUST_LOG", "ingets=debug"), "RUST_LOG: \"ingets=debug\" matches nothing"),
        ("worker", ("RUST_LOG", "ingest=debug"), "RUST_LOG: \"ingest=debug\" matches nothing"),
        ("worker", ("LOG_FORMAT", "xml"), "LOG_FORMAT: \"xml\" is neither text nor json"),
    ] {
        let check = run(binary, &place.folder, &["--check"], &[NOWHERE[0], NOWHERE[1], setting]);
        let said = String::from_utf8(check.stderr).unwrap();
        assert!(check.status.code() == Some(64) && said.starts_with(problem), "{said}");
    }
    place.remove().await;
}

#[tokio::test]
async fn logs_are_text_where_that_is_wanted() {
    let place = Place::new().await;
    let settings = [("AMQP_URL", "amqp://127.0.0.1:1/%2f"), ("LOG_FORMAT", "text")];
    let ingest = Process::start(&place, "ingest", &settings);
    poll::until("it has started", true, async || ingest.log_text().contains("starting")).await;
    let text = ingest.log_text();
    assert!(text.contains("INFO") && !text.contains('{') && !text.contains('\u{1b}'), "{text}");
    place.remove().await;
}
