//! Events ready to be sent: body and signature.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use hyper::header::HeaderValue;
use sha2::Sha256;

use crate::body;
use crate::mix::Kind;

/// An event ready to be sent.
#[derive(Clone, Debug)]
pub struct Event {
    /// Its number.
    pub n: u64,
    /// Its body.
    pub body: Bytes,
    /// What goes into `X-Webhook-Signature`.
    pub signature: Option<HeaderValue>,
}

impl Event {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        Kind::of(self.n)
    }
}

/// Makes events, one number after the other.
#[derive(Clone, Debug)]
pub struct Maker {
    next: Arc<AtomicU64>,
    contacts: u64,
    mac: Option<Hmac<Sha256>>,
}

impl Maker {
    /// Takes numbers from a counter that others may take from as well.
    pub fn new(next: Arc<AtomicU64>, contacts: u64, key: Option<&str>) -> Self {
        // HMAC takes keys of any length.
        let mac = key.and_then(|key| Hmac::new_from_slice(key.as_bytes()).ok());
        Self { next, contacts, mac }
    }

    /// The next event.
    pub fn make(&self) -> Event {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        let body = body::body(n, self.contacts);
        let signature = self.mac.as_ref().and_then(|mac| {
            let signature = mac.clone().chain_update(&body).finalize().into_bytes();
            HeaderValue::try_from(STANDARD.encode(signature)).ok()
        });
        Event { n, body: body.into(), signature }
    }
}
