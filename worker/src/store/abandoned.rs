//! Open transactions of a killed worker. They hold the locks of its batch until
//! `transactionLifetimeLimitSeconds` is over.

use std::time::Duration;

use futures_util::TryStreamExt;
use mongodb::bson::{Bson, Document, doc};

use super::failure::Failure;
use super::transaction::ABANDONED_TIMEOUT;
use super::{Store, within};

/// Ends those of killed workers, and says how many there were. A running worker ends its own earlier.
pub async fn end(store: &Store) -> Result<usize, Failure> {
    let left = find(store).await?;
    if left.is_empty() {
        return Ok(0);
    }
    let (admin, kill) = (store.client.database("admin"), doc! {"killSessions": left.clone()});
    let killing = tokio::spawn(async move { admin.run_command(kill).await });
    within(store.deadline, killing).await??;
    Ok(left.len())
}

/// The sessions of our user whose transaction has been open for longer than a worker waits.
async fn find(store: &Store) -> Result<Vec<Document>, Failure> {
    let too_long = micros(store.deadline + ABANDONED_TIMEOUT);
    let is_left =
        doc! {"appName": &store.app_name, "active": false, "transaction.timeOpenMicros": {"$gt": too_long}};
    let pipeline = [
        doc! {"$currentOp": {"allUsers": false, "idleSessions": true}},
        doc! {"$match": is_left},
        doc! {"$project": {"lsid": 1}},
    ];
    let admin = store.client.database("admin");
    let finding =
        tokio::spawn(async move { admin.aggregate(pipeline).await?.try_collect::<Vec<Document>>().await });
    let found = within(store.deadline, finding).await??;
    Ok(found.iter().filter_map(session).collect())
}

/// The session, as it is named to end it.
fn session(operation: &Document) -> Option<Document> {
    let id: &Bson = operation.get_document("lsid").ok()?.get("id")?;
    Some(doc! {"id": id})
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}
