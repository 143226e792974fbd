//! `worker events`: looks into the ledger `webhook_events`, and replays what is there.

use std::collections::BTreeSet;
use std::io::Write;

use clap::{ArgGroup, Args, Subcommand};
use mongodb::bson::Document;
use serde_json::{Value, json};
use shared::env::Env;
use shared::table::{self, Column, Table};

use super::backfill::parse_moment;
use super::rebuild::{Format, Rebuild};
use super::{CommandError, printable, rfc3339, say};
use crate::console::pretty;
use crate::console::queries::PAGE;
use crate::console::queries::ledger::{self, Entry, Search};
use crate::settings::{Purpose, Settings, Tenant};
use crate::store::Store;

/// What can be done with stored events.
#[derive(Debug, Subcommand)]
pub enum EventsCommand {
    /// Lists events, a line each, the latest first
    #[command(after_help = "Example: worker events list --contact +15550101188 --since 2026-11-20T08:00Z")]
    List(Selection),
    /// Shows events with their metadata and bodies
    #[command(after_help = "Example: worker events show --key 5a3e0000-0000-4000-8000-000000000003")]
    Show(Selection),
    /// Computes the documents of events again
    ///
    /// Documents that were deleted or changed by hand are as they should be again. A conversation counts all its
    /// messages, so all events that share a document with a chosen one are applied with it, each once.
    #[command(after_help = "Example: worker events replay --tenant vip --message 1122334455 --dry-run")]
    Replay(Replay),
}

/// Which events, and how the answer is written.
#[derive(Debug, Args)]
pub struct Selection {
    /// Only this tenant's; several may be given [default: all]
    #[arg(long, value_name = "TENANT", value_delimiter = ',')]
    tenant: Vec<String>,
    #[command(flatten)]
    filter: Filter,
    /// No more than so many per tenant
    #[arg(long, value_name = "NUMBER", default_value_t = PAGE)]
    limit: usize,
    /// Write JSON, an object a line
    #[arg(long)]
    json: bool,
}

/// Which events to replay: those of the whole ledger are `worker rebuild`'s.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("filters").required(true).multiple(true)
    .args(["key", "message", "contact", "event_type", "since", "until"]))]
pub struct Replay {
    /// The tenant
    #[arg(long, value_name = "TENANT")]
    tenant: String,
    #[command(flatten)]
    filter: Filter,
    /// Only show what would change: each field, before and after
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    format: Format,
}

/// Which events: those that fit all that is given.
#[derive(Debug, Args)]
pub struct Filter {
    /// Only this event key
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Only events of this message
    #[arg(long, value_name = "ID")]
    message: Option<String>,
    /// Only events of this contact, by its id or phone
    #[arg(long, value_name = "ID|PHONE", conflicts_with = "message")]
    contact: Option<String>,
    /// Only this event type
    #[arg(long, value_name = "TYPE")]
    event_type: Option<String>,
    /// Stored from this moment on, such as 2026-11-20T08:00Z
    #[arg(long, value_name = "TIME", value_parser = parse_moment)]
    since: Option<i64>,
    /// Stored before this moment
    #[arg(long, value_name = "TIME", value_parser = parse_moment)]
    until: Option<i64>,
}

/// Runs the command.
pub async fn run(command: EventsCommand, env: Env, out: &mut impl Write) -> Result<(), CommandError> {
    let settings = Settings::read(env)?;
    match command {
        EventsCommand::List(selection) => look(&selection, false, settings, out).await,
        EventsCommand::Show(selection) => look(&selection, true, settings, out).await,
        EventsCommand::Replay(arguments) => replay(arguments, settings, out).await,
    }
}

async fn look(
    selection: &Selection,
    in_full: bool,
    mut settings: Settings,
    out: &mut impl Write,
) -> Result<(), CommandError> {
    settings.purpose = Purpose::Console;
    let (mut table, mut shown) = (Table::new(COLUMNS), 0);
    for tenant in tenants(&settings, &selection.tenant)? {
        let store = Store::open(&tenant, &settings).await?;
        let entries = found(&store, &selection.filter, selection.limit).await?;
        if in_full {
            show(&tenant.name, &store, &entries, selection, out).await?;
        } else {
            list(&tenant.name, &entries, selection, &mut table, out)?;
        }
        shown += entries.len();
    }
    if shown == 0 && !selection.json {
        say(out, table::NONE)?;
    }
    Ok(())
}

