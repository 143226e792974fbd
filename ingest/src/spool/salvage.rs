//! What can still be read of a damaged file is copied into the new one.
//!
//! Copying takes small steps, and each stores its position in the new file, in the transaction of the
//! records. So the copy continues wherever a process was killed.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, params};
use shared::telemetry::chain;
use tracing::{error, warn};

use super::aside::{mark_copied, uncopied};
use super::format::{self, Row, is_unreadable};
use crate::webhook::Webhook;

/// Most records copied in a step.
const STEP: usize = 256;
/// Where damage hides the number of the last record, this many are looked for behind the first.
const GUESSED_RECORDS: i64 = 1 << 20;
/// Longest time to look for single records in a step, besides the last one: meanwhile nobody can append.
const STEP_TIME: Duration = Duration::from_millis(50);

/// A damaged file that is being copied.
pub struct Damaged {
    path: PathBuf,
    connection: Connection,
    // The last record that was looked at, and the last one that there may be.
    at: i64,
    last: i64,
    records: u64,
    copied: usize,
    unreadable: u64,
}

impl Damaged {
    /// Opens a damaged file, to continue behind what was copied of it into `to` before.
    pub fn open(path: &Path, to: &Connection) -> rusqlite::Result<Self> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        // Its log stays as it is, so that the file can be opened again and again.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        let (last, records) = (last_record(&connection)?, records(&connection)?);
        let at = copied_up_to(to, &name_of(path))?.unwrap_or(0);
        Ok(Self { path: path.to_owned(), connection, at, last, records, copied: 0, unreadable: 0 })
    }

    /// Records that may still have to be copied, at most.
    pub fn left(&self) -> u64 {
        let numbers = u64::try_from(self.last.saturating_sub(self.at)).unwrap_or_default();
        numbers.min(self.records.saturating_sub(self.copied as u64)).max(1)
    }

    /// Copies some of it; false if that was all. Fails if nothing can be written, and then nothing has
    /// changed.
    pub fn copy_some(&mut self, to: &mut Connection) -> rusqlite::Result<bool> {
        let step = self.read_some()?;
        let transaction = to.transaction()?;
        for webhook in &step.webhooks {
            Row::of(webhook).insert(&transaction)?;
        }
        let progress = "INSERT INTO copied (file, id) VALUES (?1, ?2) ON CONFLICT DO UPDATE SET id = ?2";
        transaction.execute(progress, params![name_of(&self.path), step.at])?;
        transaction.commit()?;
        self.at = step.at;
        self.copied += step.webhooks.len();
        self.unreadable += step.unreadable;
        Ok(self.at < self.last)
    }

    fn read_some(&self) -> rusqlite::Result<Step> {
        match format::read(&self.connection, self.at, STEP) {
            Ok(rows) if rows.is_empty() => Ok(Step { at: self.last, ..Step::default() }),
            Ok(rows) if is_in_order(self.at, &rows, self.last) => {
                let mut step = Step { at: self.at, ..Step::default() };
                for row in rows {
                    step.add(row);
                }
                Ok(step)
            }
            Err(error) if !is_unreadable(&error) => Err(error),
            _ => self.read_one_by_one(),
        }
    }

    /// Past a damaged place: what is behind it is found by its number.
    fn read_one_by_one(&self) -> rusqlite::Result<Step> {
        let (started, mut step) = (Instant::now(), Step { at: self.at, ..Step::default() });
        while step.at < self.last && !step.is_full() && started.elapsed() < STEP_TIME {
            let id = step.at + 1;
            match format::read_one(&self.connection, id) {
                Ok(Some(row)) => step.add(row),
                Ok(None) => step.at = id,
                Err(error) if is_unreadable(&error) => step.add((id, None)),
                Err(error) => return Err(error),
            }
        }
        Ok(step)
    }

    /// Records that everything was copied that can be read.
    pub fn close(self, to: &Connection) -> io::Result<()> {
        let Self { path, connection, copied, unreadable, .. } = self;
        drop(connection);
        let done = mark_copied(&path)?;
        warn!(file = %done.display(), copied, unreadable, "copied what can be read of a damaged spool");
        // Left behind, the row does no harm: no other file gets this name.
        let _ = to.execute("DELETE FROM copied WHERE file = ?1", [name_of(&path)]);
        Ok(())
    }
}

/// The records of one step.
#[derive(Default)]
struct Step {
    webhooks: Vec<Webhook>,
    bytes: usize,
    unreadable: u64,
    at: i64,
}

impl Step {
    fn add(&mut self, (id, webhook): format::Read) {
        self.at = id;
        match webhook {
            Some(webhook) => {
                self.bytes += webhook.body.len();
                self.webhooks.push(webhook);
            }
            None => self.unreadable += 1,
        }
    }

    fn is_full(&self) -> bool {
        self.webhooks.len() >= STEP || self.bytes >= format::PAGE_BYTES
    }
}

/// Whether these are records one behind the other, as far as numbers tell.
fn is_in_order(at: i64, rows: &[format::Read], last: i64) -> bool {
    let ids: Vec<i64> = [at].into_iter().chain(rows.iter().map(|row| row.0)).collect();
    ids.is_sorted_by(|a, b| a < b) && ids.last() <= Some(&last)
}

/// The number of the last record that there may be: SQLite keeps it in two places.
fn last_record(connection: &Connection) -> rusqlite::Result<i64> {
    if let Some(last) = number(connection, "SELECT seq FROM sqlite_sequence WHERE name = 'records'")? {
        return Ok(last);
    }
    if let Some(last) = number(connection, "SELECT id FROM records ORDER BY id DESC LIMIT 1")? {
        return Ok(last);
    }
    let first = number(connection, "SELECT id FROM records ORDER BY id LIMIT 1")?;
    Ok(first.map_or(0, |first| first.saturating_add(GUESSED_RECORDS)))
}

fn records(connection: &Connection) -> rusqlite::Result<u64> {
    let records = number(connection, "SELECT records FROM totals")?;
    Ok(records.and_then(|records| u64::try_from(records).ok()).unwrap_or(u64::MAX))
}

/// A number; none where damage hides it, or the table.
fn number(connection: &Connection, query: &str) -> rusqlite::Result<Option<i64>> {
    match connection.query_row(query, [], |row| row.get(0)).optional() {
        Err(error) if is_unreadable(&error) || error.sqlite_error_code() == Some(ErrorCode::Unknown) => {
            Ok(None)
        }
        Err(rusqlite::Error::InvalidColumnType(..)) => Ok(None),
        found => found,
    }
}

fn copied_up_to(to: &Connection, name: &str) -> rusqlite::Result<Option<i64>> {
    to.query_row("SELECT id FROM copied WHERE file = ?1", [name], |row| row.get(0)).optional()
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Opens all damaged files that aren't copied yet. One that can't be opened for now is tried again at the
/// next start.
pub fn open_all(folder: &Path, to: &Connection) -> Vec<Damaged> {
    let paths = uncopied(folder).unwrap_or_else(|error| {
        error!(error = chain(&error), "can't look for damaged files of the spool");
        Vec::new()
    });
    let open = |path: PathBuf| match Damaged::open(&path, to) {
        Ok(damaged) => {
            warn!(file = %path.display(), records = damaged.left(), "copying what can be read of a damaged spool");
            Some(damaged)
        }
        Err(error) => {
            error!(file = %path.display(), error = chain(&error), "can't open a damaged spool");
            None
        }
    };
    paths.into_iter().filter_map(open).collect()
}
