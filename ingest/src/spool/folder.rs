//! The spool's folder: for one process, and for its owner alone.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use shared::telemetry::chain;
use tracing::warn;

/// Beginnings of the names of what is in the folder.
const NAMES: [&str; 6] =
    ["spool.db", "lock", "reserve", "corrupt-spool-", "setting-aside", "damaged-records-"];
/// What others may do with a file.
const OTHERS: u32 = 0o077;

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
        source: io::Error,
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

/// A folder that no other process uses.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    _lock: fs::File,
}

impl Folder {
    /// Makes the folder, and takes it for this process.
    pub fn take(path: &Path) -> Result<Self, OpenError> {
        let io = |source| OpenError::Io { path: path.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io)?;
        let lock = private(&path.join("lock")).map_err(io)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(OpenError::InUse(path.to_owned())),
            Err(fs::TryLockError::Error(source)) => return Err(io(source)),
        }
        restrict(path).map_err(io)?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Opens a file for writing, which is made if it is missing, and then for its owner alone.
pub fn private(path: &Path) -> io::Result<fs::File> {
    OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)
}

/// Makes sure that what was renamed or made in a folder is on disk.
pub fn sync(folder: &Path) -> io::Result<()> {
    fs::File::open(folder)?.sync_all()
}

/// Files of an earlier version may be readable for others.
fn restrict(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let (name, metadata) = (entry.file_name(), entry.metadata()?);
        let is_ours = NAMES.iter().any(|ours| name.to_string_lossy().starts_with(ours));
        if !is_ours || !metadata.is_file() || metadata.permissions().mode() & OTHERS == 0 {
            continue;
        }
        if let Err(error) = fs::set_permissions(entry.path(), Permissions::from_mode(0o600)) {
            warn!(file = %entry.path().display(), error = chain(&error), "others may read a file of the spool");
        }
    }
    Ok(())
}
