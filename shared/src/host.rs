//! Hosts as they are written in settings. Pure.

use std::net::{IpAddr, Ipv6Addr};

/// Longest name of a host.
const MAX_NAME: usize = 253;

/// A host without the brackets that an IPv6 address may stand in; none, if it is neither a name nor an
/// address.
#[must_use]
pub fn parse(text: &str) -> Option<String> {
    if let Some(inner) = text.strip_prefix('[') {
        let address = inner.strip_suffix(']').filter(|address| address.parse::<Ipv6Addr>().is_ok())?;
        return Some(address.to_owned());
    }
    (text.parse::<IpAddr>().is_ok() || is_name(text)).then(|| text.to_owned())
}

fn is_name(text: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    // Resolvers take a text of digits and dots for an address in one of its older spellings.
    let is_numeric = text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    (1..=MAX_NAME).contains(&text.len())
        && text.chars().all(is_allowed)
        && !is_numeric
        && !text.starts_with(['.', '-'])
}

/// Host and port in one text.
#[must_use]
pub fn with_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Whether one process can't listen at both. A host that stands for all addresses stands for the other one,
/// too.
#[must_use]
pub fn is_same_port((host, port): (&str, u16), (other, other_port): (&str, u16)) -> bool {
    let is_all = |host: &str| host.parse().is_ok_and(|ip: IpAddr| ip.is_unspecified());
    let is_same_host = host == other || is_all(host) || is_all(other) || is_local(host) && is_local(other);
    port != 0 && port == other_port && is_same_host
}

/// Whether a host is this machine, so that what goes there stays here.
#[must_use]
pub fn is_local(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let is_loopback = |ip: IpAddr| ip.is_loopback();
    host.eq_ignore_ascii_case("localhost") || host.starts_with('/') || host.parse().is_ok_and(is_loopback)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_clash_on_one_address_or_where_one_stands_for_all() {
        for (host, other, clashes) in [
            ("127.0.0.1", "127.0.0.1", true),
            ("0.0.0.0", "127.0.0.1", true),
            ("::", "10.0.0.1", true),
            ("localhost", "127.0.0.1", true),
            ("10.0.0.1", "127.0.0.1", false),
        ] {
            assert_eq!(is_same_port((host, 80), (other, 80)), clashes, "{host} {other}");
        }
        assert!(!is_same_port(("::", 0), ("::", 0)) && !is_same_port(("::", 1), ("::", 2)));
    }

    #[test]
    fn names_and_addresses_are_told_from_what_is_neither() {
        for (text, host) in [
            ("localhost", "localhost"),
            ("rabbit-1.example.", "rabbit-1.example."),
            ("my_service", "my_service"),
            ("127.0.0.1", "127.0.0.1"),
            ("::", "::"),
            ("[::]", "::"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("::ffff:10.0.0.1", "::ffff:10.0.0.1"),
        ] {
            assert_eq!(parse(text).as_deref(), Some(host));
        }
        for text in [
            "",
            "[",
            "[]",
            "[::1",
            "::1]",
            "[127.0.0.1]",
            "[localhost]",
            "256.0.0.1",
            "127.1",
            "a b",
            "a:80",
            "*",
            "http://h",
            "fe80::1%eth0",
            "[fe80::1%25eth0]",
            "-h",
            "h\u{e9}",
            &"h".repeat(254),
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn an_ipv6_address_is_told_from_its_port() {
        assert_eq!(with_port("::1", 80), "[::1]:80");
        assert_eq!(with_port("h", 80), "h:80");
    }
}
