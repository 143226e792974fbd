//! A certificate authority of one's own, and a server's certificate by it.

use std::path::{Path, PathBuf};
use std::process::Command;

/// For `localhost`, by an authority that nobody else knows.
#[derive(Debug)]
pub struct Certificates {
    folder: PathBuf,
}

impl Certificates {
    /// Makes them in a folder.
    pub fn make(folder: &Path) -> Self {
        let folder = folder.join("tls");
        std::fs::create_dir(&folder).expect("a folder for certificates");
        let certificates = Self { folder };
        let authority = ["-x509", "-subj", "/CN=Test authority", "-keyout", "ca.key", "-out", "ca.crt"];
        certificates.openssl("req", &[&authority[..], &NEW_KEY].concat());
        let server =
            ["-x509", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"];
        let signed = ["-addext", "basicConstraints=critical,CA:FALSE", "-CA", "ca.crt", "-CAkey", "ca.key"];
        let files = ["-keyout", "server.key", "-out", "server.crt"];
        certificates.openssl("req", &[&server[..], &signed, &files, &NEW_KEY].concat());
        let read = |name: &str| std::fs::read_to_string(certificates.folder.join(name)).expect("it was made");
        std::fs::write(certificates.folder.join("server.pem"), read("server.crt") + &read("server.key"))
            .expect("a file");
        certificates
    }

    /// The authority's certificate.
    pub fn authority(&self) -> String {
        self.folder.join("ca.crt").to_str().expect("a name").to_owned()
    }

    /// Gives a server its own, in a folder `tls`.
    pub fn copy_to(&self, server: &Path) {
        let to = server.join("tls");
        std::fs::create_dir(&to).expect("a folder");
        for name in ["ca.crt", "server.crt", "server.key", "server.pem"] {
            std::fs::copy(self.folder.join(name), to.join(name)).expect("a copy");
        }
    }

    fn openssl(&self, command: &str, arguments: &[&str]) {
        let run = Command::new("openssl").arg(command).args(arguments).current_dir(&self.folder).output();
        let done = run.expect("openssl runs");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
}

/// A key that needs no password.
const NEW_KEY: [&str; 6] = ["-newkey", "rsa:2048", "-nodes", "-sha256", "-days", "2"];
