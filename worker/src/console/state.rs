//! What the pages share.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use shared::amqp::{Link, Purpose};
use shared::pipeline::{self, Pipeline};
use shared::publisher::Publisher;
use shared::verify::Keys;
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;

use super::erasure::Erasures;
use super::logins::WrongTokens;
use super::queries::Database;
use super::queries::rates::Rates;
use super::sessions::Sessions;
use super::settings::ConsoleSettings;
use crate::commands::set_aside::queue::WINDOW;

/// Confirms under way get this long when stopping.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(2);

/// Everything that a page may need.
pub struct Console {
    /// The settings.
    pub settings: ConsoleSettings,
    /// Where pages are made: its threads have a stack that is deep enough for any document.
    pub runtime: Handle,
    /// Who has logged in.
    pub sessions: Sessions,
    /// The connection over which set-aside messages are published again.
    pub broker: Publisher,
    /// The connection over which they are read. RabbitMQ stops reading from one that publishes while it is
    /// short of memory or disk: what was taken over it could then not return.
    pub reading: Publisher,
    /// The state of queues and processes.
    pub seen: Arc<Pipeline>,
    /// The tenants, by name.
    pub tenants: BTreeMap<String, Arc<TenantPages>>,
    wrong_tokens: Mutex<WrongTokens>,
    following: AbortOnDropHandle<()>,
}

/// A tenant.
pub struct TenantPages {
    /// Its MongoDB.
    pub database: Database,
    /// How many of its events are stored in a minute.
    pub rates: Rates,
    /// Its signing keys, as they are now.
    pub keys: Keys,
    /// The erasure that is under way, or was the last.
    pub erasures: Erasures,
}

impl Console {
    /// Starts connecting to RabbitMQ; MongoDB is contacted when it is first asked. Needs a tokio runtime.
    #[must_use]
    pub fn start(settings: ConsoleSettings) -> Self {
        let worker = &settings.worker;
        // Nothing is declared for tenants: pages must not leave queues behind.
        let link = |name: &str, purpose| {
            Link::start(worker.rabbitmq.clone(), name, purpose, [].into(), worker.partitions)
        };
        let publishing = link("console publish", Purpose::Publish { channels: 1 });
        let reading = link("console read", Purpose::Consume);
        // RabbitMQ may block the first connection, and the overview shows it.
        let listening = link("console listen", Purpose::Consume);
        let names: Vec<String> = worker.tenants.iter().map(|tenant| tenant.name.clone()).collect();
        let (seen, partitions) = (Arc::new(Pipeline::default()), worker.partitions);
        let following = {
            let seen = seen.clone();
            tokio::spawn(async move { pipeline::follow(&seen, &listening, &names, partitions).await })
        };
        let pages = |tenant: &crate::settings::Tenant| TenantPages {
            database: Database::new(tenant.clone(), worker.clone()),
            rates: Rates::default(),
            keys: settings.keys.get(&tenant.name).cloned().unwrap_or_default(),
            erasures: Erasures::default(),
        };
        let tenants = worker.tenants.iter().map(|tenant| (tenant.name.clone(), Arc::new(pages(tenant))));
        Self {
            runtime: Handle::current(),
            sessions: Sessions::default(),
            broker: Publisher::new(publishing, WINDOW),
            reading: Publisher::new(reading, WINDOW),
            seen,
            tenants: tenants.collect(),
            wrong_tokens: Mutex::default(),
            following: AbortOnDropHandle::new(following),
            settings,
        }
    }

    /// Whether another token may be tried from this address; `wrong` records a wrong one.
    pub fn wrong_tokens<T>(&self, look: impl FnOnce(&mut WrongTokens, Instant) -> T) -> T {
        look(&mut self.wrong_tokens.lock().unwrap_or_else(PoisonError::into_inner), Instant::now())
    }

    /// Closes the connections.
    pub async fn close(&self) {
        self.following.abort();
        self.broker.close(CONFIRM_TIMEOUT).await;
        self.reading.link().close().await;
    }
}
