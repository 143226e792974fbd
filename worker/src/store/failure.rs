//! The kinds of failures, in one table. From the kind follows who has to act: nobody, MongoDB's operators,
//! the person who configured Penstock, or an operator who looks at the single event.

use std::fmt;
use std::time::Duration;

use mongodb::bson::error::Error as BsonError;
use mongodb::error::{
    Error, ErrorKind, RETRYABLE_WRITE_ERROR, TRANSIENT_TRANSACTION_ERROR, UNKNOWN_TRANSACTION_COMMIT_RESULT,
    WriteFailure,
};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::timeout;

/// The kinds of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Another writer was faster; the same batch succeeds if it is tried again.
    Conflict,
    /// MongoDB can't be reached, is failing over, or is too slow.
    Infrastructure,
    /// MongoDB refuses us: credentials, rights, TLS, no replica set.
    Configuration,
    /// MongoDB refuses the documents.
    Data,
}

impl Class {
    /// A word for the log.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Conflict => "conflict",
            Self::Infrastructure => "infrastructure",
            Self::Configuration => "configuration",
            Self::Data => "data",
        }
    }
}

/// `WriteConflict`, `NoSuchTransaction`, `LockTimeout`, `SnapshotUnavailable`, `DuplicateKey` (another worker
/// inserted after our snapshot; a new snapshot shows its document).
const CONFLICT: [i32; 5] = [112, 251, 24, 246, DUPLICATE_KEY];
/// `UserNotFound`, `Unauthorized`, `AuthenticationFailed`, Atlas's `AtlasError`.
const CONFIGURATION: [i32; 4] = [11, 13, 18, 8000];
/// `IllegalOperation` (also of a standalone), `CommandNotFound`, `InvalidOptions`, `CommandNotSupported`,
/// `OperationNotSupportedInTransaction`, and a code of `DocumentDB`'s for what it doesn't have: this server
/// can't do what every batch needs, whatever the batch.
const UNSUPPORTED: [i32; 6] = [20, 59, 72, 115, 263, 303];
/// `HostUnreachable`, `HostNotFound`, `MaxTimeMSExpired`, `WriteConcernFailed`, `NetworkTimeout`,
/// `ShutdownInProgress`, `ReadConcernMajorityNotAvailableYet`, `FailedToSatisfyReadPreference`,
/// `PrimarySteppedDown`, `ExceededTimeLimit`, `SocketException`, `NotYetInitialized`, `NotWritablePrimary`,
/// `InterruptedAtShutdown`, `Interrupted`, `InterruptedDueToReplStateChange`, `NotPrimaryNoSecondaryOk`,
/// `NotPrimaryOrSecondary`, the codes of older servers, and what a service answers for which a request was
/// one too many.
const INFRASTRUCTURE: [i32; 21] = [
    6, 7, 50, 64, 89, 91, 134, 133, 189, 262, 9001, 94, 10058, 10107, 11600, 11601, 11602, 13435, 13436, 202,
    16500,
];
/// The server's words for code 18, and rustls's for a certificate that isn't trusted.
const CONFIGURATION_WORDS: [&str; 2] = ["Authentication failed", "invalid peer certificate"];
/// `DuplicateKey`: a unique index that somebody has added makes it a matter of data, see [`Failure::class`].
const DUPLICATE_KEY: i32 = 11000;
/// A rule that somebody has given the collection.
const VALIDATION: i32 = 121;
/// This many attempts in a row may fail by a duplicate key before that counts as a failure of data.
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
    /// The server refuses a document.
    #[error("{collection}: {}", rule(*code, words))]
    Refused {
        /// Where it should be written.
        collection: String,
        /// The server's code.
        code: i32,
        /// The server's words, which may quote documents: for a dead letter, never for a log.
        words: String,
    },
    /// The server isn't fit.
    #[error(
        "MongoDB is no replica set, but transactions need one: start mongod with --replSet and call rs.initiate()"
    )]
    NoReplicaSet,
    /// The server lacks something, in words.
    #[error("{0}")]
    Unfit(String),
    /// The documents of a batch are too large together: half of it needs less.
    #[error("the documents that a batch concerns have more than {0} bytes")]
    TooMuch(usize),
    /// A write is where it should be, but not enough members have it.
    #[error("a majority of MongoDB's members doesn't confirm writes: is one down, or too far behind?")]
    NoMajority,
    /// The task that wrote the batch was cancelled, since the worker ends.
    #[error("the attempt was cut short")]
    Cancelled,
    /// The task that wrote the batch panicked: a defect of ours, which an event triggers.
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
    /// Why documents were not inserted into a collection.
    #[must_use]
    pub fn of_insert(collection: &str, error: Error) -> Self {
        let refused = match &*error.kind {
            ErrorKind::InsertMany(insert) => insert.write_errors.iter().flatten().next(),
            _ => None,
        };
        match refused {
            // A failure that the server wants to be tried again keeps its label.
            Some(write) if !is_transient(&error) || write.code == DUPLICATE_KEY => Self::Refused {
                collection: collection.to_owned(),
                code: write.code,
                words: write.message.clone(),
            },
            _ => error.into(),
        }
    }

    /// The kind of failure. `duplicate_keys` says how often in a row the same batch has failed by a duplicate
    /// key, this time included.
    #[must_use]
    pub fn class(&self, duplicate_keys: u32) -> Class {
        match self {
            Self::TimedOut(_) | Self::NoMajority | Self::Cancelled => Class::Infrastructure,
            // It would panic again: the event must be found and dead-lettered, or it would delay all others.
            Self::Panicked | Self::TooMuch(_) => Class::Data,
            Self::NoReplicaSet | Self::Unfit(_) => Class::Configuration,
            Self::Refused { code, .. } => by_code(*code, duplicate_keys),
            Self::Mongo(error) => match &*error.kind {
                ErrorKind::Authentication { .. } | ErrorKind::InvalidTlsConfig { .. } => Class::Configuration,
                // Once a connection was refused, those who wait for one only hear that there is none; the
                // words tell why.
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
                ErrorKind::Io(_)
                | ErrorKind::ServerSelection { .. }
                | ErrorKind::ConnectionPoolCleared { .. } => Class::Infrastructure,
                _ if is_transient(error) && code(error) != Some(DUPLICATE_KEY) => Class::Conflict,
                _ => code(error).map_or(Class::Infrastructure, |code| by_code(code, duplicate_keys)),
            },
        }
    }

    /// The server's code, if it has answered with one.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            Self::Mongo(error) => code(error),
            _ => None,
        }
    }

    /// Whether the server says that it has no such thing.
    #[must_use]
    pub fn is_unsupported(&self) -> bool {
        self.code().is_some_and(|code| UNSUPPORTED.contains(&code))
    }

    /// What went wrong, with the server's words where they say more. They may quote documents: for a dead
    /// letter, never for a log.
    #[must_use]
    pub fn in_full(&self) -> String {
        let words = match self {
            Self::Refused { code: VALIDATION | DUPLICATE_KEY, .. } => None,
            Self::Refused { words, .. } => Some(words.clone()),
            Self::Mongo(error) => words(error),
            _ => None,
        };
        words.map_or_else(|| self.to_string(), |words| format!("{self}: {words}"))
    }

    /// Whether another document has the same value where a unique index allows but one.
    #[must_use]
    pub fn is_duplicate_key(&self) -> bool {
        self.code() == Some(DUPLICATE_KEY)
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
        code if CONFIGURATION.contains(&code) || UNSUPPORTED.contains(&code) => Class::Configuration,
        code if INFRASTRUCTURE.contains(&code) => Class::Infrastructure,
        // Users' indexes and validators refuse documents with codes of their own: there is no list of them.
        _ => Class::Data,
    }
}

