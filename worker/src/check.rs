//! `worker --check --connect`: what is wrong with the servers that the settings name.

use futures_util::future::join_all;
use shared::telemetry::chain;

use crate::commands::set_aside::queue;
use crate::inspect;
use crate::settings::{Settings, Tenant};
use crate::store::Store;
use crate::store::failure::Failure;

/// What was found.
#[derive(Debug, Default)]
pub struct Found {
    /// What prevents the worker from working.
    pub problems: Vec<String>,
    /// Warnings.
    pub warnings: Vec<String>,
}

/// Asks RabbitMQ and each tenant's MongoDB. Writes nothing but to the collection `penstock_probe`.
pub async fn servers(settings: &Settings) -> Found {
    let mut found = Found::default();
    let asking = settings.tenants.iter().map(|tenant| ask(tenant, settings));
    let (connected, asked) = tokio::join!(queue::connect(settings.rabbitmq.clone()), join_all(asking));
    match connected {
        Ok(broker) => broker.link().close().await,
        Err(error) => found.problems.push(format!("AMQP_URL: {}", chain(&error))),
    }
    for (tenant, asked) in settings.tenants.iter().zip(asked) {
        let of_tenant = |what: String| format!("tenant {}: {what}", tenant.name);
        match asked {
            Ok(warnings) => found.warnings.extend(warnings.into_iter().map(of_tenant)),
            Err(failure) => found.problems.push(of_tenant(chain(&failure))),
        }
    }
    found
}

async fn ask(tenant: &Tenant, settings: &Settings) -> Result<Vec<String>, Failure> {
    let store = Store::open(tenant, settings).await?;
    inspect::server::check(&store).await?;
    inspect::warnings(&store).await
}
