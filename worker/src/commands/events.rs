//! `worker events`: looks into the ledger `webhook_events`, and applies events of it again.

use std::io::Write;

use clap::{Args, Subcommand};
use mongodb::bson::Document;
use serde_json::{Value, json};
use shared::env::Env;
use shared::telemetry::chain;

use super::backfill::parse_moment;
use super::rebuild::Rebuild;
use super::{CommandError, printable, rfc3339, say};
use crate::console::pretty;
use crate::console::queries::PAGE;
use crate::console::queries::ledger::{self, Entry, Search};
use crate::settings::{Purpose, Settings, Tenant};
use crate::store::Store;

/// What can be done with stored events.
#[derive(Debug, Subcommand)]
pub enum EventsCommand {
    /// Lists events, a line each, those that were stored last first
    #[command(after_help = "Example: worker events list --contact +15550101188 --since 2026-11-20T08:00Z")]
    List(Selection),
    /// Shows events with what is known of them, and their bodies
    #[command(after_help = "Example: worker events show --key 5a3e0000-0000-4000-8000-000000000003")]
    Show(Selection),
    /// Applies events to the documents again, such as after somebody has changed these
    ///
    /// To apply an event twice changes nothing, and counts nothing. `worker rebuild` does more: it computes documents from all
    /// events that they came from.
    #[command(after_help = "Example: worker events replay --tenant vip --message 1785578460123456 --dry-run")]
    Replay(Change),
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
    /// Only what concerns this message
    #[arg(long, value_name = "ID")]
    message: Option<String>,
    /// Only those of this contact, by its id or phone
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
    /// No more than so many per tenant
    #[arg(long, value_name = "NUMBER", default_value_t = PAGE)]
    limit: usize,
    /// Write JSON, an object a line
    #[arg(long)]
    json: bool,
}

/// Which events to apply.
#[derive(Debug, Args)]
pub struct Change {
    #[command(flatten)]
    selection: Selection,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    /// All events up to the limit, where no filter says which
    #[arg(long, required_unless_present_any = ["key", "message", "contact", "event_type", "since", "until", "dry_run"])]
    all: bool,
}

enum Action {
    List,
    Show,
    Replay { dry_run: bool },
}

/// Runs the command.
pub async fn run(command: EventsCommand, env: Env, out: &mut impl Write) -> Result<(), CommandError> {
    let (action, selection) = match command {
        EventsCommand::List(selection) => (Action::List, selection),
        EventsCommand::Show(selection) => (Action::Show, selection),
        EventsCommand::Replay(Change { selection, dry_run, all: _ }) => {
            (Action::Replay { dry_run }, selection)
        }
    };
    let mut settings = Settings::read(env)?;
    settings.purpose = Purpose::Console;
    let mut shown = 0;
    for tenant in tenants(&settings, &selection.tenant)? {
        let store = Store::open(&tenant, &settings).await?;
        let entries = found(&store, &selection).await?;
        match &action {
            Action::List => list(&tenant.name, &entries, &selection, shown == 0, out)?,
            Action::Show => show(&tenant.name, &store, &entries, &selection, out).await?,
            Action::Replay { dry_run } => {
                let rebuild = Rebuild::open(&tenant, settings.clone(), *dry_run).await?;
                replay(&rebuild, &entries, selection.json, out).await?;
            }
        }
        shown += entries.len();
    }
    if shown == 0 && !selection.json && !matches!(action, Action::Replay { .. }) {
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
        let (page, next) = ledger::search(store, &search).await?;
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

async fn replay(
    rebuild: &Rebuild,
    entries: &[Entry],
    json: bool,
    out: &mut impl Write,
) -> Result<(), CommandError> {
    let (mut done, mut inserted, mut updated, mut failed) = (0, 0, 0, Vec::new());
    for entry in entries {
        match rebuild.apply_again(&entry.key).await {
            Ok(written) => {
                done += 1;
                inserted += written.inserted;
                updated += written.updated;
            }
            Err(failure) => failed.push((entry.key.clone(), chain(&failure))),
        }
    }
    let (tenant, dry_run, of) = (&rebuild.tenant, rebuild.dry_run, entries.len());
    if json {
        let failed: Vec<Value> =
            failed.iter().map(|(key, error)| json!({"key": key, "error": error})).collect();
        let told = json!({
            "tenant": tenant, "action": "replay", "dry_run": dry_run, "selected": of, "done": done,
            "inserted": inserted, "updated": updated, "failed": failed,
        });
        say(out, told)?;
    } else {
        let would = if dry_run { "would be " } else { "" };
        say(
            out,
            format!(
                "{tenant}: {done} of {of} {would}applied, {inserted} documents {would}added, {updated} {would}changed"
            ),
        )?;
        for (key, error) in &failed {
            say(out, printable(&format!("  {key} is left out: {error}")))?;
        }
    }
    match failed.len() {
        0 => Ok(()),
        failed => Err(CommandError::Incomplete(format!("{failed} events could not be applied"))),
    }
}
