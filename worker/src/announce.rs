//! Tells ingest over the broker how this worker is.

use std::collections::BTreeMap;
use std::sync::Arc;

use lapin::BasicProperties;
use shared::publisher::{Message, Publisher};
use shared::status::{ANNOUNCE_INTERVAL, Announcement};
use shared::telemetry::chain;
use shared::topology;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

use crate::state::TenantState;

/// What this worker says of itself.
#[derive(Debug)]
pub struct Announcer {
    /// Name of this process.
    pub worker: String,
    /// Lanes per tenant.
    pub lanes: usize,
    /// Per tenant.
    pub tenants: BTreeMap<String, Arc<TenantState>>,
}

impl Announcer {
    /// The state of this moment.
    #[must_use]
    pub fn announcement(&self, leaving: bool) -> Announcement {
        let tenants = self.tenants.iter().map(|(name, state)| (name.clone(), state.status())).collect();
        Announcement { worker: self.worker.clone(), lanes: self.lanes, leaving, tenants }
    }

    /// Announces this worker until `stop`, and then that it leaves.
    pub async fn run(&self, publisher: &Publisher, stop: &CancellationToken) {
        let mut ticks = interval(ANNOUNCE_INTERVAL);
        loop {
            tokio::select! {
                _ = ticks.tick() => self.publish(publisher, false).await,
                () = stop.cancelled() => return self.publish(publisher, true).await,
            }
        }
    }

    async fn publish(&self, publisher: &Publisher, leaving: bool) {
        let body = match serde_json::to_vec(&self.announcement(leaving)) {
            Ok(body) => body,
            Err(error) => {
                return error!(error = chain(&error), "can't write an announcement");
            }
        };
        let message =
            Message::new(topology::STATUS_EXCHANGE, String::new(), BasicProperties::default(), body);
        let Ok(message) = message else { return };
        if let Err(error) = publisher.publish(message, ANNOUNCE_INTERVAL).await {
            // The next one will do; the connection's supervisor has logged what is wrong.
            debug!(error = chain(&error), "an announcement was not confirmed");
        }
    }
}
