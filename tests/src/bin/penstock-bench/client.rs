//! Posts events over HTTP, on as many connections as there are requests at the same time.

use std::sync::{Mutex, PoisonError};

use anyhow::{Context, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::event::{Event, Kind};
use crate::stage::TENANT;

type Connection = SendRequest<Full<Bytes>>;

/// A server with the bridge's endpoints.
#[derive(Debug)]
pub struct HttpTarget {
    host: String,
    path: String,
    idle: Mutex<Vec<Connection>>,
}

impl HttpTarget {
    /// The server of this URL.
    pub fn new(url: &str) -> anyhow::Result<Self> {
        let uri: Uri = url.parse().with_context(|| format!("{url} is no URL"))?;
        ensure!(uri.scheme_str() == Some("http"), "{url}: want http://HOST[:PORT]");
        let authority = uri.authority().context("a URL has a host")?;
        let host = format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(80));
        let path = format!("{}/webhook/{TENANT}", uri.path().trim_end_matches('/'));
        Ok(Self { host, path, idle: Mutex::default() })
    }

    /// Posts an event. An error, if the answer isn't 200 `received`.
    pub async fn post(&self, event: &Event) -> anyhow::Result<()> {
        let mut connection = self.connection().await?;
        received(connection.send_request(self.request(event)?).await?).await?;
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        Ok(())
    }

    /// The connection that was used last, or a new one.
    async fn connection(&self) -> anyhow::Result<Connection> {
        loop {
            let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(mut idle) = idle else { break };
            if idle.ready().await.is_ok() {
                return Ok(idle);
            }
        }
        let stream = TcpStream::connect(&self.host).await.context("can't connect")?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // Ends when the sender is dropped. Errors reach the sender too.
        tokio::spawn(connection);
        Ok(sender)
    }

    fn request(&self, event: &Event) -> anyhow::Result<Request<Full<Bytes>>> {
        let path = format!("{}/{}", self.path, Kind::of(event.n).stream);
        let request =
            Request::post(path).header("host", &self.host).header("content-type", "application/json");
        let request = match &event.signature {
            Some(signature) => request.header("x-webhook-signature", signature),
            None => request,
        };
        Ok(request.body(Full::new(event.body.clone()))?)
    }
}

async fn received(response: Response<Incoming>) -> anyhow::Result<()> {
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    let text = String::from_utf8_lossy(&body);
    let beginning: String = text.trim().chars().take(80).collect();
    ensure!(status == 200 && text.contains("\"received\""), "{} {beginning}", status.as_u16());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_plain_http_url() {
        let target = HttpTarget::new("http://localhost/bridge/").unwrap();
        assert_eq!((target.host.as_str(), target.path.as_str()), ("localhost:80", "/bridge/webhook/faster"));
        assert!(HttpTarget::new("https://localhost").is_err());
        assert!(HttpTarget::new("localhost").is_err());
    }
}
