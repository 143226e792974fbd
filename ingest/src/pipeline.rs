//! What ingest knows of the pipeline behind the broker: workers, their breakers, the length of the queues.
//!
//! It is learnt in the background, so that `/health` answers at once whatever is down.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use shared::amqp::{self, Link, Session};
use shared::status::{self, ANNOUNCEMENT_TTL, Announcement};
use shared::telemetry::chain;
use shared::topology;
use tokio::time::error::Elapsed;
use tokio::time::{interval, timeout};
use tracing::warn;

/// How often the length of the queues is asked for.
const DEPTH_INTERVAL: Duration = Duration::from_secs(1);
/// A queue whose leader is being elected may not answer at all.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The state of the pipeline as last heard.
#[derive(Debug, Default)]
pub struct Pipeline(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    workers: BTreeMap<String, (Announcement, Instant)>,
    depths: BTreeMap<String, u64>,
}

impl Pipeline {
    /// The announcements of the workers that are alive.
    #[must_use]
    pub fn workers(&self, now: Instant) -> Vec<Announcement> {
        let mut known = self.lock();
        known.workers.retain(|_, (_, heard)| now.duration_since(*heard) < ANNOUNCEMENT_TTL);
        known.workers.values().map(|(announcement, _)| announcement.clone()).collect()
    }

    /// Messages that wait in the tenants' queues, not counting those that workers have taken.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.lock().depths.values().sum()
    }

    fn heard(&self, announcement: Announcement, now: Instant) {
        let mut known = self.lock();
        if announcement.leaving {
            known.workers.remove(&announcement.worker);
        } else {
            known.workers.insert(announcement.worker.clone(), (announcement, now));
        }
    }

    fn measured(&self, tenant: &str, depth: u64) {
        self.lock().depths.insert(tenant.to_owned(), depth);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Follows the pipeline as long as the link exists.
pub async fn follow(pipeline: Arc<Pipeline>, link: &Link, tenants: &[String]) {
    let mut sessions = link.sessions();
    while let Some(session) = amqp::next_session(&mut sessions).await {
        let ended: Result<(), FollowError> = tokio::select! {
            ended = listen(&pipeline, &session) => ended.map(|()| session.report_broken("the status queue is gone")),
            ended = measure(&pipeline, &session, tenants) => ended,
            () = session.lost().cancelled() => Ok(()),
        };
        if let Err(error) = ended {
            warn!(error = chain(&error), "can't follow the workers' state");
            session.report_broken("a channel for status failed");
        }
        session.lost().cancelled().await;
    }
}

/// Why the pipeline can't be followed over a session.
#[derive(Debug, thiserror::Error)]
enum FollowError {
    #[error("a channel failed")]
    Channel(#[from] lapin::Error),
    #[error("RabbitMQ didn't answer within {ANSWER_TIMEOUT:?}")]
    TimedOut(#[from] Elapsed),
}

async fn listen(pipeline: &Pipeline, session: &Session) -> Result<(), FollowError> {
    let mut announcements = timeout(ANSWER_TIMEOUT, status::subscribe(session)).await??;
    while let Some(delivery) = announcements.next().await {
        match serde_json::from_slice(&delivery?.data) {
            Ok(announcement) => pipeline.heard(announcement, Instant::now()),
            Err(error) => warn!(error = chain(&error), "strange announcement of a worker"),
        }
    }
    Ok(())
}

async fn measure(pipeline: &Pipeline, session: &Session, tenants: &[String]) -> Result<(), FollowError> {
    let channel = session.channel().await?;
    let mut ticks = interval(DEPTH_INTERVAL);
    loop {
        ticks.tick().await;
        for tenant in tenants {
            let options = QueueDeclareOptions { passive: true, ..Default::default() };
            let name = topology::work_queue(tenant).into();
            let declared = channel.queue_declare(name, options, FieldTable::default());
            let queue = timeout(ANSWER_TIMEOUT, declared).await??;
            pipeline.measured(tenant, u64::from(queue.message_count()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn announcement(worker: &str, leaving: bool) -> Announcement {
        Announcement { worker: worker.into(), lanes: 4, leaving, tenants: BTreeMap::new() }
    }

    #[test]
    fn workers_are_forgotten_when_silent_or_gone() {
        let (pipeline, start) = (Pipeline::default(), Instant::now());
        pipeline.heard(announcement("a", false), start);
        pipeline.heard(announcement("b", false), start + ANNOUNCEMENT_TTL / 2);
        assert_eq!(pipeline.workers(start + ANNOUNCEMENT_TTL / 2).len(), 2);
        assert_eq!(pipeline.workers(start + ANNOUNCEMENT_TTL).len(), 1);
        pipeline.heard(announcement("b", true), start + ANNOUNCEMENT_TTL);
        assert_eq!(pipeline.workers(start + ANNOUNCEMENT_TTL).len(), 0);
    }
}
