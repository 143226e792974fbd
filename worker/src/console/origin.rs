//! Does a request come from our own pages? Pure.

use shared::host;

/// Whether a page of this host has sent a form, by the headers `sec-fetch-site`, `origin` and `host`.
/// Browsers that use TLS say whether it is the same site, also through a proxy that changes the host;
/// others say where the form comes from. A client that says neither isn't a browser, and has an operator's
/// cookie only if the operator has given it away.
#[must_use]
pub fn is_own(site: Option<&str>, origin: Option<&str>, host: Option<&str>) -> bool {
    if let Some(site) = site {
        return site == "same-origin";
    }
    let Some(origin) = origin else { return true };
    let sent_from = origin.split_once("://").map(|(_, rest)| rest);
    sent_from.is_some() && sent_from == host
}

/// Whether a host is a name of this machine. Otherwise, if no token is needed, a page of another site could
/// reach the console by a name of its own that leads here.
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
        assert!(is_own(None, None, here) && is_own(None, Some("http://127.0.0.1:9102"), here));
        assert!(is_own(None, Some("https://console.example"), Some("console.example")));
        let proxied = |site| is_own(Some(site), Some("https://console.example"), Some("10.0.0.7:9102"));
        assert!(proxied("same-origin") && !proxied("same-site") && !proxied("cross-site"));
        for origin in ["null", "http://evil.example", "http://127.0.0.1:9103", "http://127.0.0.1"] {
            assert!(!is_own(None, Some(origin), here), "{origin}");
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
