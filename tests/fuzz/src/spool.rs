//! Any record of the spool: what is read is what was written, or nothing.

use ingest::spool::format::{self, Row};
use ingest::webhook::{Evidence, Metadata, Webhook};

use crate::lines;

/// A byte that chooses the damage, one that chooses its place, and eight of a time. Then, a line each, seven
/// texts, a body, and what damage puts in the place of something else.
#[must_use]
pub fn target(input: &[u8]) -> bool {
    let Some(([damage, place], input)) = input.split_first_chunk() else { return false };
    let Some((time, input)) = input.split_first_chunk() else { return false };
    let received_at_ms = i64::from_le_bytes(*time);
    let mut lines = lines(input, 9);
    let mut text = || lines.next().map(|line| String::from_utf8_lossy(line).into_owned());
    let (tenant, stream, key) = (text(), text(), text());
    let (event_type, signature, traceparent, reason) = (text(), text(), text(), text());
    let (Some(body), Some(junk)) = (lines.next(), lines.next()) else { return false };

    let evidence = reason.filter(|reason| !reason.is_empty());
    let metadata = Metadata {
        tenant: tenant.unwrap_or_default(),
        stream: stream.unwrap_or_default(),
        received_at_ms,
        key: key.unwrap_or_default(),
        event_type: event_type.unwrap_or_default(),
        signature: signature.clone().unwrap_or_default(),
        traceparent: traceparent.unwrap_or_default(),
        evidence: evidence.map(|reason| Evidence {
            reason,
            body_bytes: received_at_ms,
            body_sha256: None,
            sent_signature: signature,
        }),
    };
    let webhook = Webhook { metadata, body: body.to_vec().into() };
    let stored = Stored::of(&webhook);
    assert_eq!(stored.read().as_ref(), Some(&webhook));

    let damaged = stored.damaged(*damage, usize::from(*place), junk);
    let is_whole = damaged == stored;
    assert_eq!(damaged.read(), is_whole.then_some(webhook), "{damaged:?} in place of {stored:?}");
    true
}

/// A record as it is on disk.
#[derive(Clone, Debug, PartialEq)]
struct Stored {
    facts: Vec<u8>,
    body: Vec<u8>,
    checksum: Vec<u8>,
}

impl Stored {
    fn of(webhook: &Webhook) -> Self {
        let row = Row::of(webhook);
        let checksum = row.checksum();
        Self { facts: row.facts.into_bytes(), body: row.body.to_vec(), checksum }
    }

    fn read(&self) -> Option<Webhook> {
        format::webhook(&self.facts, self.body.clone(), &self.checksum)
    }

    fn damaged(&self, damage: u8, place: usize, junk: &[u8]) -> Self {
        let mut damaged = self.clone();
        let Self { facts, body, checksum } = &mut damaged;
        match damage % 6 {
            0 => *facts = junk.to_vec(),
            1 => *body = junk.to_vec(),
            2 => *checksum = junk.to_vec(),
            3 => overwrite(facts, place, junk),
            4 => overwrite(body, place, junk),
            // A length that is wrong moves the border between the two.
            _ => {
                let all = [facts.as_slice(), body.as_slice()].concat();
                let border = (facts.len() + place).saturating_sub(64).min(all.len());
                (*facts, *body) = (all[..border].to_vec(), all[border..].to_vec());
            }
        }
        damaged
    }
}

fn overwrite(bytes: &mut [u8], place: usize, junk: &[u8]) {
    for (byte, other) in bytes.iter_mut().skip(place).zip(junk) {
        *byte = *other;
    }
}
