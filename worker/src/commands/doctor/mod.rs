//! `worker doctor`: checks what `--check` can't know about the servers, the machine and the network.
//!
//! Probes gather facts, each within a deadline; [`judge`] decides what follows from the facts, without I/O.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use futures_util::future::join_all;
use serde_json::json;
use shared::env::Env;
use shared::table::{Column, Table};

use super::address::HttpAddress;
use super::{CommandError, say};
use crate::settings::Settings;

pub mod facts;
pub mod judge;
mod machine;
mod mongodb;
mod rabbitmq;

use facts::Facts;
use judge::{Finding, Verdict};

/// What to check.
#[derive(Debug, Args)]
#[command(after_help = "Example: worker doctor --url https://hooks.example.com")]
pub struct Arguments {
    /// The public URL of ingest: check whether this machine reaches it
    #[arg(long, value_name = "URL", value_parser = HttpAddress::argument)]
    url: Option<HttpAddress>,
    /// Write JSON, an object a line
    #[arg(long)]
    json: bool,
}

/// Runs the command. It changes nothing, but for a write to the collection `penstock_probe` and a file in
/// `SPOOL_DIR`.
pub async fn run(arguments: Arguments, mut env: Env, out: &mut impl Write) -> Result<(), CommandError> {
    let settings = Settings::read_from(&mut env);
    let spool = PathBuf::from(env.text("SPOOL_DIR").unwrap_or_else(|| "spool".to_owned()));
    let settings = env.finish(settings)?;
    let findings = judge::all(&Box::pin(gather(&arguments, &settings, spool)).await);
    let mut table = Table::new(COLUMNS);
    for finding in &findings {
        say(out, if arguments.json { json!(finding).to_string() } else { rows(&mut table, finding) })?;
    }
    match findings.iter().filter(|finding| finding.verdict == Verdict::Act).count() {
        0 => Ok(()),
        count => Err(CommandError::Incomplete(format!(
            "{count} of {} findings need somebody to act",
            findings.len()
        ))),
    }
}

async fn gather(arguments: &Arguments, settings: &Settings, spool: PathBuf) -> Facts {
    let tenants = settings.tenants.iter().map(|tenant| mongodb::look(tenant, settings));
    let (rabbitmq, management, tenants, spool, url) = tokio::join!(
        rabbitmq::look(settings),
        rabbitmq::look_into_management(settings),
        join_all(tenants),
        machine::sync_times(spool),
        machine::ask(arguments.url.as_ref()),
    );
    Facts { rabbitmq, management, tenants, spool, url }
}

const COLUMNS: [Column; 3] = [Column::text("VERDICT", 7), Column::text("WHAT", 28), Column::text("FOUND", 0)];

/// The finding, and below it what to do.
fn rows(table: &mut Table<3>, finding: &Finding) -> String {
    let Finding { verdict, subject, found, advice } = finding;
    let found = table.row(&[verdict.word(), subject, found]);
    match advice {
        Some(advice) => found + "\n" + &table.row(&["", "", advice]),
        None => found,
    }
}
