//! Watches RabbitMQ's policies, if its management API is known: a policy on all queues may delete answered
//! webhooks, and arguments of queues can't forbid that.

use std::time::Duration;

use shared::telemetry::chain;
use tokio::time::sleep;
use tracing::{error, info, warn};

use crate::management::{Management, ManagementAddress, ManagementError, QueueState};
use crate::metrics::Metrics;

/// How often they are checked.
const INTERVAL: Duration = Duration::from_secs(15);

/// Checks while it is polled, and logs changes.
pub async fn watch(address: &ManagementAddress, metrics: &Metrics) {
    let mut before: Option<Result<Vec<String>, String>> = None;
    loop {
        let losses = losses(address).await.map_err(|error| chain(&error));
        if let Ok(losses) = &losses {
            metrics.losing_queues.set(i64::try_from(losses.len()).unwrap_or(i64::MAX));
        }
        if before.as_ref() != Some(&losses) {
            log(&losses, before.is_none());
            before = Some(losses);
        }
        sleep(INTERVAL).await;
    }
}

async fn losses(address: &ManagementAddress) -> Result<Vec<String>, ManagementError> {
    let queues = Management::new(address)?.queues().await?;
    Ok(queues.iter().filter_map(QueueState::loss).collect())
}

fn log(losses: &Result<Vec<String>, String>, is_first: bool) {
    match losses {
        Ok(losses) if losses.is_empty() && is_first => {}
        Ok(losses) if losses.is_empty() => info!("no policy lets messages vanish any more"),
        Ok(losses) => error!(queues = losses.join("; "), "policies of RabbitMQ let answered webhooks vanish"),
        Err(error) => warn!(error, "can't look at RabbitMQ's policies"),
    }
}
