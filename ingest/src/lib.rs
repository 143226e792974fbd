//! ingest: takes webhooks in and answers 200 once they are durable.
//!
//! The way of a webhook: [`connections`] → [`routes`] → [`receive`] → [`body`] → [`mod@judge`] (with
//! [`shared::json::Scan`] and [`shared::verify`]) → [`webhook`] → [`mod@durable`] (RabbitMQ by [`route`],
//! else [`spool`]) → [`reply`].

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use actix_web::dev::Server;
use actix_web::web;
use shared::admin::{self, Admin};
use shared::amqp::{Link, Purpose};
use shared::open_files;
use shared::pipeline;
use shared::publisher::Publisher;
use shared::start::StartError;
use shared::status;
use shared::traces::{self, Traces};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub mod allowance;
pub mod arguments;
pub mod body;
pub mod check_signature;
pub mod connections;
pub mod durable;
pub mod gateway;
pub mod health;
pub mod judge;
pub mod metrics;
pub mod receive;
pub mod refusals;
pub mod reply;
pub mod route;
pub mod routes;
pub mod settings;
pub mod spool;
pub mod webhook;

use allowance::Allowance;
use body::BodyBudget;
use connections::{Connections, listen};
use durable::Durable;
use gateway::Gateway;
use metrics::Metrics;
use refusals::Refusals;
use settings::Settings;
use spool::{OpenError, Spool, drain};

/// When ingest stops, open requests get this long: body and publish have shorter deadlines.
const REQUESTS_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections of the public port at the same time, if as many files may be open. Each can hold a small body.
const MAX_CONNECTIONS: u64 = 8192;
/// Open files for everything but the public port's connections: RabbitMQ, the spool, the admin port.
const OTHER_FILES: u64 = 128;
/// Connections of the public port in any case.
const MIN_CONNECTIONS: u64 = 16;
/// When ingest stops, it gives up draining the spool after this long without progress.
const DRAIN_STALL_TIMEOUT: Duration = Duration::from_secs(1);
/// Announcements published and not confirmed yet.
const MAX_ANNOUNCEMENTS: u32 = 1;
/// When ingest stops, it waits this long for the confirms of published messages.
const LAST_CONFIRMS_TIMEOUT: Duration = Duration::from_secs(2);

/// When ingest stops, it drains the spool for at most this long, or longer if `TERMINATION_GRACE` allows.
const FINAL_DRAIN_TIMEOUT: Duration = Duration::from_secs(6);

/// How long stopping may take after `DRAIN_DELAY`. What is in the spool by then stays there.
const STOPPING: Duration = Duration::from_secs(
    REQUESTS_TIMEOUT.as_secs()
        + drain::CONFIRM_TIMEOUT.as_secs()
        + DRAIN_STALL_TIMEOUT.as_secs()
        + FINAL_DRAIN_TIMEOUT.as_secs()
        + LAST_CONFIRMS_TIMEOUT.as_secs()
        + traces::FLUSH_TIMEOUT.as_secs(),
);

/// ingest, bound to its ports and ready to run.
pub struct Ingest {
    gateway: web::Data<Gateway>,
    public: Server,
    admin: Server,
    announcer: Publisher,
}

/// Opens the spool and starts connecting to RabbitMQ. Needs a tokio runtime.
pub fn durable(settings: &Settings, metrics: &Arc<Metrics>) -> Result<Durable, OpenError> {
    let spool =
        Spool::open(&settings.spool_dir, settings.spool_max_bytes, metrics.spool_commit_duration.clone())?;
    Ok(Durable::new(settings, spool, metrics.clone()))
}

/// A connection that serves all tenants: a queue that can't be declared is the matter of its own tenant's
/// connection.
fn common_link(settings: &Settings, name: &str, purpose: Purpose) -> Link {
    Link::start(settings.rabbitmq.clone(), name, purpose, Arc::default(), settings.partitions)
}

