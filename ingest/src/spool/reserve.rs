//! Room on the disk: how much is left, and a part of it that is kept for deleting.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use shared::telemetry::chain;
use tracing::warn;

use super::SpoolError;
use super::folder::private;

/// Room for deleting, in bytes: on a full disk SQLite can't even delete, since its log grows.
const RESERVE_BYTES: u64 = 4 << 20;
/// What SQLite's log may take on top of the records, in bytes: appends stop while there is still room for it.
pub const LOG_BYTES: u64 = 4 << 20;

/// Bytes that are free on the disk of this folder.
pub fn free_bytes(folder: &Path) -> rustix::io::Result<u64> {
    let disk = rustix::fs::statvfs(folder)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Room for records, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// What `SPOOL_MAX_BYTES` leaves.
    pub allowed: u64,
    /// What the disk leaves.
    pub on_disk: u64,
}

impl Room {
    /// Takes room for a record. Of those that come after one that is too large, the smaller ones may fit.
    pub fn take(&mut self, bytes: u64) -> Result<(), SpoolError> {
        if self.allowed == 0 || bytes > self.allowed {
            return Err(SpoolError::Full);
        }
        if self.on_disk == 0 || bytes > self.on_disk {
            return Err(SpoolError::DiskFull);
        }
        self.allowed -= bytes;
        self.on_disk -= bytes;
        Ok(())
    }
}

fn path_of(folder: &Path) -> PathBuf {
    folder.join("reserve")
}

/// Reserves room on disk, for deleting.
pub fn keep(folder: &Path) {
    let path = path_of(folder);
    let is_there = fs::metadata(&path).is_ok_and(|file| file.len() >= RESERVE_BYTES);
    let has_room = || free_bytes(folder).is_ok_and(|free| free > 2 * (RESERVE_BYTES + LOG_BYTES));
    if is_there || !has_room() {
        return;
    }
    let zeros = vec![0; usize::try_from(RESERVE_BYTES).unwrap_or_default()];
    let written = private(&path).and_then(|mut file| file.write_all(&zeros).and_then(|()| file.sync_all()));
    if let Err(error) = written {
        warn!(error = chain(&error), "can't reserve room for the spool");
        release(folder);
    }
}

/// Frees that room.
pub fn release(folder: &Path) {
    let _ = fs::remove_file(path_of(folder));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_is_too_large_leaves_the_room_to_smaller_ones() {
        let mut room = Room { allowed: 10, on_disk: 8 };
        let taken: Vec<_> = [4, 11, 5, 4, 1].into_iter().map(|bytes| room.take(bytes)).collect();
        let (full, disk_full) = (Err(SpoolError::Full), Err(SpoolError::DiskFull));
        assert_eq!(taken, [Ok(()), full, disk_full.clone(), Ok(()), disk_full]);
        assert_eq!(Room { allowed: 0, on_disk: 9 }.take(0), Err(SpoolError::Full));
    }
}
