//! Translates a URI for pymongo, the Flask bridge's driver, into one for the Rust driver. Pure.
//!
//! pymongo ignores options and values that it doesn't know; the driver refuses the whole URI, and options
//! that it has no support for. `tests/mongo_uris` holds what pymongo makes of many URIs.

use mongodb::options::ServerAddress;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

mod encryption;
mod options;
#[cfg(test)]
mod tests;

/// A URI for the driver.
#[derive(Debug, PartialEq, Eq)]
pub struct MongoUri {
    /// Its text. Holds the password.
    pub text: String,
    /// The database that it names.
    pub database: Option<String>,
    /// What is ignored, or isn't read as it is written. Never has a password.
    pub remarks: Vec<String>,
}

/// Why a URI can't be taken. Never holds a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It has another form.
    #[error("is not a URI like mongodb://user:password@host:27017/?replicaSet=rs0")]
    NotAUri,
    /// The hosts can't be read. A part of them could be the password.
    #[error(
        "the hosts are not of the form host:27017,[address]:27017; if the password has one of :/?#[]@%, percent-encode it"
    )]
    Hosts,
    /// The database can't have this name.
    #[error("the name of the database has one of / \\ blank \" $")]
    Database,
    /// There is an @, and no user before it.
    #[error("there is no user name before the @")]
    NoUser,
    /// `&` and `;` stand between the options.
    #[error("the options are separated by & and by ;, which of the two?")]
    TwoSeparators,
    /// An option can't be taken.
    #[error("the option {0} {1}")]
    Option(String, String),
}

/// The parts of a URI, as they are written.
#[derive(Clone, Copy, Debug)]
struct Parts<'a> {
    user: Option<&'a str>,
    hosts: &'a str,
    database: &'a str,
    options: &'a str,
}

/// Translates a URI, or says why it can't be taken.
pub fn translate(uri: &str) -> Result<MongoUri, Refused> {
    // pymongo takes a list of hosts for a URI.
    let (scheme, rest) = uri.split_once("://").unwrap_or(("mongodb", uri));
    let is_srv = match scheme {
        "mongodb" if rest == uri && uri.contains(['@', '/', '?']) => return Err(Refused::NotAUri),
        "mongodb" => false,
        "mongodb+srv" => true,
        _ => return Err(Refused::NotAUri),
    };
    let parts = split(rest)?;
    let mut remarks = Vec::new();
    let user = parts.user.map(|user| credentials(user, &mut remarks)).transpose()?;
    let hosts = hosts(parts.hosts)?;
    let database = database(parts.database)?;
    let options = options::translate(parts.options, is_srv, &mut remarks)?;
    let text = format!(
        "{scheme}://{}{}/{}?{options}",
        user.map(|user| user + "@").unwrap_or_default(),
        hosts.join(","),
        database.as_deref().map(encoded).unwrap_or_default(),
    );
    Ok(MongoUri { text, database, remarks })
}

/// Finds the parts. If pymongo's way of reading leads to invalid hosts, a later @ ends the password: then a
/// reserved character of the password is not percent-encoded, but its meaning is clear.
fn split(rest: &str) -> Result<Parts<'_>, Refused> {
    let authority = rest.find('/').or_else(|| rest.find('?')).unwrap_or(rest.len());
    let by_pymongo = parts(rest, rest[..authority].rfind('@'));
    by_pymongo.or_else(|refused| {
        let otherwise = rest.match_indices('@').map(|(at, _)| Some(at)).chain([None]);
        otherwise.map(|at| parts(rest, at)).find(Result::is_ok).unwrap_or(Err(refused))
    })
}

/// The parts, if the @ at this place ends the password.
fn parts(rest: &str, at: Option<usize>) -> Result<Parts<'_>, Refused> {
    let (user, rest) = at.map_or((None, rest), |at| (Some(&rest[..at]), &rest[at + 1..]));
    let (before, options) = rest.split_once('?').unwrap_or((rest, ""));
    let (named, database) = before.split_once('/').unwrap_or((before, ""));
    hosts(named)?;
    self::database(database)?;
    Ok(Parts { user, hosts: named, database, options })
}

/// User name and password, with every reserved character encoded.
fn credentials(text: &str, remarks: &mut Vec<String>) -> Result<String, Refused> {
    let (user, password) =
        text.split_once(':').map_or((text, None), |(user, password)| (user, Some(password)));
    if user.is_empty() {
        return Err(Refused::NoUser);
    }
    if text.contains('+') {
        remarks.push("a + in user name or password means a blank, as in the bridge; %2B is a +".to_owned());
    }
    let is_reserved =
        |part: &str| part.contains([':', '/', '?', '#', '[', ']', '@']) || has_bare_percent(part);
    if is_reserved(user) || password.is_some_and(is_reserved) {
        remarks.push("user name or password has one of :/?#[]@%, which should be percent-encoded".to_owned());
    }
    let encode = |part: &str| encoded(&decoded(part));
    Ok(password.map_or_else(|| encode(user), |password| format!("{}:{}", encode(user), encode(password))))
}

/// Whether a % begins no encoded byte.
fn has_bare_percent(text: &str) -> bool {
    let is_encoded = |after: &str| after.len() >= 2 && after.bytes().take(2).all(|b| b.is_ascii_hexdigit());
    text.split('%').skip(1).any(|after| !is_encoded(after))
}

/// The hosts, if the driver can read each of them.
fn hosts(text: &str) -> Result<Vec<String>, Refused> {
    text.split(',').map(host).collect()
}

fn host(text: &str) -> Result<String, Refused> {
    let host = decoded(text);
    if let Some(path) = host.strip_suffix(".sock") {
        // The driver knows a socket by the end of its name as it is written.
        return Ok(format!("{}.sock", encoded(path)));
    }
    let is_ours = !host.contains(['/', '?', '#', '@', '\\']) && !host.contains(char::is_whitespace);
    // The driver takes ::1 for a host without a name.
    let has_one_port = host.starts_with('[') || host.matches(':').count() <= 1;
    if is_ours && has_one_port && ServerAddress::parse(&host).is_ok() {
        Ok(host)
    } else {
        Err(Refused::Hosts)
    }
}

/// The database, without the collection that pymongo allows behind it.
fn database(text: &str) -> Result<Option<String>, Refused> {
    let name = decoded(text);
    let name = name.split('.').next().unwrap_or_default();
    if name.contains(['/', '\\', ' ', '"', '$']) {
        return Err(Refused::Database);
    }
    Ok((!name.is_empty()).then(|| name.to_owned()))
}

/// What is meant by percent signs and, as in pymongo, by +.
fn decoded(text: &str) -> String {
    let text = text.replace('+', " ");
    percent_decode_str(&text).decode_utf8_lossy().into_owned()
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}
