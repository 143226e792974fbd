//! What the command line asks for.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

/// Measures Penstock on this machine, or any server with the same endpoints (--url).
#[derive(Debug, Parser)]
#[command(name = "bench", args_conflicts_with_subcommands = true)]
pub struct Arguments {
    /// Everything shortened, to see that it works: its figures mean little
    #[arg(long)]
    pub quick: bool,
    /// Only these phases
    #[arg(long, value_name = "PHASE", value_delimiter = ',')]
    pub only: Vec<Phase>,
    /// Another setting for ingest and worker; can be given again
    #[arg(long = "setting", value_name = "NAME=VALUE", value_parser = setting)]
    pub settings: Vec<(String, String)>,
    /// Folder for bench.md, bench.json and bench.html
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    pub out: PathBuf,
    /// Load a server that runs already, by HTTP alone; nothing is started
    #[arg(long)]
    pub url: Option<String>,
    #[command(flatten)]
    pub remote: Remote,
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What concerns a server that runs already.
#[derive(Clone, Debug, clap::Args)]
pub struct Remote {
    /// With --url: events per second of the paced run
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=100_000), requires = "url")]
    pub rate: u64,
    /// With --url: duration of each of the two runs
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600), requires = "url")]
    pub seconds: u64,
    /// With --url: connections of the closed loop
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..), requires = "url")]
    pub connections: u16,
    /// With --url: the tenant
    #[arg(long, default_value = "faster", requires = "url")]
    pub tenant: String,
    /// With --url: sign with this key
    #[arg(long, requires = "url")]
    pub key: Option<String>,
}

/// A part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Phase {
    /// ingest alone, between its ceilings: a bare actix-web reply and raw confirmed publishing
    Accept,
    /// One worker stores a backlog; its ceiling: raw transactions of the same documents
    Drain,
    /// Everything at once, faster and faster
    Ramp,
    /// Everything at once at a steady rate: latency of replies, age of events
    Paced,
    /// Few contacts, and many
    Shapes,
    /// Several workers, each held to a share of a processor, and far from MongoDB
    Scale,
    /// A million events
    Million,
    /// RabbitMQ is away
    Spool,
}

/// What the benchmark starts itself as.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// A server that reads a body and answers, to compare with
    #[command(hide = true)]
    BareServer,
}

fn setting(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("want NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Arguments::command().debug_assert();
        let parsed = Arguments::parse_from(["bench", "--only", "accept,drain", "--setting", "A=b=c"]);
        assert_eq!(parsed.only, [Phase::Accept, Phase::Drain]);
        assert_eq!(parsed.settings, [("A".to_owned(), "b=c".to_owned())]);
        assert!(Arguments::try_parse_from(["bench", "--rate", "5"]).is_err());
    }
}
