//! The binary `worker`.

use std::process::ExitCode;

use clap::Parser;
use shared::env::{EXIT_BAD_CONFIGURATION, Env};
use shared::telemetry::chain;
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

/// The deepest body that ingest accepts, read back from MongoDB, takes the driver close to the usual 2 MiB in
/// release builds and beyond it in others; a stack overflow would kill every worker in turn. In bytes.
const STACK_SIZE: usize = 16 << 20;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut env = Env::of_process();
    let (filter, host) = (telemetry::filter(&mut env), env.text_or("HOSTNAME", "worker"));
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
    match start(settings, name) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!(error = chain(error.as_ref()), "the worker failed");
            ExitCode::FAILURE
        }
    }
}

fn start(settings: Settings, name: String) -> anyhow::Result<()> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().thread_stack_size(STACK_SIZE).build()?;
    // As a task, so that nothing runs on the main thread's stack.
    runtime.block_on(async { tokio::spawn(run(settings, name)).await? })
}

async fn run(settings: Settings, name: String) -> anyhow::Result<()> {
    let stop = shutdown::on_signal()?;
    worker::build(settings, name, stop).await?.run().await?;
    Ok(())
}
