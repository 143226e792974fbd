//! What the admin port answers: `/health`, `/readyz` and `/metrics`.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use actix_web::dev::Server;
use serde_json::json;
use shared::admin::{self, Admin};
use shared::amqp::Link;
use shared::publisher::Publisher;
use shared::status::MongoState;
use tokio_util::sync::CancellationToken;

use crate::announce::Announcer;
use crate::metrics::Metrics;

const UNCONNECTED: &str = "not connected to RabbitMQ";

/// Its sources.
pub struct Health {
    /// The connection for publishing.
    pub publisher: Arc<Publisher>,
    /// The connection of each tenant for consuming.
    pub links: BTreeMap<String, Arc<Link>>,
    /// What this worker announces.
    pub announcer: Arc<Announcer>,
}

impl Health {
    fn all_links(&self) -> impl Iterator<Item = &Link> {
        self.links.values().map(Arc::as_ref).chain([self.publisher.link()])
    }

    fn is_up(&self) -> bool {
        self.all_links().all(Link::is_up)
    }

    fn is_blocked(&self) -> bool {
        self.all_links().any(Link::is_blocked)
    }

    /// The tenants whose queues aren't consumed, and why.
    fn down(&self) -> BTreeMap<&String, String> {
        let unconnected =
            |tenant| self.links.get(tenant).filter(|link| !link.is_up()).map(|_| UNCONNECTED.to_owned());
        let tenants = self.announcer.tenants.iter();
        tenants
            .filter_map(|(tenant, state)| Some((tenant, state.down().or_else(|| unconnected(tenant))?)))
            .collect()
    }

    fn report(&self) -> serde_json::Value {
        let (tenants, down) = (self.announcer.statuses(), self.down());
        let mongodb: BTreeMap<&String, MongoState> =
            tenants.iter().map(|(tenant, status)| (tenant, status.mongodb())).collect();
        let is_connected = mongodb.values().all(|state| *state == MongoState::Connected);
        let well = self.is_up() && down.is_empty() && is_connected;
        json!({
            "status": if well { "healthy" } else { "degraded" },
            "broker": {"connected": self.is_up(), "blocked": self.is_blocked()},
            "worker": self.announcer.worker,
            "partitions": self.announcer.partitions,
            "mongodb": mongodb,
            "tenants": tenants,
            "down": down,
        })
    }

    fn update(&self, metrics: &Metrics) {
        metrics.amqp_up.set(i64::from(self.is_up()));
        metrics.amqp_blocked.set(i64::from(self.is_blocked()));
        metrics.update(&self.announcer.tenants);
    }

    fn unready(&self, stop: &CancellationToken) -> Option<String> {
        let reason = if stop.is_cancelled() {
            "stopping"
        } else if !self.publisher.link().is_up() {
            UNCONNECTED
        } else {
            return self.all_down();
        };
        Some(reason.to_owned())
    }

    /// What is wrong with all tenants, if none works: a single tenant that works makes the worker useful.
    fn all_down(&self) -> Option<String> {
        let down = self.down();
        let reasons: Vec<String> =
            down.iter().map(|(tenant, reason)| format!("{tenant}: {reason}")).collect();
        (down.len() == self.announcer.tenants.len()).then(|| reasons.join("; "))
    }
}

/// Binds the admin port. The server runs when it is awaited.
pub fn bind(
    address: (&str, u16),
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> io::Result<(Vec<SocketAddr>, Server)> {
    let (measured, asked) = (health.clone(), health.clone());
    let admin = Admin {
        registry: metrics.registry().clone(),
        before_scrape: Arc::new(move || measured.update(&metrics)),
        unready: Arc::new(move || asked.unready(&stop)),
        health: Some(Arc::new(move || health.report())),
    };
    admin::bind(address, admin)
}