async fn replay(arguments: Replay, settings: Settings, out: &mut impl Write) -> Result<(), CommandError> {
    let Replay { tenant, filter, dry_run, format } = arguments;
    let rebuild = Rebuild::open(tenant, settings, dry_run).await?;
    let chosen = found(&rebuild.store, &filter, usize::MAX).await?;
    let chosen: BTreeSet<String> = chosen.into_iter().map(|entry| entry.key).collect();
    rebuild.work_and_tell(Some(&chosen), format, out).await
}

fn tenants(settings: &Settings, names: &[String]) -> Result<Vec<Tenant>, CommandError> {
    if names.is_empty() {
        return Ok(settings.tenants.clone());
    }
    let known = |name: &String| {
        let tenant = settings.tenants.iter().find(|known| known.name == *name).cloned();
        tenant.ok_or_else(|| CommandError::UnknownTenant(name.clone()))
    };
    names.iter().map(known).collect()
}

/// The events that are meant, page after page.
async fn found(store: &Store, filter: &Filter, limit: usize) -> Result<Vec<Entry>, CommandError> {
    let Filter { key, message, contact, event_type, since, until } = filter;
    if message.is_some() || contact.is_some() || event_type.is_some() {
        // As when somebody searches in the console.
        store.make_console_indexes().await?;
    }
    let mut search = Search {
        key: key.clone(),
        message: message.clone(),
        contact: contact.clone(),
        event_type: event_type.clone(),
        from_ms: *since,
        to_ms: *until,
        place: None,
    };
    let mut entries = Vec::new();
    loop {
        let (page, next) = ledger::search(store, &search, true).await?;
        entries.extend(page);
        if next.is_none() || entries.len() >= limit {
            entries.truncate(limit);
            return Ok(entries);
        }
        search.place = next;
    }
}

fn list(
    tenant: &str,
    entries: &[Entry],
    selection: &Selection,
    table: &mut Table<6>,
    out: &mut impl Write,
) -> Result<(), CommandError> {
    entries.iter().try_for_each(|entry| {
        if selection.json {
            return say(out, about(tenant, entry));
        }
        let Entry { key, event_type, signature, chat, stored_at_ms, .. } = entry;
        say(out, table.row(&[rfc3339(*stored_at_ms).as_str(), tenant, event_type, signature, chat, key]))
    })
}

const COLUMNS: [Column; 6] = [
    Column::text("STORED AT", 24),
    Column::text("TENANT", 10),
    Column::text("EVENT TYPE", 25),
    Column::text("SIGNATURE", 12),
    Column::text("CONVERSATION", 16),
    Column::text("EVENT KEY", 0),
];

fn about(tenant: &str, entry: &Entry) -> Value {
    let Entry { key, event_type, signature, chat, received_at_ms, stored_at_ms } = entry;
    json!({
        "tenant": tenant,
        "key": key,
        "event_type": event_type,
        "signature": signature,
        "conversation": chat,
        "received_at": rfc3339(*received_at_ms),
        "stored_at": rfc3339(*stored_at_ms),
    })
}

async fn show(
    tenant: &str,
    store: &Store,
    entries: &[Entry],
    selection: &Selection,
    out: &mut impl Write,
) -> Result<(), CommandError> {
    for entry in entries {
        // It may have expired meanwhile.
        let Some(mut document) = ledger::get(store, &entry.key).await? else { continue };
        let body =
            document.remove("body").and_then(|body| body.as_str().map(str::to_owned)).unwrap_or_default();
        if selection.json {
            let mut shown = about(tenant, entry);
            shown["body"] = body.into();
            say(out, shown)?;
        } else {
            say(out, in_full(tenant, document, &body))?;
        }
    }
    Ok(())
}

fn in_full(tenant: &str, entry: Document, body: &str) -> String {
    let fields = pretty::document(entry);
    let lines = format!("tenant: {tenant}\n{fields}\n\n{}\n", pretty::json(body));
    lines.lines().map(|line| printable(line) + "\n").collect()
}
