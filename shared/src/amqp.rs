//! A connection to RabbitMQ that is opened again for ever, with everything declared before it is used.

use std::sync::Arc;
use std::time::Duration;

use crate::telemetry::chain;
use futures_util::StreamExt;
use lapin::{Channel, Connection, ConnectionProperties, Event};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::address::Address;
use crate::causes::Causes;
use crate::outbox::{self, Outbox};
use crate::server_version::{self, Unsupported};
use crate::topology::{self, DeclareError};

/// Longest time for a connection to be opened and logged in, and for its channels.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time to say goodbye.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// First and longest pause between attempts to connect.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// lapin reports a lost connection by an event. In case one is missing, we look ourselves this often.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// What a connection is for; each is one of its own, since a connection that RabbitMQ blocks for publishing
/// writes nothing at all, acknowledgements included.
#[derive(Clone, Copy, Debug)]
pub enum Purpose {
    /// Publishing with confirms.
    Publish {
        /// Number of channels: RabbitMQ has a process for each.
        channels: usize,
    },
    /// Consuming; the consumer opens its channels.
    Consume,
}

/// An open connection, until it is [`lost`](Session::lost).
#[derive(Debug)]
pub struct Session {
    connection: Connection,
    outbox: Option<Outbox>,
    opened: Instant,
    lost: CancellationToken,
    broken: watch::Sender<Option<&'static str>>,
}

impl Session {
    /// Opens a channel.
    pub async fn channel(&self) -> lapin::Result<Channel> {
        self.connection.create_channel().await
    }

    /// Takes messages, if the connection is for publishing.
    pub(crate) fn outbox(&self) -> Option<&Outbox> {
        self.outbox.as_ref()
    }

    /// Whether RabbitMQ refuses to read from this connection, for want of memory or disk.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        self.connection.status().blocked()
    }

    /// Completes when this connection can't be used any more.
    #[must_use]
    pub fn lost(&self) -> &CancellationToken {
        &self.lost
    }

    /// Reports that this connection, or a channel of it, doesn't work: it will be replaced.
    pub fn report_broken(&self, reason: &'static str) {
        self.broken.send_replace(Some(reason));
    }
}

/// A supervised connection: at any time a [`Session`], or none while RabbitMQ can't be reached.
#[derive(Debug)]
pub struct Link {
    session: watch::Receiver<Option<Arc<Session>>>,
    stop: CancellationToken,
}

impl Link {
    /// Starts connecting, in the background. Everything that these tenants need, with this many partitions
    /// each, is declared on each connection before it is used.
    #[must_use]
    pub fn start(
        address: Address,
        name: &str,
        purpose: Purpose,
        tenants: Arc<[String]>,
        partitions: u16,
    ) -> Self {
        let (sender, session) = watch::channel(None);
        let stop = CancellationToken::new();
        let opener = Opener { address, name: name.to_owned(), purpose, tenants, partitions };
        tokio::spawn(supervise(opener, sender, stop.clone()));
        Self { session, stop }
    }

    /// The present session.
    #[must_use]
    pub fn session(&self) -> Option<Arc<Session>> {
        self.session.borrow().clone()
    }

    /// Follows the sessions as they come and go.
    #[must_use]
    pub fn sessions(&self) -> watch::Receiver<Option<Arc<Session>>> {
        self.session.clone()
    }

    /// Whether there is a session.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.session.borrow().is_some()
    }

    /// Whether there is a session that RabbitMQ has blocked.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        self.session.borrow().as_ref().is_some_and(|session| session.is_blocked())
    }

    /// Closes the connection and opens no new one.
    pub async fn close(&self) {
        self.stop.cancel();
        // The supervisor holds the other end of this channel until it has finished.
        let mut sessions = self.sessions();
        while sessions.changed().await.is_ok() {}
    }
}

/// Waits until there is a session.
pub async fn next_session(sessions: &mut watch::Receiver<Option<Arc<Session>>>) -> Option<Arc<Session>> {
    sessions.wait_for(Option::is_some).await.ok()?.clone()
}

