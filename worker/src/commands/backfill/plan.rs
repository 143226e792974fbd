//! Which of a contact's messages are wanted, and when all of them have been read. Pure.

use crate::json::{Json, Object};

use super::page::{Seen, Unreadable};
use crate::decode::moment;

/// Digits of a messageId that tells its time, in microseconds.
const TIMED_DIGITS: usize = 16;
/// Neighbours may be out of order by this much, in milliseconds; ids and times of the same message differ by
/// less.
const DISORDER_MS: i64 = 5000;

/// From when to when, in milliseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first moment that is meant; the beginning of everything, if none is given.
    pub since: Option<i64>,
    /// The first moment that isn't.
    pub until: i64,
}

impl Span {
    fn is_before(&self, at_ms: i64) -> bool {
        self.since.is_some_and(|since| at_ms < since)
    }

    fn has(&self, at_ms: i64) -> bool {
        !self.is_before(at_ms) && at_ms < self.until
    }
}

/// A message of the API's that is wanted.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// Its messageId, as text.
    pub id: String,
    /// When it was, in milliseconds since 1970.
    pub at_ms: i64,
    /// As the API has it.
    pub item: Object,
}

/// What follows from a page of messages.
#[derive(Debug, Default, PartialEq)]
pub struct Planned {
    /// Those in the span that earlier pages didn't have.
    pub wanted: Vec<Message>,
    /// Whether all later pages are before the span.
    pub is_past: bool,
}

/// A contact's messages, page by page.
#[derive(Debug)]
pub struct Reading {
    span: Span,
    seen: Seen,
    /// Time of the last message so far.
    last: Option<i64>,
    /// Whether no message was newer than the one before it: only then it is known what comes on later pages.
    is_newest_first: bool,
}

impl Reading {
    /// Nothing is read yet.
    #[must_use]
    pub fn new(span: Span) -> Self {
        Self { span, seen: Seen::default(), last: None, is_newest_first: true }
    }

    /// Adds a page.
    pub fn page(&mut self, items: Vec<Object>) -> Result<Planned, Unreadable> {
        if items.is_empty() {
            return Ok(Planned { wanted: Vec::new(), is_past: true });
        }
        let times = times(&items, self.last).ok_or(Unreadable::Undated)?;
        for at in &times {
            self.is_newest_first &= self.last.is_none_or(|last| *at <= last + DISORDER_MS);
            self.last = Some(*at);
        }
        let mut wanted = Vec::new();
        let mut is_any_new = false;
        for (item, at_ms) in items.into_iter().zip(times) {
            let Some(id) = item.get("messageId").and_then(Json::id) else { continue };
            if self.seen.is_new(&id) {
                is_any_new = true;
                wanted.extend(self.span.has(at_ms).then_some(Message { id, at_ms, item }));
            }
        }
        if !is_any_new {
            return Err(Unreadable::Repeats);
        }
        let is_past = self.is_newest_first && self.last.is_some_and(|last| self.span.is_before(last));
        Ok(Planned { wanted, is_past })
    }
}

/// The time of each message; without one, that of its neighbour. None if no message has a time.
fn times(items: &[Object], last: Option<i64>) -> Option<Vec<i64>> {
    let told: Vec<Option<i64>> = items.iter().map(time).collect();
    let first = last.or_else(|| told.iter().copied().flatten().next())?;
    let filled = told.into_iter().scan(first, |last, told| {
        *last = told.unwrap_or(*last);
        Some(*last)
    });
    Some(filled.collect())
}

/// When a message was, by its id, or else by its first status, in milliseconds since 1970.
fn time(item: &Object) -> Option<i64> {
    let id = item.get("messageId").and_then(Json::id)?;
    if id.len() == TIMED_DIGITS && id.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(id.parse::<i64>().ok()? / 1000);
    }
    moment::read(item.get("status")?.list()?.first()?.get("timestamp")?)
}

#[cfg(test)]
mod tests {
    use crate::json;

    use super::*;

    const SECOND: i64 = 1_791_792_900;

    fn item(second: i64) -> Object {
        json::parse(format!(r#"{{"messageId":{}}}"#, (SECOND + second) * 1_000_000 + 7).as_bytes()).unwrap()
    }

    fn reading(since: i64, until: i64) -> Reading {
        Reading::new(Span { since: Some((SECOND + since) * 1000), until: (SECOND + until) * 1000 })
    }

    fn seconds(planned: &Planned) -> Vec<i64> {
        planned.wanted.iter().map(|message| message.at_ms / 1000 - SECOND).collect()
    }

    #[test]
    fn pages_are_read_until_before_the_span() {
        let mut reading = reading(100, 200);
        let planned = reading.page(vec![item(250), item(199), item(150)]).unwrap();
        assert_eq!((seconds(&planned), planned.is_past), (vec![199, 150], false));
        let planned = reading.page(vec![item(100), item(99)]).unwrap();
        assert_eq!((seconds(&planned), planned.is_past), (vec![100], true));
        let silent = Reading::new(Span { since: Some(i64::MAX), until: i64::MAX }).page(vec![item(1)]);
        assert!(silent.unwrap().is_past, "one request for a contact that was silent");
        let all = Reading::new(Span { since: None, until: i64::MAX }).page(vec![item(1)]).unwrap();
        assert!(!all.is_past && all.wanted.len() == 1);
    }

    #[test]
    fn if_the_newest_is_not_first_all_pages_are_read() {
        let (mut mixed, mut nearly) = (reading(100, 200), reading(100, 200));
        let planned = mixed.page(vec![item(10), item(150), item(20)]).unwrap();
        assert_eq!((seconds(&planned), planned.is_past), (vec![150], false));
        assert!(!mixed.page(vec![item(5)]).unwrap().is_past);
        assert!(nearly.page(vec![item(150), item(154), item(20)]).unwrap().is_past);
    }

    #[test]
    fn a_message_counts_once_and_a_page_without_any_new_one_is_an_error() {
        let mut reading = reading(0, 200);
        assert_eq!(reading.page(vec![item(3), item(2)]).unwrap().wanted.len(), 2);
        assert_eq!(seconds(&reading.page(vec![item(2), item(1)]).unwrap()), [1]);
        assert_eq!(reading.page(vec![item(2), item(1)]), Err(Unreadable::Repeats));
        assert!(reading.page(Vec::new()).unwrap().is_past);
    }

    #[test]
    fn what_does_not_tell_its_time_by_its_id_tells_it_otherwise() {
        let at = |body: &str| time(&json::parse(body.as_bytes()).unwrap());
        assert_eq!(at(r#"{"messageId":1791792900104729}"#), Some(1_791_792_900_104));
        assert_eq!(at(r#"{"messageId":"1791792900104729"}"#), Some(1_791_792_900_104));
        assert_eq!(at(r#"{"messageId":"m-1","status":[{"timestamp":1791792900}]}"#), Some(1_791_792_900_000));
        assert_eq!(at(r#"{"messageId":12,"status":[]}"#), None);
        let bare = json::parse(br#"{"messageId":"m-2"}"#).unwrap();
        let planned = reading(0, 200).page(vec![bare.clone(), item(50), bare.clone()]).unwrap();
        assert_eq!(seconds(&planned), [50, 50]);
        assert_eq!(reading(0, 200).page(vec![bare]), Err(Unreadable::Undated));
    }
}
