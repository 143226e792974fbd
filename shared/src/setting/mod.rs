//! Every setting, as data: what it means, its default, its range. The binaries read and check their settings
//! by this table, show them by it, and the tables in ingest/README.md and worker/README.md are written from
//! it.

use std::time::Duration;

use crate::env::parse_duration;

mod all;
mod in_force;
mod make;
#[cfg(test)]
mod readme;

pub use all::SETTINGS;
pub use in_force::in_force;

/// A setting.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Its name. Where it belongs to a tenant, without the tenant's prefix.
    pub name: &'static str,
    /// Who reads it.
    pub reader: Reader,
    /// What values it takes.
    pub kind: Kind,
    /// Its value if it isn't set, as it would be written; none if there is no such value.
    pub default: Option<&'static str>,
    /// What its number counts; empty, if that needs no word or the value names its unit.
    pub unit: &'static str,
    /// Whether nobody may see its value.
    pub is_secret: bool,
    /// Whether each tenant has its own.
    pub is_per_tenant: bool,
    /// What it is for, as README.md of its binary says it.
    pub meaning: &'static str,
}

/// The binaries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binary {
    /// ingest
    Ingest,
    /// worker
    Worker,
}

/// Who reads a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// ingest alone.
    Ingest,
    /// The worker alone.
    Worker,
    /// Both.
    Both,
}

/// The values that a setting takes.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Text, checked where it is used.
    Text,
    /// A whole number.
    Number {
        /// The smallest.
        from: u64,
        /// The largest.
        to: u64,
    },
    /// A duration like `250ms` or `30m`.
    Duration {
        /// The shortest, as it would be written.
        from: &'static str,
        /// The longest, as it would be written.
        to: &'static str,
        /// Whether a number without unit is read as seconds, as the Flask bridge did.
        bare_seconds: bool,
    },
    /// `true`, or anything else for false, as the Flask bridge read it.
    Flag,
}

impl Setting {
    /// Whether this binary reads it.
    #[must_use]
    pub fn is_read_by(&self, binary: Binary) -> bool {
        match self.reader {
            Reader::Both => true,
            Reader::Ingest => binary == Binary::Ingest,
            Reader::Worker => binary == Binary::Worker,
        }
    }
}

/// The setting of this name that this binary reads; that any binary reads, if none is named.
#[must_use]
pub fn find(binary: Option<Binary>, name: &str) -> Option<&'static Setting> {
    let is_read = |setting: &Setting| binary.is_none_or(|binary| setting.is_read_by(binary));
    SETTINGS.iter().find(|setting| setting.name == name && is_read(setting))
}

impl Kind {
    /// What is wrong with a value; nothing, if it can be read and is within the range.
    #[must_use]
    pub fn refuses(self, value: &str) -> Option<String> {
        match self {
            Self::Text | Self::Flag => None,
            Self::Number { from, to } => match value.parse::<u64>() {
                Ok(number) if (from..=to).contains(&number) => None,
                _ => Some(format!("{value:?} is not a whole number from {from} to {to}")),
            },
            Self::Duration { from, to, .. } => {
                let (shortest, longest) = (parse_duration(from), parse_duration(to));
                match self.duration(value) {
                    None => Some(format!("{value:?} is not a duration like 250ms, 5s, 30m, 12h or 30d")),
                    read if read < shortest || read > longest => {
                        Some(format!("{value:?} is not from {from} to {to}"))
                    }
                    _ => None,
                }
            }
        }
    }

    /// A value of this kind as a duration.
    #[must_use]
    pub fn duration(self, value: &str) -> Option<Duration> {
        let bare = match self {
            Self::Duration { bare_seconds: true, .. } => value.parse().ok().map(Duration::from_secs),
            _ => None,
        };
        bare.or_else(|| parse_duration(value))
    }
}
