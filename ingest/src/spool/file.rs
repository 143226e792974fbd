//! The spool's file: SQLite with a write-ahead log, fsynced at every commit.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytes::Bytes;
use rusqlite::{Connection, ErrorCode, OpenFlags, params};
use sha2::{Digest, Sha256};
use shared::telemetry::chain;
use time::OffsetDateTime;
use time::format_description::well_known::Iso8601;
use tracing::{error, warn};

use super::SpoolError;
use crate::webhook::{Facts, Webhook};

/// Room that is kept for deleting: on a full disk SQLite can't even do that, since its log grows. In bytes.
const RESERVE_BYTES: u64 = 4 << 20;
/// What SQLite's log may take on top of the records, in bytes: appends stop while there is still room for it.
const LOG_BYTES: u64 = 4 << 20;
/// What a record takes besides body and facts, roughly, in bytes.
const RECORD_OVERHEAD: u64 = 64;
/// The spool's file, within its folder.
pub const FILE: &str = "spool.db";

/// Why the spool can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("another process uses the spool in {path}: each ingest needs a SPOOL_DIR of its own", path = .0.display())]
    InUse(PathBuf),
    /// The folder can't be used.
    #[error("the spool in {path} can't be used", path = .path.display())]
    Io {
        /// The folder or file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// SQLite can't use it, though it isn't damaged.
    #[error("the spool in {path} can't be used", path = .path.display())]
    Sqlite {
        /// The folder.
        path: PathBuf,
        /// Why not.
        source: rusqlite::Error,
    },
}

/// A webhook in the spool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its place in the order.
    pub id: i64,
    /// The webhook.
    pub webhook: Webhook,
}

/// How much is in the spool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Number of records.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// The file, and a lock on its folder.
pub struct File {
    folder: PathBuf,
    max_bytes: u64,
    connection: Connection,
    size: Size,
    oldest_ms: i64,
    corruptions: u64,
    _lock: fs::File,
}

