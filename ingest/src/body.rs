//! Reads a request's body, within bounds of size, time and memory.

use std::sync::Arc;
use std::time::Duration;

use actix_web::web;
use bytes::Bytes;
use futures_util::StreamExt;
use sha2::{Digest, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// The deadline for a body. With the time to publish and the time to spool (a second
/// each at most) a reply stays below respond.io's deadline of 5 seconds.
const BODY_TIMEOUT: Duration = Duration::from_millis(2500);
/// How much of a body over the limit is kept as evidence, in bytes.
const EVIDENCE_BYTES: usize = 64 << 10;
/// Bodies up to this size need not ask for memory: the number of connections bounds them. In bytes.
const SMALL_BODY_BYTES: usize = 16 << 10;
/// ingest stops reading a body here: it takes time from others, and no webhook is that large. In bytes.
const MAX_SENT_BYTES: usize = 64 << 20;
/// What larger bodies may take beyond that at the same time, in KiB.
const LARGE_BODIES_KIB: usize = 64 << 10;

/// A request's body.
#[derive(Debug, Default)]
pub struct Body {
    /// The bytes, or the first of them if there are more than allowed.
    pub bytes: Bytes,
    /// Number of bytes sent.
    pub sent: usize,
    /// The last bytes that were sent.
    pub end: Bytes,
    /// SHA-256 of what was sent, in hexadecimal, if that was more.
    pub digest: Option<String>,
    // Its share of the budget, given back when the body is dropped.
    _share: Vec<OwnedSemaphorePermit>,
}

impl Body {
    /// A body that was sent whole.
    #[must_use]
    pub fn whole(bytes: Bytes) -> Self {
        Self { sent: bytes.len(), bytes, ..Self::default() }
    }
}

/// Memory for bodies that are larger than most: those that are there at the same time share it.
#[derive(Clone, Debug)]
pub struct BodyBudget(Arc<Semaphore>);

impl Default for BodyBudget {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(LARGE_BODIES_KIB)))
    }
}

impl BodyBudget {
    /// Takes what a body needs to grow to `bytes`, waiting for others to finish if need be.
    async fn grow(&self, share: &mut Vec<OwnedSemaphorePermit>, bytes: usize) {
        let has: usize = share.iter().map(OwnedSemaphorePermit::num_permits).sum();
        let needs = (bytes.saturating_sub(SMALL_BODY_BYTES) >> 10).saturating_sub(has);
        if let (Ok(needs @ 1..), true) = (u32::try_from(needs), has < LARGE_BODIES_KIB) {
            // It is never closed.
            share.extend(self.0.clone().acquire_many_owned(needs).await.ok());
        }
    }
}

/// How long a body will be, as far as that is known.
#[derive(Clone, Copy, Debug)]
pub struct Announced {
    /// The length that its sender has announced, in bytes.
    pub length: Option<usize>,
    /// Whether to stop there. After an offer of another protocol actix-web takes everything for the body.
    pub ends: bool,
}

/// Reads a body, keeping at most `limit` bytes of it. None if it isn't finished in time.
pub async fn read(
    payload: &mut web::Payload,
    announced: Announced,
    limit: usize,
    budget: &BodyBudget,
) -> Option<Body> {
    timeout(BODY_TIMEOUT, read_all(payload, announced, limit, budget)).await.ok().flatten()
}

async fn read_all(
    payload: &mut web::Payload,
    announced: Announced,
    limit: usize,
    budget: &BodyBudget,
) -> Option<Body> {
    // A buffer that has to grow takes twice the memory. Pages that nothing is written to take none.
    let mut bytes = Vec::with_capacity(announced.length.unwrap_or(0).min(limit));
    let end = announced.length.filter(|_| announced.ends).unwrap_or(usize::MAX);
    let (mut sent, mut share) = (0, Vec::new());
    let mut hash: Option<Sha256> = None;
    let mut last = Bytes::new();
    while sent < end {
        let Some(chunk) = payload.next().await else { break };
        let mut chunk = chunk.ok()?;
        chunk.truncate(end - sent);
        last = chunk.clone();
        sent += chunk.len();
        if sent <= limit {
            budget.grow(&mut share, sent).await;
            bytes.extend_from_slice(&chunk);
        } else if sent > MAX_SENT_BYTES {
            return None;
        } else {
            hash.get_or_insert_with(|| Sha256::new().chain_update(&bytes)).update(&chunk);
            // The rest is still read: a sender that is cut off sees an error, not our 200.
            let missing = EVIDENCE_BYTES.saturating_sub(bytes.len()).min(chunk.len());
            bytes.extend_from_slice(&chunk[..missing]);
            bytes.truncate(EVIDENCE_BYTES);
        }
    }
    let digest = hash.map(|hash| hex::encode(hash.finalize()));
    Some(Body { bytes: bytes.into(), sent, end: last, digest, _share: share })
}
