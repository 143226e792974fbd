//! What is told of a rebuild.

use std::io::Write;

use clap::Args;
use serde::Serialize;
use serde_json::json;

use super::changes;
use crate::commands::{CommandError, printable, say};
use crate::project::table::Change;

/// The result.
#[derive(Debug, Default, Serialize)]
pub struct Rebuilt {
    /// The tenant.
    pub tenant: String,
    /// Whether everything is left as it is.
    pub dry_run: bool,
    /// Events that were chosen, where not all documents are meant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chosen: Option<usize>,
    /// Events in the ledger that concern the documents that are meant.
    pub events: usize,
    /// Of these, the events that `worker backfill` has brought, where all documents are meant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backfilled: Option<usize>,
    /// Entries of the ledger that can't be read.
    pub unreadable: usize,
    /// Documents that were missing.
    pub inserted: usize,
    /// Documents that were wrong.
    pub updated: usize,
    /// What could not be rebuilt.
    pub failed: Vec<Failed>,
}

/// Events whose documents MongoDB doesn't take.
#[derive(Debug, Serialize)]
pub struct Failed {
    /// One of them.
    pub event_key: String,
    /// How many there are.
    pub events: usize,
    /// Why.
    pub error: String,
}

/// How the answer is written.
#[derive(Args, Clone, Copy, Debug)]
pub struct Format {
    /// With --dry-run, show no values, but names of fields: for output that gets into a log, as that of a
    /// Job. Values are what customers wrote, their names and phones
    #[arg(long, requires = "dry_run")]
    names_only: bool,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// Where changes are printed, as they are found.
pub struct Answer<'a, W> {
    out: &'a mut W,
    format: Format,
    said: Result<(), CommandError>,
}

impl<'a, W: Write> Answer<'a, W> {
    /// An answer, for people or for programs.
    pub fn new(format: Format, out: &'a mut W) -> Self {
        Self { out, format, said: Ok(()) }
    }

    /// Tells what would change.
    pub fn tell(&mut self, changes: &[(String, Change)]) {
        for (collection, change) in changes {
            if self.said.is_ok() {
                self.said = self.tell_one(collection, change);
            }
        }
    }

    fn tell_one(&mut self, collection: &str, change: &Change) -> Result<(), CommandError> {
        let Format { names_only, json } = self.format;
        let lines = match (names_only, json) {
            (false, true) => return say(self.out, changes::as_json(collection, change)),
            (true, true) => return say(self.out, changes::names_as_json(collection, change)),
            (false, false) => changes::as_lines(collection, change),
            (true, false) => vec![changes::names_as_line(collection, change)],
        };
        lines.iter().try_for_each(|line| say(self.out, printable(line)))
    }

    /// Whether nobody reads it any more.
    pub fn is_unread(&self) -> bool {
        self.said.is_err()
    }

    /// Tells what came of it. Fails if something could not be written.
    pub fn end(self, rebuilt: &Rebuilt) -> Result<(), CommandError> {
        self.said?;
        if self.format.json {
            return say(self.out, json!(rebuilt));
        }
        say(self.out, summary(rebuilt))?;
        if rebuilt.unreadable > 0 {
            say(self.out, format!("  {} entries of the ledger can't be read", rebuilt.unreadable))?;
        }
        for Failed { event_key, events, error } in &rebuilt.failed {
            let line = format!("  {events} events, {event_key} among them, are left out: {error}");
            say(self.out, printable(&line))?;
        }
        Ok(())
    }
}

fn summary(rebuilt: &Rebuilt) -> String {
    let Rebuilt { tenant, dry_run, chosen, events, backfilled, inserted, updated, .. } = rebuilt;
    let would = if *dry_run { "would be " } else { "" };
    let events = match chosen {
        Some(chosen) => format!("{chosen} events chosen, {events} with all that share documents"),
        None => format!("{events} events ({} of them backfilled)", backfilled.unwrap_or_default()),
    };
    format!("{tenant}: {events}, {inserted} documents {would}added, {updated} {would}changed")
}