impl File {
    /// Opens the spool in a folder, which is made if it is missing. A damaged file is set aside, and what can
    /// still be read of it is taken over.
    pub fn open(folder: &Path, max_bytes: u64) -> Result<Self, OpenError> {
        let io = |source| OpenError::Io { path: folder.to_owned(), source };
        fs::create_dir_all(folder).map_err(io)?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(folder.join("lock"))
            .map_err(io)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(OpenError::InUse(folder.to_owned())),
            Err(fs::TryLockError::Error(source)) => return Err(io(source)),
        }
        keep_reserve(folder);
        let sqlite = |source| OpenError::Sqlite { path: folder.to_owned(), source };
        let (connection, corruptions) = match connect(folder) {
            Ok(connection) => (connection, 0),
            Err(error) if is_corrupt(&error) => (set_aside(folder, &error)?, 1),
            Err(error) => return Err(sqlite(error)),
        };
        let mut file = Self {
            folder: folder.to_owned(),
            max_bytes,
            connection,
            size: Size::default(),
            oldest_ms: 0,
            corruptions,
            _lock: lock,
        };
        file.measure().map_err(sqlite)?;
        Ok(file)
    }

    /// Number of records and their bytes.
    #[must_use]
    pub fn size(&self) -> Size {
        self.size
    }

    /// When the oldest record was received, in milliseconds since 1970; 0 if there is none.
    #[must_use]
    pub fn oldest_ms(&self) -> i64 {
        self.oldest_ms
    }

    /// How often a damaged file was set aside.
    #[must_use]
    pub fn corruptions(&self) -> u64 {
        self.corruptions
    }

    /// Appends webhooks, all or none, and returns when they are on disk.
    pub fn append<'a>(&mut self, webhooks: impl Iterator<Item = &'a Webhook>) -> Result<(), SpoolError> {
        let rows: Vec<Row> = webhooks.map(Row::of).collect();
        let bytes: u64 = rows.iter().map(Row::bytes).sum();
        self.check_room(bytes)?;
        if let Err(error) = self.insert(&rows) {
            let failure = self.failed(&error);
            // A damaged file has been replaced by a new one.
            let retried = if is_corrupt(&error) { self.insert(&rows).is_ok() } else { false };
            if !retried {
                return Err(failure);
            }
        }
        if self.size.records == 0 {
            self.oldest_ms = rows.first().map_or(0, |row| row.received_at_ms);
        }
        self.size.records += rows.len() as u64;
        self.size.bytes += bytes;
        Ok(())
    }

    fn insert(&mut self, rows: &[Row]) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction()?;
        for row in rows {
            row.insert(&transaction)?;
        }
        transaction.commit()
    }

    /// The oldest records behind the one called `id`. What can't be read is set aside.
    pub fn after(&mut self, id: i64, limit: usize) -> Vec<Record> {
        match read(&self.connection, "id > ?1 ORDER BY id LIMIT ?2", id, limit) {
            Ok(rows) => {
                let (good, bad): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.1.is_some());
                let bad: Vec<i64> = bad.into_iter().map(|row| row.0).collect();
                if !bad.is_empty() {
                    self.set_records_aside(&bad);
                }
                good.into_iter().filter_map(|(id, webhook)| Some(Record { id, webhook: webhook? })).collect()
            }
            Err(error) => {
                let _ = self.failed(&error);
                Vec::new()
            }
        }
    }

    /// Deletes records. On a full disk the reserve makes room for that.
    pub fn delete(&mut self, ids: &[i64]) -> Result<(), SpoolError> {
        if let Err(error) = self.remove(ids) {
            if error.sqlite_error_code() != Some(ErrorCode::DiskFull) {
                return Err(self.failed(&error));
            }
            release_reserve(&self.folder);
            self.remove(ids).map_err(|error| self.failed(&error))?;
        }
        self.measure().map_err(|error| self.failed(&error))?;
        if self.size.records == 0 {
            self.give_room_back();
        }
        Ok(())
    }

    fn remove(&mut self, ids: &[i64]) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction()?;
        {
            let mut delete = transaction.prepare_cached("DELETE FROM records WHERE id = ?1")?;
            for id in ids {
                delete.execute([id])?;
            }
        }
        transaction.commit()
    }

    /// Gives the room of deleted records back to the disk.
    fn give_room_back(&mut self) {
        let shrunk =
            self.connection.execute_batch("PRAGMA incremental_vacuum; PRAGMA wal_checkpoint(TRUNCATE)");
        if let Err(error) = shrunk {
            let _ = self.failed(&error);
        }
        keep_reserve(&self.folder);
    }

    /// Whether a record could be appended.
    pub fn check(&mut self) -> Result<(), SpoolError> {
        self.check_room(0)?;
        self.connection
            .execute("UPDATE writable SET checks = checks + 1", [])
            .map_err(|error| self.failed(&error))?;
        keep_reserve(&self.folder);
        Ok(())
    }

    /// Bytes that can still be appended, by `SPOOL_MAX_BYTES` and by the disk.
    pub fn room(&self) -> u64 {
        let free = free_bytes(&self.folder).unwrap_or_default().saturating_sub(LOG_BYTES);
        self.max_bytes.saturating_sub(self.size.bytes).min(free)
    }

    fn check_room(&self, bytes: u64) -> Result<(), SpoolError> {
        if self.size.bytes + bytes > self.max_bytes || self.size.bytes >= self.max_bytes {
            return Err(SpoolError::Full);
        }
        match free_bytes(&self.folder) {
            Ok(free) if free < bytes + LOG_BYTES => Err(SpoolError::DiskFull),
            Ok(_) => Ok(()),
            Err(error) => Err(SpoolError::Failed(error.to_string())),
        }
    }

    fn measure(&mut self) -> rusqlite::Result<()> {
        let (records, bytes): (i64, i64) =
            self.connection
                .query_row("SELECT records, bytes FROM totals", [], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let positive = |number: i64| u64::try_from(number).unwrap_or_default();
        self.size = Size { records: positive(records), bytes: positive(bytes) };
        let oldest = "SELECT coalesce((SELECT received_at_ms FROM records ORDER BY id LIMIT 1), 0)";
        self.oldest_ms = self.connection.query_row(oldest, [], |row| row.get(0))?;
        Ok(())
    }

    /// Draws the consequences of a failure, and says what callers need to know of it.
    fn failed(&mut self, error: &rusqlite::Error) -> SpoolError {
        if error.sqlite_error_code() == Some(ErrorCode::DiskFull) {
            return SpoolError::DiskFull;
        }
        if is_corrupt(error) {
            self.corruptions += 1;
            // Only one connection may have the file.
            let in_memory = Connection::open_in_memory();
            match in_memory.map(|connection| drop(std::mem::replace(&mut self.connection, connection))) {
                Ok(()) => match set_aside(&self.folder, error) {
                    Ok(connection) => {
                        self.connection = connection;
                        if let Err(error) = self.measure() {
                            error!(error = chain(&error), "can't count the records of the spool");
                        }
                    }
                    Err(error) => error!(error = chain(&error), "can't start a new spool"),
                },
                Err(error) => error!(error = chain(&error), "can't close the damaged spool"),
            }
        }
        SpoolError::Failed(chain(error))
    }

    /// Writes records whose checksum is wrong to a file of their own, and forgets them.
    fn set_records_aside(&mut self, ids: &[i64]) {
        let path = dated(&self.folder, "damaged-records");
        let copied = raw(&self.connection, ids).map(|text| fs::write(&path, text));
        match copied {
            Ok(Ok(())) => {
                self.corruptions += 1;
                error!(records = ids.len(), file = %path.display(), "set damaged records of the spool aside");
                if let Err(error) = self.delete(ids) {
                    error!(error = chain(&error), "damaged records stay in the spool");
                }
            }
            Ok(Err(error)) => error!(error = chain(&error), "can't set damaged records of the spool aside"),
            Err(error) => drop(self.failed(&error)),
        }
    }
}

