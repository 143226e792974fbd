//! Any body in any circumstances: what ingest decides, and what it calls the message that it makes of it.

use actix_web::http::header::{CONTENT_ENCODING, HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;
use ingest::body::Body;
use ingest::judge::{self, Identity, Reason, Verdict};
use ingest::settings::{Policy, Signing};
use ingest::webhook::{Evidence, Metadata, Webhook};
use serde::de::IgnoredAny;
use shared::event::{self, Stream};
use shared::json::{self, MAX_DEPTH, Scan, Unusable};
use shared::partition::{self, MAX_PARTITIONS, WorkQueue};
use shared::verify::{self, Form};
use worker::decode::{Envelope, Event};

use crate::Choices;
use crate::signature::sign;

const TENANT: &str = "faster";
const KEY: &str = "a key for tests";

/// A byte that chooses the circumstances, and a body.
#[must_use]
pub fn target(input: &[u8]) -> bool {
    let Some((choices, body)) = input.split_first() else { return false };
    let circumstances = Circumstances::of(&mut Choices(*choices), body);
    let verdict = circumstances.judge(body);
    check_acceptance(body);

    let is_event = circumstances.is_readable() && Scan::of(body).is_ok();
    let can_be_checked = !circumstances.is_cut;
    let is_trusted = circumstances.policy == Policy::Off || circumstances.is_signed;
    match verdict {
        Verdict::Accept(identity) => {
            assert!(is_event && is_trusted);
            check_message(&identity, body, None);
            check_agreement(&identity, body);
        }
        Verdict::Quarantine(identity, reason) => {
            assert!(!is_event || !is_trusted);
            check_message(&identity, body, Some(reason));
        }
        Verdict::Reject(_) => {
            assert!(circumstances.policy == Policy::Reject && !is_trusted && can_be_checked);
        }
    }
    true
}

struct Circumstances {
    policy: Policy,
    encoding: Option<&'static str>,
    is_signed: bool,
    is_cut: bool,
    headers: HeaderMap,
}

impl Circumstances {
    fn of(choices: &mut Choices, body: &[u8]) -> Self {
        let policy = choices.among([Policy::Off, Policy::Quarantine, Policy::Reject]).unwrap_or(Policy::Off);
        let encoding = choices.among([None, Some("identity"), Some(" "), Some("gzip")]).flatten();
        let is_signed = choices.among([false, true]).unwrap_or_default();
        let is_cut = choices.among([false, true]).unwrap_or_default();
        let is_reserialised = choices.among([false, true]).unwrap_or_default();
        let mut headers = HeaderMap::new();
        if let Some(encoding) = encoding {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static(encoding));
        }
        let compact = compact(body).filter(|_| is_reserialised);
        let signature = HeaderValue::try_from(sign(KEY.as_bytes(), compact.as_deref().unwrap_or(body)));
        if let (true, Ok(name), Ok(signature)) = (is_signed, HeaderName::try_from(verify::HEADER), signature)
        {
            headers.insert(name, signature);
        }
        Self { policy, encoding, is_signed, is_cut, headers }
    }

    fn judge(&self, body: &[u8]) -> Verdict {
        let signing = Signing { policy: self.policy, keys: [KEY].into_iter().collect() };
        let limit = body.len();
        let mut body = Body::whole(Bytes::copy_from_slice(body));
        body.sent += usize::from(self.is_cut);
        judge::judge(TENANT, &signing, &self.headers, &body, limit)
    }

    fn is_readable(&self) -> bool {
        self.encoding != Some("gzip") && !self.is_cut
    }
}

/// A body as compact JSON, if it can be read.
#[must_use]
pub fn compact(body: &[u8]) -> Option<Vec<u8>> {
    let mut compact = Vec::new();
    json::compact(body, |piece| compact.extend_from_slice(piece)).ok()?;
    Some(compact)
}

/// What ingest accepts in one pass the worker makes a tree of, and nothing else; but for its depth another
/// parser finds it to be JSON, too. Its compact form has the same members, and is its own.
fn check_acceptance(body: &[u8]) {
    let accepted = Scan::of(body).map(drop);
    let tree = worker::json::parse(body);
    assert_eq!(accepted, tree.as_ref().map(drop).map_err(|unusable| *unusable));
    let text = std::str::from_utf8(body).unwrap_or_default();
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let begins_object = text.trim_ascii_start().starts_with('{');
    let is_object = begins_object && serde_json::from_str::<IgnoredAny>(text).is_ok();
    match accepted {
        Ok(()) => assert!(is_object),
        Err(Unusable::TooDeep) => assert!(text.matches(['[', '{']).count() > MAX_DEPTH),
        Err(_) => assert!(!is_object),
    }
    let written = compact(body);
    assert_eq!(written.as_deref().map(worker::json::parse), tree.is_ok().then_some(tree));
    assert_eq!(written.as_deref().and_then(compact), written);
}

