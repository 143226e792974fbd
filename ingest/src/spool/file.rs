//! The spool's file: appends, reads and deletes records, each change fsynced.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use rusqlite::{Connection, ErrorCode};
use shared::telemetry::chain;
use tracing::error;

use super::folder::{Folder, OpenError};
use super::format::{self, PAGE_BYTES, Record, Row, connect, is_corrupt};
use super::reserve::{self, LOG_BYTES, Room, free_bytes};
use super::salvage::{self, Damaged};
use super::{SpoolError, aside};
use crate::webhook::Webhook;

/// How much is in the spool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Number of records.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Records that were read of a tenant.
#[derive(Debug)]
pub struct Page {
    /// The records, except for damaged ones.
    pub records: Vec<Record>,
    /// The last one that was looked at, good or damaged; none if there was none.
    pub last: Option<i64>,
    /// False if damaged ones could not be set aside.
    pub is_whole: bool,
}

/// Pages of deleted records that are returned to the disk in one step: 4 MiB.
const VACUUM_PAGES: u32 = 1024;
/// Damaged files are copied while the spool has fewer bytes than this: so copying is as fast as RabbitMQ
/// takes the records, and the disk need not hold everything twice.
const COPY_WINDOW: u64 = 16 << 20;

/// The file, within its folder.
pub struct File {
    folder: Arc<Folder>,
    max_bytes: u64,
    connection: Connection,
    size: Size,
    oldest_ms: i64,
    corruptions: u64,
    damaged: VecDeque<Damaged>,
    // The last record that was read. A new file numbers its records from here on, so that no number means two
    // records.
    last_read: i64,
    // The records up to this one have their tenants, as far as they can be read.
    entered_up_to: i64,
    // Damaged records that were copied to a file of their own, and could not be deleted yet.
    records_aside: BTreeSet<i64>,
    // Whether the file may have room of deleted records that the disk could have back.
    may_shrink: bool,
    is_lost: bool,
}

impl File {
    /// Opens the spool in a folder, where it is made if it is missing. A damaged file is set aside.
    /// `last_read` is the last record that this process has read of an earlier file, or 0.
    pub fn open(folder: &Arc<Folder>, max_bytes: u64, last_read: i64) -> Result<Self, OpenError> {
        let path = folder.path();
        reserve::keep(path);
        let io = |source| OpenError::Io { path: path.to_owned(), source };
        let sqlite = |source| OpenError::Sqlite { path: path.to_owned(), source };
        aside::finish_move(path).map_err(io)?;
        let (connection, corruptions) = match connect(path) {
            Ok(connection) => (connection, 0),
            Err(error) if aside::is_due(path, &error) => {
                aside::set_aside(path, &error).map_err(io)?;
                (connect(path).map_err(sqlite)?, 1)
            }
            Err(error) => return Err(sqlite(error)),
        };
        if last_read > 0 {
            format::number_beyond(&connection, last_read).map_err(sqlite)?;
        }
        let damaged = salvage::open_all(path, &connection).into();
        let mut file = Self {
            folder: folder.clone(),
            max_bytes,
            connection,
            size: Size::default(),
            oldest_ms: 0,
            corruptions,
            damaged,
            last_read,
            entered_up_to: i64::MIN,
            records_aside: BTreeSet::new(),
            may_shrink: true,
            is_lost: false,
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

    /// The last record that was read; the drain may still delete it, and those before it.
    #[must_use]
    pub fn last_read(&self) -> i64 {
        self.last_read
    }

    /// How often a damaged file was set aside.
    #[must_use]
    pub fn corruptions(&self) -> u64 {
        self.corruptions
    }

    /// Whether the file was set aside and there is no new one: it has to be opened again.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.is_lost
    }

    /// Records of damaged files that may still have to be copied, at most.
    #[must_use]
    pub fn left_to_copy(&self) -> u64 {
        self.damaged.iter().map(Damaged::left).sum()
    }

    /// Takes a small step of the work that is left with older or damaged files, or with an emptied one; false
    /// if there is none now.
    pub fn catch_up(&mut self) -> Result<bool, SpoolError> {
        Ok(self.copy_some()? || self.enter_tenants()? || self.shrink())
    }

    /// Returns some room of deleted records to the disk, once all are deleted; false if there is none now.
    fn shrink(&mut self) -> bool {
        if !self.may_shrink || self.size.records > 0 {
            return false;
        }
        match format::vacuum(&self.connection, VACUUM_PAGES) {
            Ok(is_more) => {
                self.may_shrink = is_more;
                reserve::keep(self.folder.path());
                is_more
            }
            Err(error) => {
                // Tried again at the next chance.
                let _ = self.failed(&error);
                false
            }
        }
    }

    /// Enters the tenants of records that an earlier version has written.
    fn enter_tenants(&mut self) -> Result<bool, SpoolError> {
        let entered = format::enter_tenants(&mut self.connection, self.entered_up_to);
        let last = entered.map_err(|error| self.failed(&error))?;
        self.entered_up_to = last.unwrap_or(i64::MAX);
        Ok(last.is_some())
    }

    /// Copies some records of damaged files; false if there is nothing to copy now.
    fn copy_some(&mut self) -> Result<bool, SpoolError> {
        let window = COPY_WINDOW.min(self.max_bytes / 2);
        let room = self.measure_room()?;
        let has_room = self.size.records == 0 || self.size.bytes < window;
        if self.damaged.is_empty() || !has_room || room.on_disk < PAGE_BYTES as u64 {
            return Ok(false);
        }
        let Some(mut damaged) = self.damaged.pop_front() else { return Ok(false) };
        let copied = damaged.copy_some(&mut self.connection).and_then(|is_more| {
            self.measure()?;
            Ok(is_more)
        });
        match copied {
            Ok(false) => {
                damaged.close(&self.connection).map_err(|error| SpoolError::Failed(error.to_string()))?;
            }
            Ok(true) => self.damaged.push_front(damaged),
            Err(error) => {
                self.damaged.push_front(damaged);
                return Err(self.failed(&error));
            }
        }
        Ok(true)
    }

    /// Appends webhooks in their order, those for which there is room, and returns when they are on disk.
    /// Returns the result of each.
    pub fn append<'a>(&mut self, webhooks: impl Iterator<Item = &'a Webhook>) -> Vec<Result<(), SpoolError>> {
        let rows: Vec<Row> = webhooks.map(Row::of).collect();
        let mut room = match self.measure_room() {
            Ok(room) => room,
            Err(error) => return vec![Err(error); rows.len()],
        };
        let admitted: Vec<Result<(), SpoolError>> = rows.iter().map(|row| room.take(row.bytes())).collect();
        let fitting = rows.iter().zip(&admitted).filter(|(_, admitted)| admitted.is_ok()).map(|(row, _)| row);
        let fitting: Vec<_> = fitting.collect();
        let written: Vec<_> = commits(&fitting).flat_map(|rows| self.write(rows)).collect();
        let mut written = written.into_iter();
        let outcome =
            |admitted: Result<(), SpoolError>| admitted.and_then(|()| written.next().unwrap_or(Ok(())));
        admitted.into_iter().map(outcome).collect()
    }

