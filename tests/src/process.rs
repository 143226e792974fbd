//! The binaries, started as users start them: by environment.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::broker::Broker;
use crate::poll;
use crate::stack::{Place, variable};

/// Longest time for a process to start or to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running binary. Killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
    /// Name of the binary.
    pub binary: String,
}

fn command(binary: &str, folder: &Path, within: &[&str], settings: &[(&str, &str)]) -> Command {
    let path = Path::new(&variable("PENSTOCK_BIN")).join(binary);
    // The kernel kills it when the test's thread ends, even if nothing of ours is left to do so.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).args(within).arg(path).current_dir(folder).env_clear();
    for kept in ["PATH", "PENSTOCK_OWNER"] {
        if let Ok(value) = std::env::var(kept) {
            command.env(kept, value);
        }
    }
    command.envs(settings.iter().copied()).stdin(Stdio::null());
    command
}

/// Runs a binary to its end.
pub fn run(binary: &str, folder: &Path, arguments: &[&str], settings: &[(&str, &str)]) -> Output {
    command(binary, folder, &[], settings).args(arguments).output().expect("the binary runs")
}

/// Runs a binary to its end, with something to read on its standard input.
pub fn run_with_input(
    binary: &str,
    folder: &Path,
    arguments: &[&str],
    settings: &[(&str, &str)],
    input: &str,
) -> Output {
    let mut command = command(binary, folder, &[], settings);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary starts");
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("it reads");
    child.wait_with_output().expect("the binary ends")
}

impl Process {
    /// Starts a binary with just these settings, besides ports that are free.
    pub fn start(place: &Place, binary: &str, settings: &[(&str, &str)]) -> Self {
        Self::start_within(place, &[], binary, settings)
    }

    /// As [`Process::start`], by a command that becomes the binary in the end.
    pub fn start_within(place: &Place, within: &[&str], binary: &str, settings: &[(&str, &str)]) -> Self {
        Self::start_with(place, within, binary, &[], settings)
    }

    /// Starts a command of the worker, for the tenants `faster` and `vip`.
    pub fn start_command(place: &Place, arguments: &[&str], settings: &[(&str, &str)]) -> Self {
        let (faster, vip) = (place.database("faster"), place.database("vip"));
        Self::start_with(place, &[], "worker", arguments, &worker_settings(place, (&faster, &vip), settings))
    }

    fn start_with(
        place: &Place,
        within: &[&str],
        binary: &str,
        arguments: &[&str],
        settings: &[(&str, &str)],
    ) -> Self {
        let unique = fastrand::u64(..);
        let log = place.folder.join(format!("{binary}-{unique:016x}.log"));
        let file = std::fs::File::create(&log).expect("a log file");
        let errors = file.try_clone().expect("a log file");
        let ports = [
            ("HOST", "127.0.0.1"),
            ("PORT", "0"),
            ("ADMIN_PORT", "0"),
            ("CONSOLE_PORT", "0"),
            ("DRAIN_DELAY", "300ms"),
        ];
        let all: Vec<_> = ports.into_iter().chain(settings.iter().copied()).collect();
        let child = command(binary, &place.folder, within, &all)
            .args(arguments)
            .stdout(file)
            .stderr(errors)
            .spawn()
            .expect("the binary starts");
        Self { child, log, binary: binary.to_owned() }
    }

    /// What it has logged so far.
    pub fn log_lines(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// What it has logged so far, as text.
    pub fn log_text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The address of its `public` or `admin` port, once it listens there.
    pub async fn address(&mut self, port: &str) -> SocketAddr {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let lines = self.log_lines();
            let listening = lines.iter().find(|line| line["message"] == "listening" && line["port"] == port);
            if let Some(address) = listening.and_then(|line| line["address"].as_str()?.parse().ok()) {
                return address;
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("{} ended with {status}: {}", self.binary, self.log_text());
            }
            assert!(Instant::now() < deadline, "{} doesn't listen: {}", self.binary, self.log_text());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal, such as `TERM`, `KILL` or `STOP`.
    pub fn signal(&self, signal: &str) {
        signal_pid(self.child.id(), signal);
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("the process can be waited for") {
                return status;
            }
            assert!(Instant::now() < deadline, "{} doesn't end: {}", self.binary, self.log_text());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Asks it to stop, and expects that it ends well.
    pub async fn stop(mut self) {
        self.signal("TERM");
        let status = self.ended().await;
        assert!(status.success(), "{} ended with {status}: {}", self.binary, self.log_text());
    }

    /// Kills it, as a crash would.
    pub async fn crash(mut self) {
        self.signal("KILL");
        self.ended().await;
    }

    /// Largest resident memory so far, in bytes.
    pub fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    }
}

/// Sends a signal to any process.
pub fn signal_pid(pid: u32, signal: &str) {
    let sent = Command::new("kill").args(["-s", signal, &pid.to_string()]).status();
    assert!(sent.expect("kill runs").success(), "SIG{signal} to {pid}");
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let text = self.log_text();
            let lines: Vec<_> = text.lines().collect();
            let last = &lines[lines.len().saturating_sub(15)..];
            eprintln!("--- the last of {}'s log\n{}", self.binary, last.join("\n"));
        }
    }
}

/// An ingest.
#[derive(Debug)]
pub struct Ingest {
    /// The process.
    pub process: Process,
    /// URL of the public port.
    pub url: String,
    /// URL of the admin port.
    pub admin: String,
}

impl Ingest {
    /// Starts one and waits until it is connected.
    pub async fn start(place: &Place, settings: &[(&str, &str)]) -> Self {
        let ingest = Self::start_unconnected(place, settings).await;
        until_connected(&ingest.admin).await;
        ingest
    }

