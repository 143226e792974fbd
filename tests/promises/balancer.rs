//! Several ingests behind a load balancer, HAProxy with checks.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use penstock_tests::http::get;
use penstock_tests::poll;
use penstock_tests::process::Ingest;
use penstock_tests::relay::Fault;
use penstock_tests::stack::Place;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Where HAProxy tells how its checks went.
const STATS: &str = "stats.sock";

/// HAProxy, which listens on a socket in a folder. Killed when dropped.
struct Balancer {
    process: Child,
    socket: PathBuf,
}

impl Balancer {
    /// In front of these ingests, which it asks whether they are ready.
    fn start(folder: &Path, ingests: &[Ingest]) -> Self {
        let (socket, file) = (folder.join("haproxy.sock"), folder.join("haproxy.cfg"));
        let address = |url: &str| url.trim_start_matches("http://").to_owned();
        let port = |url: &str| url.rsplit(':').next().unwrap_or_default().to_owned();
        let servers = ingests.iter().enumerate().map(|(n, ingest)| {
            format!("  server ingest{n} {} check port {}\n", address(&ingest.url), port(&ingest.admin))
        });
        let configuration = format!(
            "global\n  stats socket {}\ndefaults\n  mode http\n  timeout connect 5s\n  timeout client 30s\n\
             \x20 timeout server 30s\n  timeout check 5s\nlisten public\n  bind unix@{}\n\
             \x20 option httpchk GET /readyz\n  default-server inter 100ms fall 1 rise 1\n{}",
            folder.join(STATS).display(),
            socket.display(),
            servers.collect::<String>()
        );
        std::fs::write(&file, configuration).unwrap();
        let process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "haproxy", "-db", "-f"])
            .arg(file)
            .stdout(Stdio::null())
            .spawn()
            .expect("haproxy runs");
        Self { process, socket }
    }

    /// Sends a request; gives status and body.
    async fn send(&self, method: &str, path: &str, body: &str) -> Option<(u16, String)> {
        let mut stream = UnixStream::connect(&self.socket).await.ok()?;
        // Of an old client, so that the answer comes in one piece.
        let request = format!("{method} {path} HTTP/1.0\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    }

    /// How each ingest's last check went, and how many there were that failed.
    async fn checks(&self) -> Vec<(String, String)> {
        let mut table = String::new();
        let stats = self.socket.with_file_name(STATS);
        if let Ok(mut stats) = UnixStream::connect(stats).await {
            stats.write_all(b"show stat\n").await.expect("it listens");
            stats.read_to_string(&mut table).await.expect("it answers");
        }
        let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split(',').collect()).collect();
        let column = |name| lines.first().and_then(|names| names.iter().position(|column| *column == name));
        let (Some(status), Some(failed)) = (column("check_status"), column("chkfail")) else {
            return Vec::new();
        };
        let servers = lines.iter().filter(|line| line.get(1).is_some_and(|name| name.starts_with("ingest")));
        // A star stands for a check that is under way, beside the result of the last one.
        servers
            .map(|line| (line[status].trim_start_matches("* ").to_owned(), line[failed].to_owned()))
            .collect()
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_a_load_balancer_the_refusals_are_those_of_the_budgets() {
    let place = Place::new().await;
    let (relay, url) = place.relay().await;
    relay.set(Fault::Cut);
    let settings = [("AMQP_URL", url.as_str()), ("SPOOL_MAX_BYTES", "0"), ("REFUSAL_BUDGET", "2")];
    let mut ingests = Vec::new();
    for _ in 0..3 {
        ingests.push(Ingest::start_unconnected(&place, &settings).await);
    }
    let balancer = Balancer::start(&place.folder, &ingests);
    let well = vec![("L7OK".to_owned(), "0".to_owned()); 3];
    poll::until("it has asked all", well.clone(), async || balancer.checks().await).await;
    let mut statuses = Vec::new();
    for n in 0..20 {
        let answer = balancer.send("POST", "/webhook/faster", &json!({"event_id": n}).to_string()).await;
        let (status, body) = answer.expect("an answer");
        let body: Value = serde_json::from_str(&body).expect("Penstock's own answer");
        let expected = if status == 503 { "unavailable" } else { "lost" };
        assert_eq!(body["status"], expected);
        statuses.push(status);
    }
    assert_eq!(statuses.iter().filter(|status| **status == 503).count(), 3 * 2, "{statuses:?}");
    assert!(statuses[18..].iter().all(|status| *status == 200), "{statuses:?}");
    assert_eq!(balancer.checks().await, well);
    // An ingest that stops says so, and the others keep serving.
    relay.set(Fault::None);
    let up = async || get(&ingests[1].path("/health")).await.body["broker"]["connected"].clone();
    poll::until("RabbitMQ is back", json!(true), up).await;
    ingests.remove(0).process.stop().await;
    poll::until("they receive", true, async || {
        let answer = balancer.send("POST", "/webhook/faster", "{}").await;
        answer.is_some_and(|(status, body)| status == 200 && body.contains("received"))
    })
    .await;
    place.remove().await;
}
