//! The options of a URI: which of them the driver gets.

use std::collections::BTreeMap;

use super::encryption::{self, Tls};
use super::{Refused, decoded, encoded};

/// What to do with an option.
enum Handling {
    /// The driver gets it.
    Text,
    /// The driver gets it if it is `true` or `false`.
    Boolean,
    /// The driver gets it, without fraction, if it is a number and at least this.
    Number(u32),
    /// It is about encryption.
    Encryption,
    /// Penstock doesn't need it, for this reason.
    Ignored(&'static str),
    /// Penstock refuses it, for this reason: without it, the connection would not be the intended one.
    Refused(&'static str),
}

const TIMEOUT: &str = "MONGO_TIMEOUT is what counts";
const POOL: &str = "MONGO_MIN_POOL_SIZE and MONGO_MAX_POOL_SIZE are what counts";
const DURABLE: &str = "events are written with w=majority, and read from the primary";
const MEANINGLESS: &str = "it has no meaning here";
const UNKNOWN: &str = "pymongo 4.6 doesn't know it either";

/// The options that pymongo 4.6 knows, in small letters.
const HANDLINGS: &[(&str, Handling)] = &[
    ("appname", Handling::Text),
    ("authmechanism", Handling::Text),
    ("authmechanismproperties", Handling::Ignored(MEANINGLESS)),
    ("authsource", Handling::Text),
    ("compressors", Handling::Ignored("nothing is compressed")),
    ("connect", Handling::Ignored(MEANINGLESS)),
    ("connecttimeoutms", Handling::Ignored(TIMEOUT)),
    ("datetime_conversion", Handling::Ignored(MEANINGLESS)),
    ("directconnection", Handling::Boolean),
    ("fsync", Handling::Ignored(DURABLE)),
    ("heartbeatfrequencyms", Handling::Number(1)),
    ("journal", Handling::Ignored(DURABLE)),
    ("loadbalanced", Handling::Boolean),
    ("localthresholdms", Handling::Ignored(DURABLE)),
    ("maxconnecting", Handling::Number(1)),
    ("maxidletimems", Handling::Number(1)),
    ("maxpoolsize", Handling::Ignored(POOL)),
    ("maxstalenessseconds", Handling::Ignored(DURABLE)),
    ("minpoolsize", Handling::Ignored(POOL)),
    ("readconcernlevel", Handling::Ignored(DURABLE)),
    ("readpreference", Handling::Ignored(DURABLE)),
    ("readpreferencetags", Handling::Ignored(DURABLE)),
    ("replicaset", Handling::Text),
    ("retryreads", Handling::Boolean),
    ("retrywrites", Handling::Boolean),
    ("servermonitoringmode", Handling::Text),
    ("serverselectiontimeoutms", Handling::Ignored(TIMEOUT)),
    ("sockettimeoutms", Handling::Ignored(TIMEOUT)),
    ("srvmaxhosts", Handling::Number(1)),
    ("srvservicename", Handling::Text),
    ("ssl", Handling::Encryption),
    ("timeoutms", Handling::Ignored(TIMEOUT)),
    ("tls", Handling::Encryption),
    ("tlsallowinvalidcertificates", Handling::Encryption),
    ("tlsallowinvalidhostnames", Handling::Encryption),
    ("tlscafile", Handling::Encryption),
    ("tlscertificatekeyfile", Handling::Encryption),
    ("tlscertificatekeyfilepassword", Handling::Refused("is not supported: take the password off the key")),
    ("tlscrlfile", Handling::Refused("is not supported: revoked certificates would be accepted")),
    ("tlsdisableocspendpointcheck", Handling::Encryption),
    ("tlsinsecure", Handling::Encryption),
    ("tz_aware", Handling::Ignored(MEANINGLESS)),
    ("unicode_decode_error_handler", Handling::Ignored(MEANINGLESS)),
    ("uuidrepresentation", Handling::Ignored(MEANINGLESS)),
    ("w", Handling::Ignored(DURABLE)),
    ("waitqueuemultiple", Handling::Ignored(POOL)),
    ("waitqueuetimeoutms", Handling::Ignored(TIMEOUT)),
    ("wtimeoutms", Handling::Ignored(DURABLE)),
    ("zlibcompressionlevel", Handling::Ignored("nothing is compressed")),
];

/// What Penstock always does.
const AS_ASKED: [(&str, &str); 4] =
    [("w", "majority"), ("journal", "true"), ("readpreference", "primary"), ("connect", "true")];
/// Ways to log in that the driver knows.
const MECHANISMS: [&str; 4] = ["SCRAM-SHA-1", "SCRAM-SHA-256", "MONGODB-X509", "PLAIN"];
/// Ways to log in that only pymongo knows.
const OTHER_MECHANISMS: [&str; 4] = ["GSSAPI", "MONGODB-AWS", "MONGODB-CR", "MONGODB-OIDC"];
/// The shortest interval of heartbeats, in milliseconds, by the drivers' common specification.
const SHORTEST_HEARTBEAT: u64 = 500;

/// An option as it is written, its value decoded.
pub(super) struct Given<'a> {
    pub(super) name: &'a str,
    pub(super) value: String,
}

/// Options by their names in small letters.
pub(super) type Options<'a> = BTreeMap<String, Given<'a>>;

/// The options for the driver.
pub(super) fn translate(text: &str, is_srv: bool, remarks: &mut Vec<String>) -> Result<String, Refused> {
    let given = read(text, remarks)?;
    let (mut passed, mut ignored) = (Vec::new(), Ignored::default());
    for (key, given) in &given {
        match handling(key) {
            Handling::Encryption => {}
            Handling::Ignored(_) if AS_ASKED.contains(&(key.as_str(), given.value.as_str())) => {}
            Handling::Ignored(reason) => ignored.add(reason, given.name),
            Handling::Refused(reason) => return Err(refused(given, reason)),
            handling => match value(key, handling, given)? {
                Some(value) => passed.push((given.name.to_owned(), value)),
                None => ignored.add(MISREAD, given.name),
            },
        }
    }
    let tls: Tls = encryption::translate(&given, is_srv, &mut ignored)?;
    passed.extend(tls);
    passed.retain(|(_, value)| !value.is_empty());
    remarks.extend(ignored.remark());
    let pairs: Vec<String> =
        passed.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect();
    Ok(pairs.join("&"))
}

/// The options that are there. Of those that are there twice, the last one counts, as in pymongo.
fn read<'a>(text: &'a str, remarks: &mut Vec<String>) -> Result<Options<'a>, Refused> {
    if text.contains('&') && text.contains(';') {
        return Err(Refused::TwoSeparators);
    }
    let mut options = BTreeMap::new();
    for pair in text.split(['&', ';']).filter(|pair| !pair.is_empty()) {
        let Some((name, value)) = pair.split_once('=') else {
            return Err(Refused::Option(shown(pair).to_owned(), "has no value".to_owned()));
        };
        let key = name.to_ascii_lowercase();
        let is_list = key == "readpreferencetags";
        if options.insert(key, Given { name, value: decoded(value) }).is_some() && !is_list {
            remarks.push(format!("the option {} is there twice, and the last one counts", shown(name)));
        }
    }
    Ok(options)
}

