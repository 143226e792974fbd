//! How a tenant's MongoDB is opened: in one way, for use and for checking the settings.

use std::path::Path;
use std::time::Duration;

use futures_util::FutureExt;
use mongodb::Client;
use mongodb::error::Error;
use mongodb::options::{ClientOptions, ConnectionString, HostInfo, ServerAddress, Tls};

use crate::settings::{Purpose, Settings, Tenant};
use crate::store::failure::{Failure, within};

/// A server under load may take so long to answer a heartbeat.
const SHORTEST_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// The shortest heartbeat that the driver allows, and its default.
const SHORTEST_HEARTBEAT: Duration = Duration::from_millis(500);
const LONGEST_HEARTBEAT: Duration = Duration::from_secs(10);

/// A client whose server is contacted when it is first used, and the name under which MongoDB knows it. May
/// look up the server's name, though.
pub async fn open(tenant: &Tenant, settings: &Settings) -> Result<(Client, String), Failure> {
    let uri = tenant.mongo_uri.clone();
    let parsed = tokio::spawn(async move { ClientOptions::parse(uri).await });
    let options = within(settings.mongo_timeout, parsed).await??;
    let options = completed(options, settings);
    let app_name = options.app_name.clone().unwrap_or_default();
    Ok((Client::with_options(options)?, app_name))
}

/// Whether [`open`] would take the settings.
pub fn check(tenant: &Tenant, settings: &Settings) -> Result<(), Error> {
    try_open(completed(parse(&tenant.mongo_uri)?, settings))
}

/// Opens a client that does nothing.
pub fn try_open(options: ClientOptions) -> Result<(), Error> {
    // The client's background tasks begin when its runtime runs, so never.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let within = runtime.enter();
    let opened = Client::with_options(options).map(drop);
    drop(within);
    runtime.shutdown_background();
    opened
}

/// The options that a URI makes, without the look-up of the servers that `mongodb+srv` stands for.
pub fn parse(uri: &str) -> Result<ClientOptions, Error> {
    let mut uri = ConnectionString::parse(uri)?;
    if let HostInfo::DnsRecord(host) = uri.host_info {
        uri.host_info = HostInfo::HostIdentifiers(vec![ServerAddress::Tcp { host, port: None }]);
    }
    let parsed = ClientOptions::parse(uri).into_future().now_or_never();
    parsed.unwrap_or_else(|| Err(Error::custom("the options can't be made at once")))
}

/// The options, with those that the URI doesn't decide. Pure.
fn completed(mut options: ClientOptions, settings: &Settings) -> ClientOptions {
    let deadline = settings.mongo_timeout;
    // As OpenSSL does, which the bridge's driver uses.
    if let Some(Tls::Enabled(tls)) = &mut options.tls
        && tls.ca_file_path.is_none()
    {
        tls.ca_file_path = settings.rabbitmq.authorities().map(Path::to_owned);
    }
    let app_name = options.app_name.take();
    options.app_name = Some(match settings.purpose {
        Purpose::Work => app_name.unwrap_or_else(|| "penstock-worker".to_owned()),
        // Its transactions may be open for longer than a worker's.
        Purpose::Rebuild => app_name.unwrap_or_else(|| "penstock".to_owned()) + "-rebuild",
        Purpose::Console => app_name.unwrap_or_else(|| "penstock".to_owned()) + "-console",
    });
    options.min_pool_size = Some(settings.pool.0);
    options.max_pool_size = Some(settings.pool.1);
    // It is also how long the driver waits for a heartbeat, and without one it drops all connections.
    options.connect_timeout = Some(deadline.max(SHORTEST_CONNECT_TIMEOUT));
    // Twice within our own deadline, after which the reason is unknown: once to write, and once to abort.
    options.server_selection_timeout = Some(deadline.mul_f64(0.4));
    // The driver's monitor notices a silent server, not the calls that wait for an answer.
    options.heartbeat_freq.get_or_insert(deadline.clamp(SHORTEST_HEARTBEAT, LONGEST_HEARTBEAT));
    options
}
