//! `worker erase`: removes everything about a person, while workers run, and writes tombstones, so that
//! workers drop events about the person that were received before.
//!
//! 1. `who`: the contact ids and phones that belong together.
//! 2. Tombstones for them, and all fences, see [`crate::store::erasure`]: from here on workers store nothing
//!    more that was received before this moment.
//! 3. `documents`, `ledger`, `queues`: everything about the person is removed, in batches; also what was
//!    received meanwhile, except for the ledger's entries of it. Documents by which the person is found are
//!    removed last, so that a killed run can be repeated.
//! 4. All fences again, so that every transaction sees the removal. Then the documents of what was received
//!    meanwhile are computed from the ledger, and what workers have stored since the ledger was read is
//!    applied once more.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use clap::Args;
use mongodb::bson::DateTime;
use serde::Serialize;
use serde_json::json;
use shared::env::Env;
use shared::publisher::Publisher;
use tracing::info;

use super::rebuild;
use super::set_aside::queue;
use super::{CommandError, printable, rfc3339, say};
use crate::person::Name;
use crate::settings::{Purpose, Settings};
use crate::store::Store;
use crate::store::failure::Failure;
use crate::store::transaction::Work;

pub(in crate::commands) mod documents;
mod ledger;
mod queues;
pub mod who;

use who::Person;

/// Longest time for one transaction.
const DEADLINE: Duration = Duration::from_mins(1);

/// Whom to erase.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The tenant
    #[arg(long, value_name = "TENANT")]
    tenant: String,
    #[command(flatten)]
    given: Given,
    /// Erase up to this many contacts. --dry-run lists them: see that they are one person's
    #[arg(long, value_name = "NUMBER", default_value_t = 3)]
    contacts: usize,
    /// Change nothing: count what would be removed
    #[arg(long)]
    dry_run: bool,
    /// Who erases, for the log [default: the user who runs the command]
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// What the person is known by.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Given {
    /// The id of the contact. All contacts and conversations with the same phone are erased, too
    #[arg(long, value_name = "ID", value_parser = contact)]
    contact: Option<Name>,
    /// The phone, with the country's digits, written in any way
    #[arg(long, value_name = "PHONE", value_parser = phone, allow_hyphen_values = true)]
    phone: Option<Name>,
}

/// What was found about a person.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Erased {
    /// The tenant.
    pub tenant: String,
    /// Whether it was only counted.
    pub dry_run: bool,
    /// Ids of contacts by which the person was known.
    pub contacts: usize,
    /// Phones by which the person was known.
    pub phones: usize,
    /// The ids of these contacts, if it was only counted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub contact_ids: Vec<String>,
    /// How much was removed from each collection and each queue.
    pub removed: BTreeMap<String, u64>,
    /// Nothing is left that was received before this moment, and nothing of it comes back.
    pub received_before: Option<String>,
    /// Events that were received since then, and stay.
    pub later: usize,
}

/// Runs the command.
pub async fn run(arguments: Arguments, mut env: Env, out: &mut impl Write) -> Result<(), CommandError> {
    let Arguments { tenant, given, contacts, dry_run, by, json } = arguments;
    let by = by.unwrap_or_else(|| env.text_or_default("USER"));
    let settings = Settings::read(env)?;
    // One of them is given.
    let Some(given) = given.contact.or(given.phone) else { return Ok(()) };
    let broker = queue::connect(settings.rabbitmq.clone()).await?;
    let erasure = Erasure::open(&tenant, settings, &broker, dry_run).await?;
    let erasure = Erasure { most_contacts: contacts, ..erasure };
    let mut erased = Erased::default();
    let ended = erasure.run(&given, &by, &mut erased).await;
    broker.link().close().await;
    // Also if it failed half way.
    if !matches!(ended, Err(CommandError::ManyContacts(_))) {
        tell(&erased, json, out)?;
    }
    ended
}

fn tell(erased: &Erased, json: bool, out: &mut impl Write) -> Result<(), CommandError> {
    if json {
        return say(out, json!(erased));
    }
    let Erased { tenant, dry_run, contacts, phones, contact_ids, removed, received_before, later } = erased;
    let would = if *dry_run { "would be removed" } else { "removed" };
    say(out, format!("{tenant}: a person (contact ids: {contacts}, phones: {phones}), {would}:"))?;
    if !contact_ids.is_empty() {
        say(out, printable(&format!("  contacts: {}", contact_ids.join(", "))))?;
    }
    for (place, number) in removed {
        say(out, format!("  {number:>9} {place}"))?;
    }
    if let Some(before) = received_before {
        say(
            out,
            format!("  workers drop what was received before {before}; later events that stay: {later}"),
        )?;
    }
    Ok(())
}

