//! Makes a webhook durable: RabbitMQ's confirm, or else the spool's fsync.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::future::join_all;
use shared::partition::WorkQueue;
use shared::telemetry::chain;

use crate::metrics::Metrics;
use crate::route::{Route, RouteState, Routes};
use crate::settings::Settings;
use crate::spool::Spool;
use crate::webhook::Webhook;

/// Where a webhook is safe now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// RabbitMQ has confirmed it.
    Broker,
    /// It is fsynced on disk, and will be published later.
    Spool,
}

impl Via {
    /// Both ways.
    pub const ALL: [Self; 2] = [Self::Broker, Self::Spool];

    /// The value of the metrics label.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Broker => "broker",
            Self::Spool => "spool",
        }
    }

    /// The order in which the two are tried. Under suspicion RabbitMQ comes last, if the spool has failed.
    #[must_use]
    pub fn order(is_suspect: bool) -> [Self; 2] {
        if is_suspect { [Self::Spool, Self::Broker] } else { [Self::Broker, Self::Spool] }
    }
}

/// Why a webhook is durable nowhere.
#[derive(Debug, thiserror::Error)]
#[error("neither RabbitMQ nor the spool can take it: {0}")]
pub struct NotDurable(String);

/// Tries one way after the other until one has taken the webhook.
pub async fn first_durable(
    order: [Via; 2],
    mut attempt: impl AsyncFnMut(Via) -> Result<(), String>,
) -> Result<Via, NotDurable> {
    let mut reasons = Vec::new();
    for via in order {
        match attempt(via).await {
            Ok(()) => return Ok(via),
            Err(error) => reasons.push(format!("{}: {error}", via.name())),
        }
    }
    Err(NotDurable(reasons.join("; ")))
}

/// The routes into RabbitMQ, and the spool.
#[derive(Debug)]
pub struct Durable {
    routes: BTreeMap<String, Route>,
    // Connected only when the spool has records of a tenant that isn't in the settings any more.
    others: OnceLock<Route>,
    make: Routes,
    spool: Spool,
}

impl Durable {
    /// Spools into this spool, and publishes each tenant's webhooks on a route of its own. Needs a tokio
    /// runtime.
    #[must_use]
    pub fn new(settings: &Settings, spool: Spool, metrics: Arc<Metrics>) -> Self {
        let make = Routes::new(settings, metrics);
        let routes = settings.tenants.keys().map(|tenant| (tenant.clone(), make.of(tenant))).collect();
        Self { routes, others: OnceLock::new(), make, spool }
    }

    /// The spool.
    #[must_use]
    pub fn spool(&self) -> &Spool {
        &self.spool
    }

    /// The route of a tenant. Needs a tokio runtime.
    pub fn route(&self, tenant: &str) -> &Route {
        self.routes.get(tenant).unwrap_or_else(|| self.others.get_or_init(|| self.make.of_others()))
    }

    /// Whether only the drain tries to publish webhooks of a tenant.
    #[must_use]
    pub fn is_suspect(&self, tenant: &str) -> bool {
        self.routes.get(tenant).or_else(|| self.others.get()).is_some_and(Route::is_suspect)
    }

    /// How the routes of the tenants in the settings are.
    #[must_use]
    pub fn states(&self) -> BTreeMap<String, RouteState> {
        self.routes.iter().map(|(tenant, route)| (tenant.clone(), route.state())).collect()
    }

    /// Keeps a webhook, one way or the other. The queue is that of its body.
    pub async fn keep(&self, webhook: &Webhook, queue: WorkQueue) -> Result<Via, NotDurable> {
        let route = self.route(&webhook.metadata.tenant);
        first_durable(Via::order(route.is_suspect()), async |via| match via {
            Via::Broker => route.publish(webhook, queue).await.map_err(|error| chain(&error)),
            Via::Spool => self.spool.append(webhook).await.map_err(|error| chain(&error)),
        })
        .await
    }

    /// Waits until nothing is in flight, at most for `patience`, and closes the connections.
    pub async fn close(&self, patience: Duration) {
        let routes = self.routes.values().chain(self.others.get());
        join_all(routes.map(|route| route.close(patience))).await;
    }
}

#[cfg(test)]
mod tests;
