//! Pages of the API's lists. Pure.

use std::collections::HashSet;

use crate::json::{self, Json, Object};
use percent_encoding::percent_decode_str;
use shared::partition::fnv_1a;

/// Why a page can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// It is no JSON object.
    #[error("is no JSON object")]
    NoJson,
    /// It has no list `items`.
    #[error("has no items")]
    NoItems,
    /// It says that there is a next page, but not which.
    #[error("names a next page without cursorId")]
    NoCursor,
    /// The next page was read before.
    #[error("leads back to a page that was read before")]
    Loop,
    /// Nothing on it is new.
    #[error("repeats what earlier pages had")]
    Repeats,
    /// No message on it has a time.
    #[error("has messages without any time")]
    Undated,
}

/// A page.
#[derive(Debug, Default, PartialEq)]
pub struct Page {
    /// What is on it.
    pub items: Vec<Object>,
    /// The cursor of the next one, if there is one.
    pub next: Option<String>,
}

/// Reads a page. A page without items is the last one, whatever it says.
pub fn read(body: &[u8]) -> Result<Page, Unreadable> {
    let page = json::parse(body).map_err(|_| Unreadable::NoJson)?;
    let items = page.get("items").and_then(Json::list).ok_or(Unreadable::NoItems)?;
    let items: Vec<Object> = items.iter().filter_map(Json::object).cloned().collect();
    let next = page.get("pagination").and_then(|pagination| pagination.get("next"));
    let next = if items.is_empty() { None } else { cursor(next)? };
    Ok(Page { items, next })
}

/// The cursor in what is called `next`: a URL whose query has it, or itself; nothing, if there is no next
/// page.
fn cursor(next: Option<&Json>) -> Result<Option<String>, Unreadable> {
    let Some(next) = next.and_then(Json::id) else { return Ok(None) };
    let next = next.trim();
    let Some((_, query)) = next.split_once('?') else {
        return if next.contains('/') { Err(Unreadable::NoCursor) } else { Ok(Some(next.to_owned())) };
    };
    let query = query.split('#').next().unwrap_or_default();
    let value = query.split('&').find_map(|pair| pair.strip_prefix("cursorId="));
    let value = percent_decode_str(value.ok_or(Unreadable::NoCursor)?).decode_utf8_lossy().into_owned();
    Ok(Some(value).filter(|value| !value.is_empty()))
}

/// Ids of items that were seen, by their hashes: a workspace may have millions.
#[derive(Debug, Default)]
pub struct Seen(HashSet<u64>);

impl Seen {
    /// Whether this one is new.
    pub fn is_new(&mut self, id: &str) -> bool {
        self.0.insert(fnv_1a(id.as_bytes()))
    }
}

/// Follows the cursors of a list, and notices a circle.
#[derive(Debug, Default)]
pub struct Cursors {
    followed: HashSet<String>,
    seen: Seen,
}

impl Cursors {
    /// The cursor behind a page that has items of these ids, if there is a next page.
    pub fn follow(&mut self, ids: &[String], next: Option<String>) -> Result<Option<String>, Unreadable> {
        let new = ids.iter().filter(|id| self.seen.is_new(id)).count();
        if new == 0 && !ids.is_empty() {
            return Err(Unreadable::Repeats);
        }
        match next {
            Some(next) if !self.followed.insert(next.clone()) => Err(Unreadable::Loop),
            next => Ok(next),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(pagination: &str) -> Result<Option<String>, Unreadable> {
        let body = format!(r#"{{"items":[{{"id":1}}],"pagination":{pagination}}}"#);
        read(body.as_bytes()).map(|page| page.next)
    }

    #[test]
    fn the_cursor_is_found_in_every_form() {
        for (pagination, cursor) in [
            (r#"{"next":"https://h/v2/contact/list?limit=1&cursorId=20","previous":""}"#, Some("20")),
            (r#"{"next":"/contact/list?cursorId=a%3D%3D&limit=1"}"#, Some("a==")),
            (r#"{"next":"?cursorId=7#x"}"#, Some("7")),
            (r#"{"next":"7"}"#, Some("7")),
            (r#"{"next":7}"#, Some("7")),
            (r#"{"next":""}"#, None),
            (r#"{"next":" "}"#, None),
            (r#"{"next":"https://h/?cursorId="}"#, None),
            (r#"{"next":null}"#, None),
            ("{}", None),
            ("null", None),
        ] {
            assert_eq!(next(pagination), Ok(cursor.map(str::to_owned)), "{pagination}");
        }
        for pagination in [r#"{"next":"https://h/?limit=5"}"#, r#"{"next":"https://h/page/2"}"#] {
            assert_eq!(next(pagination), Err(Unreadable::NoCursor), "{pagination}");
        }
    }

    #[test]
    fn a_page_without_items_is_the_end() {
        assert_eq!(read(br#"{"items":[],"pagination":{"next":"?cursorId=7"}}"#), Ok(Page::default()));
        assert_eq!(read(br#"{"items":null}"#), Err(Unreadable::NoItems));
        assert_eq!(read(b"<html>"), Err(Unreadable::NoJson));
    }

    #[test]
    fn a_cursor_that_was_followed_before_is_an_error() {
        let mut cursors = Cursors::default();
        let mut follow = |ids: &[&str], next: Option<&str>| {
            let ids: Vec<String> = ids.iter().map(|id| (*id).to_owned()).collect();
            cursors.follow(&ids, next.map(str::to_owned))
        };
        assert_eq!(follow(&["1", "2"], Some("a")), Ok(Some("a".into())));
        assert_eq!(follow(&["2", "3"], Some("b")), Ok(Some("b".into())));
        assert_eq!(follow(&["4"], Some("a")), Err(Unreadable::Loop));
        assert_eq!(follow(&["3", "1"], Some("c")), Err(Unreadable::Repeats));
        assert_eq!(follow(&[], None), Ok(None));
    }
}
