//! The binary `worker`.

use std::process::ExitCode;

use clap::Parser;
use shared::env::{EXIT_BAD_CONFIGURATION, Env};
use shared::{shutdown, telemetry};
use tracing::error;
use worker::settings::Settings;

/// Writes the events that wait in RabbitMQ into MongoDB. Configured by environment variables and .env.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Validate the configuration, print every problem, and exit with 0 or 64.
    #[arg(long)]
    check: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut env = Env::of_process();
    let (filter, host) = (env.text("RUST_LOG"), env.text_or("HOSTNAME", "worker"));
    let settings = match Settings::read(env) {
        Ok(settings) => settings,
        Err(problems) => {
            eprintln!("{problems}");
            return ExitCode::from(EXIT_BAD_CONFIGURATION);
        }
    };
    if arguments.check {
        println!("the configuration is fine");
        return ExitCode::SUCCESS;
    }
    telemetry::start_logging(filter.as_deref(), settings.test_mode);
    // Two containers may share a host name, and each has a process of the same number.
    let name = format!("{host}-{}-{:04x}", std::process::id(), fastrand::u16(..));
    match run(settings, name).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!(error = error.as_ref() as &dyn std::error::Error, "the worker failed");
            ExitCode::FAILURE
        }
    }
}

async fn run(settings: Settings, name: String) -> anyhow::Result<()> {
    let stop = shutdown::on_signal()?;
    worker::build(settings, name, stop).await?.run().await?;
    Ok(())
}
