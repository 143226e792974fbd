//! A run through contacts and messages: publishes what MongoDB lacks, or only counts it.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use shared::telemetry::chain;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::api::{Api, ApiError};
use super::audit::Audit;
use super::event::{self, Directory};
use super::known;
use super::lease::Lease;
use super::page::Cursors;
use super::plan::{Message, Span};
use super::progress::{Counts, MAX_FAILURES, Place, Task};
use super::publish::Outlet;
use super::shown::Shown;
use super::walk::{self, AllContacts, Contact, Contacts, Messages, Source};
use super::{AT_ONCE, BackfillError};
use crate::store::Store;

/// What is done with what MongoDB lacks.
#[derive(Clone, Copy)]
pub enum Mode<'a> {
    /// It is published, and the place is kept.
    Publish(&'a Outlet, &'a Lease),
    /// It is counted.
    Audit,
}

/// A run.
pub struct Run<'a> {
    reader: Reader<'a>,
    task: Task,
    place: Place,
}

/// What all contacts of a run are read with.
struct Reader<'a> {
    api: &'a Api,
    store: &'a Store,
    mode: Mode<'a>,
    directory: Directory,
    audit: Mutex<Audit>,
    /// Contacts that can't be read, and why.
    failures: Mutex<Vec<(String, String)>>,
}

impl<'a> Run<'a> {
    /// A run that begins at this place.
    #[must_use]
    pub fn new(api: &'a Api, store: &'a Store, mode: Mode<'a>, task: Task, place: Place) -> Self {
        let (directory, audit, failures) = (Directory::default(), Mutex::default(), Mutex::default());
        Self { reader: Reader { api, store, mode, directory, audit, failures }, task, place }
    }

    /// Goes through all contacts of the source that are left.
    pub async fn all(&mut self, tenant: &str, source: &Source) -> Result<(), BackfillError> {
        self.reader.directory = walk::directory(self.reader.api).await?;
        if self.place.total.is_none() {
            self.place.total = Some(count(self.reader.api, source).await?);
            self.reader.save(&self.place).await?;
        }
        let mut shown = Shown::new(tenant, self.place.total, self.place.counts.done());
        let ended = self.pages(source, &mut shown).await;
        shown.end();
        ended
    }

    async fn pages(&mut self, source: &Source, shown: &mut Shown) -> Result<(), BackfillError> {
        let (mut cursors, mut has_begun_anew) = (Cursors::default(), false);
        loop {
            let Place { cursor, done, until, total, .. } = &self.place;
            let page = source.page(self.reader.api, cursor.as_deref(), done).await;
            if matches!(page, Err(ApiError::Refused { .. })) && cursor.is_some() && !has_begun_anew {
                // The API doesn't know this cursor any more.
                self.place = Place { until: *until, total: *total, ..Place::default() };
                (cursors, has_begun_anew) = (Cursors::default(), true);
                continue;
            }
            let Contacts { contacts, ids, unread, next } = page?;
            for (id, error) in unread {
                // An id that somebody gave may be wrong; one that respond.io gave was deleted meanwhile.
                let counts = match source {
                    Source::Named(_) => self.reader.failed(&id, &error),
                    _ => self.reader.failed_or_deleted(&id, &error),
                };
                self.place.finish(id, counts);
            }
            let published_contacts = self.reader.missing_contacts(&contacts).await?;
            self.place.counts.add(Counts { published_contacts, ..Counts::default() });
            self.messages_of(contacts, shown).await?;
            self.place.cursor = cursors.follow(&ids, next).map_err(ApiError::from)?;
            self.place.done.clear();
            if self.place.cursor.is_none() {
                return Ok(());
            }
            self.reader.save(&self.place).await?;
        }
    }

    async fn messages_of(&mut self, contacts: Vec<Contact>, shown: &mut Shown) -> Result<(), BackfillError> {
        let Self { reader, task, place } = self;
        let reader = &*reader;
        let span = place.span(task);
        let reading = stream::iter(contacts).map(|contact| reader.contact(contact, span));
        let mut reading = reading.buffer_unordered(AT_ONCE);
        // At most a page of contacts.
        let (done, mut finished) = mpsc::unbounded_channel();
        // Reading goes on meanwhile: contacts that wait keep their connections to MongoDB, and the save may
        // wait for one.
        let reading = async move {
            while let Some(read) = reading.next().await {
                if done.send(read).is_err() {
                    return;
                }
            }
        };
        let saving = async move {
            while let Some(read) = finished.recv().await {
                let (id, counts) = read?;
                place.finish(id, counts);
                reader.save(place).await?;
                shown.update(&place.counts);
            }
            Ok(())
        };
        tokio::pin!(saving);
        tokio::select! {
            saved = &mut saving => return saved,
            () = reading => {}
        }
        saving.await
    }

    /// Waits for missing messages and contacts that a worker may still store.
    pub async fn wait_for_missing(&mut self, wait: Duration) -> Result<(), BackfillError> {
        let started = Instant::now();
        let (store, audit) = (self.reader.store, &self.reader.audit);
        while lock(audit).is_any_missing() && started.elapsed() < wait {
            sleep(known::PAUSE).await;
            let (messages, contacts) = lock(audit).missing_ids();
            let messages = known::whole_messages(store, &ids(&messages)).await?;
            let contacts = known::contacts(store, &ids(&contacts)).await?;
            lock(audit).arrived(&messages, &contacts);
        }
        Ok(())
    }