    /// Writes rows with one fsync. If the disk has no room for all of them, writes those that fit.
    fn write(&mut self, rows: &[&Row]) -> Vec<Result<(), SpoolError>> {
        let Err(error) = self.insert(rows) else { return vec![Ok(()); rows.len()] };
        let failure = self.failed(&error);
        if failure == SpoolError::DiskFull && rows.len() > 1 {
            let (first, rest) = rows.split_at(rows.len() / 2);
            return [self.write(first), self.write(rest)].concat();
        }
        // A damaged file has been replaced by a new one.
        let is_written = is_corrupt(&error) && self.insert(rows).is_ok();
        vec![if is_written { Ok(()) } else { Err(failure) }; rows.len()]
    }

    fn insert(&mut self, rows: &[&Row]) -> rusqlite::Result<()> {
        let Some(first) = rows.first() else { return Ok(()) };
        let transaction = self.connection.transaction()?;
        for row in rows {
            row.insert(&transaction)?;
        }
        transaction.commit()?;
        if self.size.records == 0 {
            self.oldest_ms = first.received_at_ms;
        }
        self.size.records += rows.len() as u64;
        self.size.bytes += rows.iter().map(|row| row.bytes()).sum::<u64>();
        Ok(())
    }

    /// The tenants of which there are records.
    pub fn tenants(&mut self) -> Vec<String> {
        format::tenants(&self.connection).unwrap_or_else(|error| {
            self.failed_to_read(&error);
            Vec::new()
        })
    }

