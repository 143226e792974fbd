//! The servers that `tests/run` has started, and a private part of them for each test.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Context;
use reqwest::Method;

use crate::certificates::Certificates;
use crate::process::signal_pid;
use crate::relay::Relay;

/// Reads the file that `deploy/local/servers` writes for a server.
pub fn server_env(server: &Path) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(server.join("env")).expect("the server runs");
    text.lines().filter_map(|line| line.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

/// A variable that `tests/run` sets.
pub fn variable(name: &str) -> String {
    std::env::var(name)
        .with_context(|| format!("{name} is not set: start the tests with tests/run"))
        .expect("tests/run")
}

/// Whether `tests/run --long` was asked for.
pub fn is_long_run() -> bool {
    std::env::var("PENSTOCK_LONG").is_ok()
}

/// A test's private folder and names on the servers: a virtual host of RabbitMQ's, and databases.
#[derive(Clone, Debug)]
pub struct Place {
    /// Unique among all tests.
    pub name: String,
    /// For logs, `.env` files and spools.
    pub folder: PathBuf,
    /// RabbitMQ's virtual host of the same name.
    pub amqp_url: String,
    /// RabbitMQ's management API.
    pub management_url: String,
    /// The common mongod.
    pub mongo_uri: String,
}

impl Place {
    /// A place of its own for a test, on the common servers.
    pub async fn new() -> Self {
        Self::on(&stack().join("rabbitmq")).await
    }

    /// A place on another RabbitMQ, whose folder this is.
    pub async fn on(rabbitmq: &Path) -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let name = format!("t{}x{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        let (rabbitmq, mongod) = (server_env(rabbitmq), server_env(&stack().join("mongod")));
        let folder = stack().join("tests").join(&name);
        std::fs::create_dir_all(&folder).expect("a folder for the test");
        let place = Self {
            amqp_url: rabbitmq["AMQP_URL"].replace("%2f", &name),
            management_url: rabbitmq["AMQP_MANAGEMENT_URL"].clone(),
            mongo_uri: mongod["MONGO_URI"].clone(),
            folder,
            name,
        };
        place.manage(Method::PUT, &format!("vhosts/{}", place.name), None).await;
        let all = serde_json::json!({"configure": ".*", "write": ".*", "read": ".*"});
        place.manage(Method::PUT, &format!("permissions/{}/guest", place.name), Some(all)).await;
        place
    }

    /// A relay in front of RabbitMQ, and the URL that leads through it.
    pub async fn relay(&self) -> (Relay, String) {
        let (credentials, rest) = self.amqp_url.split_once('@').expect("credentials");
        let (target, vhost) = rest.split_once('/').expect("a virtual host");
        let relay = Relay::start(target.parse().expect("an address")).await;
        let url = format!("{credentials}@{}/{vhost}", relay.address);
        (relay, url)
    }

    /// A relay in front of MongoDB, and the URI that leads through it: a client of the set would go to the
    /// addresses that its members tell.
    pub async fn mongo_relay(&self) -> (Relay, String) {
        let rest = self.mongo_uri.trim_start_matches("mongodb://");
        let (target, _) = rest.split_once('/').expect("an address");
        let relay = Relay::start(target.parse().expect("an address")).await;
        let uri = format!("mongodb://{}/?directConnection=true", relay.address);
        (relay, uri)
    }

    /// The name of a tenant's database.
    pub fn database(&self, tenant: &str) -> String {
        format!("{}_{tenant}", self.name)
    }

    /// The connections that RabbitMQ sends the events of a tenant's partitions to, by queue. It looks every
    /// few seconds.
    pub async fn active_consumers(&self, tenant: &str) -> BTreeMap<String, String> {
        let url = format!("{}/api/consumers/{}", self.management_url, self.name);
        let answer = reqwest::get(url).await.expect("the management API answers");
        let consumers: Vec<serde_json::Value> = answer.json().await.expect("a list");
        let of_partition = |consumer: &serde_json::Value| {
            let queue = consumer["queue"]["name"].as_str()?;
            let partition = queue.strip_prefix(&format!("webhooks.{tenant}."))?;
            let connection = consumer["channel_details"]["connection_name"].as_str()?;
            (partition != "large" && consumer["active"] == true)
                .then(|| (queue.to_owned(), connection.to_owned()))
        };
        consumers.iter().filter_map(of_partition).collect()
    }

    /// Calls RabbitMQ's management API and expects success.
    pub async fn manage(&self, method: Method, path: &str, body: Option<serde_json::Value>) {
        let mut request =
            reqwest::Client::new().request(method, format!("{}/api/{path}", self.management_url));
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.expect("the management API answers");
        assert!(response.status().is_success(), "{path}: {}", response.status());
    }

    /// Gives the virtual host back.
    pub async fn remove(&self) {
        self.manage(Method::DELETE, &format!("vhosts/{}", self.name), None).await;
    }
}

fn stack() -> PathBuf {
    PathBuf::from(variable("PENSTOCK_STACK"))
}

/// A server for one test, to be harmed at will. Gone when dropped.
#[derive(Debug)]
pub struct OwnServer {
    kind: &'static str,
    /// Where it lives.
    pub folder: PathBuf,
}

impl OwnServer {
    /// The folder of a server of this kind, as `deploy/local/servers` calls it. It isn't started yet.
    pub fn new(kind: &'static str) -> Self {
        let folder = stack().join(format!("{kind}-{:08x}", fastrand::u32(..)));
        std::fs::create_dir(&folder).expect("a folder for the server");
        Self { kind, folder }
    }

    /// Starts it, also again, and then on the same ports.
    pub fn start(&self) {
        run_servers(&["start", self.kind, self.folder.to_str().expect("a name")]);
    }

    /// What `deploy/local/servers` tells of it.
    pub fn env(&self, name: &str) -> String {
        server_env(&self.folder)[name].clone()
    }

    /// Sends its process a signal.
    pub fn signal(&self, signal: &str) {
        let pid = std::fs::read_to_string(self.folder.join("pid")).expect("it runs");
        signal_pid(pid.trim().parse().expect("a number"), signal);
    }

    /// Runs RabbitMQ's own command on it.
    pub fn rabbitmqctl(&self, arguments: &[&str]) {
        let folder = self.folder.to_str().expect("a name");
        run_servers(&[&["rabbitmqctl", folder], arguments].concat());
    }

    /// Stops it in order, as an operator would.
    pub fn stop(&self) {
        run_servers(&["stop", self.folder.to_str().expect("a name")]);
    }
}

impl Drop for OwnServer {
    fn drop(&mut self) {
        run_servers(&["stop", self.folder.to_str().expect("a name"), "--delete"]);
    }
}

fn run_servers(arguments: &[&str]) {
    let done = Command::new(variable("PENSTOCK_SERVERS")).args(arguments).output().expect("the script runs");
    assert!(done.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// A RabbitMQ for one test.
#[derive(Debug)]
pub struct OwnRabbit {
    server: OwnServer,
    /// A place on it.
    pub place: Place,
}

impl OwnRabbit {
    /// Starts one.
    pub async fn start() -> Self {
        Self::start_in(OwnServer::new("rabbitmq")).await
    }

    /// Starts one that also takes TLS connections, and gives the URL for them.
    pub async fn start_with(certificates: &Certificates) -> (Self, String) {
        let server = OwnServer::new("rabbitmq");
        certificates.copy_to(&server.folder);
        let rabbit = Self::start_in(server).await;
        let url = rabbit.server.env("AMQPS_URL").replace("%2f", &rabbit.place.name);
        (rabbit, url)
    }

    async fn start_in(server: OwnServer) -> Self {
        server.start();
        Self { place: Place::on(&server.folder).await, server }
    }

    /// Sends its server process a signal.
    pub fn signal(&self, signal: &str) {
        self.server.signal(signal);
    }

    /// Starts it again on the same ports.
    pub fn restart(&self) {
        self.server.start();
    }

    /// Stops it in order, as an operator would.
    pub fn stop(&self) {
        self.server.stop();
    }

    /// Raises or lifts the memory alarm.
    pub fn alarm(&self, raised: bool) {
        let watermark = if raised { "0.000001" } else { "0.7" };
        self.server.rabbitmqctl(&["set_vm_memory_high_watermark", watermark]);
    }
}