    /// The place where it ends, contacts that can't be read, also those of an earlier run that it continues,
    /// and what was counted.
    #[must_use]
    pub fn end(self) -> (Place, Vec<(String, String)>, Audit) {
        let Reader { audit, failures, .. } = self.reader;
        let mut failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
        let named: HashSet<String> = failures.iter().map(|(id, _)| id.clone()).collect();
        let earlier = self.place.failed.iter().filter(|id| !named.contains(*id));
        failures.extend(earlier.map(|id| (id.clone(), "it could not be read in an earlier run".to_owned())));
        (self.place, failures, audit.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Reader<'_> {
    async fn save(&self, place: &Place) -> Result<(), BackfillError> {
        match self.mode {
            Mode::Publish(_, lease) => lease.save(place).await,
            Mode::Audit => Ok(()),
        }
    }

    /// Publishes or counts the contacts that MongoDB lacks, and says how many were published.
    async fn missing_contacts(&self, contacts: &[Contact]) -> Result<u64, BackfillError> {
        let ids: Vec<&str> = contacts.iter().map(|contact| contact.id.as_str()).collect();
        let stored = known::contacts(self.store, &ids).await?;
        let mut missing = Vec::new();
        for contact in contacts.iter().filter(|contact| !stored.contains(&contact.id)) {
            if self
                .erased_at(contact)
                .await?
                .is_none_or(|at| contact.made_at_ms().is_some_and(|made| made >= at))
            {
                missing.push(contact);
            }
        }
        let Mode::Publish(outlet, _) = self.mode else {
            lock(&self.audit).add_contacts(missing.iter().map(|contact| contact.id.clone()));
            return Ok(0);
        };
        for Contact { id, object, read_at_ms } in &missing {
            outlet.publish(vec![event::of_contact(id, object)], *read_at_ms).await?;
        }
        Ok(missing.len() as u64)
    }

    /// When the contact was erased, if it was: workers don't take what is older, so that it isn't missing.
    async fn erased_at(&self, contact: &Contact) -> Result<Option<i64>, BackfillError> {
        Ok(known::erased_at(self.store, &contact.names()).await?)
    }

    /// Publishes or counts the messages of a contact in the span.
    async fn contact(&self, contact: Contact, span: Span) -> Result<(String, Counts), BackfillError> {
        let mut counts = Counts { contacts: 1, ..Counts::default() };
        let mut pages = Messages::of(self.api, &contact.id, span);
        let erased_at = self.erased_at(&contact).await?;
        loop {
            match pages.next().await {
                Ok(Some(mut wanted)) => {
                    wanted.retain(|message| erased_at.is_none_or(|at| message.at_ms >= at));
                    counts.messages += wanted.len() as u64;
                    counts.published_messages += self.messages(&contact, &wanted).await?;
                }
                Ok(None) => break,
                Err(error) if error.is_of_one_contact() => {
                    counts.contacts = 0;
                    counts.add(self.failed_or_deleted(&contact.id, &error));
                    break;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok((contact.id, counts))
    }

    /// Publishes or counts messages of a contact, and says how many were published.
    async fn messages(&self, contact: &Contact, wanted: &[Message]) -> Result<u64, BackfillError> {
        let stored = known::messages(self.store, wanted).await?;
        let Mode::Publish(outlet, _) = self.mode else {
            lock(&self.audit).add(&contact.id, wanted, &stored);
            return Ok(0);
        };
        let missing =
            wanted.iter().filter(|message| known::is_lacking(&message.item, stored.get(&message.id)));
        let bodies: Vec<String> =
            missing.map(|message| event::of_message(message, &contact.object, &self.directory)).collect();
        let published = bodies.len() as u64;
        outlet.publish(bodies, contact.read_at_ms).await?;
        Ok(published)
    }

    /// Records that a contact can't be read, unless it was deleted, which isn't a failure.
    fn failed_or_deleted(&self, id: &str, error: &ApiError) -> Counts {
        match error {
            ApiError::NotFound { .. } => Counts { deleted: 1, ..Counts::default() },
            _ => self.failed(id, error),
        }
    }

    /// Records that a contact can't be read.
    fn failed(&self, id: &str, error: &ApiError) -> Counts {
        let mut failures = lock(&self.failures);
        if failures.len() < MAX_FAILURES {
            failures.push((id.to_owned(), chain(error)));
        }
        Counts { failed: 1, ..Counts::default() }
    }
}

/// How many contacts a source has.
async fn count(api: &Api, source: &Source) -> Result<u64, ApiError> {
    if let Source::Named(ids) | Source::Drawn(ids) = source {
        return Ok(ids.len() as u64);
    }
    let (mut pages, mut count) = (AllContacts::of(api), 0);
    while let Some(ids) = pages.next().await? {
        count += ids.len() as u64;
    }
    Ok(count)
}

/// A random choice of contacts, each as likely as any other.
pub async fn sample(api: &Api, number: usize) -> Result<Source, ApiError> {
    let (mut pages, mut seen, mut drawn) = (AllContacts::of(api), 0, Vec::new());
    while let Some(ids) = pages.next().await? {
        for id in ids {
            seen += 1;
            let place = fastrand::usize(..seen);
            if drawn.len() < number {
                drawn.push(id);
            } else if let Some(drawn) = drawn.get_mut(place) {
                *drawn = id;
            }
        }
    }
    Ok(Source::Drawn(drawn))
}

fn ids(all: &[String]) -> Vec<&str> {
    all.iter().map(String::as_str).collect()
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
