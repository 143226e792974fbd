//! Decides what a request is: an event, evidence for the quarantine, or to be turned away. Pure.

use std::panic::{self, AssertUnwindSafe};

use actix_web::http::header::{CONTENT_ENCODING, HeaderMap, HeaderValue};
use shared::event;
use shared::json::{Scan, Unusable};
use shared::verify::{self, Form, Untrusted};
use tracing::error;

use crate::body::Body;
use crate::settings::{Policy, Signing};

/// Why a request's body goes to the quarantine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Not an event.
    Unusable(Unusable),
    /// Over the limit.
    TooLarge,
    /// Compressed, or the like.
    UnsupportedEncoding,
    /// Not signed.
    MissingSignature,
    /// Signed by somebody else.
    InvalidSignature,
    /// Judging it has failed, a defect of ours.
    Defect,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 9] = [
        Self::Unusable(Unusable::Empty),
        Self::Unusable(Unusable::Invalid),
        Self::Unusable(Unusable::NotAnObject),
        Self::Unusable(Unusable::TooDeep),
        Self::TooLarge,
        Self::UnsupportedEncoding,
        Self::MissingSignature,
        Self::InvalidSignature,
        Self::Defect,
    ];

    /// The name that callers, operators and metrics see.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Unusable(Unusable::Empty) => "empty_body",
            Self::Unusable(Unusable::Invalid) => "invalid_json",
            Self::Unusable(Unusable::NotAnObject) => "not_an_object",
            Self::Unusable(Unusable::TooDeep) => "too_deep",
            Self::TooLarge => "body_too_large",
            Self::UnsupportedEncoding => "unsupported_encoding",
            Self::MissingSignature => "missing_signature",
            Self::InvalidSignature => "invalid_signature",
            Self::Defect => "defect",
        }
    }
}

impl From<Untrusted> for Reason {
    fn from(untrusted: Untrusted) -> Self {
        match untrusted {
            Untrusted::Missing => Self::MissingSignature,
            Untrusted::Invalid => Self::InvalidSignature,
        }
    }
}

/// What a request is.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// An event, to be published for the workers.
    Accept(Identity),
    /// Evidence, to be published for the operator.
    Quarantine(Identity, Reason),
    /// Nothing to be kept.
    Reject(Reason),
}

/// What a message is called, and where it belongs.
#[derive(Debug, PartialEq, Eq)]
pub struct Identity {
    /// The event key.
    pub key: String,
    /// The event type for routing.
    pub event_type: String,
    /// The conversation that it belongs to, if it names one.
    pub chat_id: Option<String>,
    /// How its signature was found good.
    pub signature: &'static str,
}

/// Stands for the form of a signature that wasn't good.
const UNTRUSTED: &str = "untrusted";

/// Decides what a request is. If that fails for a body, the body is kept for those who correct the defect.
#[must_use]
pub fn judge(tenant: &str, signing: &Signing, headers: &HeaderMap, body: &Body, limit: usize) -> Verdict {
    or_defect(tenant, body, || decide(tenant, signing, headers, body, limit))
}

fn or_defect(tenant: &str, body: &Body, decide: impl FnOnce() -> Verdict) -> Verdict {
    // What is read within is left as it was.
    panic::catch_unwind(AssertUnwindSafe(decide)).unwrap_or_else(|_| {
        let identity = identify(tenant, &Scan::default(), &body.bytes, UNTRUSTED);
        error!(tenant, event_key = identity.key, "a webhook can't be judged: a defect");
        Verdict::Quarantine(identity, Reason::Defect)
    })
}

fn decide(tenant: &str, signing: &Signing, headers: &HeaderMap, body: &Body, limit: usize) -> Verdict {
    if body.sent > limit {
        // Only a part of what was signed was kept.
        let identity = identify(tenant, &Scan::default(), &body.bytes, Form::Unchecked.name());
        return Verdict::Quarantine(identity, Reason::TooLarge);
    }
    let scanned = scan(headers, &body.bytes);
    let trusted = match check_signature(signing, headers, &body.bytes) {
        Err(reason) if signing.policy == Policy::Reject => return Verdict::Reject(reason),
        trusted => trusted,
    };
    // Of a body that can't be used nothing is known.
    let found = scanned.unwrap_or_default();
    let identity = |signature| identify(tenant, &found, &body.bytes, signature);
    match (trusted, scanned) {
        (Ok(form), Ok(_)) => Verdict::Accept(identity(form.name())),
        (Ok(form), Err(reason)) => Verdict::Quarantine(identity(form.name()), reason),
        (Err(untrusted), _) => Verdict::Quarantine(identity(UNTRUSTED), untrusted),
    }
}

