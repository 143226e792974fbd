//! A tenant's MongoDB.
//!
//! - `transaction`: one attempt to write a batch, with a deadline that holds whatever the server does. Either
//!   all of it happens, or nothing.
//! - `load`: reads what a batch concerns.
//! - `failure`: the kinds of failures, and who has to act.
//! - `retries`: what follows from it. Pure.
//! - `abandoned`: open transactions of killed workers.
//! - `erasure`: erased persons, and how a transaction knows about them.
//! - here: the connection, the collections and indexes, and the probe.

use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use mongodb::bson::{DateTime, Document, doc};
use mongodb::{Client, Collection, Database, IndexModel};
use shared::telemetry::chain;
use tokio::sync::Semaphore;
use tracing::warn;

use crate::client;
use crate::settings::{Settings, Tenant};

pub mod abandoned;
pub mod erasure;
pub mod failure;
mod load;
pub mod retries;
pub mod transaction;

use failure::{Failure, within};

/// Most bytes of large bodies that a tenant's queues unfold at the same time: a body like `[0,0,0]` takes two
/// hundred times its size when it is parsed and made into documents.
pub(crate) const UNFOLDED_BYTES: usize = 1 << 20;
/// Share of the deadline in which a majority of the members must confirm a probe: so the failure can name the
/// majority.
const CONFIRM_SHARE: f64 = 0.8;
/// Building an index on a large collection takes its time.
const INDEX_TIMEOUT: Duration = Duration::from_mins(10);
/// `NamespaceNotFound`: there is no such collection.
const NAMESPACE_NOT_FOUND: i32 = 26;
/// `IndexOptionsConflict` and `IndexKeySpecsConflict`: there is such an index already, called or made
/// otherwise.
const INDEX_EXISTS: [i32; 2] = [85, 86];

/// The collections, by their names in the contract.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    pub ledger: String,
    pub messages: String,
    pub conversations: String,
    pub contacts: String,
    pub notes: String,
    pub calls: String,
    pub probe: String,
    pub backfill: String,
    pub erased: String,
    pub erasure_key: String,
    pub fences: String,
}

/// A tenant's database.
#[derive(Clone, Debug)]
pub struct Store {
    pub(crate) client: Client,
    /// The name under which MongoDB knows workers of this tenant.
    pub(crate) app_name: String,
    pub(crate) database: Database,
    pub(crate) names: Names,
    pub(crate) deadline: Duration,
    pub(crate) unfolding: Arc<Semaphore>,
}

impl Store {
    /// A store whose server is contacted when it is first used. May look up the server's name, though.
    pub async fn open(tenant: &Tenant, settings: &Settings) -> Result<Self, Failure> {
        let (client, app_name) = client::open(tenant, settings).await?;
        let deadline = settings.mongo_timeout;
        let prefixed =
            |name: &str| if settings.test_mode { format!("test_{name}") } else { String::from(name) };
        let names = Names {
            ledger: prefixed("webhook_events"),
            messages: prefixed("messages"),
            conversations: prefixed("conversations"),
            contacts: prefixed("contacts"),
            notes: prefixed("internal_notes"),
            calls: prefixed("calls"),
            probe: prefixed("penstock_probe"),
            backfill: prefixed("penstock_backfill"),
            erased: prefixed("penstock_erased"),
            erasure_key: prefixed("penstock_erasure_key"),
            fences: prefixed("penstock_fences"),
        };
        let unfolding = Arc::new(Semaphore::new(UNFOLDED_BYTES));
        let database = client.database(&tenant.database);
        Ok(Self { client, app_name, database, names, deadline, unfolding })
    }

    /// Makes the collections and indexes that are missing.
    pub async fn prepare(&self, retention: Duration) -> Result<(), Failure> {
        self.make_fences().await?;
        for (collection, index) in [self.ledger_index(retention)].into_iter().chain(self.other_indexes()) {
            self.ensure_index(collection, index).await?;
        }
        Ok(())
    }

    /// Makes the indexes that are missing, other than the ledger's.
    pub async fn make_other_indexes(&self) -> Result<(), Failure> {
        for (collection, index) in self.other_indexes() {
            self.ensure_index(collection, index).await?;
        }
        Ok(())
    }

    /// Makes the indexes that only the console's searches need. Workers don't make them: without a console,
    /// nobody pays for them.
    pub async fn make_console_indexes(&self) -> Result<(), Failure> {
        for (collection, index) in self.console_indexes() {
            self.ensure_index(collection, index).await?;
        }
        Ok(())
    }

    /// How long the ledger keeps events, by its index; none if it keeps them for ever.
    pub async fn retention(&self) -> Result<Option<Duration>, Failure> {
        let ledger = self.ledger();
        let list = tokio::spawn(async move { ledger.list_indexes().await?.try_collect::<Vec<_>>().await });
        let indexes = match within(self.deadline, list).await? {
            Err(error) if is_missing(&error) => Vec::new(),
            listed => listed?,
        };
        let is_by_time = |index: &IndexModel| index.keys.keys().eq(["stored_at"]);
        let options = indexes.into_iter().find(is_by_time).and_then(|index| index.options);
        Ok(options.and_then(|options| options.expire_after))
    }

    /// Fails with [`Failure::NoReplicaSet`] if the server is a standalone.
    pub async fn check_replica_set(&self) -> Result<(), Failure> {
        let database = self.database.clone();
        let hello = tokio::spawn(async move { database.run_command(doc! {"hello": 1}).await });
        let hello = within(self.deadline, hello).await??;
        let is_router = hello.get_str("msg").ok() == Some("isdbgrid");
        if is_router || hello.contains_key("setName") { Ok(()) } else { Err(Failure::NoReplicaSet) }
    }