/// The name of a code with which servers refuse documents; none of them comes with its name.
fn name(code: i32) -> Option<&'static str> {
    Some(match code {
        2 => "BadValue",
        9 => "FailedToParse",
        14 => "TypeMismatch",
        52 => "DollarPrefixedFieldName",
        55 => "InvalidDBRef",
        57 => "DottedFieldName",
        66 => "ImmutableField",
        VALIDATION => "DocumentValidationFailure",
        171 => "CannotIndexParallelArrays",
        10334 => "BSONObjectTooLarge",
        DUPLICATE_KEY => "DuplicateKey",
        _ => return None,
    })
}

/// Which rule a document breaks, with the server's code.
fn rule(code: i32, words: &str) -> String {
    // The index comes before the key, which is of the document.
    let index = words.split_once("index: ").and_then(|(_, rest)| Some(rest.split_once(" dup key")?.0));
    match (name(code), index) {
        (_, Some(index)) if code == DUPLICATE_KEY => format!("duplicate key in index {index} ({code})"),
        (Some(name), _) => format!("{name} ({code})"),
        // As MongoDB calls codes that have no name.
        (None, _) => format!("Location{code} ({code})"),
    }
}

/// Which servers there are, and why none of them can be used. The driver's own words have debug forms in
/// them.
fn unusable_servers(message: &str) -> String {
    let servers: Vec<String> = message.split("Address: ").skip(1).map(unusable_server).collect();
    if servers.is_empty() {
        return message.to_owned();
    }
    format!("no primary of MongoDB can be reached ({})", servers.join("; "))
}

fn unusable_server(described: &str) -> String {
    let address = described.split_once(',').map_or(described, |(address, _)| address);
    let error = described.split_once("Error: Kind: ").map(|(_, error)| error);
    let error = error.map(|error| error.split_once(", labels: ").map_or(error, |(error, _)| error));
    match error {
        Some(error) => format!("{address}: {error}"),
        None if described.contains("Type: Unknown") => format!("{address}: no answer yet"),
        None => format!("{address}: is not the primary"),
    }
}

