//! How fast is Penstock on this machine? Run by `deploy/local/bench`.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;

mod age;
mod arguments;
mod bare;
mod bench;
mod body;
mod ceilings;
mod check;
mod client;
mod control_group;
mod event;
mod generate;
mod mix;
mod number;
mod pace;
mod page;
mod phases;
mod plan;
mod plot;
mod processes;
mod raw_publish;
mod raw_store;
mod report;
mod stage;
mod tally;

use arguments::{Arguments, Command};
use bench::Bench;
use plan::Plan;

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    match arguments.command {
        Some(Command::BareServer) => {
            actix_web::rt::System::new().block_on(bare::serve()).map(|()| ExitCode::SUCCESS)
        }
        None => tokio::runtime::Runtime::new()?.block_on(measure(&arguments)),
    }
}

async fn measure(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let plan = if arguments.quick { Plan::quick() } else { Plan::full() };
    let mut bench = Bench::new(plan, arguments.settings.clone());
    match &arguments.url {
        Some(url) => phases::remote::run(&mut bench, url, &arguments.remote).await?,
        None => phases::run(&mut bench, &arguments.only).await,
    }
    if arguments.quick {
        bench.report.notes.push("Shortened (--quick): these figures mean little.".to_owned());
    }
    bench.say(&format!("done: {} events made", number::grouped(number::float(bench.made()))));
    write(&bench, &arguments.out)?;
    Ok(if bench.report.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The table to standard output, and everything to files.
fn write(bench: &Bench, folder: &Path) -> anyhow::Result<()> {
    let (report, table) = (&bench.report, bench.report.markdown());
    std::fs::create_dir_all(folder).with_context(|| format!("can't make {}", folder.display()))?;
    let mut json = report.json();
    json["cores"] = std::thread::available_parallelism()?.get().into();
    let json = serde_json::to_string_pretty(&json)? + "\n";
    std::fs::write(folder.join("bench.md"), &table)?;
    std::fs::write(folder.join("bench.json"), json)?;
    std::fs::write(folder.join("bench.html"), page::html(report, "Penstock, measured"))?;
    println!("\n{table}\n{}", folder.join("bench.html").display());
    Ok(())
}
