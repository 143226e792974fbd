//! Does a request come from our own pages? Pure.

use shared::host;

/// Whether a form was sent by a page of this host. Browsers say where a form comes from; who doesn't is no
/// browser, and has no operator's cookie unless the operator has given it to him.
#[must_use]
pub fn is_own(origin: Option<&str>, host: Option<&str>) -> bool {
    let Some(origin) = origin else { return true };
    let sent_from = origin.split_once("://").map(|(_, rest)| rest);
    sent_from.is_some() && sent_from == host
}

/// Whether a host is a name of this machine. Where no token is asked for, a page of another site could
/// otherwise reach the console by a name of its own that leads here.
#[must_use]
pub fn is_local(host_and_port: &str) -> bool {
    let (name, port) = host_and_port.rsplit_once(':').unwrap_or((host_and_port, ""));
    let name = if port.bytes().all(|byte| byte.is_ascii_digit()) { name } else { host_and_port };
    host::is_local(name) && !name.starts_with('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_sites_can_send_no_forms() {
        let here = Some("127.0.0.1:9102");
        assert!(is_own(None, here) && is_own(Some("http://127.0.0.1:9102"), here));
        assert!(is_own(Some("https://console.example"), Some("console.example")));
        for origin in ["null", "http://evil.example", "http://127.0.0.1:9103", "http://127.0.0.1"] {
            assert!(!is_own(Some(origin), here), "{origin}");
        }
    }

    #[test]
    fn this_machine_is_known_by_name_and_address() {
        for host in ["localhost", "localhost:9102", "127.0.0.1:9102", "[::1]:9102", "[::1]"] {
            assert!(is_local(host), "{host}");
        }
        for host in ["evil.example:9102", "localhost.evil.example", "10.0.0.1:9102", "", "/tmp:1"] {
            assert!(!is_local(host), "{host}");
        }
    }
}
