//! How many files and sockets this process may have open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::warn;

use crate::telemetry::chain;

/// Raises the soft limit to the hard one, and returns what holds then. Many systems set the soft limit to
/// 1,024, for the sake of programs that use `select`; ours do not.
#[must_use]
pub fn raise_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return limit.current.unwrap_or(u64::MAX);
    }
    let raised = Rlimit { current: limit.maximum, ..limit };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum.unwrap_or(u64::MAX),
        Err(error) => {
            warn!(error = chain(&error), "can't raise the limit of open files");
            limit.current.unwrap_or(u64::MAX)
        }
    }
}
