//! How fast is Penstock on this machine? Run by `deploy/local/bench`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;

mod age;
mod bench;
mod body;
mod check;
mod client;
mod control_group;
mod event;
mod load;
mod number;
mod phases;
mod processes;
mod raw_publish;
mod raw_store;
mod report;
mod stage;

use bench::Bench;
use phases::Phase;

/// Measures Penstock on this machine, or any server with the same endpoints (--url).
#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Arguments {
    /// Everything shortened, to see that it works: its figures mean little
    #[arg(long)]
    quick: bool,
    /// Only these phases
    #[arg(long, value_name = "PHASE", value_delimiter = ',')]
    only: Vec<Phase>,
    /// Another setting for ingest and worker; can be given again
    #[arg(long = "setting", value_name = "NAME=VALUE", value_parser = setting)]
    settings: Vec<(String, String)>,
    /// Folder for bench.md and bench.json
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    out: PathBuf,
    /// Load a server that runs already, by HTTP alone; nothing is started
    #[arg(long)]
    url: Option<String>,
}

fn setting(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("want NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let mut bench = Bench::new(arguments.quick, arguments.settings);
    match &arguments.url {
        Some(url) => phases::remote::run(&mut bench, url).await?,
        None => phases::run(&mut bench, &arguments.only).await,
    }
    if arguments.quick {
        bench.report.notes.push("Shortened (--quick): these figures mean little.".to_owned());
    }
    write(&bench, &arguments.out)?;
    Ok(if bench.report.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The table to standard output and to a file, and everything as JSON.
fn write(bench: &Bench, folder: &Path) -> anyhow::Result<()> {
    let table = bench.report.markdown();
    let json = serde_json::to_string_pretty(&bench.report.json())? + "\n";
    std::fs::create_dir_all(folder).with_context(|| format!("can't make {}", folder.display()))?;
    std::fs::write(folder.join("bench.md"), &table)?;
    std::fs::write(folder.join("bench.json"), json)?;
    println!("\n{table}\n{}", folder.join("bench.md").display());
    Ok(())
}
