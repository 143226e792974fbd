//! Publishing, suspicion, the spool and the budget of refusals together, with a RabbitMQ and a disk that fail
//! in any order.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use shared::publisher::PublishError;
use tokio::time::{Instant, advance, sleep};

use super::{Via, first_durable};
use crate::refusals::Refusals;
use crate::route::Suspicion;
use crate::spool::{File, Folder, SpoolError};
use crate::webhook::{Metadata, Webhook};

const PUBLISH_TIMEOUT: Duration = Duration::from_millis(250);
const APPEND_TIMEOUT: Duration = Duration::from_secs(1);
const DRAIN_CONFIRM_TIMEOUT: Duration = Duration::from_secs(5);
const BUDGET: usize = 3;
const WINDOW: Duration = Duration::from_mins(1);
/// Some records.
const MAX_BYTES: u64 = 4000;

/// What RabbitMQ does with a publish.
#[derive(Clone, Copy, Debug)]
enum Broker {
    Confirms,
    ConfirmsLate,
    Silent { takes_it: bool },
    Refuses,
    Gone,
}

/// What the disk does with an append.
#[derive(Clone, Copy, Debug)]
enum Disk {
    Writes,
    Fails,
    Hangs { writes_it: bool },
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Webhook,
    Broker(Broker),
    Disk(Disk),
    Drain,
    Crash,
    Pass(Duration),
}

fn step() -> impl Strategy<Value = Step> {
    let broker = prop_oneof![
        Just(Broker::Confirms),
        Just(Broker::ConfirmsLate),
        any::<bool>().prop_map(|takes_it| Broker::Silent { takes_it }),
        Just(Broker::Refuses),
        Just(Broker::Gone),
    ];
    let disk = prop_oneof![
        Just(Disk::Writes),
        Just(Disk::Fails),
        any::<bool>().prop_map(|writes_it| Disk::Hangs { writes_it }),
    ];
    prop_oneof![
        8 => Just(Step::Webhook),
        2 => broker.prop_map(Step::Broker),
        2 => disk.prop_map(Step::Disk),
        2 => Just(Step::Drain),
        1 => Just(Step::Crash),
        1 => (1..90_u64).prop_map(|seconds| Step::Pass(Duration::from_secs(seconds))),
    ]
}

