//! worker: writes events into MongoDB, each event's effects exactly once.
//!
//! The way of a delivery: [`consume`] → [`decode`] → [`project`] (pure) → [`store`], and back to [`consume`], which
//! settles it.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::Server;
use shared::amqp::{Link, Purpose};
use shared::host;
use shared::publisher::Publisher;
use shared::telemetry::chain;
use shared::traces::{self, Traces};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

pub mod announce;
pub mod breaker;
pub mod client;
pub mod commands;
pub mod consume;
pub mod dead;
pub mod decode;
pub mod health;
pub mod inspect;
pub mod metrics;
pub mod mongo_uri;
pub mod project;
pub mod settings;
pub mod state;
pub mod store;

use announce::Announcer;
use consume::TenantContext;
use consume::roster::{Roster, View};
use health::Health;
use metrics::Metrics;
use settings::{Settings, Tenant};
use state::TenantState;
use store::Store;
use store::failure::{Class, Failure};

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
    /// Traces can't be exported.
    #[error(transparent)]
    Traces(#[from] traces::StartError),
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
    roster: Roster,
    traces: Arc<Traces>,
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
    let link = |name: &str, purpose, declares: &[String]| {
        Link::start(settings.rabbitmq.clone(), name, purpose, declares.into(), settings.partitions)
    };
    let publishing = link("worker publish", Purpose::Publish { channels: 1 }, &names);
    let publisher = Arc::new(Publisher::new(publishing, MAX_PUBLISHES_IN_FLIGHT));
    let consuming = |name: &String| {
        let declares = std::slice::from_ref(name);
        Arc::new(link(&format!("worker consume {name}"), Purpose::Consume, declares))
    };
    let links: BTreeMap<_, _> = names.iter().map(|name| (name.clone(), consuming(name))).collect();
    let metrics = Arc::new(Metrics::new(names.iter().map(String::as_str))?);
    let traces = Arc::new(Traces::start(&settings.traces, metrics.registry())?);
    let state = |name: &String| Arc::new(TenantState::new(name, settings.breaker));
    let tenants: BTreeMap<_, _> = names.iter().map(|name| (name.clone(), state(name))).collect();
    let roster = Roster::new(&worker, tenants.clone(), settings.partitions);
    let announcer = Arc::new(Announcer { worker, partitions: settings.partitions, tenants });
    let health = Health { publisher: publisher.clone(), links: links.clone(), announcer: announcer.clone() };
    let (host, port) = &settings.admin;
    let (addresses, admin) = health::bind((host, *port), Arc::new(health), metrics.clone(), stop.clone())
        .map_err(|source| StartError::Bind { address: host::with_port(host, *port), source })?;
    for address in addresses {
        info!(port = "admin", %address, "listening");
    }
    Ok(Worker { settings, metrics, publisher, links, announcer, roster, traces, admin, stop })
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

impl Worker {
    /// Works until told to stop, then finishes what is in hand.
    pub async fn run(self) -> io::Result<()> {
        let Self { settings, metrics, publisher, links, announcer, roster, traces, admin, stop } = self;
        let admin_handle = admin.handle();
        let admin = tokio::spawn(admin);
        let announcing = {
            let (announcer, publisher, stop) = (announcer.clone(), publisher.clone(), stop.clone());
            tokio::spawn(async move { announcer.run(&publisher, &stop).await })
        };
        let views = roster.views();
        let following = {
            let publisher = publisher.clone();
            tokio::spawn(async move { roster.run(publisher.link()).await })
        };
        let mut tenants = JoinSet::new();
        for tenant in &settings.tenants {
            let serving = Serving {
                tenant: tenant.clone(),
                settings: settings.clone(),
                metrics: metrics.clone(),
                publisher: publisher.clone(),
                traces: traces.clone(),
                state: announcer.tenants[&tenant.name].clone(),
                link: links[&tenant.name].clone(),
                worker: announcer.worker.clone(),
                views: views.clone(),
            };
            let (name, serving) = (tenant.name.clone(), tokio::spawn(serving.run(stop.clone())));
            tenants.spawn(async move { (name, serving.await) });
        }
        let served = until_all_end(tenants, &stop).await;
        following.abort();
        let _ = announcing.await;
        for link in links.values() {
            link.close().await;
        }
        publisher.close(CONFIRM_PATIENCE).await;
        admin_handle.stop(true).await;
        traces.stop().await;
        info!("stopped");
        admin.await??;
        served
    }
}

/// Waits for the tenants' tasks. If one ends before it was told to, all are told, and it is an error: without its
/// tenant this process is of little use, and whoever runs it will start it again.
async fn until_all_end(
    mut tenants: JoinSet<(String, Result<(), JoinError>)>,
    stop: &CancellationToken,
) -> io::Result<()> {
    let mut failed = Ok(());
    while let Some(Ok((tenant, ended))) = tenants.join_next().await {
        if ended.is_err() || !stop.is_cancelled() {
            let panicked = ended.is_err();
            error!(tenant, panicked, "the tenant's task has ended by itself, stopping");
            failed = Err(io::Error::other(format!("the task of tenant {tenant} has ended by itself")));
            stop.cancel();
        }
    }
    failed
}

/// One tenant's share of the worker.
struct Serving {
    tenant: Tenant,
    settings: Settings,
    metrics: Arc<Metrics>,
    publisher: Arc<Publisher>,
    traces: Arc<Traces>,
    state: Arc<TenantState>,
    link: Arc<Link>,
    worker: String,
    views: watch::Receiver<View>,
}

impl Serving {
    async fn run(self, stop: CancellationToken) {
        let Some(store) = self.prepared(&stop).await else { return };
        let context = TenantContext {
            name: self.tenant.name,
            worker: self.worker,
            settings: self.settings,
            store,
            publisher: self.publisher,
            metrics: self.metrics,
            traces: self.traces,
            state: self.state,
        };
        let context = Arc::new(context);
        let tending = context.state.breaker().tend(|| probe(context.clone()));
        tokio::select! {
            () = consume::serve(context.clone(), self.link, self.views, stop) => {}
            () = tending => {}
        }
    }

    /// The tenant's MongoDB once it answers; none if told to stop before.
    async fn prepared(&self, stop: &CancellationToken) -> Option<Store> {
        loop {
            match self.prepare().await {
                Ok(store) => {
                    inspect::warn_of_indexes(&self.tenant.name, &store).await;
                    self.state.record_success();
                    return Some(store);
                }
                Err(failure) => self.state.record_failure(not_of_documents(&failure), &failure),
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

/// The class of a failure before the first event: neither documents nor other writers are concerned yet.
fn not_of_documents(failure: &Failure) -> Class {
    match failure.class(0) {
        Class::Infrastructure => Class::Infrastructure,
        _ => Class::Configuration,
    }
}

async fn probe(context: Arc<TenantContext>) -> bool {
    let probed = context.store.probe().await;
    if let Err(failure) = &probed {
        info!(tenant = context.name, error = chain(failure), "MongoDB doesn't work yet");
    }
    probed.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of a tenant whose task ends like this, beside one that works until told to stop.
    async fn beside_another(
        task: impl Future<Output = ()> + Send + 'static,
        stop: &CancellationToken,
    ) -> io::Result<()> {
        let mut tenants = JoinSet::new();
        let (told, failing) = (stop.clone(), tokio::spawn(task));
        tenants.spawn(async move { ("vip".to_owned(), failing.await) });
        let works = tokio::spawn(async move { told.cancelled().await });
        tenants.spawn(async move { ("faster".to_owned(), works.await) });
        until_all_end(tenants, stop).await
    }

    #[tokio::test]
    async fn a_tenant_that_ends_by_itself_ends_all_and_is_an_error() {
        for panics in [true, false] {
            let stop = CancellationToken::new();
            let error = beside_another(async move { assert!(!panics, "a defect") }, &stop).await.unwrap_err();
            assert!(stop.is_cancelled() && error.to_string().contains("vip"), "{error}");
        }
        let stop = CancellationToken::new();
        stop.cancel();
        assert!(beside_another(async {}, &stop).await.is_ok());
        assert!(beside_another(async { panic!("a defect") }, &stop).await.is_err());
    }
}
