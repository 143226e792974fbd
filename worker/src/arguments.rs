//! The command line.

use clap::Parser;

use crate::commands::Command;

/// Writes events from RabbitMQ into MongoDB. Reads its settings from the environment and .env.
#[derive(Debug, Parser)]
#[command(name = "worker", version, args_conflicts_with_subcommands = true)]
#[command(after_help = "Example: worker --check --connect")]
pub struct Arguments {
    /// Check the settings, print every problem, and exit with 0 (none) or 64.
    #[arg(long)]
    pub check: bool,
    /// With --check: also connect to RabbitMQ and each MongoDB, and say what is wrong with them.
    #[arg(long, requires = "check")]
    pub connect: bool,
    /// Without a command, the worker stores events.
    #[command(subcommand)]
    pub command: Option<Command>,
}