fn handling(key: &str) -> &'static Handling {
    HANDLINGS
        .iter()
        .find(|(name, _)| *name == key)
        .map_or(&Handling::Ignored(UNKNOWN), |(_, handling)| handling)
}

/// The value that the driver gets; none, if pymongo ignores it.
fn value(key: &str, handling: &Handling, given: &Given<'_>) -> Result<Option<String>, Refused> {
    let value = &given.value;
    Ok(match handling {
        Handling::Boolean => boolean(value).map(|value| value.to_string()),
        Handling::Number(least) => {
            let number = number(value).filter(|number| *number >= u64::from(*least));
            if key == "heartbeatfrequencyms" && number.is_some_and(|number| number < SHORTEST_HEARTBEAT) {
                return Err(refused(given, "is below 500"));
            }
            number.map(|number| number.to_string())
        }
        _ => match key {
            "authmechanism" if OTHER_MECHANISMS.contains(&value.as_str()) => {
                return Err(refused(given, "names a way to log in that is not supported"));
            }
            "authmechanism" if value == "DEFAULT" => Some(String::new()),
            "authmechanism" if !MECHANISMS.contains(&value.as_str()) => None,
            "authsource" if value.is_empty() => return Err(refused(given, "is empty")),
            "servermonitoringmode" if !["auto", "poll", "stream"].contains(&value.as_str()) => None,
            "appname" if value.len() > 128 => None,
            _ => Some(value.clone()),
        },
    })
}

pub(super) fn refused(given: &Given<'_>, reason: &str) -> Refused {
    Refused::Option(given.name.to_owned(), reason.to_owned())
}

/// The name of an option, unless it could be a part of a password.
fn shown(name: &str) -> &str {
    let is_name = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if is_name { name } else { "(not shown)" }
}

/// `true` and `false` are read, other spellings are not, as in pymongo.
pub(super) fn boolean(value: &str) -> Option<bool> {
    value.parse().ok()
}

fn number(value: &str) -> Option<u64> {
    let whole = value.split_once('.').map_or(value, |(whole, fraction)| {
        if fraction.bytes().all(|b| b.is_ascii_digit()) { whole } else { value }
    });
    whole.parse().ok()
}

/// Why a value that can't be read is ignored.
pub(super) const MISREAD: &str = "it can't have this value; true and false are in small letters";

/// Options that are ignored, by the reason.
#[derive(Default)]
pub(super) struct Ignored<'a>(BTreeMap<&'static str, Vec<&'a str>>);

impl<'a> Ignored<'a> {
    pub(super) fn add(&mut self, reason: &'static str, name: &'a str) {
        self.0.entry(reason).or_default().push(shown(name));
    }

    fn remark(&self) -> Option<String> {
        let groups = self.0.iter().map(|(reason, names)| format!("{} ({reason})", names.join(", ")));
        let groups: Vec<String> = groups.collect();
        (!groups.is_empty()).then(|| format!("ignored options: {}", groups.join("; ")))
    }
}
