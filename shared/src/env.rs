//! Settings from an injectable source, with every problem reported at once.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use crate::dotenv;

/// Exit status for a bad configuration: `EX_USAGE` of sysexits.h.
pub const EXIT_BAD_CONFIGURATION: u8 = 64;

/// Everything that is wrong with a configuration, a line each. Never holds a setting's value if that
/// could be a secret.
#[derive(Debug, thiserror::Error)]
pub struct Problems(pub Vec<String>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

/// The source of settings, which collects problems while it is read.
#[derive(Debug, Default)]
pub struct Env {
    variables: BTreeMap<String, String>,
    problems: Vec<String>,
}

impl Env {
    /// The process environment over the `.env` file of the working directory, if there is one.
    #[must_use]
    pub fn of_process() -> Self {
        let mut env = Self::default();
        for (name, value) in std::env::vars_os() {
            // Neither a name nor a value of ours is anything but UTF-8; others' variables are their business.
            if let (Ok(name), Ok(value)) = (name.into_string(), value.into_string()) {
                env.variables.insert(name, value);
            }
        }
        match std::fs::read_to_string(".env") {
            Ok(text) => env.add_dotenv(&text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => env.problem(format!(".env: {error}")),
        }
        env
    }

    /// A source with just these variables.
    #[must_use]
    pub fn of(variables: &[(&str, &str)]) -> Self {
        let variables = variables.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        Self { variables, problems: Vec::new() }
    }

    /// Adds what a `.env` text assigns, where it isn't set already.
    pub fn add_dotenv(&mut self, text: &str) {
        match dotenv::parse(text, &self.variables) {
            Ok(assigned) => {
                for (name, value) in assigned {
                    self.variables.entry(name).or_insert(value);
                }
            }
            Err(line) => self.problem(format!(".env: line {line} can't be understood")),
        }
    }

    /// Notes something that is wrong.
    pub fn problem(&mut self, problem: impl Into<String>) {
        self.problems.push(problem.into());
    }

    /// A setting's text from `NAME`, or from the file that `NAME_FILE` names. Blank counts as not set.
    pub fn text(&mut self, name: &str) -> Option<String> {
        let set = |value: &&String| !value.trim().is_empty();
        if let Some(value) = self.variables.get(name).filter(set) {
            return Some(value.trim().to_owned());
        }
        let path = self.variables.get(&format!("{name}_FILE")).filter(set)?.clone();
        match std::fs::read_to_string(Path::new(path.trim())) {
            Ok(text) if text.trim().is_empty() => self.problem(format!("{name}_FILE: {path} is empty")),
            Ok(text) => return Some(text.trim().to_owned()),
            Err(error) => self.problem(format!("{name}_FILE: {path}: {error}")),
        }
        None
    }

    /// A setting's text, or `default`.
    pub fn text_or(&mut self, name: &str, default: &str) -> String {
        self.text(name).unwrap_or_else(|| default.to_owned())
    }

    /// A number within `range`, or `default`.
    pub fn number<T>(&mut self, name: &str, default: T, range: RangeInclusive<T>) -> T
    where
        T: FromStr + PartialOrd + fmt::Display,
    {
        let Some(text) = self.text(name) else { return default };
        match text.parse() {
            Ok(number) if range.contains(&number) => number,
            _ => {
                let (from, to) = range.into_inner();
                self.problem(format!("{name}: {text:?} is not a whole number from {from} to {to}"));
                default
            }
        }
    }

    /// A duration like `250ms`, `5s`, `30m`, `12h` or `30d` within `range`, or `default`.
    pub fn duration(&mut self, name: &str, default: Duration, range: RangeInclusive<Duration>) -> Duration {
        self.duration_from(name, default, range, parse_duration)
    }

    /// As [`Env::duration`], but a number without unit is read as seconds, as the Flask bridge did.
    pub fn seconds(&mut self, name: &str, default: Duration, range: RangeInclusive<Duration>) -> Duration {
        self.duration_from(name, default, range, |text| {
            text.parse().ok().map(Duration::from_secs).or_else(|| parse_duration(text))
        })
    }

    fn duration_from(
        &mut self,
        name: &str,
        default: Duration,
        range: RangeInclusive<Duration>,
        parse: impl Fn(&str) -> Option<Duration>,
    ) -> Duration {
        let Some(text) = self.text(name) else { return default };
        match parse(&text) {
            Some(duration) if range.contains(&duration) => duration,
            Some(_) => {
                self.problem(format!(
                    "{name}: {text:?} must be from {:?} to {:?}",
                    range.start(),
                    range.end()
                ));
                default
            }
            None => {
                self.problem(format!("{name}: {text:?} is not a duration like 250ms, 5s, 30m, 12h or 30d"));
                default
            }
        }
    }

    /// A switch, or `default`.
    pub fn flag(&mut self, name: &str, default: bool) -> bool {
        let Some(text) = self.text(name) else { return default };
        match text.to_ascii_lowercase().as_str() {
            "1" | "true" | "yes" | "on" => true,
            "0" | "false" | "no" | "off" => false,
            _ => {
                self.problem(format!("{name}: {text:?} is neither true nor false"));
                default
            }
        }
    }

    /// The settings read from this source, or everything that was wrong with it.
    pub fn finish<T>(self, settings: T) -> Result<T, Problems> {
        if self.problems.is_empty() { Ok(settings) } else { Err(Problems(self.problems)) }
    }
}

/// Whether a host is this machine, so that what goes there stays here.
#[must_use]
pub fn is_local(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let is_loopback = |ip: IpAddr| ip.is_loopback();
    host.eq_ignore_ascii_case("localhost") || host.starts_with('/') || host.parse().is_ok_and(is_loopback)
}

/// Reads a duration like `250ms`, `5s`, `30m`, `12h` or `30d`.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let seconds = match unit {
        "ms" => return Some(Duration::from_millis(number)),
        "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        "d" => 24 * 60 * 60,
        _ => return None,
    };
    number.checked_mul(seconds).map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: RangeInclusive<Duration> = Duration::ZERO..=Duration::MAX;

    #[test]
    fn durations_need_a_unit() {
        for (text, expected) in [
            ("250ms", Some(Duration::from_millis(250))),
            ("5s", Some(Duration::from_secs(5))),
            ("30m", Some(Duration::from_mins(30))),
            ("30d", Some(Duration::from_hours(720))),
            ("5", None),
            ("s", None),
            ("-1s", None),
            ("1.5s", None),
            ("99999999999999999999d", None),
        ] {
            assert_eq!(parse_duration(text), expected, "{text}");
        }
        let mut env = Env::of(&[("A", "60"), ("B", "60"), ("C", "90s")]);
        assert_eq!(env.seconds("A", Duration::ZERO, ANY), Duration::from_mins(1));
        assert_eq!(env.seconds("C", Duration::ZERO, ANY), Duration::from_secs(90));
        assert_eq!(env.duration("B", Duration::ZERO, ANY), Duration::ZERO);
        assert_eq!(env.finish(()).unwrap_err().0.len(), 1);
    }

    #[test]
    fn all_problems_come_at_once() {
        let mut env = Env::of(&[("N", "x"), ("D", "5"), ("F", "maybe"), ("S_FILE", "/nowhere/at/all")]);
        env.number("N", 1, 0..=9);
        env.duration("D", Duration::ZERO, ANY);
        env.flag("F", true);
        env.text("S");
        env.add_dotenv("A=1\n=");
        let problems = env.finish(()).unwrap_err().0;
        assert_eq!(problems.len(), 5, "{problems:?}");
    }

    #[test]
    fn secrets_may_stand_in_files_and_blank_is_not_set() {
        let path = std::env::temp_dir().join(format!("penstock-secret-{}", std::process::id()));
        std::fs::write(&path, "top secret\n").unwrap();
        let mut env = Env::of(&[("KEY_FILE", path.to_str().unwrap()), ("BLANK", " ")]);
        assert_eq!(env.text("KEY").as_deref(), Some("top secret"));
        assert_eq!(env.text("BLANK"), None);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let mut env = Env::of(&[("A", "process")]);
        env.add_dotenv("A=file\nB=file");
        assert_eq!((env.text("A"), env.text("B")), (Some("process".into()), Some("file".into())));
    }
}