/// A record as it is in the table.
pub struct Row {
    received_at_ms: i64,
    /// What is known of the webhook, as JSON.
    pub facts: String,
    /// The sender's bytes.
    pub body: Bytes,
}

impl Row {
    /// What is written of a webhook.
    #[must_use]
    pub fn of(webhook: &Webhook) -> Self {
        Self {
            received_at_ms: webhook.facts.received_at_ms,
            // A struct of texts and numbers can always be written as JSON.
            facts: serde_json::to_string(&webhook.facts).unwrap_or_default(),
            body: webhook.body.clone(),
        }
    }

    fn bytes(&self) -> u64 {
        (self.facts.len() + self.body.len()) as u64 + RECORD_OVERHEAD
    }

    /// What its checksum must be.
    #[must_use]
    pub fn checksum(&self) -> Vec<u8> {
        checksum(&self.facts, &self.body)
    }

    fn insert(&self, connection: &Connection) -> rusqlite::Result<()> {
        let insert = "INSERT INTO records (received_at_ms, facts, body, checksum) VALUES (?1, ?2, ?3, ?4)";
        connection.prepare_cached(insert)?.execute(params![
            self.received_at_ms,
            self.facts,
            &self.body[..],
            self.checksum()
        ])?;
        connection
            .prepare_cached("UPDATE totals SET records = records + 1, bytes = bytes + ?1")?
            .execute([i64::try_from(self.bytes()).unwrap_or(i64::MAX)])?;
        Ok(())
    }
}

/// SQLite notices damage to its own structure, but not within a body. The length tells where the body begins.
fn checksum(facts: &str, body: &[u8]) -> Vec<u8> {
    let length = (facts.len() as u64).to_be_bytes();
    let hash = Sha256::new().chain_update(length).chain_update(facts).chain_update(body).finalize();
    hash[..8].to_vec()
}

fn connect(folder: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(folder.join(FILE))?;
    connection.execute_batch(&format!(
        "PRAGMA auto_vacuum = INCREMENTAL;
         PRAGMA journal_mode = WAL;
         PRAGMA synchronous = FULL;
         PRAGMA cache_size = -4096;
         CREATE TABLE IF NOT EXISTS records (
             id INTEGER PRIMARY KEY AUTOINCREMENT,
             received_at_ms INTEGER NOT NULL,
             facts TEXT NOT NULL,
             body BLOB NOT NULL,
             checksum BLOB NOT NULL);
         CREATE TABLE IF NOT EXISTS totals (records INTEGER NOT NULL, bytes INTEGER NOT NULL);
         INSERT INTO totals SELECT 0, 0 WHERE NOT EXISTS (SELECT 1 FROM totals);
         CREATE TABLE IF NOT EXISTS writable (checks INTEGER NOT NULL);
         INSERT INTO writable SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM writable);
         CREATE TRIGGER IF NOT EXISTS count_deleted AFTER DELETE ON records BEGIN
             UPDATE totals SET records = records - 1,
                 bytes = bytes - length(CAST(old.facts AS BLOB)) - length(old.body) - {RECORD_OVERHEAD};
         END;"
    ))?;
    let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if verdict == "ok" { Ok(connection) } else { Err(damaged(verdict)) }
}

fn damaged(verdict: String) -> rusqlite::Error {
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
    rusqlite::Error::SqliteFailure(code, Some(verdict))
}

fn is_corrupt(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// Moves a damaged file away, under a name with the date, and starts a new one with what can be read of it.
fn set_aside(folder: &Path, error: &rusqlite::Error) -> Result<Connection, OpenError> {
    let aside = dated(folder, "corrupt-spool");
    for suffix in ["", "-wal", "-shm"] {
        let from = folder.join(format!("{FILE}{suffix}"));
        let to = PathBuf::from(format!("{}{suffix}", aside.display()));
        match fs::rename(&from, &to) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(OpenError::Io { path: from, source });
            }
            _ => {}
        }
    }
    let sqlite = |source| OpenError::Sqlite { path: folder.to_owned(), source };
    let mut connection = connect(folder).map_err(sqlite)?;
    let saved = salvage(&aside, &mut connection).map_err(sqlite)?;
    error!(error = chain(error), file = %aside.display(), saved, "the spool was damaged and is set aside");
    Ok(connection)
}

