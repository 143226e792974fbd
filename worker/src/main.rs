//! The binary `worker`.

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use clap::Parser;
use shared::env::{EXIT_BAD_CONFIGURATION, Env};
use shared::setting::Binary;
use shared::telemetry::Logging;
use shared::{shutdown, start, status};
use tracing::warn;
use worker::arguments::Arguments;
use worker::check::Found;
use worker::commands::{self, Command, CommandError};
use worker::settings::Settings;

/// Documents are many small pieces: glibc's takes a third more of the worker's time, for as much memory;
/// mimalloc's a tenth more, for half as much memory again.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The deepest body that ingest accepts, read back from MongoDB, takes the driver close to the usual 2 MiB in
/// release builds and beyond it in others; a stack overflow would kill every worker in turn. In bytes.
const STACK_SIZE: usize = 16 << 20;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut env = Env::of_process(Binary::Worker);
    let logging = Logging::read(&mut env, "worker");
    let host = env.text_or_default("HOSTNAME");
    if let Some(command) = arguments.command {
        if matches!(command, Command::Console) {
            // It keeps running, and its log is read like a worker's.
            logging.start(false);
        } else {
            logging.start_for_command();
        }
        return operate(command, env);
    }
    let settings = match Settings::read(env) {
        Ok(settings) => settings,
        Err(problems) => return start::refuse(&problems),
    };
    if arguments.check {
        start::say_in_force(&settings.in_force());
        start::say_warnings(settings.warnings());
        if arguments.connect {
            return check_servers(settings);
        }
        start::say("the configuration is fine");
        return ExitCode::SUCCESS;
    }
    logging.start(settings.test_mode);
    start::log_in_force(&settings.in_force());
    let name = status::unique_name(&host);
    let served = on_tasks(async move {
        for warning in settings.warnings() {
            warn!("{warning}");
        }
        let stop = shutdown::on_signal()?;
        worker::build(settings, name, stop)?.run().await?;
        Ok(())
    });
    start::ended("the worker", served)
}

fn check_servers(settings: Settings) -> ExitCode {
    Logging::default().start_for_command();
    let checked = on_tasks(async move {
        let Found { problems, warnings } = worker::check::servers(&settings).await;
        start::say_warnings(warnings);
        anyhow::ensure!(problems.is_empty(), problems.join("\n"));
        Ok(())
    });
    match checked {
        Ok(()) => {
            start::say("the configuration is fine, and so are RabbitMQ and MongoDB");
            ExitCode::SUCCESS
        }
        Err(problems) => {
            eprintln!("{problems}");
            ExitCode::from(EXIT_BAD_CONFIGURATION)
        }
    }
}

fn operate(command: Command, env: Env) -> ExitCode {
    let done = on_tasks(async move {
        let mut out = std::io::stdout();
        commands::run(command, env, &mut out).await?;
        Ok(out.flush()?)
    });
    let Err(error) = done else { return ExitCode::SUCCESS };
    match error.downcast_ref::<CommandError>() {
        Some(CommandError::Settings(problems)) => start::refuse(problems),
        // The reader of the answer, such as `head`, has stopped reading.
        Some(CommandError::Io { source, .. }) if source.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        _ => start::command_failed("worker", error.as_ref()),
    }
}

/// Runs this as a task, so that nothing runs on the main thread's stack.
fn on_tasks(task: impl Future<Output = anyhow::Result<()>> + Send + 'static) -> anyhow::Result<()> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().thread_stack_size(STACK_SIZE).build()?;
    runtime.block_on(async { tokio::spawn(task).await? })
}