fn scan<'a>(headers: &HeaderMap, body: &'a [u8]) -> Result<Scan<'a>, Reason> {
    let encoding = headers.get(CONTENT_ENCODING).map(|value| value.as_bytes().trim_ascii());
    if encoding.is_some_and(|name| !name.is_empty() && !name.eq_ignore_ascii_case(b"identity")) {
        return Err(Reason::UnsupportedEncoding);
    }
    Scan::of(body).map_err(Reason::Unusable)
}

fn check_signature(signing: &Signing, headers: &HeaderMap, body: &[u8]) -> Result<Form, Reason> {
    let signature = headers.get(verify::HEADER).map(HeaderValue::as_bytes);
    if signing.policy == Policy::Off {
        return Ok(if signature.is_some() { Form::Unchecked } else { Form::Unsigned });
    }
    Ok(signing.keys.verify(signature, body)?.form)
}

fn identify(tenant: &str, found: &Scan<'_>, body: &[u8], signature: &'static str) -> Identity {
    Identity {
        key: event::event_key(tenant, found.event_id().as_deref(), body, signature),
        event_type: event::routable_type(found.event_type().as_deref()).to_owned(),
        chat_id: found.chat_id(),
        signature,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;

    fn judged(policy: Policy, body: &[u8], limit: usize) -> Verdict {
        let signing = Signing { policy, keys: ["key"].into_iter().collect() };
        judge("faster", &signing, &HeaderMap::new(), &Body::whole(Bytes::copy_from_slice(body)), limit)
    }

    fn reason(verdict: &Verdict) -> Option<&'static str> {
        match verdict {
            Verdict::Accept(_) => None,
            Verdict::Quarantine(_, reason) | Verdict::Reject(reason) => Some(reason.name()),
        }
    }

    #[test]
    fn a_test_ping_is_an_event() {
        let verdict = judged(Policy::Off, br#"{"test":true}"#, 100);
        let Verdict::Accept(identity) = verdict else { panic!("{verdict:?}") };
        assert_eq!(identity.event_type, "unknown");
        assert!(identity.key.starts_with("sha256:"));
    }

    #[test]
    fn bodies_that_cannot_be_used_are_quarantined() {
        for (body, expected) in [
            (&b""[..], "empty_body"),
            (b"{", "invalid_json"),
            (b"[]", "not_an_object"),
            (b"{\"a\":\"0123456789\"}", "body_too_large"),
        ] {
            assert_eq!(reason(&judged(Policy::Off, body, 10)), Some(expected));
        }
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        let signing = Signing { policy: Policy::Off, keys: [].into_iter().collect() };
        let verdict = judge("faster", &signing, &headers, &Body::whole(Bytes::from_static(b"{}")), 10);
        assert_eq!(reason(&verdict), Some("unsupported_encoding"));
    }

    #[test]
    fn what_cannot_be_judged_is_kept() {
        let body = Body::whole(Bytes::from_static(b"{}"));
        let verdict = or_defect("faster", &body, || Vec::<Verdict>::new().remove(0));
        let Verdict::Quarantine(identity, Reason::Defect) = verdict else { panic!("{verdict:?}") };
        assert!(identity.key.starts_with("sha256:"));
    }

    #[test]
    fn unsigned_webhooks_meet_the_policy() {
        let verdict = judged(Policy::Quarantine, b"{}", 10);
        assert!(matches!(verdict, Verdict::Quarantine(_, Reason::MissingSignature)));
        assert_eq!(judged(Policy::Reject, b"{}", 10), Verdict::Reject(Reason::MissingSignature));
        assert!(matches!(judged(Policy::Off, b"{}", 10), Verdict::Accept(_)));
        // It can't be told whether this is signed.
        assert!(matches!(judged(Policy::Reject, b"{\"a\":1}", 5), Verdict::Quarantine(_, Reason::TooLarge)));
    }

    proptest! {
        #[test]
        fn names_always_fit_the_protocol(body in "\\{\"event_(id|type)\":\"\\PC{0,200}\"\\}") {
            if let Verdict::Accept(identity) = judged(Policy::Off, body.as_bytes(), 1 << 20) {
                prop_assert!(identity.key.len() <= 128 && identity.event_type.len() <= 100);
                prop_assert!(identity.event_type.is_ascii());
            }
        }
    }
}