/// What erases persons of a tenant.
pub struct Erasure<'a> {
    tenant: String,
    settings: Settings,
    store: Store,
    broker: &'a Publisher,
    dry_run: bool,
    /// More contacts aren't erased: somebody has to have seen that they are one person's.
    most_contacts: usize,
}

impl<'a> Erasure<'a> {
    /// Opens the tenant's database.
    pub async fn open(
        tenant: &str,
        mut settings: Settings,
        broker: &'a Publisher,
        dry_run: bool,
    ) -> Result<Self, CommandError> {
        settings.mongo_timeout = settings.mongo_timeout.max(DEADLINE);
        settings.purpose = Purpose::Rebuild;
        let known = settings.tenants.iter().find(|known| known.name == tenant).cloned();
        let known = known.ok_or_else(|| CommandError::UnknownTenant(tenant.to_owned()))?;
        let store = Store::open(&known, &settings).await?;
        store.check_replica_set().await?;
        let most_contacts = usize::MAX;
        Ok(Self { tenant: tenant.to_owned(), settings, store, broker, dry_run, most_contacts })
    }

    /// Erases a person, or counts what there is. `erased` tells how far it came if it fails. The log says who
    /// erased, but never whom.
    pub async fn run(&self, given: &Name, by: &str, erased: &mut Erased) -> Result<(), CommandError> {
        let (tenant, dry_run) = (&self.tenant, self.dry_run);
        *erased = Erased { tenant: tenant.clone(), dry_run, ..Erased::default() };
        let mut person = Person::of(given);
        person.complete(&self.store).await?;
        let at = DateTime::now();
        if dry_run {
            erased.contact_ids = person.ids().cloned().collect();
        } else if person.count().0 > self.most_contacts {
            return Err(CommandError::ManyContacts(person.count().0));
        } else {
            self.begin(&mut person, at).await?;
            erased.received_before = Some(rfc3339(at.timestamp_millis()));
        }
        (erased.contacts, erased.phones) = person.count();
        let ended = self.remove(&person, at, erased).await;
        if !dry_run {
            let is_whole = ended.is_ok();
            let (removed, later) = (json!(erased.removed).to_string(), erased.later);
            info!(tenant, by, removed, later, is_whole, "a person was erased");
        }
        ended
    }

    /// Makes workers drop older events. Until then they may have stored more ids and phones of the person.
    async fn begin(&self, person: &mut Person, at: DateTime) -> Result<(), CommandError> {
        loop {
            self.store.begin_erasure(&person.names, at).await?;
            let known = person.clone();
            person.complete(&self.store).await?;
            if *person == known {
                return Ok(());
            }
        }
    }

    async fn remove(&self, person: &Person, at: DateTime, erased: &mut Erased) -> Result<(), CommandError> {
        self.own_documents(person, erased).await.map_err(CommandError::Unfinished)?;
        self.entries(person, at, erased).await.map_err(CommandError::Unfinished)?;
        self.messages_in_queues(person, at, erased).await?;
        self.progress(person).await.map_err(CommandError::Unfinished)?;
        self.shared_documents(person, erased).await.map_err(CommandError::Unfinished)?;
        if self.dry_run {
            return Ok(());
        }
        self.bring_back_later(person, at, erased).await.map_err(CommandError::Unfinished)
    }

    /// Computes the documents of later events again: some of them may have been removed, too.
    async fn bring_back_later(
        &self,
        person: &Person,
        at: DateTime,
        erased: &mut Erased,
    ) -> Result<(), Failure> {
        self.store.change_fences(at).await?;
        let later = self.later_entries(person, at).await?;
        erased.later = later.len();
        if later.is_empty() {
            return Ok(());
        }
        let work = Work::Rebuild { horizon: at };
        rebuild::of_events(&self.tenant, &self.settings, &self.store, &later, work).await?;
        // What workers have stored since these were read may have been lost to it.
        for some in self.later_entries(person, at).await?.chunks(self.settings.batch_size) {
            rebuild::of_events(&self.tenant, &self.settings, &self.store, some, Work::Reapply).await?;
        }
        Ok(())
    }
}

/// A contact's id, as an operator gives it.
pub fn contact(id: &str) -> Result<Name, String> {
    let id = id.trim();
    if id.is_empty() { Err("is empty".to_owned()) } else { Ok(Name::Contact(id.to_owned())) }
}

/// A phone, as an operator gives it.
pub fn phone(written: &str) -> Result<Name, String> {
    Name::phone(written).ok_or_else(|| "is empty".to_owned())
}
