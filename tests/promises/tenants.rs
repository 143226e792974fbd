//! A failure of one tenant affects no other: the tenant is down, everybody can see it, and it is tried again.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use mongodb::bson::doc;
use penstock_tests::broker::{Broker, header};
use penstock_tests::database::Database;
use penstock_tests::http::{get, metric, post_received};
use penstock_tests::poll;
use penstock_tests::process::{Ingest, Worker};
use penstock_tests::stack::{Place, server_env, variable};
use serde_json::Value;

/// A mongod that is no member of a replica set, unless options make it one. Killed when dropped.
struct Mongod(Child);

impl Mongod {
    async fn start(data: &Path, address: SocketAddr, options: &[&str]) -> Self {
        let stack = PathBuf::from(variable("PENSTOCK_STACK"));
        let pid = &server_env(&stack.join("mongod"))["MONGO_PID"];
        let child = Command::new("setpriv")
            .args([
                "--pdeathsig",
                "KILL",
                &format!("/proc/{pid}/exe"),
                "--nounixsocket",
                "--bind_ip",
                "127.0.0.1",
            ])
            .args(["--port", &address.port().to_string(), "--wiredTigerCacheSizeGB", "0.25", "--dbpath"])
            .arg(data)
            .args(options)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mongod = Self(child);
        let listens = async || std::net::TcpStream::connect(address).is_ok();
        poll::until("mongod listens", true, listens).await;
        mongod
    }
}

impl Drop for Mongod {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A folder for a mongod, and an address for it, below the ports that outgoing connections get.
fn place_for_mongod(place: &Place) -> (PathBuf, SocketAddr) {
    let data = place.folder.join("data");
    std::fs::create_dir(&data).unwrap();
    let free = |_| std::net::TcpListener::bind(("127.0.0.1", fastrand::u16(20_000..32_000))).ok();
    let listener = (0..100).find_map(free).expect("a free port");
    (data, listener.local_addr().unwrap())
}

async fn up(worker: &Worker, tenant: &str) -> Option<f64> {
    metric(&worker.admin, "worker_tenant_up", &[("tenant", tenant)]).await
}

async fn down(worker: &Worker) -> Value {
    get(&format!("{}/health", worker.admin)).await.body["down"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standalone_mongodb_of_one_tenant_is_named_and_tried_again_while_the_other_is_served() {
    let place = Place::new().await;
    let (data, address) = place_for_mongod(&place);
    let standalone = Mongod::start(&data, address, &[]).await;
    let uri = format!("mongodb://{address}/");
    let ingest = Ingest::start(&place, &[]).await;
    let worker = Worker::start(&place, &[("MONGO_URI", &uri)]).await;
    for tenant in ["faster", "vip"] {
        post_received(&ingest.path(&format!("/webhook/{tenant}")), r#"{"event_id":"1"}"#).await;
    }
    Database::of(&place, "vip").await.until_stored(1).await;
    let told =
        async || down(&worker).await["faster"].as_str().is_some_and(|reason| reason.contains("replSet"));
    poll::until("/health says why", true, told).await;
    assert_eq!((up(&worker, "faster").await, up(&worker, "vip").await), (Some(0.0), Some(1.0)));
    assert_eq!(get(&format!("{}/readyz", worker.admin)).await.status, 200, "another tenant is served");
    assert!(worker.process.log_text().contains("call rs.initiate()"), "{}", worker.process.log_text());
    let connected = async || get(&ingest.path("/health")).await.body["mongodb"]["faster"].clone();
    poll::until("ingest shows it", Value::from("disconnected"), connected).await;

    drop(standalone);
    let _member = Mongod::start(&data, address, &["--replSet", "rs0"]).await;
    let direct = format!("mongodb://{address}/?directConnection=true");
    let client = mongodb::Client::with_uri_str(direct).await.unwrap();
    let member = doc! {"_id": 0, "host": address.to_string()};
    let initiate = doc! {"replSetInitiate": {"_id": "rs0", "members": [member]}};
    client.database("admin").run_command(initiate).await.unwrap();
    poll::until("it is served", Some(1.0), async || up(&worker, "faster").await).await;
    Database(client.database(&place.database("faster"))).until_stored(1).await;
    assert_eq!(down(&worker).await, serde_json::json!({}));
    worker.process.stop().await;
    place.remove().await;
}

#[tokio::test]
async fn a_queue_of_one_tenant_that_cannot_be_declared_is_no_matter_of_the_others() {
    let place = Place::new().await;
    let name = format!("queues/{}/webhooks.faster.0", place.name);
    let classic = serde_json::json!({"durable": true, "arguments": {"x-queue-type": "classic"}});
    place.manage(reqwest::Method::PUT, &name, Some(classic)).await;
    let worker = Worker::start_unconnected(&place, &[]).await;
    let readyz = async || get(&format!("{}/readyz", worker.admin)).await.status;
    poll::until("the worker is of use", 200, readyz).await;
    let broker = Broker::connect(&place.amqp_url).await;
    let waits = async || broker.depth("dead.vip").await;
    poll::until("the queues of the other tenant are there", Some(0), waits).await;
    broker.publish_event("vip", "any", 1, br#"{"event_id":"1"}"#).await;
    broker.publish_event("vip", "any", 1, b"no event").await;
    Database::of(&place, "vip").await.until_stored(1).await;
    let letter = broker.next("dead.vip").await;
    assert_eq!(header(&letter.properties, "reason").as_deref(), Some("no_event"));
    assert_eq!(down(&worker).await["faster"], "not connected to RabbitMQ");
    let ingest = Ingest::start_unconnected(&place, &[]).await;
    let workers = async || get(&ingest.path("/health")).await.body["queue"]["worker_processes"].clone();
    poll::until("ingest hears of the worker", Value::from(1), workers).await;
    worker.process.stop().await;
    place.remove().await;
}

#[tokio::test]
async fn a_worker_none_of_whose_tenants_can_be_served_stays_up_unready_and_says_why() {
    let place = Place::new().await;
    let (data, address) = place_for_mongod(&place);
    let _standalone = Mongod::start(&data, address, &[]).await;
    let uri = format!("mongodb://{address}/");
    let worker = Worker::start(&place, &[("MONGO_URI", &uri), ("TENANTS", "faster")]).await;
    let reason = async || {
        let readyz =
            penstock_tests::http::client().get(format!("{}/readyz", worker.admin)).send().await.unwrap();
        let status = readyz.status().as_u16();
        (status, readyz.text().await.unwrap().contains("faster: MongoDB is no replica set"))
    };
    poll::until("it says why", (503, true), reason).await;
    assert_eq!(get(&format!("{}/livez", worker.admin)).await.status, 200);
    let errors = worker.process.log_lines().iter().filter(|line| line["level"] == "ERROR").count();
    assert!(errors >= 1, "{}", worker.process.log_text());
    worker.process.stop().await;
    place.remove().await;
}
