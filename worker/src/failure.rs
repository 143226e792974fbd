//! What kind of failure is it? One table, from which follows who has to act: nobody, MongoDB's operators,
//! whoever configured Penstock, or whoever looks after the single event.

use std::fmt;
use std::time::Duration;

use mongodb::bson::error::Error as BsonError;
use mongodb::error::{
    Error, ErrorKind, TRANSIENT_TRANSACTION_ERROR, UNKNOWN_TRANSACTION_COMMIT_RESULT, WriteFailure,
};
use tokio::task::JoinError;

/// The kinds of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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
/// The server's words for code 18, and rustls's for a certificate that isn't trusted.
const CONFIGURATION_WORDS: [&str; 2] = ["Authentication failed", "invalid peer certificate"];
/// `DuplicateKey`: a unique index that somebody has added makes it a matter of data, see [`Failure::class`].
const DUPLICATE_KEY: i32 = 11000;
/// So many attempts in a row may fail by a duplicate key before it counts as a matter of data.
const DUPLICATE_KEY_ATTEMPTS: u32 = 5;

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
    /// The task that wrote the batch was cancelled, since the worker ends.
    #[error("the attempt was cut short")]
    Cancelled,
    /// The task that wrote the batch panicked: a defect of ours, that an event has brought to light.
    #[error("the attempt panicked, which is a defect of the worker")]
    Panicked,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Mongo(Box::new(error))
    }
}

impl From<BsonError> for Failure {
    fn from(error: BsonError) -> Self {
        Error::from(error).into()
    }
}

impl From<JoinError> for Failure {
    fn from(error: JoinError) -> Self {
        if error.is_panic() { Self::Panicked } else { Self::Cancelled }
    }
}

impl Failure {
    /// The kind of failure. `duplicate_keys` says how often in a row the same batch has failed by a duplicate key,
    /// this time included.
    #[must_use]
    pub fn class(&self, duplicate_keys: u32) -> Class {
        match self {
            Self::TimedOut(_) | Self::Cancelled => Class::Infrastructure,
            // It would do so again: the event must be found and set aside, or it would hold up all others.
            Self::Panicked => Class::Data,
            Self::NoReplicaSet => Class::Configuration,
            Self::Refused { code } => by_code(*code, duplicate_keys),
            Self::Mongo(error) => match &*error.kind {
                ErrorKind::Authentication { .. } | ErrorKind::InvalidTlsConfig { .. } => Class::Configuration,
                // Once a connection was refused, those who wait for one only hear that there is none; the words tell why.
                ErrorKind::ServerSelection { message, .. }
                | ErrorKind::ConnectionPoolCleared { message, .. }
                    if CONFIGURATION_WORDS.iter().any(|words| message.contains(words)) =>
                {
                    Class::Configuration
                }
                // The driver itself refuses a document over 16 MiB as an invalid argument.
                ErrorKind::BsonSerialization(_)
                | ErrorKind::BsonDeserialization(_)
                | ErrorKind::Bson(_)
                | ErrorKind::InvalidArgument { .. } => Class::Data,
                _ => code(error).map_or(Class::Infrastructure, |code| by_code(code, duplicate_keys)),
            },
        }
    }

    /// Whether another document has the same value where a unique index allows but one.
    #[must_use]
    pub fn is_duplicate_key(&self) -> bool {
        match self {
            Self::Refused { code } => *code == DUPLICATE_KEY,
            Self::Mongo(error) => code(error) == Some(DUPLICATE_KEY),
            _ => false,
        }
    }

    /// Whether a commit's outcome is unknown, so that it should be committed again.
    #[must_use]
    pub fn is_unknown_commit(error: &Error) -> bool {
        error.contains_label(UNKNOWN_TRANSACTION_COMMIT_RESULT)
            && !error.contains_label(TRANSIENT_TRANSACTION_ERROR)
    }
}

fn by_code(code: i32, duplicate_keys: u32) -> Class {
    match code {
        DUPLICATE_KEY if duplicate_keys >= DUPLICATE_KEY_ATTEMPTS => Class::Data,
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
        assert!(failure.is_duplicate_key());
        assert_eq!(failure.class(1), Class::Conflict);
        assert_eq!(failure.class(DUPLICATE_KEY_ATTEMPTS), Class::Data);
    }

    #[test]
    fn what_the_driver_refuses_to_send_is_a_matter_of_data() {
        // Of all that the driver finds invalid this can be had without a server.
        let failure = Failure::from(mongodb::options::ConnectionString::parse("").unwrap_err());
        assert_eq!(failure.class(0), Class::Data);
    }

    #[tokio::test]
    async fn an_attempt_that_panics_is_a_matter_of_data_and_a_cancelled_one_is_not() {
        let panicked = tokio::spawn(async { panic!("a defect") }).await.unwrap_err();
        assert_eq!(Failure::from(panicked).class(0), Class::Data);
        let pending = tokio::spawn(std::future::pending::<()>());
        pending.abort();
        assert_eq!(Failure::from(pending.await.unwrap_err()).class(0), Class::Infrastructure);
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
