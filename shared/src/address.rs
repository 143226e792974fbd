//! Where RabbitMQ is, and the way there.

use std::io;
use std::path::{Path, PathBuf};

use futures_util::{AsyncRead, AsyncWrite};
use lapin::tcp::{AMQPUriTcpExt, AsyncTcpStream, RustlsConnector, RustlsConnectorConfig, TLSConfig};
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Connection, ConnectionProperties};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::env::Env;
use crate::telemetry::chain;
use crate::{amqp_url, host};

/// Heartbeat interval unless `AMQP_URL` names one: a dead peer is noticed after twice this, in seconds.
const HEARTBEAT_SECONDS: u16 = 5;

/// Where RabbitMQ is, and whom to trust there.
#[derive(Clone, Debug)]
pub struct Address {
    url: AMQPUri,
    /// The file that holds the certificates to trust, instead of the system's.
    authorities: Option<PathBuf>,
}

impl Address {
    /// Reads `AMQP_URL` and, for an encrypted connection, `SSL_CERT_FILE`.
    pub fn read(env: &mut Env) -> Self {
        let text = env.text_or_default("AMQP_URL");
        let mut url = amqp_url::parse(&text).unwrap_or_else(|refused| {
            env.problem(format!("AMQP_URL: {refused}"));
            AMQPUri::default()
        });
        url.query.heartbeat.get_or_insert(HEARTBEAT_SECONDS);
        let authorities = env.text("SSL_CERT_FILE").map(PathBuf::from);
        if let (AMQPScheme::AMQPS, Some(file)) = (&url.scheme, &authorities)
            && let Err(error) = certificates(file)
        {
            env.problem(format!("SSL_CERT_FILE: {}: {}", file.display(), chain(&error)));
        }
        Self { url, authorities }
    }

    /// The file that holds the certificates to trust, instead of the system's.
    #[must_use]
    pub fn authorities(&self) -> Option<&Path> {
        self.authorities.as_deref()
    }

    /// The name of its host.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.url.authority.host
    }

    /// Its virtual host.
    #[must_use]
    pub fn vhost(&self) -> &str {
        &self.url.vhost
    }

    /// User and password.
    #[must_use]
    pub fn credentials(&self) -> (String, String) {
        let user = &self.url.authority.userinfo;
        (user.username.clone(), user.password.clone())
    }

    /// Its host, port and virtual host, without the password.
    #[must_use]
    pub fn shown(&self) -> String {
        let authority = &self.url.authority;
        format!("{}, virtual host {}", host::with_port(&authority.host, authority.port), self.url.vhost)
    }

    /// A warning, if the password in `AMQP_URL` goes to another machine unencrypted.
    #[must_use]
    pub fn exposed(&self) -> Option<String> {
        let is_exposed = self.url.scheme == AMQPScheme::AMQP && !host::is_local(self.host());
        let warning = "unencrypted; use amqps:// outside a trusted network";
        is_exposed.then(|| format!("AMQP_URL: the password goes to {} {warning}", self.host()))
    }

    /// Connects, and says hello.
    pub async fn connect(&self, properties: ConnectionProperties) -> lapin::Result<Connection> {
        let (address, runtime) = (self.clone(), lapin::runtime::default_runtime()?);
        let open = async move |_, runtime| {
            let stream = address.unencrypted().connect_async(&runtime).await?;
            Ok(address.encrypted(stream).await?)
        };
        Box::pin(Connection::connector(self.url.clone(), runtime, open, properties)).await
    }

    /// Connects, and says nothing.
    pub async fn stream(&self) -> io::Result<impl AsyncRead + AsyncWrite + Unpin + use<>> {
        let runtime = lapin::runtime::default_runtime().map_err(io::Error::other)?;
        let stream = self.unencrypted().connect_async(&runtime).await?;
        self.encrypted(stream).await
    }

    fn unencrypted(&self) -> AMQPUri {
        AMQPUri { scheme: AMQPScheme::AMQP, ..self.url.clone() }
    }

    async fn encrypted<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
        &self,
        stream: AsyncTcpStream<S>,
    ) -> io::Result<AsyncTcpStream<S>> {
        match (&self.url.scheme, &self.authorities) {
            (AMQPScheme::AMQP, _) => Ok(stream),
            (AMQPScheme::AMQPS, None) => stream.into_tls(self.host(), TLSConfig::default()).await,
            (AMQPScheme::AMQPS, Some(file)) => stream.into_rustls(&connector(file)?, self.host()).await,
        }
    }
}

/// Trusts the certificates of this file. It is read for each connection, since certificates are replaced.
fn connector(file: &Path) -> io::Result<RustlsConnector> {
    let config = RustlsConnectorConfig::default().with_parsable_certificates(certificates(file)?);
    config.connector_with_no_client_auth()
}

fn certificates(file: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let text = std::fs::read(file)?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let certificates = read.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    if certificates.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "there is no certificate in it"));
    }
    Ok(certificates)
}
