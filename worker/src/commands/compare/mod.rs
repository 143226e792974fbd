//! `worker compare`: two databases that got the same webhooks, document by document. Reads only.
//!
//! - `read`: pages of documents, and their partners in the other database.
//! - `pair`: in which fields two documents differ. Pure.
//! - `documented`: in which of them Penstock differs from the bridge on purpose. Pure.
//! - `tally`: what was found. Pure.
//!
//! Each page of one database is looked up in the other by what identifies its documents. So memory is bounded
//! by a page, and what one of them wrote just before the span isn't missing.

use std::io::Write;
use std::time::Duration;

use clap::Args;
use mongodb::bson::{DateTime, RawDocument};
use serde_json::json;
use shared::env::Env;

use super::backfill::parse_moment;
use super::rebuild::ledger::before;
use super::{CommandError, parse_duration, say};
use crate::settings::{Purpose, Settings, Tenant};
use crate::store::Store;
use crate::store::failure::Failure;

mod documented;
pub mod pair;
pub mod read;
pub mod tally;

use pair::Bridge;
use read::{Kind, Side, Span};
use tally::Tally;

/// What to compare.
#[derive(Debug, Args)]
#[command(after_help = "Example: worker compare --tenant faster --database faster --since 2026-11-20T08:00Z")]
pub struct Arguments {
    /// The tenant whose database is the first
    #[arg(long, value_name = "TENANT")]
    tenant: String,
    #[command(flatten)]
    other: Other,
    /// Only what was written from this moment on, such as 2026-11-20T08:00Z. Counts of conversations that
    /// began before aren't compared [default: all]
    #[arg(long, value_name = "TIME", value_parser = parse_moment)]
    since: Option<i64>,
    /// What was written within this time isn't compared: the other database may not have it yet
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = parse_duration)]
    settle: Duration,
    /// Ids to show of each finding, at most
    #[arg(long, value_name = "NUMBER", default_value_t = 10)]
    examples: usize,
    /// Write JSON, an object per collection
    #[arg(long)]
    json: bool,
}

/// The second database.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Other {
    /// The second is this database, in the tenant's MongoDB
    #[arg(long, value_name = "NAME")]
    database: Option<String>,
    /// The second is this tenant's
    #[arg(long, value_name = "TENANT")]
    with: Option<String>,
}

/// Why two databases can't be compared.
#[derive(Debug, thiserror::Error)]
pub enum ComparisonError {
    /// A database has nothing to compare.
    #[error("the database {0:?} has no collection of Penstock's or the bridge's: is its name right?")]
    Empty(String),
    /// There is only one.
    #[error("this is the same database")]
    Same,
}

/// Runs the command.
pub async fn run(arguments: Arguments, env: Env, out: &mut impl Write) -> Result<(), CommandError> {
    let mut settings = Settings::read(env)?;
    settings.purpose = Purpose::Console;
    let [first, second] = sides(&arguments, &settings).await?;
    let Arguments { since, settle, examples, json, .. } = arguments;
    let span = Span { since: since.map(DateTime::from_millis), until: before(DateTime::now(), settle) };
    let comparison = Comparison { sides: [&first, &second], span, examples };
    let mut problems = 0;
    for kind in Kind::ALL {
        let tally = comparison.of(kind).await?;
        problems += tally.problems();
        if json {
            say(out, json!(tally))?;
        } else {
            tally.lines([&first.name, &second.name]).iter().try_for_each(|line| say(out, line))?;
        }
    }
    match problems {
        0 => Ok(()),
        _ => Err(CommandError::Incomplete(format!("{problems} documents are missing or different"))),
    }
}

/// The two databases, by names that tell them apart.
async fn sides(arguments: &Arguments, settings: &Settings) -> Result<[Side; 2], CommandError> {
    let tenant = |name: &String| {
        let known = settings.tenants.iter().find(|known| known.name == *name).cloned();
        known.ok_or_else(|| CommandError::UnknownTenant(name.clone()))
    };
    let first = tenant(&arguments.tenant)?;
    let second = match (&arguments.other.with, &arguments.other.database) {
        (Some(name), _) => tenant(name)?,
        // One of them is given.
        (None, database) => Tenant { database: database.clone().unwrap_or_default(), ..first.clone() },
    };
    if (&first.mongo_uri, &first.database) == (&second.mongo_uri, &second.database) {
        return Err(ComparisonError::Same.into());
    }
    let by_database = first.database != second.database;
    let name = |tenant: &Tenant| if by_database { tenant.database.clone() } else { tenant.name.clone() };
    let first = Side::open(name(&first), Store::open(&first, settings).await?).await?;
    let second = Side::open(name(&second), Store::open(&second, settings).await?).await?;
    for side in [&first, &second] {
        if !side.has_any() {
            return Err(ComparisonError::Empty(side.name.clone()).into());
        }
    }
    Ok([first, second])
}

struct Comparison<'a> {
    sides: [&'a Side; 2],
    span: Span,
    examples: usize,
}

impl Comparison<'_> {
    async fn of(&self, kind: Kind) -> Result<Tally, Failure> {
        let is_compared = kind != Kind::Calls || !self.sides.iter().any(|side| side.is_the_bridges());
        let mut tally = Tally::new(kind, is_compared, self.examples);
        if is_compared {
            for place in [0, 1] {
                self.look_up(kind, place, &mut tally).await?;
            }
        }
        Ok(tally)
    }

    /// Looks the documents of one database up in the other.
    async fn look_up(&self, kind: Kind, place: usize, tally: &mut Tally) -> Result<(), Failure> {
        let (here, there) = (self.sides[place], self.sides[1 - place]);
        let mut found = here.documents(kind, &self.span).await?;
        loop {
            let mut page = read::page(&mut found).await?;
            if page.is_empty() {
                return Ok(());
            }
            tally.documents[place] += page.len() as u64;
            let partners = there.partners(kind, &page.keys().collect::<Vec<_>>()).await?;
            for partner in partners {
                let Some(document) = page.remove(&read::key(&partner)) else { continue };
                // Those of the span of both are compared when the first is gone through.
                if place == 0 {
                    self.take_pair(kind, &document, &partner, tally);
                } else if !self.span.has(kind, &partner) {
                    self.take_pair(kind, &partner, &document, tally);
                }
            }
            for document in page.values() {
                self.take_single(kind, place, document, tally);
            }
        }
    }

    fn take_pair(&self, kind: Kind, first: &RawDocument, second: &RawDocument, tally: &mut Tally) {
        if [first, second].into_iter().any(|document| self.span.is_too_new(kind, document)) {
            tally.too_new += 1;
            return;
        }
        let is_whole = [first, second].into_iter().all(|document| self.span.has_whole(kind, document));
        tally.add_pair(first, pair::compare(first, second, self.bridge(), is_whole));
    }

    /// Takes in a document that only one of the two has.
    fn take_single(&self, kind: Kind, place: usize, document: &RawDocument, tally: &mut Tally) {
        let is_penstocks = self.bridge() == [Bridge::Second, Bridge::First][place];
        if self.span.is_too_new(kind, document) {
            tally.too_new += 1;
        } else if is_penstocks && kind == Kind::Conversations && documented::is_ours_alone(document) {
            tally.add_ours_alone(document);
        } else {
            tally.add_missing(place, document);
        }
    }

    fn bridge(&self) -> Bridge {
        match self.sides.map(Side::is_the_bridges) {
            [true, false] => Bridge::First,
            [false, true] => Bridge::Second,
            _ => Bridge::None,
        }
    }
}
