//! The servers that `tests/run` has started, and a private part of them for each test.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Context;

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

/// A test's private folder and names on the common servers: a virtual host of RabbitMQ's, and databases.
#[derive(Debug)]
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
    /// A place of its own for a test.
    pub async fn new() -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let name = format!("t{}x{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        let stack = PathBuf::from(variable("PENSTOCK_STACK"));
        let (rabbitmq, mongod) = (server_env(&stack.join("rabbitmq")), server_env(&stack.join("mongod")));
        let folder = stack.join("tests").join(&name);
        std::fs::create_dir_all(&folder).expect("a folder for the test");
        let place = Self {
            amqp_url: rabbitmq["AMQP_URL"].replace("%2f", &name),
            management_url: rabbitmq["AMQP_MANAGEMENT_URL"].clone(),
            mongo_uri: mongod["MONGO_URI"].clone(),
            folder,
            name,
        };
        place.manage(reqwest::Method::PUT, &format!("vhosts/{}", place.name), None).await;
        let all = serde_json::json!({"configure": ".*", "write": ".*", "read": ".*"});
        place.manage(reqwest::Method::PUT, &format!("permissions/{}/guest", place.name), Some(all)).await;
        place
    }

    /// The name of a tenant's database.
    pub fn database(&self, tenant: &str) -> String {
        format!("{}_{tenant}", self.name)
    }

    /// Calls RabbitMQ's management API and expects success.
    pub async fn manage(&self, method: reqwest::Method, path: &str, body: Option<serde_json::Value>) {
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
        self.manage(reqwest::Method::DELETE, &format!("vhosts/{}", self.name), None).await;
    }
}
