//! Where an HTTP server is, such as respond.io's API.

use hyper::Uri;
use shared::env::Env;
use shared::host;

/// An address like `https://api.respond.io/v2`, taken apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HttpAddress {
    /// Whether the connection is encrypted.
    pub is_encrypted: bool,
    /// The host, as it is looked up.
    pub host: String,
    /// The port.
    pub port: u16,
    /// What stands in front of each path.
    pub path: String,
}

impl HttpAddress {
    /// Reads `RESPOND_API_URL`.
    pub fn read(env: &mut Env) -> Self {
        let text = env.text_or_default("RESPOND_API_URL");
        Self::parse(&text).unwrap_or_else(|| {
            env.problem("RESPOND_API_URL: is not a URL like https://api.respond.io/v2");
            Self::default()
        })
    }

    /// Reads an argument of a command.
    pub fn argument(text: &str) -> Result<Self, String> {
        Self::parse(text).ok_or_else(|| "is not a URL like https://hooks.example.com".to_owned())
    }

    fn parse(text: &str) -> Option<Self> {
        let uri: Uri = text.parse().ok()?;
        let is_encrypted = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'))?;
        if uri.query().is_some() || authority.host().is_empty() {
            return None;
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = authority.port_u16().unwrap_or(if is_encrypted { 443 } else { 80 });
        Some(Self { is_encrypted, host, port, path: uri.path().trim_end_matches('/').to_owned() })
    }

    /// What stands in the header `Host`.
    #[must_use]
    pub fn authority(&self) -> String {
        let Self { is_encrypted, host, port, .. } = self;
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        if *port == if *is_encrypted { 443 } else { 80 } { host } else { format!("{host}:{port}") }
    }

    /// A warning, if tokens go to another machine unencrypted.
    #[must_use]
    pub fn exposed(&self) -> Option<String> {
        let is_exposed = !self.is_encrypted && !self.host.is_empty() && !host::is_local(&self.host);
        is_exposed.then(|| format!("RESPOND_API_URL: tokens go to {} unencrypted; use https://", self.host))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart() {
        let known = HttpAddress::parse("https://api.respond.io/v2").unwrap();
        assert_eq!((known.is_encrypted, known.port, known.path.as_str()), (true, 443, "/v2"));
        assert_eq!(known.authority(), "api.respond.io");
        let near = HttpAddress::parse("http://[::1]:8080/").unwrap();
        assert_eq!((near.host.as_str(), near.port, near.path.as_str()), ("::1", 8080, ""));
        assert_eq!(near.authority(), "[::1]:8080");
        for bad in ["", "api.respond.io/v2", "ftp://h/", "https://u:p@h/", "https://h/?a=b", "https:///v2"] {
            assert_eq!(HttpAddress::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_unencrypted_way_to_another_machine_is_warned_about() {
        let exposed = |text: &str| HttpAddress::parse(text).unwrap().exposed().is_some();
        assert!(exposed("http://far.example/"));
        assert!(!exposed("http://127.0.0.1:8080/") && !exposed("https://far.example/"));
    }
}
