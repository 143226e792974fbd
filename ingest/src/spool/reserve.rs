//! Room on the disk: how much is left, and a part of it that is kept for deleting.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use shared::telemetry::chain;
use tracing::warn;

/// Room that is kept for deleting: on a full disk SQLite can't even do that, since its log grows. In bytes.
const RESERVE_BYTES: u64 = 4 << 20;
/// What SQLite's log may take on top of the records, in bytes: appends stop while there is still room for it.
pub const LOG_BYTES: u64 = 4 << 20;

/// Bytes that are free on the disk of this folder.
pub fn free_bytes(folder: &Path) -> rustix::io::Result<u64> {
    let disk = rustix::fs::statvfs(folder)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

fn path_of(folder: &Path) -> PathBuf {
    folder.join("reserve")
}

/// Takes room on disk that can be given up when it is needed for deleting.
pub fn keep(folder: &Path) {
    let path = path_of(folder);
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
        release(folder);
    }
}

/// Gives that room up.
pub fn release(folder: &Path) {
    let _ = fs::remove_file(path_of(folder));
}
