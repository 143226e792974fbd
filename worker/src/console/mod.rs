//! `worker console`: pages for operators, on a port of their own.
//!
//! The way of a request: [`server`] (routes, headers, deadlines) → [`request`] (who asks, for which tenant) →
//! [`pages`] → [`queries`] (MongoDB), [`aside`] (dead letters, quarantine) and [`shared::pipeline`] (the
//! state of queues and processes). Nothing depends on the console. A page says what the console can't reach.

use std::sync::Arc;

use shared::env::Env;
use shared::shutdown;
use tracing::{info, warn};

use crate::commands::CommandError;

pub mod aside;
pub mod erasure;
pub mod fields;
pub mod logins;
pub mod origin;
pub mod pages;
pub mod pretty;
pub mod queries;
pub mod reply;
pub mod request;
pub mod safety;
pub mod server;
pub mod sessions;
pub mod settings;
pub mod state;
pub mod words;

use settings::ConsoleSettings;
use state::Console;

/// Serves the pages until told to stop.
pub async fn run(env: Env) -> Result<(), CommandError> {
    let settings = ConsoleSettings::read(env)?;
    for warning in settings.worker.warnings() {
        warn!("{warning}");
    }
    let stop = shutdown::on_signal().map_err(failed("can't listen to signals"))?;
    let console = Arc::new(Console::start(settings));
    let (addresses, server) =
        server::bind(&console).map_err(failed(format!("can't listen on {}", console.settings.address())))?;
    for address in addresses {
        info!(port = "console", %address, "listening");
    }
    let handle = server.handle();
    let mut serving = tokio::spawn(server);
    tokio::select! {
        ended = &mut serving => return ended.unwrap_or_else(|error| Err(error.into())).map_err(failed("serving")),
        () = stop.cancelled() => {}
    }
    handle.stop(true).await;
    erasure::tell_unfinished(&console);
    console.close().await;
    info!("stopped");
    Ok(())
}

fn failed(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> CommandError {
    let what = what.into();
    |source| CommandError::Io { what, source }
}
