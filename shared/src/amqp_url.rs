//! Reads `AMQP_URL` as it is written, or refuses it. Pure.
//!
//! lapin's own reader takes an IPv6 address for no host at all, and connects to localhost; it takes a
//! password that is empty or missing for `guest`, and leaves out what stands behind a `#` and parameters that
//! it doesn't know.

use std::str::FromStr;

use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo, SASLMechanism};
use percent_encoding::percent_decode_str;

use crate::host;

/// The virtual host that every RabbitMQ has.
const DEFAULT_VHOST: &str = "/";
/// Longest name of a virtual host: AMQP has one byte for its length.
const MAX_VHOST: usize = 255;

/// Why a URL can't be taken. Never holds a password, nor what could be a part of one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It has another form.
    #[error("is not a URL like amqp://user:password@host:5672/vhost")]
    NotAUrl,
    /// There is a `#`, or an `@` that doesn't end a password.
    #[error(
        "has a # or an @ behind the host; in a password or a name, each of :/?#[]@% is percent-encoded, such as %2F for /"
    )]
    Reserved,
    /// A `%` begins no encoded byte, or the bytes are no text.
    #[error(
        "has a % that isn't followed by two hexadecimal digits of a UTF-8 text; the % itself is written %25"
    )]
    Encoding,
    /// There is no host.
    #[error("names no host")]
    NoHost,
    /// The host is none.
    #[error("the host is neither a name nor an address; an IPv6 address stands in brackets, such as [::1]")]
    Host,
    /// The port is none.
    #[error("the port is not a number from 1 to 65535")]
    Port,
    /// There is an `@`, and no user before it.
    #[error("names no user before the @")]
    NoUser,
    /// There is a user, and no password.
    #[error("names a user without a password; write user:password@host")]
    NoPassword,
    /// The URL ends in a slash.
    #[error(
        "the virtual host behind the last / is empty; for RabbitMQ's default one, which is called /, write /%2f or leave \
         that / out, else write its name there"
    )]
    NoVhost,
    /// There are several slashes.
    #[error(
        "the virtual host has a / in its name; write it as %2f, or leave it out if it isn't part of the name"
    )]
    Vhost,
    /// The name is too long.
    #[error("the virtual host's name is longer than {MAX_VHOST} bytes")]
    LongVhost,
    /// A parameter isn't known.
    #[error(
        "the parameter {0:?} is not known; there are heartbeat, frame_max, channel_max, connection_timeout and \
         auth_mechanism, and TLS is set up by amqps:// and SSL_CERT_FILE"
    )]
    Parameter(String),
    /// A parameter comes twice.
    #[error("the parameter {0} is there twice")]
    Twice(&'static str),
    /// A parameter's value can't be read.
    #[error("the parameter {0} has a value that can't be read")]
    Value(&'static str),
}

/// Reads a URL.
pub fn parse(text: &str) -> Result<AMQPUri, Refused> {
    let (scheme, rest) = text.split_once("://").ok_or(Refused::NotAUrl)?;
    let scheme: AMQPScheme = scheme.to_ascii_lowercase().parse().map_err(|_| Refused::NotAUrl)?;
    let (authority, behind) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    // Part of a password with one of these characters would be taken for the host or the port.
    if behind.contains(['#', '@']) {
        return Err(Refused::Reserved);
    }
    let (path, query) = behind.split_once('?').unwrap_or((behind, ""));
    let query = query_string(query)?;
    let (user, server) =
        authority.rsplit_once('@').map_or((None, authority), |(user, rest)| (Some(user), rest));
    let userinfo = user.map_or_else(|| Ok(AMQPUserInfo::default()), |user| user_info(user, &query))?;
    let (host, port) = host_and_port(server)?;
    let port = port.unwrap_or_else(|| scheme.default_port());
    Ok(AMQPUri { authority: AMQPAuthority { userinfo, host, port }, vhost: vhost(path)?, query, scheme })
}

fn user_info(text: &str, query: &AMQPQueryString) -> Result<AMQPUserInfo, Refused> {
    let (username, password) = text.split_once(':').map_or((text, None), |(user, word)| (user, Some(word)));
    if username.is_empty() {
        return Err(Refused::NoUser);
    }
    // With a client's certificate there is none.
    let needs_password = query.auth_mechanism != Some(SASLMechanism::External);
    if password.is_none() && needs_password {
        return Err(Refused::NoPassword);
    }
    Ok(AMQPUserInfo { username: decoded(username)?, password: decoded(password.unwrap_or_default())? })
}

fn host_and_port(text: &str) -> Result<(String, Option<u16>), Refused> {
    let at = match text.strip_prefix('[') {
        Some(_) => text.find(']').ok_or(Refused::Host)? + 1,
        None => text.find(':').unwrap_or(text.len()),
    };
    let (host, port) = text.split_at(at);
    let host = match host {
        "" if text.matches(':').count() > 1 => return Err(Refused::Host),
        "" => return Err(Refused::NoHost),
        host => host::parse(host).ok_or(Refused::Host)?,
    };
    let port = match port.strip_prefix(':') {
        // Several colons: an IPv6 address without brackets.
        Some(port) if port.contains(':') => return Err(Refused::Host),
        Some("") => None,
        Some(port) => Some(port.parse().ok().filter(|port| *port > 0).ok_or(Refused::Port)?),
        None if port.is_empty() => None,
        None => return Err(Refused::Host),
    };
    Ok((host, port))
}

fn vhost(path: &str) -> Result<String, Refused> {
    let name = match path.strip_prefix('/') {
        None | Some(DEFAULT_VHOST) => return Ok(DEFAULT_VHOST.to_owned()),
        Some("") => return Err(Refused::NoVhost),
        Some(name) if name.contains('/') => return Err(Refused::Vhost),
        Some(name) => decoded(name)?,
    };
    if name.len() > MAX_VHOST { Err(Refused::LongVhost) } else { Ok(name) }
}

fn query_string(text: &str) -> Result<AMQPQueryString, Refused> {
    let mut query = AMQPQueryString::default();
    for parameter in text.split('&').filter(|parameter| !parameter.is_empty()) {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        match name {
            "heartbeat" => set(&mut query.heartbeat, "heartbeat", value)?,
            "frame_max" => set(&mut query.frame_max, "frame_max", value)?,
            "channel_max" => set(&mut query.channel_max, "channel_max", value)?,
            "connection_timeout" => set(&mut query.connection_timeout, "connection_timeout", value)?,
            "auth_mechanism" => set(&mut query.auth_mechanism, "auth_mechanism", value)?,
            name => return Err(Refused::Parameter(name.to_owned())),
        }
    }
    Ok(query)
}

fn set<T: FromStr>(parameter: &mut Option<T>, name: &'static str, value: &str) -> Result<(), Refused> {
    let value = value.parse().map_err(|_| Refused::Value(name))?;
    if parameter.replace(value).is_some() { Err(Refused::Twice(name)) } else { Ok(()) }
}

fn decoded(text: &str) -> Result<String, Refused> {
    let is_encoded = |after: &str| after.len() >= 2 && after.bytes().take(2).all(|b| b.is_ascii_hexdigit());
    let decoded = percent_decode_str(text).decode_utf8().map_err(|_| Refused::Encoding)?;
    // A NUL separates user and password on the way to RabbitMQ.
    if !text.split('%').skip(1).all(is_encoded) || decoded.contains('\0') {
        return Err(Refused::Encoding);
    }
    Ok(decoded.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Host, port, virtual host, user and password.
    fn read(text: &str) -> Result<(String, u16, String, String, String), Refused> {
        let AMQPUri { authority: AMQPAuthority { userinfo, host, port }, vhost, .. } = parse(text)?;
        Ok((host, port, vhost, userinfo.username, userinfo.password))
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        for (text, (host, port, vhost, user, password)) in [
            ("amqp://h", ("h", 5672, "/", "guest", "guest")),
            ("AMQPS://h", ("h", 5671, "/", "guest", "guest")),
            ("amqp://u:p@h:1/v", ("h", 1, "v", "u", "p")),
            ("amqp://u:p@h:/%2f", ("h", 5672, "/", "u", "p")),
            ("amqp://u:p@h//", ("h", 5672, "/", "u", "p")),
            ("amqp://u:p@[::1]/v", ("::1", 5672, "v", "u", "p")),
            ("amqps://u:p@[2001:db8::1]:5673/v", ("2001:db8::1", 5673, "v", "u", "p")),
            ("amqp://u:@h", ("h", 5672, "/", "u", "")),
            ("amqp://u%40x:p%2F%3a%25@h/a%2Fb", ("h", 5672, "a/b", "u@x", "p/:%")),
            ("amqp://u:p:w@d@h/.", ("h", 5672, ".", "u", "p:w@d")),
            ("amqp://u:p$w+\u{e9}@h/v", ("h", 5672, "v", "u", "p$w+\u{e9}")),
            ("amqp://u:p@h/v?heartbeat=7&channel_max=9", ("h", 5672, "v", "u", "p")),
        ] {
            let [host, vhost, user, password] = [host, vhost, user, password].map(str::to_owned);
            assert_eq!(read(text), Ok((host, port, vhost, user, password)), "{text}");
        }
        let query = parse("amqp://h?heartbeat=7&channel_max=9&auth_mechanism=EXTERNAL").unwrap().query;
        assert_eq!((query.heartbeat, query.channel_max), (Some(7), Some(9)));
        assert_eq!(query.auth_mechanism, Some(SASLMechanism::External));
        assert!(parse("amqp://u@h?auth_mechanism=external").is_ok());
    }

    #[test]
    fn what_could_be_meant_otherwise_is_refused_without_a_part_of_the_password() {
        for (text, refused) in [
            ("", Refused::NotAUrl),
            ("hunter2", Refused::NotAUrl),
            ("amqp:hunter2@h", Refused::NotAUrl),
            ("http://u:hunter2@h", Refused::NotAUrl),
            ("amqp://u:hunter2@", Refused::NoHost),
            ("amqp:///v", Refused::NoHost),
            ("amqp://:5672/v", Refused::NoHost),
            ("amqp://::1/v", Refused::Host),
            ("amqp://::1:5672/v", Refused::Host),
            ("amqp://2001:db8::1/v", Refused::Host),
            ("amqp://[::1/v", Refused::Host),
            ("amqp://[::1]5672/v", Refused::Host),
            ("amqp://[h]/v", Refused::Host),
            ("amqp://127.0.0.300/v", Refused::Host),
            ("amqp://a,b/v", Refused::Host),
            ("amqp://u:hunter2/v", Refused::Port),
            ("amqp://h:0/v", Refused::Port),
            ("amqp://h:65536/v", Refused::Port),
            ("amqp://:hunter2@h/v", Refused::NoUser),
            ("amqp://u@h/v", Refused::NoPassword),
            ("amqp://u:p@h/", Refused::NoVhost),
            ("amqp://u:p@h/?heartbeat=7", Refused::NoVhost),
            ("amqp://u:p@h/v/", Refused::Vhost),
            ("amqp://u:p@h/a/b", Refused::Vhost),
            ("amqp://u:1/hunter2@h/v", Refused::Reserved),
            ("amqp://u:1?hunter2@h/v", Refused::Reserved),
            ("amqp://u:1#hunter2@h/v", Refused::Reserved),
            ("amqp://u:p@h/v#w", Refused::Reserved),
            ("amqp://u:hunter2%@h/v", Refused::Encoding),
            ("amqp://u:hunter2%4@h/v", Refused::Encoding),
            ("amqp://u:%ff@h/v", Refused::Encoding),
            ("amqp://u:p@h/%00", Refused::Encoding),
            ("amqp://h/v?heartbeat=", Refused::Value("heartbeat")),
            ("amqp://h/v?heartbeat=5s", Refused::Value("heartbeat")),
            ("amqp://h/v?heartbeat=5&heartbeat=6", Refused::Twice("heartbeat")),
            ("amqps://h/v?verify=verify_none", Refused::Parameter("verify".to_owned())),
        ] {
            assert_eq!(parse(text), Err(refused.clone()), "{text}");
            assert!(!refused.to_string().contains("hunter2"), "{text}");
        }
        let long = format!("amqp://h/{}", "v".repeat(MAX_VHOST + 1));
        assert_eq!(parse(&long), Err(Refused::LongVhost));
    }
}
