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

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn assert_example(command: &clap::Command, path: &str) {
        let path = format!("{path} {}", command.get_name()).trim().to_owned();
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        assert!(help.starts_with(&format!("Example: {path}")), "{path}: {help:?}");
        command.get_subcommands().for_each(|command| assert_example(command, &path));
    }

    #[test]
    fn every_help_has_an_example() {
        Arguments::command().debug_assert();
        assert_example(&Arguments::command(), "");
    }
}
