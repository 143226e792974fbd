//! Asks RabbitMQ.

use std::time::Duration;

use lapin::Channel;
use shared::address::Address;
use shared::amqp::Session;
use shared::server_version;
use shared::telemetry::chain;
use shared::tenant_queue::TenantQueue;
use shared::topology::{self, UNROUTABLE};
use tokio::time::timeout;

use super::facts::{Known, Management, Queue, RabbitMq};
use crate::commands::set_aside::queue;
use crate::management;
use crate::settings::Settings;

/// Longest wait for the version, for all queues together, and for each answer of the management API.
const VERSION_TIMEOUT: Duration = Duration::from_secs(10);
const QUEUES_TIMEOUT: Duration = Duration::from_mins(2);
const MANAGEMENT_TIMEOUT: Duration = Duration::from_secs(10);

/// What AMQP tells. Declares nothing that isn't there.
pub async fn look(settings: &Settings) -> RabbitMq {
    let version = Box::pin(within(VERSION_TIMEOUT, version(&settings.rabbitmq))).await;
    let queues = match &version {
        Ok(_) => within(QUEUES_TIMEOUT, queues(settings)).await,
        Err(error) => Err(error.clone()),
    };
    RabbitMq { version, queues }
}

/// What the management API tells, if it is known.
pub async fn look_into_management(settings: &Settings) -> Option<Management> {
    let address = settings.management.as_ref()?;
    let asked = async {
        let api = management::Management::new(address)?;
        Ok::<_, management::ManagementError>(tokio::join!(api.nodes(), api.queues()))
    };
    let answer =
        Box::pin(within(MANAGEMENT_TIMEOUT, async { asked.await.map_err(|error| chain(&error)) })).await;
    let (nodes, queues) = match answer {
        Ok((nodes, queues)) => (nodes.map_err(|error| chain(&error)), queues.map_err(|error| chain(&error))),
        Err(error) => (Err(error.clone()), Err(error)),
    };
    Some(Management { nodes, queues })
}

async fn within<T>(limit: Duration, asked: impl Future<Output = Known<T>>) -> Known<T> {
    timeout(limit, asked).await.unwrap_or_else(|_| Err(format!("no answer within {} s", limit.as_secs())))
}

async fn version(address: &Address) -> Known<String> {
    server_version::ask(address).await.map_err(|error| chain(&error))
}

async fn queues(settings: &Settings) -> Known<Vec<(String, Queue)>> {
    let broker = queue::connect(settings.rabbitmq.clone()).await.map_err(|error| chain(&error))?;
    let session = broker.link().session().ok_or("the connection is lost")?;
    let mut found = Vec::new();
    for tenant in &settings.tenants {
        let tenant = &tenant.name;
        for queue in TenantQueue::all(settings.partitions) {
            found.push((queue.name(tenant), state(&session, tenant, queue).await?));
        }
    }
    let unroutable = is_there(&session, UNROUTABLE).await?.map_or(Queue::Missing, |_| Queue::Fits);
    found.push((UNROUTABLE.to_owned(), unroutable));
    broker.link().close().await;
    Ok(found)
}

/// To declare what is there changes nothing, and fails if it has other arguments.
async fn state(session: &Session, tenant: &str, queue: TenantQueue) -> Known<Queue> {
    let Some(channel) = is_there(session, &queue.name(tenant)).await? else { return Ok(Queue::Missing) };
    let declared = queue.declare(&channel, tenant).await;
    Ok(declared.map_or_else(|error| Queue::Refused(chain(&error)), |()| Queue::Fits))
}

/// A channel for a queue that is there: what RabbitMQ refuses closes its channel.
async fn is_there(session: &Session, name: &str) -> Known<Option<Channel>> {
    let channel = session.channel().await.map_err(|error| chain(&error))?;
    let length = topology::length(&channel, name).await.map_err(|error| chain(&error))?;
    Ok(length.map(|_| channel))
}
