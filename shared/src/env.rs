//! Settings from an injectable source, with every problem reported at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use crate::dotenv::{self, Dotenv};
use crate::setting::{self, Binary, Setting};
use crate::{host, similar};

/// Exit status for a bad configuration: `EX_USAGE` of sysexits.h.
pub const EXIT_BAD_CONFIGURATION: u8 = 64;

/// What some editors write before a text.
const BYTE_ORDER_MARK: char = '\u{feff}';

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

/// The source of settings, which collects problems while it is read.
#[derive(Debug, Default)]
pub struct Env {
    binary: Option<Binary>,
    environment: BTreeMap<String, String>,
    dotenv: BTreeMap<String, String>,
    /// Whether there is a file `.env`.
    has_dotenv: bool,
    problems: Vec<String>,
    warnings: Vec<String>,
    // Names of settings that have a problem.
    wrong: BTreeSet<String>,
    in_force: BTreeMap<String, InForce>,
}

impl Env {
    /// The process environment over the `.env` file of the working directory, if there is one.
    #[must_use]
    pub fn of_process() -> Self {
        let mut env = Self::default();
        for (name, value) in std::env::vars_os() {
            // Names and values of ours are UTF-8; variables of other programs don't matter.
            if let (Ok(name), Ok(value)) = (name.into_string(), value.into_string()) {
                env.environment.insert(name, value);
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
        let environment = variables.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        Self { environment, ..Self::default() }
    }

    /// Adds the variables of a `.env` text, unless they are set already.
    pub fn add_dotenv(&mut self, text: &str) {
        let Dotenv { variables, ignored } = dotenv::parse(text, &self.environment);
        self.dotenv = variables;
        self.has_dotenv = true;
        for line in ignored {
            self.warning(format!(".env: line {line} can't be understood, and is ignored, as in the bridge"));
        }
        if text.starts_with(BYTE_ORDER_MARK) {
            self.warning(
                ".env: begins with a byte order mark, which belongs to the first name, as in the bridge",
            );
        }
    }

    /// From now on, settings are those of this binary.
    pub fn read_by(&mut self, binary: Binary) {
        self.binary = Some(binary);
    }

    /// Records a problem, in the form `NAME: what`.
    pub fn problem(&mut self, problem: impl Into<String>) {
        let problem = problem.into();
        self.wrong.extend(names_in(&problem).map(str::to_owned));
        let problem = self.with_origin(problem);
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    /// Records a warning, in the form `NAME: what`.
    pub fn warning(&mut self, warning: impl Into<String>) {
        let warning = self.with_origin(warning.into());
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }

    /// Adds to a remark where its setting comes from.
    fn with_origin(&self, remark: String) -> String {
        let origin = names_in(&remark).find_map(|name| self.origin(name));
        match origin {
            Some(origin) => format!("{remark} ({origin})"),
            None => remark,
        }
    }

    /// Whether this setting has a problem.
    #[must_use]
    pub fn is_wrong(&self, name: &str) -> bool {
        self.wrong.contains(name)
    }

    /// Whether a setting is given, and not blank.
    #[must_use]
    pub fn is_given(&self, name: &str) -> bool {
        self.origin(name).is_some()
    }

    /// Where a setting is given; not at all, if it is blank.
    fn origin(&self, name: &str) -> Option<Origin> {
        self.source(name).map(|(_, origin)| origin)
    }

    /// A setting's value, or the path of the file that holds it. The environment comes before `.env`, and
    /// `NAME` before `NAME_FILE`.
    fn source(&self, name: &str) -> Option<(String, Origin)> {
        [Origin::Environment, Origin::Dotenv].into_iter().find_map(|origin| {
            if let Some(value) = self.variable(name, &origin) {
                return Some((value.to_owned(), origin));
            }
            let path = unquoted(self.variable(&file_variable(name), &origin)?).to_owned();
            Some((path.clone(), Origin::File(path)))
        })
    }

    /// A variable that isn't blank. One of the environment hides that of `.env`, also if it is blank.
    fn variable(&self, name: &str, origin: &Origin) -> Option<&str> {
        let value = match (origin, self.environment.get(name)) {
            (Origin::Dotenv, None) => self.dotenv.get(name)?.trim(),
            (Origin::Environment, Some(value)) if !unquoted(value.trim()).is_empty() => value.trim(),
            _ => return None,
        };
        (!value.is_empty()).then_some(value)
    }

    /// A value as it is given, in `NAME` or in the file that `NAME_FILE` names.
    fn given(&mut self, name: &str) -> Option<(String, Origin)> {
        let (text, origin) = match self.source(name)? {
            (path, Origin::File(_)) => self.in_file(name, path)?,
            // python-dotenv has removed quotes from values of `.env` already.
            (value, Origin::Dotenv) => return Some((value, Origin::Dotenv)),
            given => given,
        };
        let bare = unquoted(&text);
        if bare != text {
            self.warning(format!("{name}: the quotes around the value are not taken for a part of it"));
        }
        Some((bare.to_owned(), origin))
    }

    fn in_file(&mut self, name: &str, path: String) -> Option<(String, Origin)> {
        let variable = file_variable(name);
        match std::fs::read_to_string(&path) {
            Ok(text) if unquoted(text.trim()).is_empty() => {
                self.problem(format!("{variable}: {path} is empty"));
            }
            Ok(text) => return Some((text.trim().to_owned(), Origin::File(path))),
            Err(error) => self.problem(format!("{variable}: {path}: {error}")),
        }
        self.wrong.insert(name.to_owned());
        None
    }

    /// A setting's text, or its default. Blank counts as not set.
    pub fn text(&mut self, name: &str) -> Option<String> {
        let setting = setting::find(self.binary, name);
        self.read(name, setting)
    }

    /// A setting's text, its default, or none.
    pub fn text_or_default(&mut self, name: &str) -> String {
        self.text(name).unwrap_or_default()
    }

    /// The text of a setting of a tenant, which has several names; the first that is given wins.
    pub fn text_of_tenant(&mut self, names: &[String], setting: &str) -> Option<String> {
        let name = names.iter().find(|name| self.is_given(name)).or(names.last())?;
        self.read(name, setting::find(None, setting))
    }

    fn read(&mut self, name: &str, setting: Option<&Setting>) -> Option<String> {
        let (value, origin) = match self.given(name) {
            Some((value, origin)) => (Some(value), origin),
            None => (setting.and_then(|s| s.default).map(str::to_owned), Origin::Default),
        };
        let is_secret = setting.is_some_and(|setting| setting.is_secret);
        self.in_force.insert(name.to_owned(), InForce { value: value.clone(), origin, is_secret });
        value
    }

    /// The address to listen on; an IPv6 address without its brackets.
    pub fn host(&mut self, name: &str) -> String {
        let text = self.text_or_default(name);
        let Some(host) = host::parse(&text) else {
            let port = name.replace("HOST", "PORT");
            self.problem(format!(
                "{name}: {text:?} is neither an address nor a name; the port stands in {port}"
            ));
            return text;
        };
        host
    }

    /// A number within the setting's range, or its default.
    pub fn number<T: TryFrom<u64> + Default>(&mut self, name: &str) -> T {
        let number = self.checked(name).and_then(|(_, value)| value.parse::<u64>().ok());
        number.and_then(|number| T::try_from(number).ok()).unwrap_or_default()
    }

    /// A duration within the setting's range, or its default.
    pub fn duration(&mut self, name: &str) -> Duration {
        self.duration_if_set(name).unwrap_or_default()
    }

    /// A duration within the setting's range, or its default, if it has one.
    pub fn duration_if_set(&mut self, name: &str) -> Option<Duration> {
        let (setting, value) = self.checked(name)?;
        setting.kind.duration(&value)
    }

    /// A value of the setting's kind: the default, if another is wrong.
    fn checked(&mut self, name: &str) -> Option<(&'static Setting, String)> {
        let Some(setting) = setting::find(self.binary, name) else {
            self.problem(format!("{name}: is missing in the table of settings"));
            return None;
        };
        let value = self.read(name, Some(setting))?;
        let Some(refused) = setting.kind.refuses(&value) else { return Some((setting, value)) };
        self.problem(format!("{name}: {refused}"));
        Some((setting, setting.default?.to_owned()))
    }

    /// A switch: on for `true` in any case, off for all else, as the Flask bridge read it.
    pub fn flag(&mut self, name: &str) -> bool {
        let value = self.text_or_default(name).to_ascii_lowercase();
        if !["true", "false", "0", "no", "off"].contains(&value.as_str()) {
            self.warning(format!("{name}: {value:?} is off: only true is on, as with the bridge"));
        }
        let is_on = value == "true";
        self.set_in_force(name, is_on);
        is_on
    }

    /// Sets the value in force, if it isn't the given one.
    pub fn set_in_force(&mut self, name: &str, value: impl fmt::Display) {
        if let Some(read) = self.in_force.get_mut(name) {
            read.value = Some(value.to_string());
        }
    }

    /// Every setting that was read so far, by its name.
    #[must_use]
    pub fn in_force(&self) -> &BTreeMap<String, InForce> {
        &self.in_force
    }

    /// Warns about variables whose names are similar to settings, or that belong to tenants that aren't
    /// served.
    pub fn warn_of_similar_names(&mut self, tenants: &[String]) {
        if self.is_wrong("TENANTS") {
            return;
        }
        let names: BTreeSet<&String> = self.environment.keys().chain(self.dotenv.keys()).collect();
        let is_set = |name: &str| {
            [Origin::Environment, Origin::Dotenv].iter().any(|origin| self.variable(name, origin).is_some())
        };
        let given = names.into_iter().filter(|name| is_set(name));
        let warnings = similar::warnings(&given.map(String::as_str).collect(), tenants);
        for warning in warnings {
            self.warning(warning);
        }
    }

    /// Where the settings come from, and which of these important ones have their defaults.
    #[must_use]
    pub fn origins(&self, important: &[&str]) -> Vec<String> {
        let read =
            if self.has_dotenv { "the environment and .env" } else { "the environment; there is no .env" };
        let defaults: Vec<&str> = important.iter().copied().filter(|name| !self.is_given(name)).collect();
        let mut origins = vec![format!("settings: from {read}")];
        if !defaults.is_empty() {
            origins.push(format!("at their defaults: {}", defaults.join(", ")));
        }
        origins
    }

    /// The warnings.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The settings read from this source, or everything that was wrong with it.
    pub fn finish<T>(self, settings: T) -> Result<T, Problems> {
        let Self { problems, warnings, .. } = self;
        if problems.is_empty() { Ok(settings) } else { Err(Problems { problems, warnings }) }
    }
}

fn file_variable(name: &str) -> String {
    format!("{name}_FILE")
}

/// The names in a remark like `NAME: what` or `NAME or OTHER: what`.
fn names_in(remark: &str) -> impl Iterator<Item = &str> {
    let names = remark.split_once(": ").map_or("", |(names, _)| names);
    names.split(' ').filter(|name| !matches!(*name, "or" | "and"))
}

/// A value without the quotes that `docker run --env-file` leaves around it.
fn unquoted(value: &str) -> &str {
    for quote in ['"', '\''] {
        let inner = value.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote));
        if let Some(inner) = inner.filter(|inner| !inner.contains(quote)) {
            return inner.trim();
        }
    }
    value
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
        let mut env = Env::of(&[("CIRCUIT_BREAKER_TIMEOUT", "90"), ("MONGO_TIMEOUT", "6")]);
        assert_eq!(env.duration("CIRCUIT_BREAKER_TIMEOUT"), Duration::from_secs(90));
        assert_eq!(env.duration("MONGO_TIMEOUT"), Duration::from_secs(5));
        assert_eq!(env.finish(()).unwrap_err().problems.len(), 1);
    }