/// Opens the spool, binds the ports and starts connecting to RabbitMQ, under a name that no other process
/// has. Needs a tokio runtime.
pub fn build(settings: Settings, name: String, stop: CancellationToken) -> Result<Ingest, StartError> {
    let tenants: Vec<String> = settings.tenants.keys().cloned().collect();
    let metrics = Arc::new(Metrics::new(tenants.iter().map(String::as_str))?);
    let (burst, per_second) = settings.quarantine;
    let allowance = || Mutex::new(Allowance::new(burst, per_second, Instant::now()));
    let allowances = tenants.iter().map(|tenant| (tenant.clone(), allowance())).collect();
    let partitions = settings.partitions;
    let connections = Connections::new(
        max_connections(tenants.len()),
        settings.keep_alive,
        metrics.connections_closed.clone(),
    );
    let gateway = web::Data::new(Gateway {
        name,
        durable: Arc::new(durable(&settings, &metrics).map_err(|error| StartError::Folder(error.into()))?),
        status_link: common_link(&settings, "ingest status", Purpose::Consume),
        pipeline: Arc::default(),
        traces: Traces::start(&settings.traces, metrics.registry())?,
        metrics,
        refusals: Mutex::new(Refusals::new(settings.refusal_budget, settings.refusal_window)),
        connections: Arc::new(connections),
        body_budget: BodyBudget::default(),
        allowances,
        stop: stop.clone(),
        settings,
    });
    let follower = gateway.clone();
    tokio::spawn(async move {
        pipeline::follow(&follower.pipeline, &follower.status_link, &tenants, partitions).await;
    });
    tokio::spawn(drain::run(gateway.durable.clone(), partitions, stop.clone()));
    tokio::spawn(connections::sweep(gateway.connections.clone()));
    let public = bind_public(&gateway, stop)?;
    let admin = bind_admin(&gateway)?;
    // A connection of its own: announcements continue while all places in flight are taken, or RabbitMQ
    // refuses webhooks.
    let announcing = common_link(&gateway.settings, "ingest announce", Purpose::Publish { channels: 1 });
    let announcer = Publisher::new(announcing, MAX_ANNOUNCEMENTS);
    Ok(Ingest { gateway, public, admin, announcer })
}

fn bind_public(gateway: &web::Data<Gateway>, stop: CancellationToken) -> Result<Server, StartError> {
    let (host, port) = &gateway.settings.public;
    let delay = gateway.settings.drain_delay;
    let stopped = async move {
        stop.cancelled().await;
        tokio::time::sleep(delay).await;
    };
    let bound = listen::bind(host, *port).and_then(|listeners| {
        let addresses = listeners.iter().map(TcpListener::local_addr).collect::<io::Result<Vec<_>>>()?;
        Ok((addresses, listen::serve(listeners, gateway, REQUESTS_TIMEOUT, stopped)?))
    });
    let (addresses, server) = bound.map_err(|source| StartError::bind(host, *port, source))?;
    log_addresses("public", &addresses);
    Ok(server)
}

/// How many connections the public port may have, by how many files may be open. Each tenant's publishes take
/// one.
fn max_connections(tenants: usize) -> usize {
    let most = open_files::raise_limit().saturating_sub(OTHER_FILES).saturating_sub(tenants as u64);
    let most = most.clamp(MIN_CONNECTIONS, MAX_CONNECTIONS);
    usize::try_from(most).unwrap_or(usize::MAX)
}

fn bind_admin(gateway: &web::Data<Gateway>) -> Result<Server, StartError> {
    let (host, port) = &gateway.settings.admin;
    let (scraped, asked, told) = (gateway.clone(), gateway.clone(), gateway.clone());
    let admin = Admin {
        registry: gateway.metrics.registry().clone(),
        before_scrape: Arc::new(move || scraped.refresh_metrics()),
        unready: Arc::new(move || asked.unready()),
        health: Some(Arc::new(move || told.health())),
    };
    let (addresses, server) =
        admin::bind((host, *port), admin).map_err(|source| StartError::bind(host, *port, source))?;
    log_addresses("admin", &addresses);
    Ok(server)
}

fn log_addresses(port: &str, addresses: &[SocketAddr]) {
    for address in addresses {
        info!(port, %address, "listening");
    }
}

impl Ingest {
    /// Serves until told to stop, then finishes what is under way.
    pub async fn run(self) -> io::Result<()> {
        let Self { gateway, public, admin, announcer } = self;
        // ingest publishes until the spool is drained, and until then the others must know its partitions.
        let gone = CancellationToken::new();
        let announcing = {
            let (gateway, gone) = (gateway.clone(), gone.clone());
            tokio::spawn(async move {
                status::announce(&announcer, &gone, |leaving| gateway.announcement(leaving)).await;
                announcer.close(LAST_CONFIRMS_TIMEOUT).await;
            })
        };
        let admin_handle = admin.handle();
        let admin = tokio::spawn(admin);
        let served = public.await;
        let durable = &gateway.durable;
        // If this replica never starts again, nobody publishes its spool.
        let grace = FINAL_DRAIN_TIMEOUT.saturating_add(gateway.settings.spare_grace);
        let draining = drain::to_the_end(durable, gateway.settings.partitions, DRAIN_STALL_TIMEOUT);
        let drained = tokio::time::timeout(grace, draining).await;
        if drained != Ok(true) {
            let records = durable.spool().size().records;
            warn!(records, "webhooks stay in the spool: start ingest again, or run `ingest spool drain`");
        }
        gone.cancel();
        let last_word = tokio::time::timeout(2 * LAST_CONFIRMS_TIMEOUT, announcing);
        let _ = tokio::join!(durable.close(LAST_CONFIRMS_TIMEOUT), last_word, durable.spool().close());
        gateway.status_link.close().await;
        admin_handle.stop(true).await;
        let _ = admin.await;
        gateway.traces.stop().await;
        info!("stopped");
        served
    }
}
