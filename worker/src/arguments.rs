//! The command line.

use clap::Parser;

use crate::commands::Command;

/// Writes the events that wait in RabbitMQ into MongoDB. Configured by environment variables and .env.
#[derive(Debug, Parser)]
#[command(name = "worker", version, args_conflicts_with_subcommands = true)]
#[command(after_help = "Example: worker --check --connect")]
pub struct Arguments {
    /// Validate the configuration, print every problem, and exit with 0 or 64.
    #[arg(long)]
    pub check: bool,
    /// With --check: connect to RabbitMQ and each MongoDB, too, and say what is wrong with them.
    #[arg(long, requires = "check")]
    pub connect: bool,
    /// What else to do.
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