    #[test]
    fn all_problems_come_at_once_and_say_where_from() {
        let mut env = Env::of(&[("PORT", "x"), ("SPOOL_DIR_FILE", "/nowhere/at/all")]);
        env.add_dotenv("DRAIN_DELAY=5\nPORT=80");
        env.number::<u16>("PORT");
        env.duration("DRAIN_DELAY");
        env.text("SPOOL_DIR");
        env.number::<u16>("NONE_OF_OURS");
        let problems = env.finish(()).unwrap_err().problems;
        assert_eq!(problems[0], "PORT: \"x\" is not a whole number from 0 to 65535 (environment)");
        assert!(problems[1].starts_with("DRAIN_DELAY: ") && problems[1].ends_with(" (.env)"), "{problems:?}");
        assert!(problems[2].starts_with("SPOOL_DIR_FILE: /nowhere/at/all: "), "{problems:?}");
    }

    #[test]
    fn secrets_may_stand_in_files_and_blank_is_not_set() {
        let path = std::env::temp_dir().join(format!("penstock-secret-{}", std::process::id()));
        std::fs::write(&path, "\"top secret\"\n").unwrap();
        let path = path.to_str().unwrap();
        let mut env = Env::of(&[("SIGNING_KEYS_FILE", path), ("TENANTS", " "), ("DB_NAME", "\"\"")]);
        assert_eq!(env.text("SIGNING_KEYS").as_deref(), Some("top secret"));
        assert_eq!((env.text("TENANTS"), env.text("DB_NAME")), (None, None));
        assert_eq!(env.in_force()["SIGNING_KEYS"].origin, Origin::File(path.to_owned()));
        assert!(env.in_force()["SIGNING_KEYS"].is_secret);
        assert_eq!(env.warnings().len(), 1);
        assert!(!env.warnings()[0].contains("top"), "{:?}", env.warnings());
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let mut env = Env::of(&[("HOST", "process")]);
        env.add_dotenv("HOST=file\nADMIN_HOST=file");
        assert_eq!(
            (env.text_or_default("HOST"), env.text_or_default("ADMIN_HOST")),
            ("process".into(), "file".into())
        );
        assert_eq!(env.in_force()["HOST"].origin, Origin::Environment);
        assert_eq!(env.in_force()["ADMIN_HOST"].origin, Origin::Dotenv);
    }

