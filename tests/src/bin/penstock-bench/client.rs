//! One connection to the server, which is opened again when the server has closed it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::event::Event;
use crate::mix::STREAMS;

/// respond.io gives up after this.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where events are posted to.
#[derive(Debug)]
pub struct Target {
    address: String,
    host: HeaderValue,
    paths: Vec<Uri>,
}

impl Target {
    /// The endpoints of a tenant on the server of this URL.
    pub fn new(url: &str, tenant: &str) -> anyhow::Result<Self> {
        let uri: Uri = url.parse().with_context(|| format!("{url} is no URL"))?;
        let Some(authority) = uri.authority().filter(|_| uri.scheme_str() == Some("http")) else {
            bail!("{url}: want http://HOST[:PORT]");
        };
        let prefix = uri.path().trim_end_matches('/');
        let paths = STREAMS.map(|stream| format!("{prefix}/webhook/{tenant}/{stream}").parse());
        Ok(Self {
            address: format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(80)),
            host: HeaderValue::from_str(authority.as_str())?,
            paths: paths.into_iter().collect::<Result<_, _>>()?,
        })
    }

    fn request(&self, event: &Event) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(event.body.clone()));
        *request.method_mut() = hyper::Method::POST;
        *request.uri_mut() = self.paths[event.kind().stream()].clone();
        let headers = request.headers_mut();
        headers.insert(HOST, self.host.clone());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(signature) = &event.signature {
            headers.insert("x-webhook-signature", signature.clone());
        }
        request
    }
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// 200 `{"status":"received"}`.
    Received,
    /// Anything else, in words that are the same for the same trouble.
    Odd(String),
}

/// A connection.
#[derive(Debug)]
pub struct Client {
    target: Arc<Target>,
    sender: Option<SendRequest<Full<Bytes>>>,
}

impl Client {
    /// A connection that is opened when it is first needed.
    pub fn new(target: Arc<Target>) -> Self {
        Self { target, sender: None }
    }

    /// Posts an event and reads the answer.
    pub async fn post(&mut self, event: &Event) -> Answer {
        match timeout(PATIENCE, self.exchange(event)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                self.sender = None;
                Answer::Odd(format!("{error:#}"))
            }
            Err(_) => {
                self.sender = None;
                Answer::Odd(format!("no answer within {PATIENCE:?}"))
            }
        }
    }

    async fn exchange(&mut self, event: &Event) -> anyhow::Result<Answer> {
        loop {
            let (target, is_new) = (self.target.clone(), !self.is_usable().await);
            if is_new {
                self.sender = Some(connect(&target).await?);
            }
            let Some(sender) = &mut self.sender else { bail!("not connected") };
            match sender.send_request(target.request(event)).await {
                Ok(response) => return answer(response).await,
                // The server has closed what was idle, before anything was sent.
                Err(error) if error.is_canceled() && !is_new => self.sender = None,
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn is_usable(&mut self) -> bool {
        match &mut self.sender {
            Some(sender) => sender.ready().await.is_ok(),
            None => false,
        }
    }
}

async fn connect(target: &Target) -> anyhow::Result<SendRequest<Full<Bytes>>> {
    let stream = TcpStream::connect(&target.address).await.context("can't connect")?;
    stream.set_nodelay(true)?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    // Ends when the sender is dropped; what goes wrong is told to the sender as well.
    tokio::spawn(connection);
    Ok(sender)
}

async fn answer(response: Response<Incoming>) -> anyhow::Result<Answer> {
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    let text = String::from_utf8_lossy(&body);
    if status == 200 && text.contains("\"received\"") {
        return Ok(Answer::Received);
    }
    let beginning: String = text.trim().chars().take(80).collect();
    Ok(Answer::Odd(format!("{} {beginning}", status.as_u16()).trim_end().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_plain_http_url() {
        let target = Target::new("http://localhost:8000", "faster").unwrap();
        assert_eq!(target.address, "localhost:8000");
        assert_eq!(target.paths[3], "/webhook/faster/internal-note");
        assert!(Target::new("https://localhost", "faster").is_err());
        assert!(Target::new("localhost", "faster").is_err());
    }
}
