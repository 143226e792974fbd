//! worker: writes events into MongoDB, so that each counts once.
//!
//! The way of a delivery: [`consume`] → [`decode`] → [`project`] (pure) → [`store`], and back to [`consume`],
//! which settles it.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::Server;
use shared::amqp::{Link, Purpose};
use shared::publisher::Publisher;
use shared::start::StartError;
use shared::telemetry::chain;
use shared::traces::Traces;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, info};

pub mod announce;
pub mod arguments;
pub mod breaker;
pub mod check;
pub mod client;
pub mod commands;
pub mod console;
pub mod consume;
pub mod dead;
pub mod decode;
pub mod health;
pub mod inspect;
pub mod json;
pub mod management;
pub mod metrics;
pub mod mongo_uri;
pub mod person;
pub mod policies;
pub mod project;
pub mod settings;
pub mod state;
pub mod store;

use announce::Announcer;
use consume::TenantContext;
use consume::roster::{Roster, View};
use consume::share::Consumed;
use health::Health;
use metrics::Metrics;
use settings::{Settings, Tenant};
use state::TenantState;
use store::Store;
use store::failure::{Class, Failure};

/// Dead letters and announcements under way at the same time.
const MAX_PUBLISHES_IN_FLIGHT: u32 = 64;
/// First and longest pause before a tenant is served again after a defect.
const RESTART_PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));
/// How often an idle tenant's MongoDB is tried: so `/health` can tell within five seconds that it is silent.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);
/// Pause before MongoDB is tried again at start.
const PREPARE_PAUSE: Duration = Duration::from_secs(2);
/// When the worker stops, it waits this long for the confirms of published messages.
const LAST_CONFIRMS_TIMEOUT: Duration = Duration::from_secs(2);

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

/// Binds the port and starts connecting to RabbitMQ. If a MongoDB can't be used, now or later, only its
/// tenant is affected. Needs a tokio runtime.
pub fn build(settings: Settings, worker: String, stop: CancellationToken) -> Result<Worker, StartError> {
    let names: Vec<String> = settings.tenants.iter().map(|tenant| tenant.name.clone()).collect();
    let link = |name: &str, purpose, declares: &[String]| {
        Link::start(settings.rabbitmq.clone(), name, purpose, declares.into(), settings.partitions)
    };
    // It serves all tenants: a queue that can't be declared is the matter of its own tenant's connection.
    let publishing = link("worker publish", Purpose::Publish { channels: 1 }, &[]);
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
        .map_err(|source| StartError::bind(host, *port, source))?;
    for address in addresses {
        info!(port = "admin", %address, "listening");
    }
    Ok(Worker { settings, metrics, publisher, links, announcer, roster, traces, admin, stop })
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
        let watching = settings.management.clone().map(|address| {
            let metrics = metrics.clone();
            AbortOnDropHandle::new(tokio::spawn(async move { policies::watch(&address, &metrics).await }))
        });
        let views = roster.views();
        let following = {
            let publisher = publisher.clone();
            tokio::spawn(async move { roster.run(publisher.link()).await })
        };
        let served = settings.tenants.iter().map(|tenant| tenant.name.as_str());
        let consumed = Arc::new(watch::Sender::new(Consumed::new(served, settings.partitions)));
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
                consumed: consumed.clone(),
            };
            let (state, stop) = (serving.state.clone(), stop.clone());
            tenants.spawn(async move {
                let serve = || serving.clone().run(stop.clone());
                serve_again_and_again(&serving.tenant.name, &state, &stop, serve).await;
            });
        }
        while tenants.join_next().await.is_some() {}
        following.abort();
        drop(watching);
        let _ = announcing.await;
        for link in links.values() {
            link.close().await;
        }
        publisher.close(LAST_CONFIRMS_TIMEOUT).await;
        admin_handle.stop(true).await;
        traces.stop().await;
        info!("stopped");
        admin.await??;
        Ok(())
    }
}

