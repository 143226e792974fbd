//! Logs: text for people at a terminal, one JSON object a line for everybody else.

use std::error::Error;
use std::io::{self, IsTerminal};
use std::iter::successors;

use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{LevelFilter, Targets, filter_fn};
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::env::Env;

/// What is logged when `RUST_LOG` isn't set. lapin logs every failure that we handle and log ourselves.
const QUIET: &str = "info,lapin=off,actix_server=warn,actix_http=off,mongodb=warn";
/// The same in `TEST_MODE`.
const VERBOSE: &str =
    "info,lapin=off,actix_server=warn,actix_http=off,mongodb=warn,ingest=debug,worker=debug,shared=debug";

/// For commands: their output says what they did.
const COMMAND: &str = "error,lapin=off,actix_server=off,mongodb=off";
/// The log must record who has erased a person, and when, whatever `RUST_LOG` says.
const RECORDS: &str = "worker::commands::erase=info";

/// Our crates.
const OURS: [&str; 3] = ["ingest", "worker", "shared"];

/// How lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Text,
    Json,
}

/// What is logged, and how.
#[derive(Clone, Debug, Default)]
pub struct Logging {
    /// `RUST_LOG`
    filter: Option<String>,
    /// `LOG_FORMAT`
    format: Option<Format>,
}

impl Logging {
    /// Reads `RUST_LOG` and `LOG_FORMAT`, for a binary whose crate has this name.
    pub fn read(env: &mut Env, krate: &str) -> Self {
        let filter = env.text("RUST_LOG");
        if let Some(filter) = &filter {
            if EnvFilter::try_new(filter).is_err() {
                env.problem(format!("RUST_LOG: {filter:?} is no filter like info,{krate}=debug"));
            } else if matches_nothing(filter, krate) {
                env.problem(format!(
                    "RUST_LOG: {filter:?} matches nothing that {krate} logs; a filter is like info,{krate}=debug"
                ));
            }
        }
        Self { filter, format: format(env) }
    }

    /// Starts logging on standard output. Called once, first thing.
    pub fn start(&self, verbose: bool) {
        let is_terminal = io::stdout().is_terminal();
        self.start_on(if verbose { VERBOSE } else { QUIET }, is_terminal, io::stdout);
    }

    /// Starts logging on standard error, for a command whose answer goes to standard output.
    pub fn start_for_command(&self) {
        self.start_on(COMMAND, io::stderr().is_terminal(), io::stderr);
    }

    fn filter_or(&self, default: &str) -> EnvFilter {
        let filter =
            self.filter.as_ref().and_then(|text| EnvFilter::try_new(format!("{text},{RECORDS}")).ok());
        filter.unwrap_or_else(|| EnvFilter::new(format!("{default},{RECORDS}")))
    }

    fn start_on<W>(&self, default: &str, is_terminal: bool, writer: W)
    where
        W: for<'a> MakeWriter<'a> + Copy + Send + Sync + 'static,
    {
        let filter = self.filter_or(default);
        let is_text =
            self.format.unwrap_or(if is_terminal { Format::Text } else { Format::Json }) == Format::Text;
        let text = is_text.then(|| fmt::layer().with_ansi(is_terminal).with_writer(writer));
        let json = (!is_text).then(|| {
            let lines = fmt::layer().json().flatten_event(true);
            lines.with_current_span(false).with_span_list(false).with_writer(writer)
        });
        tracing_subscriber::registry().with(filter).with(filter_fn(is_discreet)).with(text).with(json).init();
    }
}

fn format(env: &mut Env) -> Option<Format> {
    let text = env.text("LOG_FORMAT")?;
    match text.to_ascii_lowercase().as_str() {
        "text" => return Some(Format::Text),
        "json" => return Some(Format::Json),
        _ => env.problem(format!("LOG_FORMAT: {text:?} is neither text nor json")),
    }
    None
}

/// Whether a filter lets nothing of ours through, such as `ingets=debug`, and doesn't say so, as `off` does.
fn matches_nothing(filter: &str, krate: &str) -> bool {
    // What names spans can't be read so.
    let Ok(targets) = filter.parse::<Targets>() else { return false };
    let is_off = filter.split(',').any(|directive| directive.trim().eq_ignore_ascii_case("off"));
    let is_ours = |target: &str| {
        let named = target.split("::").next().unwrap_or_default();
        [krate, "shared"].iter().any(|ours| ours.starts_with(named))
    };
    let matches = targets.default_level().is_some_and(|level| level != LevelFilter::OFF)
        || targets.iter().any(|(target, level)| level != LevelFilter::OFF && is_ours(target));
    !is_off && !matches
}

/// Below `info`, libraries log what passes through them: bodies, and with them names and phone numbers.
/// Whatever `RUST_LOG` says, only our own crates may be that talkative.
fn is_discreet(metadata: &Metadata<'_>) -> bool {
    let krate = metadata.target().split("::").next().unwrap_or_default();
    *metadata.level() <= Level::INFO || OURS.contains(&krate)
}

/// An error and what caused it, for the field `error` of a log line.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let causes: Vec<String> = successors(Some(error), |error: &&(dyn Error + 'static)| (*error).source())
        .map(ToString::to_string)
        .collect();
    causes.join(": ")
}

/// The id of the trace that a W3C `traceparent` belongs to, for the field `trace_id` of a log line.
#[must_use]
pub fn trace_id(traceparent: &str) -> Option<&str> {
    traceparent.split('-').nth(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] io::Error);

    #[test]
    fn a_filter_that_matches_nothing_is_a_problem() {
        for (filter, is_fine) in [
            ("info", true),
            ("off", true),
            ("warn,ingets=debug", true),
            ("ingest::routes=debug", true),
            ("shared=info", true),
            ("info,[span]=debug", true),
            ("ingets=debug", false),
            ("debgu", false),
            ("worker=debug", false),
            ("ingest=off", false),
        ] {
            let mut env = Env::of(&[("RUST_LOG", filter)]);
            Logging::read(&mut env, "ingest");
            assert_eq!(env.finish(()).is_ok(), is_fine, "{filter}");
        }
    }

    #[test]
    fn erasures_are_recorded_whatever_else_is_logged() {
        for filter in ["off", "error", "worker=error", "worker::commands::erase=off", "info,"] {
            let logging = Logging { filter: Some(filter.to_owned()), format: None };
            let filter = logging.filter_or(COMMAND).to_string();
            assert!(filter.contains("worker::commands::erase=info"), "{filter}");
            assert!(!filter.contains("worker::commands::erase=off"), "{filter}");
        }
    }

    #[test]
    fn lines_are_text_or_json() {
        let read = |format: &str| {
            let mut env = Env::of(&[("LOG_FORMAT", format)]);
            let read = Logging::read(&mut env, "worker").format;
            env.finish(read).ok()
        };
        let read = ["", "JSON", "text", "xml"].map(read);
        assert_eq!(read, [Some(None), Some(Some(Format::Json)), Some(Some(Format::Text)), None]);
    }

    #[test]
    fn a_trace_has_an_id() {
        let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(trace_id(traceparent), Some("4bf92f3577b34da6a3ce929d0e0e4736"));
        assert_eq!(trace_id(""), None);
    }

    #[test]
    fn the_chain_names_every_cause() {
        assert_eq!(chain(&Outer(io::Error::other("inner"))), "outer: inner");
    }
}