    fn ledger_index(&self, retention: Duration) -> (&str, Document) {
        let retention = i64::try_from(retention.as_secs()).unwrap_or(i64::MAX);
        let key = doc! {"stored_at": 1};
        (&self.names.ledger, doc! {"name": "stored_at_ttl", "key": key, "expireAfterSeconds": retention})
    }

    fn other_indexes(&self) -> [(&str, Document); 5] {
        let index = |name: &str, key: Document| doc! {"name": name, "key": key};
        [
            (&self.names.messages, index("chat_id_ts", doc! {"chat_id": 1, "ts": 1})),
            (&self.names.conversations, index("last_message_ts", doc! {"last_message_ts": -1})),
            (&self.names.contacts, index("phone", doc! {"phone": 1})),
            (&self.names.notes, index("chat_id_created_at", doc! {"chat_id": 1, "created_at": 1})),
            (&self.names.calls, index("chat_id_ts", doc! {"chat_id": 1, "ts": 1})),
        ]
    }

    fn console_indexes(&self) -> [(&str, Document); 4] {
        let by_type = doc! {"name": "event_type_stored_at", "key": by_type()};
        // Entries without the field, such as those of earlier releases, take no room in these.
        let having = |field: &str| doc! {field: {"$exists": true}};
        let by_chat = doc! {
            "name": "chat_id_stored_at", "key": by_chat(), "partialFilterExpression": having("chat_id"),
        };
        let by_message = doc! {
            "name": "message_id_stored_at", "key": by_message(), "partialFilterExpression": having("message_id"),
        };
        let by_contact = doc! {"name": "contact_id", "key": {"contact.id": 1}};
        [
            (&self.names.ledger, by_type),
            (&self.names.ledger, by_chat),
            (&self.names.ledger, by_message),
            (&self.names.conversations, by_contact),
        ]
    }

    async fn ensure_index(&self, collection: &str, index: Document) -> Result<(), Failure> {
        let create = doc! {"createIndexes": collection, "indexes": [index.clone()]};
        let created = self.administer(create).await;
        match (&created, index.get("expireAfterSeconds")) {
            (Err(Failure::Mongo(error)), retention) if exists(error) => {
                if let Some(retention) = retention {
                    let changed = doc! {"keyPattern": index.get("key"), "expireAfterSeconds": retention};
                    let changed = self.administer(doc! {"collMod": collection, "index": changed}).await;
                    if let Err(failure) = changed {
                        let error = chain(&failure);
                        warn!(
                            collection,
                            error, "can't apply EVENT_RETENTION: change the index stored_at_ttl by hand"
                        );
                    }
                }
                Ok(())
            }
            _ => created,
        }
    }

    async fn administer(&self, command: Document) -> Result<(), Failure> {
        let database = self.database.clone();
        let run = tokio::spawn(async move { database.run_command(command).await });
        within(INDEX_TIMEOUT, run).await??;
        Ok(())
    }

    /// Tries MongoDB with a small write of our own, as durable as those of events.
    pub async fn probe(&self) -> Result<(), Failure> {
        let (database, collection) = (self.database.clone(), self.names.probe.clone());
        let patience = i64::try_from(self.deadline.mul_f64(CONFIRM_SHARE).as_millis()).unwrap_or(i64::MAX);
        let update = doc! {
            "update": collection,
            "updates": [{"q": {"_id": "probe"}, "u": {"$set": {"at": DateTime::now()}}, "upsert": true}],
            "writeConcern": {"w": "majority", "wtimeout": patience},
        };
        let run = tokio::spawn(async move { database.run_command(update).await });
        let reply = within(self.deadline, run).await??;
        refused(&self.names.probe, &reply)?;
        if reply.contains_key("writeConcernError") { Err(Failure::NoMajority) } else { Ok(()) }
    }

    /// The collection `webhook_events`.
    #[must_use]
    pub fn ledger(&self) -> Collection<Document> {
        self.database.collection(&self.names.ledger)
    }
}

/// The keys of the ledger's index by conversation.
#[must_use]
pub fn by_chat() -> Document {
    doc! {"chat_id": 1, "stored_at": -1}
}

/// The keys of the ledger's index by message.
#[must_use]
pub fn by_message() -> Document {
    doc! {"message_id": 1, "stored_at": -1}
}

/// The keys of the ledger's index by event type.
#[must_use]
pub fn by_type() -> Document {
    doc! {"event_type": 1, "stored_at": -1}
}

/// The command `update` succeeds even where single updates don't.
pub(crate) fn refused(collection: &str, reply: &Document) -> Result<(), Failure> {
    let refused = reply.get_array("writeErrors").ok().and_then(|errors| errors.first()?.as_document());
    let Some(error) = refused else { return Ok(()) };
    let words = error.get_str("errmsg").unwrap_or_default().to_owned();
    let code = error.get_i32("code").unwrap_or_default();
    Err(Failure::Refused { collection: collection.to_owned(), code, words })
}

/// There is no such collection.
pub(crate) fn is_missing(error: &mongodb::error::Error) -> bool {
    matches!(&*error.kind, mongodb::error::ErrorKind::Command(command) if command.code == NAMESPACE_NOT_FOUND)
}

fn exists(error: &mongodb::error::Error) -> bool {
    matches!(&*error.kind, mongodb::error::ErrorKind::Command(command) if INDEX_EXISTS.contains(&command.code))
}