/// The server or the driver says that the same succeeds if it is tried again.
fn is_transient(error: &Error) -> bool {
    error.contains_label(TRANSIENT_TRANSACTION_ERROR) || error.contains_label(RETRYABLE_WRITE_ERROR)
}

/// The server's words.
fn words(error: &Error) -> Option<String> {
    match &*error.kind {
        ErrorKind::Command(command) => Some(command.message.clone()),
        ErrorKind::Write(WriteFailure::WriteError(write)) => Some(write.message.clone()),
        ErrorKind::InsertMany(insert) => {
            insert.write_errors.iter().flatten().next().map(|write| write.message.clone())
        }
        _ => None,
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
                write!(f, "MongoDB answered {} ({})", command.code_name, command.code)
            }
            ErrorKind::Write(_) | ErrorKind::InsertMany(_) => match code(self.0) {
                Some(code) => write!(f, "MongoDB refused a write ({code})"),
                None => f.write_str("MongoDB refused a write"),
            },
            ErrorKind::BsonSerialization(_) | ErrorKind::BsonDeserialization(_) | ErrorKind::Bson(_) => {
                f.write_str("a document can't be written as BSON")
            }
            ErrorKind::ServerSelection { message, .. } => f.write_str(&unusable_servers(message)),
            other => write!(f, "{other}"),
        }
    }
}

/// The result of a task, if it comes in time.
pub(crate) async fn within<T>(limit: Duration, task: JoinHandle<T>) -> Result<T, Failure> {
    match timeout(limit, task).await {
        Ok(ended) => Ok(ended?),
        Err(_) => Err(Failure::TimedOut(limit)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(code: i32) -> Failure {
        Failure::Refused { collection: "messages".into(), code, words: "of the server's".into() }
    }

    fn refused(code: i32) -> Class {
        failure(code).class(0)
    }

    #[test]
    fn failures_are_told_apart_by_code() {
        assert_eq!(refused(112), Class::Conflict);
        for code in CONFIGURATION.into_iter().chain(UNSUPPORTED) {
            assert_eq!(refused(code), Class::Configuration, "{code}");
        }
        for code in INFRASTRUCTURE {
            assert_eq!(refused(code), Class::Infrastructure, "{code}");
        }
        // Seen of validators and indexes, and one that nobody has seen.
        for code in
            [2, 9, 14, 52, 55, 57, 121, 171, 10334, 11000 + 1, 16755, 16766, 17261, 17262, 17280, 4711]
        {
            assert_eq!(refused(code), Class::Data, "{code}");
        }
    }

    #[test]
    fn the_words_of_the_server_are_for_dead_letters_alone() {
        assert_eq!(failure(17262).to_string(), "messages: Location17262 (17262)");
        assert_eq!(failure(17262).in_full(), "messages: Location17262 (17262): of the server's");
        assert_eq!(Failure::NoReplicaSet.in_full(), Failure::NoReplicaSet.to_string());
    }

    #[test]
    fn a_refusal_names_collection_rule_and_code() {
        let refused =
            |code, words: &str| Failure::Refused { collection: "messages".into(), code, words: words.into() };
        let by_rule = refused(121, "Document failed validation");
        assert_eq!(by_rule.in_full(), "messages: DocumentValidationFailure (121)");
        let words = r#"E11000 duplicate key error collection: d.messages index: event_id_1 dup key: { event_id: "index: x dup key" }"#;
        assert_eq!(refused(11000, words).in_full(), "messages: duplicate key in index event_id_1 (11000)");
        assert_eq!(refused(11000, "").in_full(), "messages: DuplicateKey (11000)");
    }

    #[test]
    fn servers_that_cant_be_used_are_named_without_debug_forms() {
        let message = "Server selection timeout: No available servers. Topology: { Type: ReplicaSetNoPrimary, Set Name: rs, \
                       Servers: [ { Address: a:1, Type: Unknown, Error: Kind: I/O error: Connection refused (os error 111), \
                       labels: {} }, { Address: b:2, Type: RsSecondary, Average RTT: 1ms }, { Address: c:3, Type: Unknown } ] }";
        let expected = "no primary of MongoDB can be reached (a:1: I/O error: Connection refused (os error 111); \
                        b:2: is not the primary; c:3: no answer yet)";
        assert_eq!(unusable_servers(message), expected);
        assert_eq!(unusable_servers("otherwise"), "otherwise");
    }

    #[test]
    fn a_duplicate_key_is_a_conflict_until_it_stays() {
        let failure = failure(DUPLICATE_KEY);
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
        assert_eq!(error.to_string(), "MongoDB answered DuplicateKey (11000)");
    }

    #[test]
    fn deadlines_and_io_are_infrastructure() {
        assert_eq!(Failure::TimedOut(Duration::from_secs(5)).class(0), Class::Infrastructure);
        let broken = Error::from(std::io::Error::other("broken pipe"));
        assert_eq!(Failure::from(broken).class(0), Class::Infrastructure);
        assert_eq!(Failure::NoReplicaSet.class(0), Class::Configuration);
    }
}
