//! The way through respond.io's contacts and their messages, page by page.

use std::collections::BTreeSet;

use crate::json::{Json, Object};
use futures_util::{StreamExt, stream};

use super::AT_ONCE;
use super::api::{Api, ApiError};
use super::event::Directory;
use super::known;
use super::page::{Cursors, Page};
use super::plan::{Message, Reading, Span};
use crate::commands::now_ms;
use crate::decode::moment;
use crate::person::Name;

/// Named contacts that are read as one page.
const NAMED: usize = 100;

/// Which contacts.
#[derive(Clone, Debug)]
pub enum Source {
    /// All that the workspace has.
    All,
    /// Those of these ids, which somebody gave.
    Named(Vec<String>),
    /// Those of these ids, which were drawn from all.
    Drawn(Vec<String>),
}

/// A contact as it was read.
#[derive(Clone, Debug)]
pub struct Contact {
    /// Its id, as text.
    pub id: String,
    /// As the API has it.
    pub object: Object,
    /// Shortly before it was read: whatever a webhook says later is newer. In milliseconds since 1970.
    pub read_at_ms: i64,
}

impl Contact {
    /// What the person is known by.
    #[must_use]
    pub fn names(&self) -> BTreeSet<Name> {
        let phone = self.object.get("phone").and_then(Json::id).and_then(|phone| Name::phone(&phone));
        phone.into_iter().chain([Name::Contact(self.id.clone())]).collect()
    }

    /// When it was made, if it tells.
    #[must_use]
    pub fn made_at_ms(&self) -> Option<i64> {
        moment::read(self.object.get("created_at")?)
    }
}

/// Some contacts.
#[derive(Debug, Default)]
pub struct Contacts {
    /// The contacts.
    pub contacts: Vec<Contact>,
    /// Their ids, and those of the ones that are done.
    pub ids: Vec<String>,
    /// Those that were named and can't be read.
    pub unread: Vec<(String, ApiError)>,
    /// The cursor of the next ones.
    pub next: Option<String>,
}

impl Source {
    /// The contacts of a page, without those that are done.
    pub async fn page(
        &self,
        api: &Api,
        cursor: Option<&str>,
        done: &BTreeSet<String>,
    ) -> Result<Contacts, ApiError> {
        match self {
            Self::All => {
                let read_at_ms = now_ms();
                let Page { items, next } = api.contacts(cursor).await?;
                let ids = items.iter().filter_map(known::contact_id).collect();
                let named =
                    items.into_iter().filter_map(|object| Some((known::contact_id(&object)?, object)));
                let contacts = named.filter(|(id, _)| !done.contains(id));
                let contacts = contacts.map(|(id, object)| Contact { id, object, read_at_ms }).collect();
                Ok(Contacts { contacts, ids, next, unread: Vec::new() })
            }
            Self::Named(ids) | Self::Drawn(ids) => {
                let first = cursor.and_then(|cursor| cursor.parse().ok()).unwrap_or(0);
                let next = first + NAMED;
                let page: Vec<String> = ids.iter().skip(first).take(NAMED).cloned().collect();
                let mut contacts =
                    named(api, page.into_iter().filter(|id| !done.contains(id)).collect()).await?;
                contacts.next = (next < ids.len()).then(|| next.to_string());
                Ok(contacts)
            }
        }
    }
}

async fn named(api: &Api, ids: Vec<String>) -> Result<Contacts, ApiError> {
    let reading = stream::iter(ids).map(|id| async move {
        let read_at_ms = now_ms();
        let read = api.contact(&id).await;
        (id, read_at_ms, read)
    });
    let mut reading = reading.buffer_unordered(AT_ONCE);
    let mut contacts = Contacts::default();
    while let Some((id, read_at_ms, read)) = reading.next().await {
        match read {
            Ok(object) => contacts.contacts.push(Contact { id, object, read_at_ms }),
            Err(error) if error.is_of_one_contact() => contacts.unread.push((id, error)),
            Err(error) => return Err(error),
        }
    }
    Ok(contacts)
}

/// Pages of all contacts, from the first.
pub struct AllContacts<'a> {
    api: &'a Api,
    cursors: Cursors,
    cursor: Option<String>,
    is_at_end: bool,
}

impl<'a> AllContacts<'a> {
    /// Nothing is read yet.
    #[must_use]
    pub fn of(api: &'a Api) -> Self {
        Self { api, cursors: Cursors::default(), cursor: None, is_at_end: false }
    }

    /// The ids of the next page.
    pub async fn next(&mut self) -> Result<Option<Vec<String>>, ApiError> {
        if self.is_at_end {
            return Ok(None);
        }
        let Page { items, next } = self.api.contacts(self.cursor.as_deref()).await?;
        let ids: Vec<String> = items.iter().filter_map(known::contact_id).collect();
        self.cursor = self.cursors.follow(&ids, next)?;
        self.is_at_end = self.cursor.is_none();
        Ok(Some(ids))
    }
}

/// Pages of a contact's messages.
pub struct Messages<'a> {
    api: &'a Api,
    contact: &'a str,
    reading: Reading,
    cursors: Cursors,
    cursor: Option<String>,
    is_at_end: bool,
}

impl<'a> Messages<'a> {
    /// Nothing is read yet.
    #[must_use]
    pub fn of(api: &'a Api, contact: &'a str, span: Span) -> Self {
        let (reading, cursors) = (Reading::new(span), Cursors::default());
        Self { api, contact, reading, cursors, cursor: None, is_at_end: false }
    }

    /// What the next page has of the span; nothing, if all of it was read.
    pub async fn next(&mut self) -> Result<Option<Vec<Message>>, ApiError> {
        if self.is_at_end {
            return Ok(None);
        }
        let Page { items, next } = self.api.messages(self.contact, self.cursor.as_deref()).await?;
        let planned = self.reading.page(items)?;
        self.cursor = self.cursors.follow(&[], next)?;
        self.is_at_end = planned.is_past || self.cursor.is_none();
        Ok(Some(planned.wanted))
    }
}

/// Reads the workspace's users and channels.
pub async fn directory(api: &Api) -> Result<Directory, ApiError> {
    let mut directory = Directory::default();
    let (mut cursors, mut cursor) = (Cursors::default(), None);
    loop {
        let Page { items, next } = api.users(cursor.as_deref()).await?;
        cursor = cursors.follow(&ids(&items), next)?;
        directory.users.extend(by_id(items));
        if cursor.is_none() {
            break;
        }
    }
    cursors = Cursors::default();
    loop {
        let Page { items, next } = api.channels(cursor.as_deref()).await?;
        cursor = cursors.follow(&ids(&items), next)?;
        directory.channels.extend(by_id(items));
        if cursor.is_none() {
            return Ok(directory);
        }
    }
}

fn ids(items: &[Object]) -> Vec<String> {
    items.iter().filter_map(|item| item.get("id").and_then(Json::id)).collect()
}

fn by_id(items: Vec<Object>) -> impl Iterator<Item = (String, Object)> {
    items.into_iter().filter_map(|item| Some((item.get("id").and_then(Json::id)?, item)))
}
