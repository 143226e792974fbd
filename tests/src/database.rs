//! What came out in MongoDB.

use std::collections::BTreeMap;

use futures_util::TryStreamExt;
use mongodb::bson::{Bson, Document, doc};
use mongodb::{Client, ClientSession};
pub use penstock_show::{COLLECTIONS, readable};

use crate::poll;
use crate::stack::Place;

/// Fields that tell when something was written, and so differ from run to run.
const VOLATILE: [&str; 3] = ["created_at", "updated_at", "stored_at"];

/// A tenant's database.
#[derive(Clone, Debug)]
pub struct Database(pub mongodb::Database);

impl Database {
    /// The tenant's database of this test.
    pub async fn of(place: &Place, tenant: &str) -> Self {
        Self::on(&place.mongo_uri, place, tenant).await
    }

    /// The tenant's database of this test on another server.
    pub async fn on(uri: &str, place: &Place, tenant: &str) -> Self {
        let client = Client::with_uri_str(uri).await.expect("a URI");
        Self(client.database(&place.database(tenant)))
    }

    /// A document.
    pub async fn find(&self, collection: &str, id: &str) -> Option<Document> {
        self.0.collection::<Document>(collection).find_one(doc! {"_id": id}).await.expect("MongoDB answers")
    }

    /// A document that must be there.
    pub async fn get(&self, collection: &str, id: &str) -> Document {
        self.find(collection, id).await.unwrap_or_else(|| panic!("no {id} in {collection}"))
    }

    /// Number of documents.
    pub async fn count(&self, collection: &str) -> u64 {
        self.0.collection::<Document>(collection).count_documents(doc! {}).await.expect("MongoDB answers")
    }

    /// Waits until the ledger has this many events.
    pub async fn until_stored(&self, events: u64) {
        poll::until("events in the ledger", events, async || self.count("webhook_events").await).await;
    }

    /// Every document of a collection, by id.
    pub async fn all(&self, collection: &str) -> BTreeMap<String, Document> {
        let cursor = self.0.collection::<Document>(collection).find(doc! {}).await.expect("MongoDB answers");
        let documents: Vec<Document> = cursor.try_collect().await.expect("MongoDB answers");
        documents
            .into_iter()
            .map(|document| (document.get_str("_id").expect("a text").to_owned(), document))
            .collect()
    }

    /// The ids of a collection's documents.
    pub async fn ids(&self, collection: &str) -> Vec<String> {
        let collection = self.0.collection::<Document>(collection);
        let found = collection.find(doc! {}).projection(doc! {"_id": 1}).await.expect("MongoDB answers");
        let documents: Vec<Document> = found.try_collect().await.expect("MongoDB answers");
        documents.into_iter().map(|document| document.get_str("_id").expect("a text").to_owned()).collect()
    }

    /// Changes a document in a transaction, which nobody else can change then until that ends.
    pub async fn lock(&self, collection: &str, id: &str) -> ClientSession {
        let mut session = self.0.client().start_session().await.expect("a session");
        session.start_transaction().await.expect("a transaction");
        let (it, change) = (doc! {"_id": id}, doc! {"$set": {"locked": true}});
        let collection = self.0.collection::<Document>(collection);
        let changed = collection.update_one(it, change).session(&mut session).await.expect("not locked yet");
        assert_eq!(changed.matched_count, 1, "{id}");
        session
    }

    /// Everything, without what differs from run to run.
    pub async fn dump(&self) -> BTreeMap<String, BTreeMap<String, Document>> {
        let mut dump = BTreeMap::new();
        for collection in COLLECTIONS {
            let mut documents = self.all(collection).await;
            for document in documents.values_mut() {
                for field in VOLATILE {
                    document.remove(field);
                }
                sort_fields(document);
            }
            dump.insert(collection.to_owned(), documents);
        }
        dump
    }

    /// Sum of a numeric field over a collection.
    pub async fn sum(&self, collection: &str, field: &str) -> i64 {
        let number = |value: Option<&Bson>| match value {
            Some(Bson::Int32(number)) => i64::from(*number),
            Some(Bson::Int64(number)) => *number,
            _ => 0,
        };
        self.all(collection).await.values().map(|document| number(document.get(field))).sum()
    }
}

/// Whether a field was there from the start or came by an update decides its place, which means nothing.
fn sort_fields(document: &mut Document) {
    let mut fields: Vec<_> = std::mem::take(document).into_iter().collect();
    fields.sort_by(|a, b| a.0.cmp(&b.0));
    for (name, mut value) in fields {
        if let (Bson::Document(inner), "_merge") = (&mut value, name.as_str()) {
            sort_fields(inner);
        }
        document.insert(name, value);
    }
}