    /// The oldest records of a tenant behind the one called `id`; none if they can't be read. What is damaged
    /// is set aside.
    pub fn after(&mut self, tenant: &str, id: i64, limit: usize) -> Option<Page> {
        let rows = match format::read_of(&self.connection, tenant, id, limit) {
            Ok(rows) => rows,
            Err(error) => {
                self.failed_to_read(&error);
                return None;
            }
        };
        let last = rows.last().map(|row| row.0);
        self.last_read = last.unwrap_or(0).max(self.last_read);
        let (good, bad): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.1.is_some());
        let bad: Vec<i64> = bad.into_iter().map(|row| row.0).collect();
        let is_whole = bad.is_empty() || self.set_records_aside(&bad);
        let records = good.into_iter().filter_map(|(id, webhook)| Some(Record { id, webhook: webhook? }));
        Some(Page { records: records.collect(), last, is_whole })
    }

    /// Deletes records. On a full disk the reserve makes room for that.
    pub fn delete(&mut self, ids: &[i64]) -> Result<(), SpoolError> {
        if let Err(error) = self.remove(ids) {
            if error.sqlite_error_code() != Some(ErrorCode::DiskFull) {
                return Err(self.failed(&error));
            }
            reserve::release(self.folder.path());
            self.remove(ids).map_err(|error| self.failed(&error))?;
        }
        self.may_shrink = true;
        self.measure().map_err(|error| self.failed(&error))
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

    /// Whether a record could be appended.
    pub fn check(&mut self) -> Result<(), SpoolError> {
        self.measure_room()?.take(0)?;
        self.connection
            .execute("UPDATE writable SET checks = checks + 1", [])
            .map_err(|error| self.failed(&error))?;
        reserve::keep(self.folder.path());
        Ok(())
    }

    /// Spares the next process to read the file through, as long as nothing is done with it.
    pub fn close(&self) -> rusqlite::Result<()> {
        format::mark_closed(&self.connection)
    }

    /// Bytes that can still be appended, by `SPOOL_MAX_BYTES` and by the disk.
    pub fn room(&self) -> u64 {
        self.measure_room().map_or(0, |room| room.allowed.min(room.on_disk))
    }

    fn measure_room(&self) -> Result<Room, SpoolError> {
        let free = free_bytes(self.folder.path()).map_err(|error| SpoolError::Failed(error.to_string()))?;
        let unused =
            format::unused_bytes(&self.connection).map_err(|error| SpoolError::Failed(error.to_string()))?;
        let allowed = self.max_bytes.saturating_sub(self.size.bytes);
        Ok(Room { allowed, on_disk: (free + unused).saturating_sub(LOG_BYTES) })
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

    /// Handles a failure, and returns what callers need to know of it.
    fn failed(&mut self, error: &rusqlite::Error) -> SpoolError {
        if error.sqlite_error_code() == Some(ErrorCode::DiskFull) {
            return SpoolError::DiskFull;
        }
        if is_corrupt(error) {
            self.start_anew(error);
        }
        SpoolError::Failed(chain(error))
    }

    /// Treats a file that the disk can't read as damaged.
    fn failed_to_read(&mut self, error: &rusqlite::Error) {
        if aside::is_due(self.folder.path(), error) {
            self.start_anew(error);
        } else {
            error!(error = chain(error), "can't read the spool");
        }
    }

    /// Sets the damaged file aside. Only one connection may have the file, so that goes first.
    fn start_anew(&mut self, damage: &rusqlite::Error) {
        self.corruptions += 1;
        if let Err(error) = self.replace_file(damage) {
            error!(error = chain(&error), "can't start a new spool");
            self.is_lost = true;
        }
    }

    fn replace_file(&mut self, damage: &rusqlite::Error) -> Result<(), OpenError> {
        let folder = self.folder.clone();
        let path = folder.path();
        let sqlite = |source| OpenError::Sqlite { path: path.to_owned(), source };
        self.connection = Connection::open_in_memory().map_err(sqlite)?;
        let aside = aside::set_aside(path, damage)
            .map_err(|source| OpenError::Io { path: path.to_owned(), source })?;
        self.connection = connect(path).map_err(sqlite)?;
        format::number_beyond(&self.connection, self.last_read).map_err(sqlite)?;
        self.damaged.push_back(Damaged::open(&aside, &self.connection).map_err(sqlite)?);
        self.measure().map_err(sqlite)
    }

    /// Writes records whose checksum is wrong to a file of their own, each once, and deletes them; false if
    /// they are still there.
    fn set_records_aside(&mut self, ids: &[i64]) -> bool {
        let new: Vec<i64> = ids.iter().copied().filter(|id| !self.records_aside.contains(id)).collect();
        if !new.is_empty() {
            match aside::copy_records(self.folder.path(), &self.connection, &new) {
                Ok(Ok(path)) => {
                    self.corruptions += 1;
                    self.records_aside.extend(&new);
                    error!(records = new.len(), file = %path.display(), "set damaged records of the spool aside");
                }
                Ok(Err(error)) => {
                    error!(error = chain(&error), "can't set damaged records of the spool aside");
                    return false;
                }
                Err(error) => {
                    let _ = self.failed(&error);
                    return false;
                }
            }
        }
        match self.delete(ids) {
            Ok(()) => {
                self.records_aside.retain(|id| !ids.contains(id));
                true
            }
            Err(error) => {
                if !new.is_empty() {
                    error!(error = chain(&error), "damaged records stay in the spool");
                }
                false
            }
        }
    }
}

/// Rows for one commit each. SQLite's log holds a commit, and what was committed since it was last taken into
/// the file, which is up to as much.
fn commits<'a>(rows: &'a [&'a Row]) -> impl Iterator<Item = &'a [&'a Row]> {
    let mut bytes = 0;
    rows.chunk_by(move |row, next| {
        bytes += row.bytes();
        let fits = bytes + next.bytes() <= LOG_BYTES;
        if !fits {
            bytes = 0;
        }
        fits
    })
}
