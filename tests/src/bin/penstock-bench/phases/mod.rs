//! The phases.

use clap::ValueEnum;

use crate::bench::Bench;

mod accept;
mod drain;
mod million;
mod paced;
pub mod remote;
mod saturated;
mod scale;

/// A part of the benchmark. In the order in which they run: what leaves much behind comes last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Phase {
    /// ingest alone, next to raw confirmed publishing
    Accept,
    /// One worker stores a backlog, next to raw transactions of the same documents
    Drain,
    /// Everything at once, as fast as it goes
    Saturated,
    /// Everything at once, at calm rates: time of replies, age of events, processor time
    Paced,
    /// Several workers, each held to a share of a processor, and far from MongoDB
    Scale,
    /// A million events
    Million,
}

/// Runs these phases; all if none is named. One that fails doesn't keep the others from running.
pub async fn run(bench: &mut Bench, only: &[Phase]) {
    let mut backlog = None;
    let is_wanted = |phase: &&Phase| only.is_empty() || only.contains(phase);
    for phase in Phase::value_variants().iter().filter(is_wanted) {
        let done = match phase {
            Phase::Accept => accept::run(bench).await.map(|left| backlog = Some(left)),
            Phase::Drain => drain::run(bench, backlog.take()).await,
            Phase::Saturated => saturated::run(bench).await,
            Phase::Paced => paced::run(bench).await,
            Phase::Scale => scale::run(bench).await,
            Phase::Million => million::run(bench).await,
        };
        if let Err(error) = done {
            bench.fail(&format!("{phase:?}").to_lowercase(), &error);
        }
    }
}
