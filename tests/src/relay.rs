//! A relay in front of a server, which can cut, stall, delay and slow down what goes through it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

/// What the relay does to connections.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// Nothing.
    None,
    /// Breaks them, and every new one.
    Cut,
    /// Keeps them open, and lets nothing through.
    Stall,
    /// Lets everything through, so much later each way.
    Delay(Duration),
    /// Lets this many bytes through per second, connection, and direction.
    Narrow(u32),
}

/// A relay that listens on a port of its own.
#[derive(Debug)]
pub struct Relay {
    /// Where it listens.
    pub address: SocketAddr,
    fault: Arc<watch::Sender<Fault>>,
    breaks: Arc<watch::Sender<()>>,
}

impl Relay {
    /// Starts relaying to `target`.
    pub async fn start(target: SocketAddr) -> Self {
        Self::balance(vec![target]).await
    }

    /// Starts relaying to these targets in turn, past those that nobody listens on: a load balancer.
    pub async fn balance(targets: Vec<SocketAddr>) -> Self {
        Self::listen("127.0.0.1:0", targets).await
    }

    /// The same, listening on an address of the caller's choice.
    pub async fn listen(on: &str, targets: Vec<SocketAddr>) -> Self {
        let listener = TcpListener::bind(on).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let fault = Arc::new(watch::Sender::new(Fault::None));
        let breaks = Arc::new(watch::Sender::new(()));
        let (faults, broken) = (fault.clone(), breaks.clone());
        tokio::spawn(async move {
            let mut targets = targets;
            while let Ok((client, _)) = listener.accept().await {
                targets.rotate_left(1);
                let targets = targets.clone();
                let (fault, mut broken) = (faults.subscribe(), broken.subscribe());
                tokio::spawn(async move {
                    tokio::select! {
                        _ = broken.changed() => {}
                        () = relay(client, targets, fault) => {}
                    }
                });
            }
        });
        Self { address, fault, breaks }
    }

    /// Breaks all connections, once: new ones are let through.
    pub fn break_all(&self) {
        self.breaks.send_replace(());
    }

    /// Begins or, with [`Fault::None`], ends a fault.
    pub fn set(&self, fault: Fault) {
        self.fault.send_replace(fault);
    }
}

async fn relay(client: TcpStream, targets: Vec<SocketAddr>, mut fault: watch::Receiver<Fault>) {
    let both_ways = {
        let fault = fault.clone();
        async move {
            // Tries one after the other.
            let Ok(server) = TcpStream::connect(&targets[..]).await else { return };
            let ((from_client, to_client), (from_server, to_server)) =
                (client.into_split(), server.into_split());
            tokio::select! {
                () = one_way(from_client, to_server, fault.clone()) => {}
                () = one_way(from_server, to_client, fault) => {}
            }
        }
    };
    tokio::select! {
        biased;
        _ = fault.wait_for(|fault| *fault == Fault::Cut) => {}
        () = both_ways => {}
    }
}

async fn one_way(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, fault: watch::Receiver<Fault>) {
    let (sender, mut receiver) = mpsc::channel::<(Instant, Vec<u8>)>(64);
    let read = {
        let fault = fault.clone();
        async move {
            let mut buffer = vec![0; 64 << 10];
            let mut free = Instant::now();
            while let Ok(length @ 1..) = from.read(&mut buffer).await {
                let now = Instant::now();
                let at = match *fault.borrow() {
                    Fault::Delay(delay) => now + delay,
                    Fault::Narrow(rate) => {
                        free = free.max(now) + Duration::from_secs(length as u64) / rate;
                        free
                    }
                    _ => now,
                };
                if sender.send((at, buffer[..length].to_vec())).await.is_err() {
                    return;
                }
            }
        }
    };
    let write = async move {
        let mut fault = fault;
        while let Some((at, bytes)) = receiver.recv().await {
            sleep_until(at).await;
            let flows = fault.wait_for(|fault| *fault != Fault::Stall).await.is_ok();
            if !flows || to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(read, write);
}
