//! A TCP connection that reports what it waits for.

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::{Connection, Connections};

/// A TCP connection that says what it waits for, and ends when it is closed by [`Connections`].
#[derive(Debug)]
pub struct Guarded {
    stream: TcpStream,
    connection: Arc<Connection>,
    is_closed: bool,
    id: u64,
    all: Arc<Connections>,
}

impl Guarded {
    /// Accepts a new connection. Fails if there is no room, and all others are being served.
    pub fn admit(stream: TcpStream, all: &Arc<Connections>) -> io::Result<Self> {
        let (id, connection) = all.admit(Instant::now()).ok_or(ErrorKind::ConnectionRefused)?;
        Ok(Self { stream, connection, is_closed: false, id, all: all.clone() })
    }

    /// What other tasks see of this connection.
    #[must_use]
    pub fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    fn is_ended(&mut self) -> bool {
        let Some(why) = self.connection.closing() else { return false };
        if !std::mem::replace(&mut self.is_closed, true) {
            self.all.count_closed(why);
        }
        true
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.all.remove(self.id);
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.connection.waker.register(context.waker());
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        let came = &buffer.filled()[before..];
        if !came.is_empty() {
            self.connection.came(came);
        } else if read.is_pending() && self.is_ended() {
            // As if the sender had hung up.
            return Poll::Ready(Ok(()));
        }
        read
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.is_ended() {
            return Poll::Ready(Err(ErrorKind::BrokenPipe.into()));
        }
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.connection.takes(written.is_ready());
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