/// Serves a tenant until told to stop. If that ends by itself, it is a defect of ours: it starts again after
/// a pause, and the other tenants aren't affected.
async fn serve_again_and_again<F: Future<Output = ()> + Send + 'static>(
    tenant: &str,
    state: &TenantState,
    stop: &CancellationToken,
    serve: impl Fn() -> F,
) {
    let mut pause = RESTART_PAUSE.0;
    loop {
        let started = Instant::now();
        let ended = AbortOnDropHandle::new(tokio::spawn(serve())).await;
        if stop.is_cancelled() {
            return;
        }
        if started.elapsed() > RESTART_PAUSE.1 {
            pause = RESTART_PAUSE.0;
        }
        state.set_down("its task has ended by itself, which is a defect of the worker".to_owned());
        let panicked = ended.is_err();
        let again_in_s = pause.as_secs();
        error!(
            tenant,
            panicked, again_in_s, "the tenant's task has ended by itself, will start again: a defect"
        );
        tokio::select! {
            () = sleep(pause) => {}
            () = stop.cancelled() => return,
        }
        pause = (pause * 2).min(RESTART_PAUSE.1);
    }
}

/// One tenant's share of the worker.
#[derive(Clone)]
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
    consumed: Arc<watch::Sender<Consumed>>,
}

impl Serving {
    async fn run(self, stop: CancellationToken) {
        let Some(store) = self.prepared(&stop).await else { return };
        self.state.set_up();
        let context = TenantContext {
            name: self.tenant.name,
            worker: self.worker,
            settings: self.settings,
            store,
            publisher: self.publisher,
            metrics: self.metrics,
            traces: self.traces,
            state: self.state,
            consumed: self.consumed,
        };
        let context = Arc::new(context);
        let tending = context.state.breaker().tend(|| probe(context.clone()));
        tokio::select! {
            () = consume::serve(context.clone(), self.link, self.views, stop) => {}
            () = tending => {}
            () = watch(&context) => {}
        }
    }

    /// The tenant's MongoDB once it answers; none if told to stop before.
    async fn prepared(&self, stop: &CancellationToken) -> Option<Store> {
        loop {
            match self.prepare().await {
                Ok(store) => {
                    inspect::warn(&self.tenant.name, &store).await;
                    self.state.record_success();
                    return Some(store);
                }
                Err(failure) => {
                    self.state.set_down(chain(&failure));
                    self.state.record_failure(not_of_documents(&failure), &failure);
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
        inspect::server::check(&store).await?;
        store.prepare(self.settings.event_retention).await?;
        Ok(store)
    }
}

/// Tries MongoDB regularly while nothing is written: so an outage shows before the next event comes.
async fn watch(context: &TenantContext) {
    loop {
        sleep(WATCH_INTERVAL).await;
        let seen = context.state.breaker().seen();
        let is_known = seen.succeeded_at.is_some_and(|at| at.elapsed() < WATCH_INTERVAL);
        // Batches in hand show an outage, and so does the breaker.
        if !is_known && context.state.in_flight() == 0 && context.state.breaker().is_closed() {
            context.probe().await;
        }
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
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::breaker::Limits;

    const LIMITS: Limits = Limits { failures: 10, longest_open: Duration::from_mins(1), successes: 3 };

    #[tokio::test(start_paused = true)]
    async fn a_tenant_whose_task_ends_by_itself_is_down_and_begins_anew_while_others_go_on() {
        for panics in [true, false] {
            let (state, stop) = (TenantState::new("vip", LIMITS), CancellationToken::new());
            let starts = Arc::new(AtomicU32::new(0));
            state.set_up();
            let serve = || {
                let (nth, stop) = (starts.fetch_add(1, Ordering::Relaxed), stop.clone());
                async move {
                    assert!(nth >= 3 || !panics, "a defect");
                    if nth >= 3 {
                        stop.cancelled().await;
                    }
                }
            };
            let serving = serve_again_and_again("vip", &state, &stop, serve);
            let watching = async {
                // One, two and four seconds later.
                sleep(Duration::from_secs(8)).await;
                assert_eq!(starts.load(Ordering::Relaxed), 4);
                assert!(state.down().unwrap().contains("defect"));
                stop.cancel();
            };
            tokio::join!(serving, watching);
        }
    }
}