/// The inputs of the decisions, and their results.
struct World {
    folder: PathBuf,
    file: Option<File>,
    broker: Broker,
    disk: Disk,
    suspicion: Suspicion,
    refusals: Refusals,
    next: i64,
    published: BTreeSet<i64>,
    publishes: usize,
    received: BTreeSet<i64>,
    refused_at: Vec<Instant>,
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl World {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("penstock-model-{:016x}", fastrand::u64(..)));
        let file = Some(open(&folder));
        Self {
            folder,
            file,
            broker: Broker::Confirms,
            disk: Disk::Writes,
            suspicion: Suspicion::default(),
            refusals: Refusals::new(BUDGET, WINDOW),
            next: 0,
            published: BTreeSet::new(),
            publishes: 0,
            received: BTreeSet::new(),
            refused_at: Vec::new(),
        }
    }

    async fn run(&mut self, step: Step) {
        match step {
            Step::Webhook => self.receive().await,
            Step::Broker(broker) => self.broker = broker,
            Step::Disk(disk) => self.disk = disk,
            Step::Drain => self.drain().await,
            Step::Crash => {
                self.file = None;
                self.file = Some(open(&self.folder));
                self.suspicion = Suspicion::default();
            }
            Step::Pass(time) => advance(time).await,
        }
        let spooled: BTreeSet<i64> = self.spooled().iter().map(|record| record.1).collect();
        let safe: BTreeSet<i64> = self.published.union(&spooled).copied().collect();
        assert!(self.received.is_subset(&safe), "{:?} of {safe:?}", self.received);
    }

    async fn receive(&mut self) {
        let (n, started, publishes) = (self.next, Instant::now(), self.publishes);
        self.next += 1;
        let (is_suspect, has_room) = (self.suspicion.is_raised(), self.has_room());
        let kept = first_durable(Via::order(is_suspect), async |via| match via {
            Via::Broker => self.publish(n, PUBLISH_TIMEOUT).await.map_err(|error| error.to_string()),
            Via::Spool => self.append(n).await.map_err(|error| error.to_string()),
        });
        let kept = kept.await;
        assert!(started.elapsed() <= PUBLISH_TIMEOUT + APPEND_TIMEOUT, "{:?}", started.elapsed());
        if is_suspect && has_room && matches!(self.disk, Disk::Writes) {
            assert_eq!(self.publishes, publishes, "only the drain publishes under suspicion");
        }
        if kept.is_ok() {
            self.received.insert(n);
            return;
        }
        let now = Instant::now();
        let recent = self.refused_at.iter().filter(|at| now.duration_since(**at) < WINDOW).count();
        if self.refusals.spend(now.into_std()) {
            assert!(recent < BUDGET, "{recent} refusals in a window");
            self.refused_at.push(now);
        } else {
            assert_eq!(recent, BUDGET, "one is lost although a refusal is left");
        }
    }

    async fn publish(&mut self, n: i64, patience: Duration) -> Result<(), PublishError> {
        let started = Instant::now();
        self.publishes += 1;
        let outcome = self.answer(n, patience).await;
        self.suspicion.observe(&outcome, started.elapsed(), PUBLISH_TIMEOUT);
        outcome
    }

    async fn answer(&mut self, n: i64, patience: Duration) -> Result<(), PublishError> {
        let takes = match self.broker {
            Broker::Confirms => PUBLISH_TIMEOUT / 2,
            Broker::ConfirmsLate => PUBLISH_TIMEOUT * 2,
            Broker::Silent { .. } => Duration::MAX,
            Broker::Refuses => return Err(PublishError::Nacked),
            Broker::Gone => return Err(PublishError::NotConnected),
        };
        if !matches!(self.broker, Broker::Silent { takes_it: false }) {
            self.published.insert(n);
        }
        sleep(takes.min(patience)).await;
        if takes <= patience { Ok(()) } else { Err(PublishError::TimedOut) }
    }

    async fn append(&mut self, n: i64) -> Result<(), SpoolError> {
        match self.disk {
            Disk::Writes => self.write(n),
            Disk::Fails => Err(SpoolError::Failed("the disk fails".to_owned())),
            Disk::Hangs { writes_it } => {
                if writes_it {
                    let _ = self.write(n);
                }
                sleep(APPEND_TIMEOUT).await;
                Err(SpoolError::TimedOut)
            }
        }
    }

    fn write(&mut self, n: i64) -> Result<(), SpoolError> {
        self.file().append([webhook(n)].iter()).remove(0)
    }

    async fn drain(&mut self) {
        for (id, n) in self.spooled() {
            match self.publish(n, DRAIN_CONFIRM_TIMEOUT).await {
                Ok(()) => self.file().delete(&[id]).unwrap(),
                Err(PublishError::Nacked) => {}
                Err(_) => return,
            }
        }
    }

    fn spooled(&mut self) -> Vec<(i64, i64)> {
        let records = self.file().after("faster", i64::MIN, 1000).unwrap().records;
        records.iter().map(|record| (record.id, record.webhook.metadata.received_at_ms)).collect()
    }

    fn has_room(&mut self) -> bool {
        self.file().room() > MAX_BYTES / 4
    }

    fn file(&mut self) -> &mut File {
        self.file.as_mut().unwrap()
    }
}

fn open(folder: &Path) -> File {
    File::open(&Arc::new(Folder::take(folder).unwrap()), MAX_BYTES, 0).unwrap()
}

fn webhook(n: i64) -> Webhook {
    let metadata = Metadata {
        tenant: "faster".into(),
        stream: "any".into(),
        received_at_ms: n,
        key: n.to_string(),
        event_type: "unknown".into(),
        signature: "unsigned".into(),
        traceparent: String::new(),
        evidence: None,
    };
    Webhook { metadata, body: vec![b' '; 300].into() }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_200_is_somewhere_and_no_503_is_beyond_the_budget(steps in prop::collection::vec(step(), 1..60)) {
        let clock = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        clock.unwrap().block_on(async {
            let mut world = World::new();
            for step in steps {
                world.run(step).await;
            }
        });
    }
}
