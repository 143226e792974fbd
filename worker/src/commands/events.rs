//! `worker events`: looks into the ledger `webhook_events`.

use std::io::Write;

use clap::{Args, Subcommand};
use mongodb::bson::Document;
use serde_json::{Value, json};
use shared::env::Env;

use super::backfill::parse_moment;
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
}

/// Which events.
#[derive(Debug, Args)]
pub struct Selection {
    /// Only this tenant's; several may be given [default: all]
    #[arg(long, value_name = "TENANT", value_delimiter = ',')]
    tenant: Vec<String>,
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
    /// At most this many per tenant
    #[arg(long, value_name = "NUMBER", default_value_t = PAGE)]
    limit: usize,
    /// Write JSON, an object a line
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub async fn run(command: EventsCommand, env: Env, out: &mut impl Write) -> Result<(), CommandError> {
    let (EventsCommand::List(selection) | EventsCommand::Show(selection)) = &command;
    let mut settings = Settings::read(env)?;
    settings.purpose = Purpose::Console;
    let mut shown = 0;
    for tenant in tenants(&settings, &selection.tenant)? {
        let store = Store::open(&tenant, &settings).await?;
        let entries = found(&store, selection).await?;
        match &command {
            EventsCommand::List(_) => list(&tenant.name, &entries, selection, shown == 0, out)?,
            EventsCommand::Show(_) => show(&tenant.name, &store, &entries, selection, out).await?,
        }
        shown += entries.len();
    }
    if shown == 0 && !selection.json {
        say(out, "none")?;
    }
    Ok(())
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
async fn found(store: &Store, selection: &Selection) -> Result<Vec<Entry>, CommandError> {
    let Selection { key, message, contact, event_type, since, until, limit, .. } = selection;
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
        if next.is_none() || entries.len() >= *limit {
            entries.truncate(*limit);
            return Ok(entries);
        }
        search.place = next;
    }
}

fn list(
    tenant: &str,
    entries: &[Entry],
    selection: &Selection,
    is_first: bool,
    out: &mut impl Write,
) -> Result<(), CommandError> {
    if is_first && !entries.is_empty() && !selection.json {
        say(
            out,
            in_columns(["STORED AT", "TENANT", "EVENT TYPE", "SIGNATURE", "CONVERSATION", "EVENT KEY"]),
        )?;
    }
    entries.iter().try_for_each(|entry| {
        if selection.json {
            return say(out, about(tenant, entry));
        }
        let Entry { key, event_type, signature, chat, stored_at_ms, .. } = entry;
        say(out, in_columns([&rfc3339(*stored_at_ms), tenant, event_type, signature, chat, key]))
    })
}

fn in_columns([at, tenant, event_type, signature, chat, key]: [&str; 6]) -> String {
    printable(&format!("{at:<24}  {tenant:<10}  {event_type:<25}  {signature:<12}  {chat:<16}  {key}"))
}

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