/// Copies every record that can be read and whose checksum is right.
fn salvage(aside: &Path, into: &mut Connection) -> rusqlite::Result<usize> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let Ok(damaged) = Connection::open_with_flags(aside, flags) else { return Ok(0) };
    let mut saved = std::collections::BTreeMap::new();
    // From both ends, as far as the damage in between.
    for (order, start) in
        [("id > ?1 ORDER BY id LIMIT ?2", i64::MIN), ("id < ?1 ORDER BY id DESC LIMIT ?2", i64::MAX)]
    {
        let mut at = start;
        while let Ok(rows) = read(&damaged, order, at, 1) {
            let Some((id, webhook)) = rows.into_iter().next() else { break };
            at = id;
            if let Some(webhook) = webhook {
                saved.insert(id, webhook);
            }
        }
    }
    let transaction = into.transaction()?;
    for webhook in saved.values() {
        Row::of(webhook).insert(&transaction)?;
    }
    transaction.commit()?;
    Ok(saved.len())
}

/// The id of a record, and what it holds.
pub type Read = (i64, Option<Webhook>);

/// Reads records; none stands for one whose checksum is wrong.
pub fn read(connection: &Connection, which: &str, id: i64, limit: usize) -> rusqlite::Result<Vec<Read>> {
    let query = format!("SELECT id, facts, body, checksum FROM records WHERE {which}");
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut query = connection.prepare_cached(&query)?;
    let rows = query.query_map(params![id, limit], |row| {
        let (facts, body): (Vec<u8>, Vec<u8>) = (bytes_of(row, 1)?, bytes_of(row, 2)?);
        let stored: Vec<u8> = bytes_of(row, 3)?;
        Ok((row.get(0)?, webhook(&facts, body, &stored)))
    })?;
    rows.collect()
}

/// The bytes of a column, whatever type damage has given it.
fn bytes_of(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<Vec<u8>> {
    Ok(match row.get_ref(column)? {
        rusqlite::types::ValueRef::Text(bytes) | rusqlite::types::ValueRef::Blob(bytes) => bytes.to_vec(),
        _ => Vec::new(),
    })
}

/// The webhook of which this was written; none if the checksum is wrong.
#[must_use]
pub fn webhook(facts: &[u8], body: Vec<u8>, stored: &[u8]) -> Option<Webhook> {
    let facts = std::str::from_utf8(facts).ok()?;
    if checksum(facts, &body) != stored {
        return None;
    }
    let facts: Facts = serde_json::from_str(facts).ok()?;
    Some(Webhook { facts, body: body.into() })
}

/// Damaged records for the eyes of a person: a line of facts, a line of body, each.
fn raw(connection: &Connection, ids: &[i64]) -> rusqlite::Result<Vec<u8>> {
    let mut text = Vec::new();
    let mut query = connection.prepare_cached("SELECT facts, body FROM records WHERE id = ?1")?;
    for id in ids {
        let (facts, body) = query.query_row([id], |row| Ok((bytes_of(row, 0)?, bytes_of(row, 1)?)))?;
        text.extend([facts, body].join(&b'\n'));
        text.push(b'\n');
    }
    Ok(text)
}

fn dated(folder: &Path, what: &str) -> PathBuf {
    let now = OffsetDateTime::from(SystemTime::now());
    let date = now.replace_nanosecond(0).unwrap_or(now).format(&Iso8601::DEFAULT).unwrap_or_default();
    let date: String = date.chars().filter(char::is_ascii_alphanumeric).take(15).collect();
    // Random, since two can happen within a second.
    folder.join(format!("{what}-{date}Z-{:08x}", fastrand::u32(..)))
}

fn free_bytes(folder: &Path) -> rustix::io::Result<u64> {
    let disk = rustix::fs::statvfs(folder)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

fn reserve(folder: &Path) -> PathBuf {
    folder.join("reserve")
}

/// Takes room on disk that can be given up when it is needed for deleting.
fn keep_reserve(folder: &Path) {
    let path = reserve(folder);
    let is_there = fs::metadata(&path).is_ok_and(|file| file.len() >= RESERVE_BYTES);
    let has_room = || free_bytes(folder).is_ok_and(|free| free > 2 * (RESERVE_BYTES + LOG_BYTES));
    if is_there || !has_room() {
        return;
    }
    let zeros = vec![0; usize::try_from(RESERVE_BYTES).unwrap_or_default()];
    let written =
        fs::File::create(&path).and_then(|mut file| file.write_all(&zeros).and_then(|()| file.sync_all()));
    if let Err(error) = written {
        warn!(error = chain(&error), "can't reserve room for the spool");
        release_reserve(folder);
    }
}

fn release_reserve(folder: &Path) {
    let _ = fs::remove_file(reserve(folder));
}
