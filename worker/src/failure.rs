//! What kind of failure is it? One table, from which follows who has to act: nobody, MongoDB's operators,
//! whoever configured Penstock, or whoever looks after the single event.

use std::fmt;
use std::time::Duration;

use mongodb::error::{
    Error, ErrorKind, TRANSIENT_TRANSACTION_ERROR, UNKNOWN_TRANSACTION_COMMIT_RESULT, WriteFailure,
};

/// The kinds of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Another writer was faster; the same batch will do if it is tried again.
    Conflict,
    /// MongoDB can't be reached, is failing over, or is too slow.
    Infrastructure,
    /// MongoDB refuses us: credentials, rights, TLS, no replica set.
    Configuration,
    /// MongoDB refuses the documents.
    Data,
}

/// `WriteConflict`, `NoSuchTransaction`, `LockTimeout`, `SnapshotUnavailable`, `DuplicateKey` (another worker inserted
/// after our snapshot; a new snapshot shows its document).
const CONFLICT: [i32; 5] = [112, 251, 24, 246, DUPLICATE_KEY];
/// `UserNotFound`, `Unauthorized`, `AuthenticationFailed`, `IllegalOperation` (a standalone server), Atlas's `AtlasError`.
const CONFIGURATION: [i32; 5] = [11, 13, 18, 20, 8000];
/// `BadValue`, `FailedToParse`, `TypeMismatch`, `Overflow` (nesting), `InvalidIdField`, `EmptyFieldName`, `DollarPrefixedFieldName`,
/// `NotSingleValueField`, `ImmutableField`, `DocumentValidationFailure`, and the codes for documents over 16 MiB.
const DATA: [i32; 13] = [2, 9, 14, 15, 52, 53, 56, 57, 66, 121, 10334, 17280, 17419];
/// `DuplicateKey`: a unique index that somebody has added makes it a matter of data, see [`Failure::class`].
const DUPLICATE_KEY: i32 = 11000;
/// After so many conflicts in a row a duplicate key counts as a matter of data.
const DUPLICATE_KEY_CONFLICTS: u32 = 5;

/// A failed attempt to write a batch.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The deadline passed.
    #[error("MongoDB didn't answer within {0:?}")]
    TimedOut(Duration),
    /// The driver or the server says no.
    #[error("{}", Redacted(.0))]
    Mongo(Box<Error>),
    /// The server refuses a write.
    #[error("MongoDB refused a write ({code})")]
    Refused {
        /// The server's code.
        code: i32,
    },
    /// The server isn't fit.
    #[error(
        "MongoDB is no replica set, but transactions need one: start mongod with --replSet and call rs.initiate()"
    )]
    NoReplicaSet,
    /// The task that wrote the batch died.
    #[error("the attempt was cut short")]
    Cancelled,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Mongo(Box::new(error))
    }
}

impl Failure {
    /// The kind of failure. `conflicts` is the number of conflicts that the same batch has met in a row before.
    #[must_use]
    pub fn class(&self, conflicts: u32) -> Class {
        match self {
            Self::TimedOut(_) | Self::Cancelled => Class::Infrastructure,
            Self::NoReplicaSet => Class::Configuration,
            Self::Refused { code } => by_code(*code, conflicts),
            Self::Mongo(error) => match &*error.kind {
                ErrorKind::Authentication { .. } | ErrorKind::InvalidTlsConfig { .. } => Class::Configuration,
                // The driver itself refuses a document over 16 MiB as an invalid argument.
                ErrorKind::BsonSerialization(_)
                | ErrorKind::BsonDeserialization(_)
                | ErrorKind::Bson(_)
                | ErrorKind::InvalidArgument { .. } => Class::Data,
                _ => code(error).map_or(Class::Infrastructure, |code| by_code(code, conflicts)),
            },
        }
    }

    /// Whether a commit's outcome is unknown, so that it should be committed again.
    #[must_use]
    pub fn is_unknown_commit(error: &Error) -> bool {
        error.contains_label(UNKNOWN_TRANSACTION_COMMIT_RESULT)
            && !error.contains_label(TRANSIENT_TRANSACTION_ERROR)
    }
}

fn by_code(code: i32, conflicts: u32) -> Class {
    match code {
        DUPLICATE_KEY if conflicts >= DUPLICATE_KEY_CONFLICTS => Class::Data,
        code if CONFLICT.contains(&code) => Class::Conflict,
        code if CONFIGURATION.contains(&code) => Class::Configuration,
        code if DATA.contains(&code) => Class::Data,
        _ => Class::Infrastructure,
    }
}

/// The server's code, if it answered with one.
fn code(error: &Error) -> Option<i32> {
    match &*error.kind {
        ErrorKind::Command(command) => Some(command.code),
        ErrorKind::Write(WriteFailure::WriteError(write)) => Some(write.code),
        ErrorKind::Write(WriteFailure::WriteConcernError(concern)) => Some(concern.code),
        ErrorKind::InsertMany(insert) => {
            let refused = insert.write_errors.iter().flatten().next().map(|write| write.code);
            refused.or_else(|| insert.write_concern_error.as_ref().map(|concern| concern.code))
        }
        _ => None,
    }
}

/// Server's messages quote documents, and so phone numbers: only code and name are fit for a log.
struct Redacted<'a>(&'a Error);

impl fmt::Display for Redacted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0.kind {
            ErrorKind::Command(command) => {
                write!(f, "MongoDB answered {} ({})", command.code, command.code_name)
            }
            ErrorKind::Write(_) | ErrorKind::InsertMany(_) => {
                write!(f, "MongoDB refused a write ({:?})", code(self.0))
            }
            ErrorKind::BsonSerialization(_) | ErrorKind::BsonDeserialization(_) | ErrorKind::Bson(_) => {
                f.write_str("a document can't be written as BSON")
            }
            other => write!(f, "{other}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: i32) -> Class {
        Failure::Refused { code }.class(0)
    }

    #[test]
    fn failures_are_told_apart_by_code() {
        assert_eq!(refused(112), Class::Conflict);
        assert_eq!(refused(13), Class::Configuration);
        assert_eq!(refused(121), Class::Data);
        assert_eq!(refused(10334), Class::Data);
        for code in [6, 7, 64, 89, 91, 189, 10107, 11600, 13435, 50, 262, 4711] {
            assert_eq!(refused(code), Class::Infrastructure, "{code}");
        }
    }

    #[test]
    fn a_duplicate_key_is_a_conflict_until_it_stays() {
        let failure = Failure::Refused { code: DUPLICATE_KEY };
        assert_eq!(failure.class(0), Class::Conflict);
        assert_eq!(failure.class(DUPLICATE_KEY_CONFLICTS), Class::Data);
    }

    #[test]
    fn what_is_logged_quotes_no_document() {
        let reply = mongodb::bson::doc! {"code": 11000, "codeName": "DuplicateKey", "errmsg": "dup key: { _id: \"+15550100142\" }"};
        let command: mongodb::error::CommandError = mongodb::bson::deserialize_from_document(reply).unwrap();
        let error = Failure::from(Error::from(ErrorKind::Command(command)));
        assert_eq!(error.to_string(), "MongoDB answered 11000 (DuplicateKey)");
    }

    #[test]
    fn deadlines_and_io_are_infrastructure() {
        assert_eq!(Failure::TimedOut(Duration::from_secs(5)).class(0), Class::Infrastructure);
        let broken = Error::from(std::io::Error::other("broken pipe"));
        assert_eq!(Failure::from(broken).class(0), Class::Infrastructure);
        assert_eq!(Failure::NoReplicaSet.class(0), Class::Configuration);
    }
}
