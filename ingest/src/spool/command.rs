//! `ingest spool`: for the spool of an ingest that doesn't run any more.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Subcommand;
use serde_json::json;

use super::folder::OpenError;
use super::format::Record;
use super::pages::Pages;
use super::{SpoolError, aside, drain};
use crate::metrics::Metrics;
use crate::settings::Settings;

/// A drain that gets nothing through for so long gives up.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is in flight then gets this long to be confirmed.
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);

/// What can be done with a spool.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum SpoolCommand {
    /// Lists the webhooks in the spool, a line each, without their bodies.
    List,
    /// Publishes the webhooks in the spool to RabbitMQ, and deletes each when it is confirmed.
    Drain,
    /// Writes the webhooks in the spool to standard output, one JSON object a line, with their bodies.
    Export,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The spool can't be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The spool can't be read.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// Standard output can't be written.
    #[error("can't write")]
    Write(#[from] io::Error),
    /// The metrics are defined wrongly, a defect of ours.
    #[error("can't define the metrics")]
    Metrics(#[from] prometheus::Error),
    /// Not everything went through.
    #[error("{0} webhooks are still in the spool, since RabbitMQ took nothing of a tenant for {PATIENCE:?}")]
    Left(u64),
}

/// Runs a command.
pub async fn run(command: SpoolCommand, settings: &Settings) -> Result<(), CommandError> {
    match command {
        SpoolCommand::List => write_all(settings, list_line),
        SpoolCommand::Export => write_all(settings, export_line),
        SpoolCommand::Drain => drain(settings).await,
    }
}

fn write_all(settings: &Settings, line: impl Fn(&Record) -> String) -> Result<(), CommandError> {
    let mut out = io::stdout().lock();
    let mut pages = Pages::open(&settings.spool_dir)?;
    while let Some(records) = pages.next()? {
        for record in records {
            writeln!(out, "{}", line(&record))?;
        }
    }
    for damaged in aside::uncopied(&settings.spool_dir)? {
        eprintln!("{}: what can be read of it is copied by `ingest spool drain`", damaged.display());
    }
    Ok(())
}

fn list_line(record: &Record) -> String {
    let (metadata, bytes) = (&record.webhook.metadata, record.webhook.body.len());
    json!({"record": record.id, "bytes": bytes, "facts": metadata}).to_string()
}

fn export_line(record: &Record) -> String {
    let metadata = &record.webhook.metadata;
    match std::str::from_utf8(&record.webhook.body) {
        Ok(body) => json!({"facts": metadata, "body": body}).to_string(),
        Err(_) => {
            json!({"facts": metadata, "body_base64": STANDARD.encode(&record.webhook.body)}).to_string()
        }
    }
}

async fn drain(settings: &Settings) -> Result<(), CommandError> {
    let metrics = Arc::new(Metrics::new(settings.tenants.keys().map(String::as_str))?);
    let durable = crate::durable(settings, &metrics)?;
    durable.spool().opened().await?;
    let before = durable.spool().to_be_published();
    let is_empty = drain::to_the_end(&durable, settings.partitions, PATIENCE).await;
    durable.close(CLOSE_PATIENCE).await;
    let left = durable.spool().to_be_published();
    println!("published {} webhooks, {left} left", before.saturating_sub(left));
    if is_empty { Ok(()) } else { Err(CommandError::Left(left)) }
}
