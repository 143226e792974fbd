//! What both binaries do when they start, and how they end.

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use tracing::{error, info};

use crate::env::{EXIT_BAD_CONFIGURATION, Problems};
use crate::telemetry::chain;
use crate::{host, traces};

/// Why a binary can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A port can't be used.
    #[error("can't listen on {address}")]
    Bind {
        /// The address asked for.
        address: String,
        /// Why not.
        source: io::Error,
    },
    /// The folder in which it keeps something can't be used.
    #[error(transparent)]
    Folder(Box<dyn std::error::Error + Send + Sync>),
    /// The metrics are defined wrongly, a defect of ours.
    #[error("can't define the metrics")]
    Metrics(#[from] prometheus::Error),
    /// Traces can't be exported.
    #[error(transparent)]
    Traces(#[from] traces::StartError),
}

impl StartError {
    /// This host and port can't be listened on.
    #[must_use]
    pub fn bind(host: &str, port: u16, source: io::Error) -> Self {
        Self::Bind { address: host::with_port(host, port), source }
    }
}

/// Says what is wrong with the settings.
#[must_use]
pub fn refuse(problems: &Problems) -> ExitCode {
    eprintln!("{problems}");
    ExitCode::from(EXIT_BAD_CONFIGURATION)
}

/// Prints what is in force, for `--check`.
pub fn say_in_force(lines: &[String]) {
    say(lines.join("\n"));
}

/// The same, for the log.
pub fn log_in_force(lines: &[String]) {
    info!(in_force = lines.join("; "), "starting");
}

/// Prints the warnings about settings, for `--check`.
pub fn say_warnings<T: Display>(warnings: impl IntoIterator<Item = T>) {
    for warning in warnings {
        eprintln!("warning: {warning}");
    }
}

/// Writes an answer. Its reader, such as `head`, may stop reading.
pub fn say(answer: impl Display) {
    let _ = writeln!(io::stdout(), "{answer}");
}

/// How a service ended, for the log and as exit status.
#[must_use]
pub fn ended(service: &str, how: anyhow::Result<()>) -> ExitCode {
    let Err(error) = how else { return ExitCode::SUCCESS };
    error!(error = chain(error.as_ref()), "{service} failed");
    ExitCode::FAILURE
}

/// How a command failed, for standard error and as exit status.
#[must_use]
pub fn command_failed(binary: &str, error: &(dyn std::error::Error + 'static)) -> ExitCode {
    eprintln!("{binary}: {}", chain(error));
    ExitCode::FAILURE
}
