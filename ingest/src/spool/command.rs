//! `ingest spool`: for the spool of an ingest that doesn't run any more.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Subcommand;
use serde_json::{Value, json};
use shared::table::{self, Column, Table};
use shared::text::rfc3339;

use super::folder::OpenError;
use super::format::{self, Record};
use super::pages::Pages;
use super::{SpoolError, aside, drain};
use crate::metrics::Metrics;
use crate::settings::Settings;
use crate::webhook::Metadata;

/// A drain gives up after this long without progress.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);

/// At the end, the command waits this long for the confirms of published messages.
const LAST_CONFIRMS_TIMEOUT: Duration = Duration::from_secs(1);

/// What can be done with a spool.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum SpoolCommand {
    /// Lists the webhooks in the spool, a line each, the oldest first, without their bodies
    #[command(after_help = "Example: ingest spool list")]
    List {
        /// Write JSON, an object a line
        #[arg(long)]
        json: bool,
    },
    /// Publishes the webhooks in the spool to RabbitMQ, and deletes each one after its confirm
    #[command(after_help = "Example: ingest spool drain")]
    Drain {
        /// Write JSON, an object a line
        #[arg(long)]
        json: bool,
    },
    /// Prints the webhooks in the spool with their bodies, as JSON, an object a line
    #[command(after_help = "Example: ingest spool export > spool.jsonl")]
    Export,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The spool can't be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The folder has no spool, which isn't the same as an empty spool.
    #[error("SPOOL_DIR: {path} has no spool: is it the folder of the ingest that is gone?", path = .0.display())]
    NoSpool(PathBuf),
    /// The spool can't be read.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// Standard output can't be written.
    #[error("can't write")]
    Write(#[from] io::Error),
    /// The metrics are defined wrongly, a defect of ours.
    #[error("can't define the metrics")]
    Metrics(#[from] prometheus::Error),
    /// RabbitMQ hasn't confirmed everything.
    #[error(
        "{0} webhooks are still in the spool: for {STALL_TIMEOUT:?} RabbitMQ took nothing of a tenant, or the disk can't delete what is published (see above)"
    )]
    Left(u64),
}

impl CommandError {
    /// Whether the reader of the output, such as `head`, has stopped reading.
    #[must_use]
    pub fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Write(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// Runs a command.
pub async fn run(command: SpoolCommand, settings: &Settings) -> Result<(), CommandError> {
    let folder = &settings.spool_dir;
    // A file that was set aside as damaged is a spool, too.
    if !folder.join(format::FILE).exists() && aside::uncopied(folder).unwrap_or_default().is_empty() {
        return Err(CommandError::NoSpool(folder.clone()));
    }
    match command {
        SpoolCommand::List { json: true } => write_all(folder, |record| about(record).to_string()),
        SpoolCommand::List { json: false } => list(folder),
        SpoolCommand::Export => write_all(folder, |record| in_full(record).to_string()),
        SpoolCommand::Drain { json } => drain(settings, json).await,
    }
}

fn list(folder: &Path) -> Result<(), CommandError> {
    let mut table = Table::new(COLUMNS);
    let mut is_empty = true;
    write_all(folder, |record| {
        is_empty = false;
        table.row(&cells(record))
    })?;
    if is_empty {
        writeln!(io::stdout(), "{}", table::NONE)?;
    }
    Ok(())
}

fn write_all(folder: &Path, mut line: impl FnMut(&Record) -> String) -> Result<(), CommandError> {
    let mut out = io::stdout().lock();
    // The damaged file was set aside, and there is no new one yet.
    if folder.join(format::FILE).exists() {
        let mut pages = Pages::open(folder)?;
        while let Some(records) = pages.next()? {
            for record in records {
                writeln!(out, "{}", line(&record))?;
            }
        }
    }
    for damaged in aside::uncopied(folder)? {
        eprintln!("{}: what can be read of it is copied by `ingest spool drain`", damaged.display());
    }
    Ok(())
}

/// The columns of a list, as the worker's are.
const COLUMNS: [Column; 6] = [
    Column::text("RECEIVED AT", 24),
    Column::text("TENANT", 10),
    Column::text("REASON", 18),
    Column::text("EVENT TYPE", 25),
    Column::text("EVENT KEY", 36),
    Column::number("BYTES", 7),
];

fn cells(record: &Record) -> [String; 6] {
    let Metadata { tenant, received_at_ms, key, event_type, evidence, .. } = &record.webhook.metadata;
    let reason = evidence.as_ref().map_or("-", |evidence| &evidence.reason);
    let (received_at, bytes) = (rfc3339(*received_at_ms), record.webhook.body.len().to_string());
    [received_at, tenant.clone(), reason.to_owned(), event_type.clone(), key.clone(), bytes]
}

/// What is known of a record, under the names that the worker's commands have for it.
fn about(record: &Record) -> Value {
    let Metadata { tenant, stream, received_at_ms, key, event_type, evidence, .. } = &record.webhook.metadata;
    json!({
        "record": record.id,
        "tenant": tenant,
        "key": key,
        "event_type": event_type,
        "reason": evidence.as_ref().map(|evidence| &evidence.reason),
        "stream": stream,
        "received_at": rfc3339(*received_at_ms),
        "bytes": record.webhook.body.len(),
    })
}

fn in_full(record: &Record) -> Value {
    let mut shown = about(record);
    shown["headers"] = json!(record.webhook.metadata);
    match std::str::from_utf8(&record.webhook.body) {
        Ok(body) => shown["body"] = body.into(),
        Err(_) => shown["body_base64"] = STANDARD.encode(&record.webhook.body).into(),
    }
    shown
}

async fn drain(settings: &Settings, json: bool) -> Result<(), CommandError> {
    let metrics = Arc::new(Metrics::new(settings.tenants.keys().map(String::as_str))?);
    let durable = crate::durable(settings, &metrics)?;
    durable.spool().opened().await?;
    let before = durable.spool().to_be_published();
    let is_empty = drain::to_the_end(&durable, settings.partitions, STALL_TIMEOUT).await;
    durable.close(LAST_CONFIRMS_TIMEOUT).await;
    let left = durable.spool().to_be_published();
    let published = before.saturating_sub(left);
    let told = if json {
        json!({"published": published, "left": left}).to_string()
    } else {
        format!("{published} of {before} published, {left} left")
    };
    writeln!(io::stdout(), "{told}")?;
    if is_empty { Ok(()) } else { Err(CommandError::Left(left)) }
}