/// What the broker takes, whatever the sender calls things.
fn check_message(identity: &Identity, body: &[u8], reason: Option<Reason>) {
    let Identity { key, event_type, signature, .. } = identity;
    assert!((1..=255).contains(&key.len()) && !key.chars().any(char::is_control), "{key:?}");
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    assert!((1..=100).contains(&event_type.len()) && event_type.bytes().all(is_plain), "{event_type:?}");
    let metadata = Metadata {
        tenant: TENANT.to_owned(),
        stream: Stream::Any.name().to_owned(),
        received_at_ms: 0,
        key: key.clone(),
        event_type: event_type.clone(),
        signature: (*signature).to_owned(),
        traceparent: String::new(),
        evidence: reason.map(|reason| evidence(reason.name().to_owned())),
    };
    let message = Webhook { metadata, body: Bytes::copy_from_slice(body) }.message(WorkQueue::Large);
    assert!(message.is_ok(), "{message:?}");
}

fn evidence(reason: String) -> Evidence {
    Evidence { reason, body_bytes: 0, body_sha256: None, sent_signature: None }
}

/// What ingest accepts the worker understands, under the same name and of the same conversation: so it is in
/// the one queue where it belongs, also when it was spooled.
fn check_agreement(identity: &Identity, body: &[u8]) {
    let envelope =
        Envelope { tenant: TENANT, stream: Stream::Any, received_at_ms: 0, signature: identity.signature };
    let decoded = Event::decode(body, envelope);
    let understood = decoded.as_ref().map(|event| {
        (&event.key, event::routable_type(event.event_type.as_deref()), event.chat_id.as_deref())
    });
    let chat_id = identity.chat_id.as_deref();
    assert_eq!(understood, Ok((&identity.key, identity.event_type.as_str(), chat_id)));
    for partitions in [1, 4, MAX_PARTITIONS] {
        let published = partition::queue_of(chat_id, &identity.key, body.len(), partitions);
        assert_eq!(published, partition::queue_of_body(&identity.key, body, partitions));
    }
    if let (true, Some(signed)) = (Form::is_reserialised(identity.signature), compact(body)) {
        let as_signed = Event::decode(&signed, Envelope { signature: Form::Raw.name(), ..envelope });
        let of = |event: &Event| (event.key.clone(), event.digest.clone());
        assert_eq!(decoded.as_ref().map(of), as_signed.as_ref().map(of));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use shared::partition::LARGE_BODY;

    /// What may stand where an id should.
    fn id() -> impl Strategy<Value = String> {
        prop_oneof![
            "\\PC{0,12}".prop_map(|text| serde_json::Value::from(text).to_string()),
            "-?[1-9][0-9]{0,25}(\\.[0-9]{1,3})?(e[0-9])?",
            prop::sample::select(vec!["null", "{}", "[1]", "true"]).prop_map(str::to_owned),
        ]
    }

    /// Choices: all are tried, signed and unsigned, whole and cut.
    const CHOICES: std::ops::Range<u8> = 0..96;

    proptest! {
        #[test]
        fn what_ingest_accepts_the_worker_understands_whatever_is_sent(
            (choices, key, text) in (CHOICES, id(), "\\PC{0,12}"),
            changes in prop::collection::vec((0_usize..120, prop::sample::select(br#"{}[]",:\ue0 "#.to_vec())), 0..4),
            bytes in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let text = serde_json::Value::from(text);
            let mut body = format!(
                r#"{{"event_id":{key},"contact" : {{"id":{key},"name":{text}}},"a":[1,[2.5E1,null],"\ud83d\n"],"event_id":{key}}}"#
            )
            .into_bytes();
            for (at, byte) in changes {
                let at = at % body.len();
                body[at] = byte;
            }
            prop_assert!(target(&[&[choices], &body[..]].concat()));
            prop_assert!(target(&[&[choices], &bytes[..]].concat()));
        }

        #[test]
        fn ingest_and_worker_agree_on_the_queue_of_any_body(
            (key, phone, contact, message) in (id(), id(), id(), id()),
            padding in prop::sample::select(vec![0, LARGE_BODY]),
        ) {
            let body = format!(
                r#"{{"event_id":{key},"contact":{{"phone":{phone},"id":{contact}}},"message":{{"contactId":{message}}}}}{}"#,
                " ".repeat(padding),
            );
            let input = [&[0], body.as_bytes()].concat();
            prop_assert!(target(&input));
        }
    }
}
