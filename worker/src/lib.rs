//! worker: writes events into MongoDB, each event's effects exactly once.
//!
//! The way of a delivery: [`consume`] → [`decode`] → [`lane`] → [`project`] (pure) → [`store`] → [`settle`].

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::Server;
use serde_json::json;
use shared::admin::{self, Admin};
use shared::amqp::{Link, Purpose};
use shared::publisher::Publisher;
use shared::telemetry::chain;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

pub mod announce;
pub mod consume;
pub mod convert;
pub mod decode;
pub mod failure;
pub mod lane;
pub mod metrics;
pub mod moment;
pub mod project;
pub mod settings;
pub mod settle;
pub mod state;
pub mod store;

use announce::Announcer;
use failure::{Class, Failure};
use lane::{Context, UNFOLDED_KIB};
use metrics::Metrics;
use settings::{Settings, Tenant};
use state::TenantState;
use store::Store;

/// Dead letters and announcements under way at the same time.
const MAX_PUBLISHES_IN_FLIGHT: u32 = 64;
/// Pause before MongoDB is tried again at start.
const PREPARE_PAUSE: Duration = Duration::from_secs(2);
/// Confirms under way get this long when stopping.
const CONFIRM_PATIENCE: Duration = Duration::from_secs(2);

/// Why the worker can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A port can't be used.
    #[error("can't listen on {address}")]
    Bind {
        /// The address asked for.
        address: String,
        /// Why not.
        source: io::Error,
    },
    /// The metrics are defined wrongly, a defect of ours.
    #[error("can't define the metrics")]
    Metrics(#[from] prometheus::Error),
    /// A tenant's MongoDB can't be used, and waiting won't change that.
    #[error("tenant {tenant}")]
    MongoDb {
        /// The tenant.
        tenant: String,
        /// What is wrong.
        source: Failure,
    },
}

/// The worker, bound to its port and ready to run.
pub struct Worker {
    settings: Settings,
    metrics: Arc<Metrics>,
    publisher: Arc<Publisher>,
    links: BTreeMap<String, Arc<Link>>,
    announcer: Arc<Announcer>,
    admin: Server,
    stop: CancellationToken,
}

/// Binds the port and starts connecting to RabbitMQ. Fails if a MongoDB that answers can't do transactions;
/// one that doesn't answer is waited for. Needs a tokio runtime.
pub async fn build(
    settings: Settings,
    worker: String,
    stop: CancellationToken,
) -> Result<Worker, StartError> {
    refuse_standalone(&settings).await?;
    let names: Vec<String> = settings.tenants.iter().map(|tenant| tenant.name.clone()).collect();
    let link =
        |name: &str, purpose| Link::start(settings.amqp_url.clone(), name, purpose, names.clone().into());
    let publishing = link("worker publish", Purpose::Publish { channels: 1 });
    let publisher = Arc::new(Publisher::new(publishing, MAX_PUBLISHES_IN_FLIGHT));
    let consuming = |name: &String| Arc::new(link(&format!("worker consume {name}"), Purpose::Consume));
    let links: BTreeMap<_, _> = names.iter().map(|name| (name.clone(), consuming(name))).collect();
    let metrics = Arc::new(Metrics::new(names.iter().map(String::as_str))?);
    let state = || Arc::new(TenantState::new(settings.breaker_threshold));
    let tenants = names.iter().map(|name| (name.clone(), state())).collect();
    let announcer = Arc::new(Announcer { worker, lanes: settings.lanes, tenants });
    let health = Health { publisher: publisher.clone(), links: links.clone(), announcer: announcer.clone() };
    let admin = bind_admin(&settings, Arc::new(health), metrics.clone(), stop.clone())?;
    Ok(Worker { settings, metrics, publisher, links, announcer, admin, stop })
}

async fn refuse_standalone(settings: &Settings) -> Result<(), StartError> {
    let mut checks = JoinSet::new();
    for tenant in settings.tenants.clone() {
        let settings = settings.clone();
        checks.spawn(async move {
            let checked = match Store::open(&tenant, &settings).await {
                Ok(store) => store.check_replica_set().await,
                Err(failure) => Err(failure),
            };
            (tenant.name, checked)
        });
    }
    while let Some(checked) = checks.join_next().await {
        if let Ok((tenant, Err(source @ Failure::NoReplicaSet))) = checked {
            return Err(StartError::MongoDb { tenant, source });
        }
    }
    Ok(())
}

/// What `/health`, `/readyz` and `/metrics` tell.
struct Health {
    publisher: Arc<Publisher>,
    links: BTreeMap<String, Arc<Link>>,
    announcer: Arc<Announcer>,
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

