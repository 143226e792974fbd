//! The binary `ingest`.

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ingest::check_signature::{self, VerifyError};
use ingest::settings::Settings;
use ingest::spool::command::{self, SpoolCommand};
use shared::env::Env;
use shared::{setting, shutdown, start, status, telemetry};
use tracing::warn;

/// glibc's takes a fifth more of ingest's time, for as much memory.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Takes respond.io's webhooks in and hands them to RabbitMQ. Configured by environment variables and .env.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Arguments {
    /// Validate the configuration, print every problem, and exit with 0 or 64.
    #[arg(long)]
    check: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Looks after webhooks that a lost or stopped ingest has left in its spool (`SPOOL_DIR`).
    #[command(subcommand)]
    Spool(SpoolCommand),
    /// Shows every setting: its value, and where that comes from. Secrets are not shown.
    Settings,
    /// Tells which signing key and form fit a signature of the body on standard input, for setting up.
    Verify(check_signature::Arguments),
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut env = Env::of_process();
    let filter = telemetry::filter(&mut env);
    if let Some(Command::Verify(arguments)) = &arguments.command {
        return verify(arguments, env);
    }
    if let Some(Command::Settings) = &arguments.command {
        Settings::read_from(&mut env);
        // Whoever reads the answer, such as `head`, has seen enough.
        let _ = std::io::stdout().write_all(setting::in_force(&env).as_bytes());
        return env.finish(()).map_or_else(|problems| start::refuse(&problems), |()| ExitCode::SUCCESS);
    }
    let host = env.text_or_default("HOSTNAME");
    let settings = match Settings::read(env) {
        Ok(settings) => settings,
        Err(problems) => return start::refuse(&problems),
    };
    if arguments.check {
        start::say_warnings(settings.warnings());
        println!("the configuration is fine");
        return ExitCode::SUCCESS;
    }
    if arguments.command.is_some() {
        telemetry::start_logging_of_command(filter.as_deref());
    } else {
        telemetry::start_logging(filter.as_deref(), settings.test_mode);
    }
    start::ended("ingest", run(settings, &host, arguments.command).await)
}

async fn run(settings: Settings, host: &str, command: Option<Command>) -> anyhow::Result<()> {
    if let Some(Command::Spool(command)) = command {
        return Ok(command::run(command, &settings).await?);
    }
    for warning in settings.warnings() {
        warn!("{warning}");
    }
    let stop = shutdown::on_signal()?;
    ingest::build(settings, status::unique_name(host), stop)?.run().await?;
    Ok(())
}

fn verify(arguments: &check_signature::Arguments, env: Env) -> ExitCode {
    match check_signature::run(arguments, env) {
        Ok(answer) => {
            println!("{answer}");
            ExitCode::SUCCESS
        }
        Err(VerifyError::Settings(problems)) => start::refuse(&problems),
        Err(error) => start::command_failed("ingest", &error),
    }
}
