//! A certificate authority of one's own, and a server's certificate by it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ServerConfig};

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

    /// Takes encrypted connections with the server's certificate, and passes on what they carry.
    pub async fn in_front_of(&self, target: SocketAddr) -> SocketAddr {
        let file = |name: &str| self.folder.join(name);
        let chain = CertificateDer::pem_file_iter(file("server.crt")).expect("it was made");
        let chain = chain.collect::<Result<_, _>>().expect("a certificate");
        let key = PrivateKeyDer::from_pem_file(file("server.key")).expect("a key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.expect("versions").with_no_client_auth().with_single_cert(chain, key);
        let acceptor = TlsAcceptor::from(Arc::new(config.expect("they belong together")));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let mut encrypted = acceptor.accept(stream).await?;
                    copy_bidirectional(&mut encrypted, &mut TcpStream::connect(target).await?).await
                });
            }
        });
        address
    }

    fn openssl(&self, command: &str, arguments: &[&str]) {
        let run = Command::new("openssl").arg(command).args(arguments).current_dir(&self.folder).output();
        let done = run.expect("openssl runs");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
}

/// A key that needs no password.
const NEW_KEY: [&str; 6] = ["-newkey", "rsa:2048", "-nodes", "-sha256", "-days", "2"];
