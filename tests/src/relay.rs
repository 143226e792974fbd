//! A relay in front of a server, which can be cut and mended.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A relay that listens on a port of its own.
#[derive(Debug)]
pub struct Relay {
    /// Where it listens.
    pub address: SocketAddr,
    mended: Arc<watch::Sender<bool>>,
}

impl Relay {
    /// Starts relaying to `target`.
    pub async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let mended = Arc::new(watch::Sender::new(true));
        let state = mended.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let mut state = state.subscribe();
                tokio::spawn(async move {
                    // A cut relay closes at once whoever comes.
                    let relayed = async move {
                        let (mut client, mut server) = (client, TcpStream::connect(target).await?);
                        copy_bidirectional(&mut client, &mut server).await
                    };
                    tokio::select! {
                        biased;
                        _ = state.wait_for(|mended| !*mended) => {}
                        _ = relayed => {}
                    }
                });
            }
        });
        Self { address, mended }
    }

    /// Breaks every connection, and every new one.
    pub fn cut(&self) {
        self.mended.send_replace(false);
    }

    /// Lets connections through again.
    pub fn mend(&self) {
        self.mended.send_replace(true);
    }
}
