//! The binary `ingest`.

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use ingest::arguments::{Arguments, Command};
use ingest::check_signature::{self, VerifyError};
use ingest::settings::Settings;
use ingest::spool::command;
use shared::env::Env;
use shared::setting::{self, Binary};
use shared::telemetry::Logging;
use shared::{shutdown, start, status};
use tracing::warn;

/// glibc's takes a fifth more of ingest's time, for as much memory.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(Command::Completions { shell }) = arguments.command {
        // Into memory first: clap_complete panics if it can't write.
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Arguments::command(), "ingest", &mut script);
        start::say(String::from_utf8_lossy(&script).trim_end());
        return ExitCode::SUCCESS;
    }
    let mut env = Env::of_process(Binary::Ingest);
    let logging = Logging::read(&mut env, "ingest");
    if let Some(Command::Verify(arguments)) = &arguments.command {
        return verify(arguments, env);
    }
    if let Some(Command::Settings) = &arguments.command {
        Settings::read_from(&mut env);
        start::say(setting::in_force(&env).trim_end());
        return env.finish(()).map_or_else(|problems| start::refuse(&problems), |()| ExitCode::SUCCESS);
    }
    let host = env.text_or_default("HOSTNAME");
    let settings = match Settings::read(env) {
        Ok(settings) => settings,
        Err(problems) => return start::refuse(&problems),
    };
    if arguments.check {
        start::say_in_force(&settings.in_force());
        start::say_warnings(settings.warnings());
        start::say("the configuration is fine");
        return ExitCode::SUCCESS;
    }
    if let Some(Command::Spool(command)) = arguments.command {
        logging.start_for_command();
        return match command::run(command, &settings).await {
            Err(error) if !error.is_closed_pipe() => start::command_failed("ingest", &error),
            _ => ExitCode::SUCCESS,
        };
    }
    logging.start(settings.test_mode);
    start::log_in_force(&settings.in_force());
    start::ended("ingest", run(settings, &host).await)
}

async fn run(settings: Settings, host: &str) -> anyhow::Result<()> {
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
            start::say(answer);
            ExitCode::SUCCESS
        }
        Err(VerifyError::Settings(problems)) => start::refuse(&problems),
        Err(error) => start::command_failed("ingest", &error),
    }
}
