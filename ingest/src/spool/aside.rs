//! Damaged files and records are set aside, never deleted.

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rusqlite::Connection;
use shared::telemetry::chain;
use time::OffsetDateTime;
use time::format_description::well_known::Iso8601;
use tracing::error;

use super::folder::{private, sync};
use super::format::{FILE, bytes_of, is_corrupt, is_unreadable};

/// How the names of damaged files begin.
const ASIDE: &str = "corrupt-spool-";
/// How they end when everything that can be read of them was copied.
const COPIED: &str = ".copied";
/// Holds the name of the file that is being set aside, until that is done.
const MARKER: &str = "setting-aside";
/// SQLite's file, and those that belong to it.
const SUFFIXES: [&str; 3] = ["-wal", "-shm", ""];

/// Whether to set the file aside as damaged. If the disk can't read it, only the first file is set aside: on
/// a disk that can't read at all, every new file would fail, too.
pub fn is_due(folder: &Path, error: &rusqlite::Error) -> bool {
    let is_first = || uncopied(folder).is_ok_and(|files| files.is_empty());
    is_corrupt(error) || is_unreadable(error) && is_first()
}

/// Sets the damaged file aside, and returns its new name.
pub fn set_aside(folder: &Path, damage: &rusqlite::Error) -> io::Result<PathBuf> {
    error!(error = chain(damage), "the spool is damaged: setting its file aside");
    let aside = move_aside(folder)?;
    error!(file = %aside.display(), "set the damaged spool aside: ingest copies what it can read");
    Ok(aside)
}

/// Moves the spool's file away, under a name with the date. Three files have to be renamed: the new name is
/// written down first, so that none of them stays behind when the process is killed meanwhile.
fn move_aside(folder: &Path) -> io::Result<PathBuf> {
    let name = match interrupted_move(folder) {
        Some(name) => name,
        None => begin_move(folder)?,
    };
    let aside = folder.join(name);
    rename_all(&folder.join(FILE), &aside)?;
    sync(folder)?;
    fs::remove_file(folder.join(MARKER))?;
    sync(folder)?;
    Ok(aside)
}

/// Completes a move that was interrupted.
pub fn finish_move(folder: &Path) -> io::Result<()> {
    interrupted_move(folder).map_or(Ok(()), |_| move_aside(folder).map(drop))
}

fn interrupted_move(folder: &Path) -> Option<String> {
    fs::read_to_string(folder.join(MARKER)).ok().filter(|name| name.starts_with(ASIDE))
}

fn begin_move(folder: &Path) -> io::Result<String> {
    let name = format!("{ASIDE}{}", dated());
    let mut marker = private(&folder.join(MARKER))?;
    marker.set_len(0)?;
    marker.write_all(name.as_bytes())?;
    marker.sync_all()?;
    sync(folder)?;
    Ok(name)
}

fn rename_all(from: &Path, to: &Path) -> io::Result<()> {
    for suffix in SUFFIXES {
        let with_suffix = |path: &Path| PathBuf::from(format!("{}{suffix}", path.display()));
        match fs::rename(with_suffix(from), with_suffix(to)) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// The damaged files of which not everything that can be read was copied yet, the oldest first.
pub fn uncopied(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let ends = [COPIED, ".copied-wal", ".copied-shm", "-wal", "-shm"];
        if name.starts_with(ASIDE) && !ends.iter().any(|end| name.ends_with(end)) {
            paths.push(folder.join(name));
        }
    }
    paths.sort();
    Ok(paths)
}

/// Marks a damaged file as completely copied, as far as it can be read, and returns its new name.
pub fn mark_copied(path: &Path) -> io::Result<PathBuf> {
    let done = PathBuf::from(format!("{}{COPIED}", path.display()));
    rename_all(path, &done)?;
    Ok(done)
}

/// Writes records to a file of their own, and returns its name.
pub fn copy_records(
    folder: &Path,
    connection: &Connection,
    ids: &[i64],
) -> rusqlite::Result<io::Result<PathBuf>> {
    let path = folder.join(format!("damaged-records-{}", dated()));
    let text = raw(connection, ids)?;
    let written = private(&path).and_then(|mut file| file.write_all(&text).and_then(|()| file.sync_all()));
    if written.is_err() {
        let _ = fs::remove_file(&path);
    }
    Ok(written.map(|()| path))
}

/// Damaged records for people: for each a line of facts, and a line of body.
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

/// The end of a name. Random, since two can happen within a second.
fn dated() -> String {
    let now = OffsetDateTime::from(SystemTime::now());
    let date = now.replace_nanosecond(0).unwrap_or(now).format(&Iso8601::DEFAULT).unwrap_or_default();
    let date: String = date.chars().filter(char::is_ascii_alphanumeric).take(15).collect();
    format!("{date}Z-{:08x}", fastrand::u32(..))
}