    /// Starts one and waits until it listens.
    pub async fn start_unconnected(place: &Place, settings: &[(&str, &str)]) -> Self {
        Self::start_within(place, &[], settings).await
    }

    /// Starts one by a command that becomes it in the end, and waits until it listens.
    pub async fn start_within(place: &Place, within: &[&str], settings: &[(&str, &str)]) -> Self {
        // Each has a spool of its own, unless a test has other plans.
        let spool = place.folder.join(format!("spool-{:08x}", fastrand::u32(..)));
        let spool = ("SPOOL_DIR", spool.to_str().expect("a name"));
        // So that hardly anything goes through the spool where the machine is busy, and comes twice.
        let patient = ("PUBLISH_TIMEOUT", "1s");
        let common = [("AMQP_URL", place.amqp_url.as_str()), spool, patient];
        let settings: Vec<_> = common.into_iter().chain(settings.iter().copied()).collect();
        let mut process = Process::start_within(place, within, "ingest", &settings);
        let url = format!("http://{}", process.address("public").await);
        let admin = format!("http://{}", process.address("admin").await);
        Self { process, url, admin }
    }

    /// URL of a path of the public port.
    pub fn path(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }
}

/// A worker.
#[derive(Debug)]
pub struct Worker {
    /// The process.
    pub process: Process,
    /// URL of the admin port.
    pub admin: String,
}

impl Worker {
    /// Starts one for the tenants `faster` and `vip` and waits until it is connected: by then all queues are
    /// declared and bound.
    pub async fn start(place: &Place, settings: &[(&str, &str)]) -> Self {
        let worker = Self::start_unconnected(place, settings).await;
        until_connected(&worker.admin).await;
        worker
    }

    /// Starts one for the tenants `faster` and `vip` and waits until it listens.
    pub async fn start_unconnected(place: &Place, settings: &[(&str, &str)]) -> Self {
        let (faster, vip) = (place.database("faster"), place.database("vip"));
        let settings = worker_settings(place, (&faster, &vip), settings);
        let mut process = Process::start(place, "worker", &settings);
        let admin = format!("http://{}", process.address("admin").await);
        Self { process, admin }
    }
}

fn worker_settings<'a>(
    place: &'a Place,
    (faster, vip): (&'a str, &'a str),
    settings: &[(&'a str, &'a str)],
) -> Vec<(&'a str, &'a str)> {
    let common = [
        ("AMQP_URL", place.amqp_url.as_str()),
        ("MONGO_URI", &place.mongo_uri),
        ("DB_NAME", faster),
        ("VIP_MONGO_URI", &place.mongo_uri),
        ("VIP_DB_NAME", vip),
        // The tests run on few cores, with many workers at once.
        ("MONGO_MIN_POOL_SIZE", "0"),
    ];
    common.into_iter().chain(settings.iter().copied()).collect()
}

/// What a command of the worker answered.
#[derive(Debug)]
pub struct Answer {
    /// Its exit status.
    pub status: i32,
    /// What it wrote to standard output.
    pub out: String,
    /// What it wrote to standard error.
    pub errors: String,
}

impl Answer {
    /// The JSON objects that it wrote, a line each.
    pub fn json(&self) -> Vec<Value> {
        self.out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }
}

/// Runs a command of the worker, for the tenants `faster` and `vip`.
pub fn operate(place: &Place, arguments: &[&str]) -> Answer {
    operate_with(place, arguments, &[])
}

/// As [`operate`], with more settings.
pub fn operate_with(place: &Place, arguments: &[&str], settings: &[(&str, &str)]) -> Answer {
    let (faster, vip) = (place.database("faster"), place.database("vip"));
    let settings = worker_settings(place, (&faster, &vip), settings);
    let output = tokio::task::block_in_place(|| run("worker", &place.folder, arguments, &settings));
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    Answer {
        status: output.status.code().unwrap_or(-1),
        out: text(output.stdout),
        errors: text(output.stderr),
    }
}

/// Starts a command of the worker, whose output waits in a pipe until somebody reads it.
pub fn start_unread(place: &Place, arguments: &[&str]) -> Child {
    let (faster, vip) = (place.database("faster"), place.database("vip"));
    let mut command = command("worker", &place.folder, &[], &worker_settings(place, (&faster, &vip), &[]));
    command.args(arguments).stdout(Stdio::piped()).spawn().expect("the binary starts")
}

/// Runs a command of the worker that must succeed.
pub fn operate_well(place: &Place, arguments: &[&str]) -> Answer {
    let answer = operate(place, arguments);
    assert_eq!(answer.status, 0, "{arguments:?}: {}", answer.errors);
    answer
}

/// Waits until nothing is in the queue of `faster` nor in any worker's hands, also not on its way between
/// them: a worker that is stopped before gives such deliveries back.
pub async fn until_idle(broker: &Broker, workers: &[&Worker]) {
    let mut idle_in_a_row = 0;
    poll::until("idle for a while", true, async || {
        let mut idle = broker.waiting("faster").await == Some(0);
        for worker in workers {
            idle &= crate::http::metric(&worker.admin, "worker_in_flight", &[]).await == Some(0.0);
        }
        idle_in_a_row = if idle { idle_in_a_row + 1 } else { 0 };
        idle_in_a_row == 5
    })
    .await;
}

pub async fn until_connected(admin: &str) {
    let connected = async || crate::http::metric(admin, "amqp_connection_up", &[]).await;
    poll::until("RabbitMQ is connected", Some(1.0), connected).await;
}