/// Why a connection couldn't be opened.
#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error("can't connect")]
    Connect(#[from] lapin::Error),
    #[error(transparent)]
    Declare(#[from] DeclareError),
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    #[error("no connection within {CONNECT_TIMEOUT:?}")]
    TimedOut,
}

struct Opener {
    address: Address,
    name: String,
    purpose: Purpose,
    tenants: Arc<[String]>,
    partitions: u16,
}

impl Opener {
    async fn open(&self) -> Result<Session, OpenError> {
        let (connection, setup) = in_time(Box::pin(self.connect())).await?;
        topology::declare(&setup, &self.tenants, self.partitions).await?;
        in_time(self.session(connection, setup)).await
    }

    async fn connect(&self) -> Result<(Connection, Channel), OpenError> {
        server_version::check(&self.address).await?;
        let properties = ConnectionProperties::default().with_connection_name(self.name.as_str().into());
        let connection = self.address.connect(properties).await?;
        let setup = connection.create_channel().await?;
        Ok((connection, setup))
    }

    async fn session(&self, connection: Connection, setup: Channel) -> Result<Session, OpenError> {
        setup.close(200, topology::short("done").map_err(DeclareError::Name)?).await?;
        let lost = CancellationToken::new();
        let broken = watch::Sender::new(None);
        let outbox = match self.purpose {
            Purpose::Publish { channels } => {
                Some(outbox::open(&connection, channels, lost.clone(), broken.clone()).await?)
            }
            Purpose::Consume => None,
        };
        Ok(Session { connection, outbox, opened: Instant::now(), lost, broken })
    }
}

async fn in_time<T>(opening: impl Future<Output = Result<T, OpenError>>) -> Result<T, OpenError> {
    timeout(CONNECT_TIMEOUT, opening).await.unwrap_or(Err(OpenError::TimedOut))
}

/// Causes for which the connections of this process fail: all of them have the same.
static CAUSES: Causes = Causes::new();

async fn supervise(opener: Opener, sender: watch::Sender<Option<Arc<Session>>>, stop: CancellationToken) {
    let (connection, broker) = (opener.name.as_str(), opener.address.host());
    let mut pause = BACKOFF.0;
    loop {
        let opened = tokio::select! {
            opened = opener.open() => opened,
            () = stop.cancelled() => return,
        };
        match opened {
            Ok(session) => {
                CAUSES.are_over();
                info!(connection, broker, "connected to RabbitMQ");
                let session = Arc::new(session);
                sender.send_replace(Some(session.clone()));
                let reason = until_unusable(&session, &stop).await;
                sender.send_replace(None);
                session.lost.cancel();
                if !stop.is_cancelled() && CAUSES.deserves_line(&reason, Instant::now()) {
                    warn!(connection, broker, reason, "lost the connection to RabbitMQ");
                }
                close(&session).await;
                if session.opened.elapsed() > BACKOFF.1 {
                    pause = BACKOFF.0;
                }
            }
            Err(error) => {
                let error = chain(&error);
                if CAUSES.deserves_line(&error, Instant::now()) {
                    error!(connection, broker, error, "can't use RabbitMQ, will try again");
                }
            }
        }
        let jittered = pause.mul_f64(0.5 + fastrand::f64() / 2.0);
        pause = (pause * 2).min(BACKOFF.1);
        tokio::select! {
            () = sleep(jittered) => {}
            () = stop.cancelled() => return,
        }
    }
}

async fn until_unusable(session: &Session, stop: &CancellationToken) -> String {
    let mut events = session.connection.events_listener();
    let mut broken = session.broken.subscribe();
    loop {
        let reason = tokio::select! {
            () = stop.cancelled() => return "stopped".into(),
            Ok(reason) = broken.wait_for(Option::is_some) => return reason.unwrap_or_default().into(),
            event = events.next() => match event {
                Some(Event::ConnectionBlocked(reason)) => {
                    warn!(reason, "RabbitMQ blocks publishing");
                    continue;
                }
                Some(Event::ConnectionUnblocked) => {
                    info!("RabbitMQ takes publishes again");
                    continue;
                }
                Some(Event::Error(error)) => error.to_string(),
                Some(_) => continue,
                None => return "closed".into(),
            },
            () = sleep(CHECK_INTERVAL) => "closed".into(),
        };
        // An error may concern a single channel, whose owner sees it too.
        if !session.connection.status().connected() {
            return reason;
        }
    }
}

async fn close(session: &Session) {
    let Ok(goodbye) = topology::short("bye") else { return };
    // Fails if the connection is gone, which is fine here.
    let _ = timeout(CLOSE_TIMEOUT, session.connection.close(200, goodbye)).await;
}
