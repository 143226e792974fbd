//! What reading settings has found: problems, and each value with its origin.

use std::fmt;

/// Everything that is wrong with a configuration, a line each, and warnings. Never has a setting's value if
/// that could be a secret.
#[derive(Debug, thiserror::Error)]
pub struct Problems {
    /// What is wrong.
    pub problems: Vec<String>,
    /// Warnings, which may name the reason.
    pub warnings: Vec<String>,
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problems.join("\n"))?;
        self.warnings.iter().try_for_each(|warning| write!(f, "\nwarning: {warning}"))
    }
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// An environment variable.
    Environment,
    /// The file `.env`.
    Dotenv,
    /// The file that `NAME_FILE` names.
    File(String),
    /// It isn't set.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Environment => f.write_str("environment"),
            Self::Dotenv => f.write_str(".env"),
            Self::File(path) => write!(f, "file {path}"),
            Self::Default => f.write_str("default"),
        }
    }
}

/// A setting as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InForce {
    /// Its value; none if it isn't set and has no default.
    pub value: Option<String>,
    /// Where the value comes from.
    pub origin: Origin,
    /// Whether the value is a secret.
    pub is_secret: bool,
}
