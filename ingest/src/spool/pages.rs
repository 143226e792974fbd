//! Reads a spool without owning it.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};

use super::folder::OpenError;
use super::format::{self, Record};

/// Records in memory at a time.
const PAGE: usize = 64;

/// The records of a spool that nobody needs to own, for listing and exporting; some at a time, since together
/// they may be more than fits into memory.
#[derive(Debug)]
pub struct Pages {
    connection: Connection,
    path: PathBuf,
    after: i64,
}

impl Pages {
    /// Begins with the oldest record.
    pub fn open(folder: &Path) -> Result<Self, OpenError> {
        let path = folder.join(format::FILE);
        // Not read-only in SQLite's sense: a write-ahead log left by a crash has to be recovered first.
        let connection = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_WRITE)
            .map_err(|source| OpenError::Sqlite { path: folder.to_owned(), source })?;
        Ok(Self { connection, path: folder.to_owned(), after: i64::MIN })
    }

    /// The next records; none if that was all. Leaves out those whose checksum is wrong.
    pub fn next(&mut self) -> Result<Option<Vec<Record>>, OpenError> {
        let rows = format::read(&self.connection, self.after, PAGE)
            .map_err(|source| OpenError::Sqlite { path: self.path.clone(), source })?;
        let Some((last, _)) = rows.last() else { return Ok(None) };
        self.after = *last;
        let records = rows.into_iter().filter_map(|(id, webhook)| Some(Record { id, webhook: webhook? }));
        Ok(Some(records.collect()))
    }
}
