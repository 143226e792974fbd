//! A cluster of RabbitMQ for one test, to be harmed at will.

use std::net::SocketAddr;

use reqwest::Client;
use serde_json::Value;

use crate::poll;
use crate::relay::Relay;
use crate::stack::{OwnServer, Place};

/// Nodes: as many as a quorum queue has members by default.
const NODES: usize = 3;

/// Three nodes, and a load balancer in front of them.
#[derive(Debug)]
pub struct RabbitCluster {
    /// Its nodes.
    pub nodes: Vec<OwnServer>,
    /// A place on it, whose URL leads to the load balancer.
    pub place: Place,
    _balancer: Relay,
    _epmd: OwnServer,
}

impl RabbitCluster {
    /// Starts one.
    pub async fn start() -> Self {
        let epmd = OwnServer::new("epmd");
        epmd.start();
        let mut nodes: Vec<OwnServer> = Vec::new();
        for _ in 0..NODES {
            let node = OwnServer::new("node");
            let point = |name: &str, to: &OwnServer| {
                let folder = to.folder.to_str().expect("a name");
                std::fs::write(node.folder.join(name), folder).expect("a file");
            };
            point("epmd", &epmd);
            if let Some(first) = nodes.first() {
                point("first", first);
            }
            node.start();
            nodes.push(node);
        }
        let mut place = Place::on(&nodes[0].folder).await;
        let balancer = Relay::balance(nodes.iter().map(address_of).collect()).await;
        let (_, vhost) = place.amqp_url.rsplit_once('/').expect("a virtual host");
        place.amqp_url = format!("amqp://guest:guest@{}/{vhost}", balancer.address);
        Self { nodes, place, _balancer: balancer, _epmd: epmd }
    }

    /// The URL that leads to a node past the load balancer.
    pub fn url_of(&self, node: usize) -> String {
        self.nodes[node].env("AMQP_URL").replace("%2f", &self.place.name)
    }

    /// A relay in front of a node, and the URL that leads through it.
    pub async fn relay(&self, node: usize) -> (Relay, String) {
        let relay = Relay::start(address_of(&self.nodes[node])).await;
        let url = format!("amqp://guest:guest@{}/{}", relay.address, self.place.name);
        (relay, url)
    }

    /// Waits until every queue has all its members, on every node.
    pub async fn until_whole(&self) {
        poll::until("all members are in step", true, async || {
            for node in &self.nodes {
                if !self.is_whole(&node.env("AMQP_MANAGEMENT_URL")).await {
                    return false;
                }
            }
            true
        })
        .await;
    }

    async fn is_whole(&self, management: &str) -> bool {
        let url = format!("{management}/api/queues/{}", self.place.name);
        let Ok(answer) = Client::new().get(url).send().await else { return false };
        let Ok(queues) = answer.json::<Vec<Value>>().await else { return false };
        let quorum: Vec<_> = queues.iter().filter(|queue| queue["type"] == "quorum").collect();
        let all = |queue: &&Value| queue["online"].as_array().map(Vec::len) == Some(NODES);
        !quorum.is_empty() && quorum.iter().all(all)
    }
}

fn address_of(node: &OwnServer) -> SocketAddr {
    let url = node.env("AMQP_URL");
    let (_, rest) = url.split_once('@').expect("credentials");
    rest.split('/').next().expect("an address").parse().expect("an address")
}