    fn report(&self) -> serde_json::Value {
        let announcement = self.announcer.announcement(false);
        let well = self.is_up() && announcement.tenants.values().all(|tenant| tenant.mongodb_connected);
        json!({
            "status": if well { "healthy" } else { "degraded" },
            "broker": {"connected": self.is_up(), "blocked": self.is_blocked()},
            "worker": announcement.worker,
            "lanes": announcement.lanes,
            "tenants": announcement.tenants,
        })
    }
}

fn bind_admin(
    settings: &Settings,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> Result<Server, StartError> {
    let (measured, asked) = (health.clone(), health.clone());
    let admin = Admin {
        registry: metrics.registry().clone(),
        before_scrape: Arc::new(move || {
            let in_flight = measured.announcer.tenants.values().map(|state| state.in_flight()).sum::<usize>();
            metrics.in_flight.set(i64::try_from(in_flight).unwrap_or(i64::MAX));
            metrics.amqp_up.set(i64::from(measured.is_up()));
            metrics.amqp_blocked.set(i64::from(measured.is_blocked()));
        }),
        unready: Arc::new(move || {
            let reason = if stop.is_cancelled() {
                "stopping"
            } else if !asked.is_up() {
                "not connected to RabbitMQ"
            } else {
                return None;
            };
            Some(reason.to_owned())
        }),
        health: Some(Arc::new(move || health.report())),
    };
    let (host, port) = &settings.admin;
    let (addresses, server) = admin::bind((host, *port), admin)
        .map_err(|source| StartError::Bind { address: format!("{host}:{port}"), source })?;
    for address in addresses {
        info!(port = "admin", %address, "listening");
    }
    Ok(server)
}

impl Worker {
    /// Works until told to stop, then finishes what is in hand.
    pub async fn run(self) -> io::Result<()> {
        let Self { settings, metrics, publisher, links, announcer, admin, stop } = self;
        let admin_handle = admin.handle();
        let admin = tokio::spawn(admin);
        let announcing = {
            let (announcer, publisher, stop) = (announcer.clone(), publisher.clone(), stop.clone());
            tokio::spawn(async move { announcer.run(&publisher, &stop).await })
        };
        let mut tenants = JoinSet::new();
        for tenant in &settings.tenants {
            let serving = Serving {
                tenant: tenant.clone(),
                settings: settings.clone(),
                metrics: metrics.clone(),
                publisher: publisher.clone(),
                state: announcer.tenants[&tenant.name].clone(),
                link: links[&tenant.name].clone(),
            };
            tenants.spawn(serving.run(stop.clone()));
        }
        let mut failed = None;
        while let Some(ended) = tenants.join_next().await {
            if !stop.is_cancelled() {
                let panic = ended.err().map_or_else(String::new, |panic| chain(&panic));
                error!(error = panic, "a tenant's task has ended by itself, stopping");
                failed = Some(io::Error::other("a tenant's task has ended by itself"));
                stop.cancel();
            }
        }
        let _ = announcing.await;
        for link in links.values() {
            link.close().await;
        }
        publisher.close(CONFIRM_PATIENCE).await;
        admin_handle.stop(true).await;
        info!("stopped");
        admin.await??;
        failed.map_or(Ok(()), Err)
    }
}

/// One tenant's share of the worker.
struct Serving {
    tenant: Tenant,
    settings: Settings,
    metrics: Arc<Metrics>,
    publisher: Arc<Publisher>,
    state: Arc<TenantState>,
    link: Arc<Link>,
}

impl Serving {
    async fn run(self, stop: CancellationToken) {
        let Some(store) = self.prepared(&stop).await else { return };
        let context = Context {
            tenant: self.tenant.name,
            settings: self.settings,
            store,
            publisher: self.publisher,
            metrics: self.metrics,
            state: self.state,
            memory: Semaphore::new(UNFOLDED_KIB as usize),
        };
        consume::serve(Arc::new(context), self.link, stop).await;
    }

    /// The tenant's MongoDB once it answers; none if told to stop before.
    async fn prepared(&self, stop: &CancellationToken) -> Option<Store> {
        loop {
            match self.prepare().await {
                Ok(store) => {
                    self.state.mongodb_works(&self.tenant.name);
                    return Some(store);
                }
                Err(failure) => {
                    let class = match failure.class(0) {
                        Class::Infrastructure => Class::Infrastructure,
                        // Neither documents nor other writers are concerned yet.
                        _ => Class::Configuration,
                    };
                    self.state.mongodb_fails(&self.tenant.name, class, &failure);
                }
            }
            tokio::select! {
                () = sleep(PREPARE_PAUSE) => {}
                () = stop.cancelled() => return None,
            }
        }
    }

    async fn prepare(&self) -> Result<Store, Failure> {
        let store = Store::open(&self.tenant, &self.settings).await?;
        store.prepare(self.settings.event_retention).await?;
        Ok(store)
    }
}
