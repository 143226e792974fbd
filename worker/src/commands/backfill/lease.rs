//! One run of a tenant at a time: a lease in a small collection of the tenant's database, with the run's
//! position. The run renews the lease while it lives. If two runs overlap for a moment, that matters only for
//! respond.io's limits, not for the documents.

use std::time::Duration;

use mongodb::Collection;
use mongodb::bson::{DateTime, Document, doc};
use mongodb::error::{Error, ErrorKind, WriteFailure};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::BackfillError;
use super::known::{DEADLINE, PAUSE, RETRY_TIMEOUT};
use super::progress::{Place, Task};
use crate::store::Store;
use crate::store::failure::Failure;

/// The document's `_id`.
const ID: &str = "run";
/// A run that hasn't renewed its lease for this long is gone.
const LEASE: Duration = Duration::from_secs(15);
/// A position may be used for this long. Later, "now" isn't the end of its span any more, and the API may not
/// know its cursor.
const LIFETIME: Duration = Duration::from_hours(24);
/// The lease is renewed this often.
const RENEWAL: Duration = Duration::from_secs(3);
/// MongoDB's code for an `_id` that is there already.
const DUPLICATE_KEY: i32 = 11000;

/// A run's lease. Renewed until it is dropped.
#[derive(Debug)]
pub struct Lease {
    runs: Collection<Document>,
    owner: String,
    /// Cancelled when another run has it.
    pub lost: CancellationToken,
    renewing: tokio::task::JoinHandle<()>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.renewing.abort();
    }
}

impl Lease {
    /// Takes the lease, as soon as nobody else has it, and gives the place where an earlier run of the same
    /// task stopped, unless this one begins anew.
    pub async fn take(
        store: &Store,
        task: &Task,
        anew: bool,
    ) -> Result<(Self, Option<Place>), BackfillError> {
        let runs = store.database.collection::<Document>(&store.names.backfill);
        let owner = format!("{:016x}", fastrand::u64(..));
        let before = Self::acquire(&runs, &owner).await?;
        let place = before.filter(|run| !anew && is_fresh(run));
        let place = place.filter(|run| run.get_document("task").is_ok_and(|of| *of == task.write()));
        let place = place.and_then(|run| Place::read(run.get_document("place").ok()?));
        let lost = CancellationToken::new();
        let renewing = tokio::spawn(renew(runs.clone(), owner.clone(), lost.clone()));
        let lease = Self { runs, owner, lost, renewing };
        let about = doc! {"task": task.write(), "place": place.as_ref().map(Place::write)};
        lease.write(about).await?;
        Ok((lease, place))
    }

    /// Waits until nobody has the lease, and takes it. Gives the document as it was.
    async fn acquire(runs: &Collection<Document>, owner: &str) -> Result<Option<Document>, BackfillError> {
        let seen_first = find(runs).await?;
        let waited = Instant::now();
        let mut seen = seen_first.clone();
        while seen.as_ref().is_some_and(is_leased) {
            let renewed =
                |run: &Option<Document>| run.as_ref().and_then(|run| run.get("renewed_at").cloned());
            if renewed(&seen) != renewed(&seen_first) {
                return Err(BackfillError::Busy);
            }
            // The other run's clock may be wrong: if it lives, it renews.
            if waited.elapsed() > LEASE {
                break;
            }
            sleep(PAUSE).await;
            seen = find(runs).await?;
        }
        let theirs = seen.as_ref().and_then(|run| run.get("owner").cloned());
        let mine = doc! {"$set": lease(owner)};
        let update = runs.update_one(doc! {"_id": ID, "owner": theirs}, mine).upsert(true);
        match within(async { update.await }).await {
            Ok(_) => Ok(seen),
            // Somebody else was faster: the document is there, with another owner.
            Err(Failure::Mongo(error)) if is_duplicate(&error) => Err(BackfillError::Busy),
            Err(failure) => Err(failure.into()),
        }
    }

    /// Stores the run's position. Tries again while MongoDB fails.
    pub async fn save(&self, place: &Place) -> Result<(), BackfillError> {
        self.write(doc! {"place": place.write()}).await
    }

    async fn write(&self, mut fields: Document) -> Result<(), BackfillError> {
        fields.extend(lease(&self.owner));
        let (mine, change, started) =
            (doc! {"_id": ID, "owner": &self.owner}, doc! {"$set": fields}, Instant::now());
        loop {
            let update = self.runs.update_one(mine.clone(), change.clone());
            match within(async { update.await }).await {
                Ok(updated) if updated.matched_count == 0 => return Err(BackfillError::Taken),
                Ok(_) => return Ok(()),
                Err(failure) if started.elapsed() > RETRY_TIMEOUT => return Err(failure.into()),
                Err(_) => sleep(PAUSE).await,
            }
        }
    }

    /// Returns the lease. A run that is complete deletes its position.
    pub async fn release(self, is_at_end: bool) -> Result<(), BackfillError> {
        self.renewing.abort();
        let mine = doc! {"_id": ID, "owner": &self.owner};
        if is_at_end {
            within(async { self.runs.delete_one(mine).await }).await?;
        } else {
            within(async { self.runs.update_one(mine, doc! {"$unset": {"expires_at": 1}}).await }).await?;
        }
        Ok(())
    }
}

async fn renew(runs: Collection<Document>, owner: String, lost: CancellationToken) {
    let mut ticks = interval(RENEWAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let update = runs.update_one(doc! {"_id": ID, "owner": &owner}, doc! {"$set": lease(&owner)});
        // If MongoDB fails, the next write of a position fails, too.
        if within(async { update.await }).await.is_ok_and(|updated| updated.matched_count == 0) {
            lost.cancel();
            return;
        }
    }
}

fn lease(owner: &str) -> Document {
    let now = DateTime::now();
    let until = now.timestamp_millis() + i64::try_from(LEASE.as_millis()).unwrap_or_default();
    doc! {"owner": owner, "renewed_at": now, "expires_at": DateTime::from_millis(until)}
}

fn is_fresh(run: &Document) -> bool {
    let since =
        run.get_datetime("renewed_at").map(|at| DateTime::now().timestamp_millis() - at.timestamp_millis());
    since.is_ok_and(|since| u128::try_from(since).unwrap_or_default() < LIFETIME.as_millis())
}

fn is_leased(run: &Document) -> bool {
    run.contains_key("expires_at")
}

fn is_duplicate(error: &Error) -> bool {
    matches!(&*error.kind, ErrorKind::Write(WriteFailure::WriteError(error)) if error.code == DUPLICATE_KEY)
}

async fn find(runs: &Collection<Document>) -> Result<Option<Document>, Failure> {
    within(async { runs.find_one(doc! {"_id": ID}).await }).await
}

async fn within<T>(asked: impl Future<Output = Result<T, Error>>) -> Result<T, Failure> {
    Ok(timeout(DEADLINE, asked).await.map_err(|_| Failure::TimedOut(DEADLINE))??)
}