    #[test]
    fn a_file_that_the_environment_names_wins_over_a_value_in_the_file() {
        let path = std::env::temp_dir().join(format!("penstock-precedence-{}", std::process::id()));
        std::fs::write(&path, "mounted").unwrap();
        let path = path.to_str().unwrap();
        let read = |environment: &[(&str, &str)], dotenv: &str| {
            let mut env = Env::of(environment);
            env.add_dotenv(dotenv);
            env.text_or_default("SPOOL_DIR")
        };
        let (file, named) = ([("SPOOL_DIR_FILE", path)], format!("SPOOL_DIR_FILE={path}"));
        assert_eq!(read(&file, "SPOOL_DIR=dotenv"), "mounted");
        assert_eq!(read(&[("SPOOL_DIR", "environment")], &named), "environment");
        assert_eq!(read(&[("SPOOL_DIR", "environment"), file[0]], ""), "environment");
        assert_eq!(read(&[], &format!("SPOOL_DIR=dotenv\n{named}")), "dotenv");
        assert_eq!(read(&[("SPOOL_DIR", "")], "SPOOL_DIR=dotenv"), "spool", "blank in the environment");
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn lines_that_make_no_sense_are_ignored_with_a_warning() {
        let mut env = Env::of(&[]);
        env.add_dotenv("HOST=a\nwhat is this\n");
        assert_eq!((env.text_or_default("HOST"), env.warnings().len()), ("a".into(), 1));
        assert!(env.warnings()[0].contains("line 2"), "{:?}", env.warnings());
        let mut marked = Env::of(&[]);
        marked.add_dotenv("\u{feff}TENANTS=a\n");
        assert_eq!((marked.text("TENANTS"), marked.warnings().len()), (None, 1));
    }

    #[test]
    fn quotes_around_a_whole_value_are_taken_off() {
        for (given, meant) in [
            (r#""8000""#, "8000"),
            ("'8000'", "8000"),
            ("\"k3y=\" ", "k3y="),
            (r#""a","b""#, r#""a","b""#),
            ("\"", "\""),
            ("it's", "it's"),
        ] {
            assert_eq!(unquoted(given.trim()), meant);
            let mut env = Env::of(&[("HOST", given)]);
            assert_eq!(env.text_or_default("HOST"), meant);
            assert_eq!(env.warnings().len(), usize::from(given.trim() != meant), "{given}");
        }
        let mut env = Env::of(&[]);
        env.add_dotenv(r#"HOST='"h"'"#);
        assert_eq!(env.text_or_default("HOST"), r#""h""#, "python-dotenv has taken its own off");
    }

    #[test]
    fn only_true_is_on() {
        for (given, is_on, warnings) in [
            ("true", true, 0),
            ("TRUE", true, 0),
            ("False", false, 0),
            ("0", false, 0),
            ("", false, 0),
            ("1", false, 1),
            ("yes", false, 1),
            ("on", false, 1),
            ("production", false, 1),
        ] {
            let mut env = Env::of(&[("TEST_MODE", given)]);
            assert_eq!((env.flag("TEST_MODE"), env.warnings().len()), (is_on, warnings), "{given}");
            assert_eq!(env.in_force()["TEST_MODE"].value, Some(is_on.to_string()));
        }
    }
}
