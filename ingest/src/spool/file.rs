//! The spool's file: appends, reads and deletes records, each change fsynced.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode};
use shared::telemetry::chain;
use tracing::error;

use super::format::{self, Record, Row, connect, is_corrupt};
use super::reserve::{self, LOG_BYTES, Room, free_bytes};
use super::{SpoolError, salvage};
use crate::webhook::Webhook;

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
        let lock = lock(folder)?;
        reserve::keep(folder);
        let sqlite = |source| OpenError::Sqlite { path: folder.to_owned(), source };
        let (connection, corruptions) = match connect(folder) {
            Ok(connection) => (connection, 0),
            Err(error) if is_corrupt(&error) => (salvage::set_aside(folder, &error)?, 1),
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

    /// Appends webhooks in their order, those for which there is room, and returns when they are on disk. Tells of each
    /// what became of it.
    pub fn append<'a>(
        &mut self,
        webhooks: impl Iterator<Item = &'a Webhook>,
    ) -> Vec<Result<(), SpoolError>> {
        let rows: Vec<Row> = webhooks.map(Row::of).collect();
        let mut room = match self.measure_room() {
            Ok(room) => room,
            Err(error) => return vec![Err(error); rows.len()],
        };
        let admitted: Vec<Result<(), SpoolError>> = rows.iter().map(|row| room.take(row.bytes())).collect();
        let fitting = rows.iter().zip(&admitted).filter(|(_, admitted)| admitted.is_ok()).map(|(row, _)| row);
        let mut written = self.write(&fitting.collect::<Vec<_>>()).into_iter();
        let outcome = |admitted: Result<(), SpoolError>| admitted.and_then(|()| written.next().unwrap_or(Ok(())));
        admitted.into_iter().map(outcome).collect()
    }

    /// Writes rows with one fsync. If the disk turns out to have no room for all of them, it takes what it has room for.
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
            let _ = self.failed(&error);
            Vec::new()
        })
    }

    /// The oldest records of a tenant behind the one called `id`. What can't be read is set aside.
    pub fn after(&mut self, tenant: &str, id: i64, limit: usize) -> Vec<Record> {
        match format::read_of(&self.connection, tenant, id, limit) {
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
            reserve::release(&self.folder);
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
        reserve::keep(&self.folder);
    }

    /// Whether a record could be appended.
    pub fn check(&mut self) -> Result<(), SpoolError> {
        self.measure_room()?.take(0)?;
        self.connection
            .execute("UPDATE writable SET checks = checks + 1", [])
            .map_err(|error| self.failed(&error))?;
        reserve::keep(&self.folder);
        Ok(())
    }

    /// Bytes that can still be appended, by `SPOOL_MAX_BYTES` and by the disk.
    pub fn room(&self) -> u64 {
        self.measure_room().map_or(0, |room| room.allowed.min(room.on_disk))
    }

    fn measure_room(&self) -> Result<Room, SpoolError> {
        let free = free_bytes(&self.folder).map_err(|error| SpoolError::Failed(error.to_string()))?;
        let allowed = self.max_bytes.saturating_sub(self.size.bytes);
        Ok(Room { allowed, on_disk: free.saturating_sub(LOG_BYTES) })
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
            self.start_anew(error);
        }
        SpoolError::Failed(chain(error))
    }

    /// Sets the damaged file aside. Only one connection may have the file, so that goes first.
    fn start_anew(&mut self, damage: &rusqlite::Error) {
        match Connection::open_in_memory() {
            Ok(in_memory) => self.connection = in_memory,
            Err(error) => return error!(error = chain(&error), "can't close the damaged spool"),
        }
        match salvage::set_aside(&self.folder, damage) {
            Ok(connection) => self.connection = connection,
            Err(error) => return error!(error = chain(&error), "can't start a new spool"),
        }
        if let Err(error) = self.measure() {
            error!(error = chain(&error), "can't count the records of the spool");
        }
    }

    /// Writes records whose checksum is wrong to a file of their own, and forgets them.
    fn set_records_aside(&mut self, ids: &[i64]) {
        match salvage::copy_records(&self.folder, &self.connection, ids) {
            Ok(Ok(path)) => {
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

/// Makes the folder, and takes it for this process alone.
fn lock(folder: &Path) -> Result<fs::File, OpenError> {
    let io = |source| OpenError::Io { path: folder.to_owned(), source };
    fs::create_dir_all(folder).map_err(io)?;
    let lock =
        OpenOptions::new().create(true).truncate(false).write(true).open(folder.join("lock")).map_err(io)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(fs::TryLockError::WouldBlock) => Err(OpenError::InUse(folder.to_owned())),
        Err(fs::TryLockError::Error(source)) => Err(io(source)),
    }
}
