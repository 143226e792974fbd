//! Settings from an injectable source, with every problem reported at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use crate::dotenv::{self, Dotenv};
use crate::setting::{self, Binary, Setting};
use crate::{host, similar};

mod found;
#[cfg(test)]
mod tests;

pub use found::{InForce, Origin, Problems};

/// Exit status for a bad configuration: `EX_USAGE` of sysexits.h.
pub const EXIT_BAD_CONFIGURATION: u8 = 64;

/// What some editors write before a text.
const BYTE_ORDER_MARK: char = '\u{feff}';

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
    /// What this binary reads: the process environment over the `.env` file of the working directory, if
    /// there is one.
    #[must_use]
    pub fn of_process(binary: Binary) -> Self {
        let mut env = Self { binary: Some(binary), ..Self::default() };
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
