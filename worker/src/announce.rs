//! Announces this worker's state to the other processes, over RabbitMQ.

use std::collections::BTreeMap;
use std::sync::Arc;

use shared::publisher::Publisher;
use shared::status::{self, Announcement, Role, TenantStatus};
use tokio_util::sync::CancellationToken;

use crate::state::TenantState;

/// What this worker announces.
#[derive(Debug)]
pub struct Announcer {
    /// Name of this process.
    pub worker: String,
    /// Partitions of each tenant.
    pub partitions: u16,
    /// Per tenant.
    pub tenants: BTreeMap<String, Arc<TenantState>>,
}

impl Announcer {
    /// The present state of each tenant.
    #[must_use]
    pub fn statuses(&self) -> BTreeMap<String, TenantStatus> {
        self.tenants.iter().map(|(name, state)| (name.clone(), state.status())).collect()
    }

    /// The present state.
    #[must_use]
    pub fn announcement(&self, leaving: bool) -> Announcement {
        let role = Role::Worker { tenants: self.statuses() };
        Announcement { name: self.worker.clone(), partitions: self.partitions, leaving, role }
    }

    /// Announces this worker until `stop`, and then that it leaves.
    pub async fn run(&self, publisher: &Publisher, stop: &CancellationToken) {
        status::announce(publisher, stop, |leaving| self.announcement(leaving)).await;
    }
}
