//! Logs: one JSON object a line.

use std::error::Error;
use std::io;
use std::iter::successors;

use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::env::Env;

/// What is logged when `RUST_LOG` isn't set. lapin logs every failure that we handle and log ourselves.
const QUIET: &str = "info,lapin=off,actix_server=warn,actix_http=off,mongodb=warn";
/// The same in `TEST_MODE`.
const VERBOSE: &str =
    "info,lapin=off,actix_server=warn,actix_http=off,mongodb=warn,ingest=debug,worker=debug,shared=debug";

/// For commands: their answer says what they did.
const COMMAND: &str = "error,lapin=off,actix_server=off,mongodb=off";

/// Our crates.
const OURS: [&str; 3] = ["ingest", "worker", "shared"];

/// Reads `RUST_LOG`.
pub fn filter(env: &mut Env) -> Option<String> {
    let filter = env.text("RUST_LOG")?;
    if EnvFilter::try_new(&filter).is_err() {
        env.problem(format!("RUST_LOG: {filter:?} is no filter like info,worker=debug"));
    }
    Some(filter)
}

/// Starts logging on standard output. Called once, first thing; `filter` is `RUST_LOG`.
pub fn start_logging(filter: Option<&str>, verbose: bool) {
    start(filter, if verbose { VERBOSE } else { QUIET }, io::stdout);
}

/// Starts logging on standard error, for a command whose answer goes to standard output.
pub fn start_logging_of_command(filter: Option<&str>) {
    start(filter, COMMAND, io::stderr);
}

fn start<W>(filter: Option<&str>, default: &str, writer: W)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter =
        filter.and_then(|text| EnvFilter::try_new(text).ok()).unwrap_or_else(|| EnvFilter::new(default));
    let lines = fmt::layer()
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_span_list(false)
        .with_writer(writer);
    tracing_subscriber::registry().with(filter).with(filter_fn(is_discreet)).with(lines).init();
}

/// Below `info`, libraries log what passes through them: bodies, and with them names and phone numbers. Whatever
/// `RUST_LOG` says, only our own crates may be that talkative.
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
