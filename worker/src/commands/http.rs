//! Requests to HTTP servers, each with a deadline. HTTP/1.1 over hyper, TLS over rustls: both are in the
//! worker anyway, and are enough.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderMap, HeaderValue, USER_AGENT};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{error::Elapsed, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore, crypto};

use super::address::HttpAddress;

/// Longest time for a request, from the connection to the last byte of the answer.
const DEADLINE: Duration = Duration::from_secs(30);
/// Largest answer. A page holds a hundred messages at most.
const MAX_ANSWER_BYTES: usize = 32 << 20;

/// Why there is no answer. Holds neither the token nor what was sent.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The connection can't be made, or was lost.
    #[error("the connection failed")]
    Io(#[from] io::Error),
    /// The answer is no HTTP, or ends too soon.
    #[error("the connection broke")]
    Http(#[from] hyper::Error),
    /// It takes too long.
    #[error("no answer within {DEADLINE:?}")]
    TimedOut(#[from] Elapsed),
    /// It is too large, or ends too soon.
    #[error("the answer can't be read: {0}")]
    Body(String),
    /// TLS can't be used at all.
    #[error("TLS")]
    Tls(#[from] rustls::Error),
    /// The request can't be written.
    #[error("the request can't be made")]
    Request(#[from] hyper::http::Error),
}

/// The header that shows a token, which no log shows.
pub fn bearer(token: &str) -> Result<HeaderMap, HttpError> {
    authorization(&format!("Bearer {token}"))
}

/// The same with any credentials.
pub fn authorization(credentials: &str) -> Result<HeaderMap, HttpError> {
    let mut value = HeaderValue::try_from(credentials).map_err(hyper::http::Error::from)?;
    value.set_sensitive(true);
    Ok([(AUTHORIZATION, value)].into_iter().collect())
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

/// A client for one server.
pub struct Http {
    address: HttpAddress,
    /// The server's name and port.
    pub authority: String,
    headers: HeaderMap,
    tls: Option<TlsConnector>,
    idle: Mutex<Vec<Connection>>,
}

type Connection = SendRequest<Full<Bytes>>;

impl Http {
    /// A client that sends these headers with each request.
    pub fn new(address: HttpAddress, headers: HeaderMap) -> Result<Self, HttpError> {
        let tls = if address.is_encrypted { Some(connector()?) } else { None };
        let authority = address.authority();
        Ok(Self { address, authority, headers, tls, idle: Mutex::default() })
    }

    /// Makes a request, twice if the connection was closed meanwhile: so it must be safe to repeat.
    pub async fn request(&self, method: Method, path: &str, body: String) -> Result<Answer, HttpError> {
        timeout(DEADLINE, self.exchange(method, path, HeaderMap::new(), body.into())).await?
    }

    /// Posts a body with more headers.
    pub async fn post(&self, path: &str, headers: HeaderMap, body: Bytes) -> Result<Answer, HttpError> {
        timeout(DEADLINE, self.exchange(Method::POST, path, headers, body)).await?
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Answer, HttpError> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.address.path))
            .header(HOST, &self.authority)
            .header(ACCEPT, "application/json")
            .header(CONTENT_TYPE, "application/json")
            .header(USER_AGENT, concat!("penstock-worker/", env!("CARGO_PKG_VERSION")))
            .body(Full::new(body))?;
        request.headers_mut().extend(self.headers.clone());
        request.headers_mut().extend(headers);
        let mut connection = match self.idle() {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let (head, body) = connection.send_request(request).await.map(Response::into_parts)?;
        let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await.map_err(|error| {
            let is_large = error.downcast_ref::<LengthLimitError>().is_some();
            HttpError::Body(if is_large { "it is too large".to_owned() } else { error.to_string() })
        })?;
        if connection.ready().await.is_ok() {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        }
        Ok(Answer { status: head.status, headers: head.headers, body: body.to_bytes() })
    }

    /// A connection that is open, as far as is known.
    fn idle(&self) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|connection| !connection.is_closed());
        idle.pop()
    }

    async fn connect(&self) -> Result<Connection, HttpError> {
        let HttpAddress { host, port, .. } = &self.address;
        let stream = TcpStream::connect((host.as_str(), *port)).await?;
        stream.set_nodelay(true)?;
        let Some(tls) = &self.tls else {
            let (connection, driver) = http1::handshake(TokioIo::new(stream)).await?;
            tokio::spawn(driver);
            return Ok(connection);
        };
        let name = ServerName::try_from(host.clone()).map_err(io::Error::other)?;
        let (connection, driver) = http1::handshake(TokioIo::new(tls.connect(name, stream).await?)).await?;
        tokio::spawn(driver);
        Ok(connection)
    }
}

/// TLS as everywhere in Penstock: the system's certificates, or those in the file that `SSL_CERT_FILE` names.
fn connector() -> Result<TlsConnector, HttpError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let config = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}
