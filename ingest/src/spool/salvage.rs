//! What is damaged is set aside, never thrown away, and what can still be read of it goes on.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rusqlite::{Connection, OpenFlags};
use shared::telemetry::chain;
use time::OffsetDateTime;
use time::format_description::well_known::Iso8601;
use tracing::error;

use super::file::OpenError;
use super::format::{FILE, Row, bytes_of, connect, read, read_back};

/// Moves a damaged file away, under a name with the date, and starts a new one with what can be read of it.
pub fn set_aside(folder: &Path, error: &rusqlite::Error) -> Result<Connection, OpenError> {
    let aside = dated(folder, "corrupt-spool");
    for suffix in ["", "-wal", "-shm"] {
        let from = folder.join(format!("{FILE}{suffix}"));
        let to = PathBuf::from(format!("{}{suffix}", aside.display()));
        match fs::rename(&from, &to) {
            Err(source) if source.kind() != ErrorKind::NotFound => {
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
    let mut saved = BTreeMap::new();
    // From both ends, as far as the damage in between.
    for (read, start) in [(read as fn(_, _, _) -> _, i64::MIN), (read_back, i64::MAX)] {
        let mut at = start;
        while let Ok(rows) = read(&damaged, at, 1) {
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

/// Writes records to a file of their own, and tells which.
pub fn copy_records(
    folder: &Path,
    connection: &Connection,
    ids: &[i64],
) -> rusqlite::Result<io::Result<PathBuf>> {
    let path = dated(folder, "damaged-records");
    let text = raw(connection, ids)?;
    Ok(fs::write(&path, text).map(|()| path))
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
