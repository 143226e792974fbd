//! The server of the public port. actix-web's own accepts plain sockets only; this one accepts guarded
//! connections.

use std::future::ready;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::time::Duration;

use actix_http::error::DispatchError;
use actix_http::{HttpService, KeepAlive};
use actix_server::{Server, ServerBuilder};
use actix_service::{ServiceFactoryExt, fn_service, map_config};
use actix_web::dev::AppConfig;
use actix_web::{App, middleware, web};
use tokio::net::{TcpSocket, TcpStream};

use super::Guarded;
use crate::gateway::Gateway;
use crate::routes;

/// Connections that wait to be accepted: a burst, such as when a load balancer reconnects.
const BACKLOG: u32 = 2048;

/// After the last reply on a connection, ingest still reads for this long what the sender sends.
const LINGERING: Duration = Duration::from_secs(1);

/// Listens at every address of this host that this machine has; fails if there is none, or one can't be used:
/// another program that has it would get its traffic.
pub fn bind(host: &str, port: u16) -> io::Result<Vec<TcpListener>> {
    let (mut listeners, mut failure) = (Vec::new(), io::Error::from(ErrorKind::AddrNotAvailable));
    for address in (host, port).to_socket_addrs()? {
        match listen(address) {
            Ok(listener) => listeners.push(listener),
            Err(error) if is_missing(&error) => failure = error,
            Err(error) => return Err(error),
        }
    }
    if listeners.is_empty() { Err(failure) } else { Ok(listeners) }
}

/// Whether the machine has no such address, as one without IPv6.
fn is_missing(error: &io::Error) -> bool {
    let no_family = rustix::io::Errno::AFNOSUPPORT.raw_os_error();
    error.kind() == ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(no_family)
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)?.into_std()
}

/// Serves the public port until `stopped`, then gives requests under way `finishing`.
pub fn serve(
    listeners: Vec<TcpListener>,
    gateway: &web::Data<Gateway>,
    finishing: Duration,
    stopped: impl Future<Output = ()> + Send + 'static,
) -> io::Result<Server> {
    let mut server = ServerBuilder::new()
        .max_concurrent_connections(gateway.connections.most())
        .shutdown_timeout(finishing.as_secs())
        .shutdown_signal(stopped);
    let stopping = server.graceful_shutdown_signal();
    for listener in listeners {
        let (gateway, stopping) = (gateway.clone(), stopping.clone());
        server = server.listen("public", listener, move || {
            let (all, stopping, gateway) = (gateway.connections.clone(), stopping.clone(), gateway.clone());
            let app = App::new()
                .app_data(gateway)
                .wrap(middleware::from_fn(routes::observe))
                .configure(routes::configure);
            let http = HttpService::build()
                .graceful_shutdown_signal(move || {
                    let stopping = stopping.clone();
                    async move { stopping.notified().await }
                })
                // The module above has deadlines of its own in place of these two.
                .client_request_timeout(Duration::ZERO)
                .keep_alive(KeepAlive::Os)
                // Otherwise a sender that is still sending would be reset, and might not see the answer.
                .client_disconnect_timeout(LINGERING)
                .on_connect_ext(|guarded: &Guarded, data| {
                    data.insert(guarded.connection().clone());
                })
                .h1(map_config(app, |()| AppConfig::default()));
            let admit = move |stream: TcpStream| {
                let guarded = Guarded::admit(stream, &all).map_err(DispatchError::from);
                ready(guarded.map(|guarded| (guarded, None)))
            };
            fn_service(admit).and_then(http)
        })?;
    }
    Ok(server.run())
}
