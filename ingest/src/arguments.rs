//! The command line.

use clap::{Parser, Subcommand};
use clap_complete::Shell;

use crate::check_signature;
use crate::spool::command::SpoolCommand;

/// Receives respond.io's webhooks and publishes them to RabbitMQ. Reads its settings from the environment and
/// .env.
#[derive(Debug, Parser)]
#[command(name = "ingest", version, args_conflicts_with_subcommands = true)]
#[command(after_help = "Example: ingest --check")]
pub struct Arguments {
    /// Check the settings, print every problem, and exit with 0 (none) or 64.
    #[arg(long)]
    pub check: bool,
    /// Without a command, ingest serves webhooks.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What operators can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Lists, exports or publishes webhooks that a lost or stopped ingest has left in its spool
    /// (`SPOOL_DIR`).
    #[command(subcommand, after_help = "Example: ingest spool list")]
    Spool(SpoolCommand),
    /// Shows every setting, its value, and where the value comes from; hides secrets.
    #[command(after_help = "Example: ingest settings")]
    Settings,
    /// Tells which signing key and form fit a signature of the body on standard input.
    Verify(check_signature::Arguments),
    /// Writes a script that lets a shell complete commands and options
    #[command(after_help = "Example: ingest completions bash > /etc/bash_completion.d/ingest")]
    Completions {
        /// Which shell
        shell: Shell,
    },
}
