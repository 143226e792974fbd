//! Takes a tenant's deliveries from RabbitMQ, and settles each.
//!
//! Each work queue has a task of its own (`queue`), with a channel of its own (`intake`). It gathers a batch
//! of deliveries (`delivery`), writes it in one transaction (`write`), which small batches of several queues
//! share (`together`), and settles all of them (`settle`). RabbitMQ sends a queue's events to one worker at a
//! time; the workers agree on which one by the priorities of their consumers (`roster`, `preference`).
//!
//! What is guaranteed: a delivery is acknowledged after its effects are committed, or rejected or
//! acknowledged after it is a dead letter. Until then it is in hand, and if the worker dies, RabbitMQ
//! delivers it to another.

use std::sync::Arc;
use std::time::Duration;

use shared::amqp::{Link, Session, next_session};
use shared::partition::{MAX_PARTITIONS, WorkQueue};
use shared::publisher::Publisher;
use shared::telemetry::chain;
use shared::topology;
use shared::traces::Traces;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, info};

use crate::metrics::Metrics;
use crate::settings::Settings;
use crate::state::{QueueState, TenantState};
use crate::store::Store;
use crate::store::failure::Class;

pub mod delivery;
pub mod intake;
pub mod parts;
pub mod preference;
pub mod queue;
pub mod roster;
pub mod settle;
pub mod share;
pub mod together;
pub mod write;

use queue::QueueTask;
use roster::View;
use share::Consumed;
use together::Together;

/// Pause before RabbitMQ is asked again which queues there are.
const ASK_AGAIN_PAUSE: Duration = Duration::from_secs(30);

/// What the tasks of a tenant share.
#[derive(Debug)]
pub struct TenantContext {
    /// The tenant's name.
    pub name: String,
    /// The name of this worker.
    pub worker: String,
    /// The settings.
    pub settings: Settings,
    /// The tenant's MongoDB.
    pub store: Store,
    /// For dead letters.
    pub publisher: Arc<Publisher>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// For spans of deliveries.
    pub traces: Arc<Traces>,
    /// What others see of the tenant.
    pub state: Arc<TenantState>,
    /// The queues of all tenants, which share what may be in hand.
    pub consumed: Arc<watch::Sender<Consumed>>,
}

impl TenantContext {
    /// Tries MongoDB with a small write of our own, and records the result.
    pub async fn probe(&self) -> bool {
        match self.store.probe().await {
            Ok(()) => {
                self.state.record_success();
                true
            }
            Err(failure) => {
                let class = match failure.class(0) {
                    Class::Configuration => Class::Configuration,
                    // It concerns no user's document.
                    _ => Class::Infrastructure,
                };
                self.state.record_failure(class, &failure);
                false
            }
        }
    }
}

/// A queue, and what it shares with the tenant's others.
#[derive(Clone, Debug)]
pub struct QueueContext {
    /// The tenant.
    pub tenant: Arc<TenantContext>,
    /// The queue.
    pub queue: WorkQueue,
    /// Its name.
    pub name: String,
    /// What others see of it.
    pub state: Arc<QueueState>,
    /// Writes its small batches with those of the others.
    pub together: Together,
}

/// Serves a tenant until told to stop, then finishes what is in hand.
pub async fn serve(
    context: Arc<TenantContext>,
    link: Arc<Link>,
    mut views: watch::Receiver<View>,
    stop: CancellationToken,
) {
    let told = context.settings.partitions;
    let (finds, mut found) = watch::channel(told);
    let _finding =
        AbortOnDropHandle::new(tokio::spawn(find_partitions(context.clone(), link.clone(), finds)));
    let (together, waiting) = Together::new();
    let _writing = AbortOnDropHandle::new(tokio::spawn(together::write_all(context.clone(), waiting)));
    let running = JoinSet::new();
    let mut tasks = Tasks { context, link, views: views.clone(), stop: stop.clone(), together, running };
    tasks.start(WorkQueue::Large);
    let (mut started, mut wanted) = (0, told);
    while !stop.is_cancelled() {
        share::set_partitions(&tasks.context.consumed, &tasks.context.name, wanted);
        for n in started..wanted {
            tasks.start(WorkQueue::Partition(n));
        }
        started = started.max(wanted);
        tokio::select! {
            () = stop.cancelled() => {}
            Ok(()) = found.changed() => wanted = wanted.max(*found.borrow_and_update()),
            Ok(()) = views.changed() => {
                wanted = wanted.max(views.borrow_and_update().partitions).min(MAX_PARTITIONS);
            }
            Some(ended) = tasks.running.join_next() => tasks.start_again(ended),
        }
    }
    while tasks.running.join_next().await.is_some() {}
}

/// The tasks of a tenant's queues.
struct Tasks {
    context: Arc<TenantContext>,
    link: Arc<Link>,
    views: watch::Receiver<View>,
    stop: CancellationToken,
    together: Together,
    running: JoinSet<WorkQueue>,
}

impl Tasks {
    fn start(&mut self, queue: WorkQueue) {
        let tenant = &self.context;
        let context = QueueContext {
            queue,
            name: queue.name(&tenant.name),
            state: tenant.state.queue(queue),
            tenant: tenant.clone(),
            together: self.together.clone(),
        };
        info!(tenant = tenant.name, queue = context.name, "consuming");
        let consumed = tenant.consumed.subscribe();
        let task = QueueTask { context, views: self.views.clone(), consumed, stop: self.stop.clone() };
        let sessions = self.link.sessions();
        self.running.spawn(async move {
            // A separate task, so that a panic in it shows here.
            if let Err(ended) = AbortOnDropHandle::new(tokio::spawn(task.run(sessions))).await {
                error!(
                    error = chain(&ended),
                    "the task of a queue failed, its events will be delivered again"
                );
            }
            queue
        });
    }

    /// A task ends by a defect, or because the worker stops.
    fn start_again(&mut self, ended: Result<WorkQueue, tokio::task::JoinError>) {
        if let (Ok(queue), false) = (ended, self.stop.is_cancelled()) {
            self.start(queue);
        }
    }
}

/// Looks for partitions that an earlier setting has left behind, and tells how many there are. Asks again
/// until RabbitMQ has answered for each.
async fn find_partitions(context: Arc<TenantContext>, link: Arc<Link>, found: watch::Sender<u16>) {
    let told = context.settings.partitions;
    let mut sessions = link.sessions();
    while let Some(session) = next_session(&mut sessions).await {
        let mut is_certain = true;
        for n in told..MAX_PARTITIONS {
            match exists(&session, &context.name, WorkQueue::Partition(n)).await {
                Some(true) => drop(found.send_replace(n + 1)),
                Some(false) => {}
                None => is_certain = false,
            }
        }
        if is_certain {
            return;
        }
        // RabbitMQ doesn't say now, for instance while a queue elects a leader.
        let _ = timeout(ASK_AGAIN_PAUSE, session.lost().cancelled()).await;
    }
}

/// Whether there is such a queue; none if that can't be told.
async fn exists(session: &Session, tenant: &str, queue: WorkQueue) -> Option<bool> {
    let channel = session.channel().await.ok()?;
    let exists = topology::exists(&channel, &queue.name(tenant)).await;
    if exists == Some(true) {
        // A question about a queue that isn't there has closed it already.
        channel.close(200, topology::short("done").ok()?).await.ok()?;
    }
    exists
}
