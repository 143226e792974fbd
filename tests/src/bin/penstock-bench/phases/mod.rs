//! The phases.

use crate::arguments::Phase;
use crate::bench::Bench;

pub mod accept;
pub mod drain;
pub mod million;
pub mod paced;
pub mod ramp;
pub mod remote;
pub mod scale;
pub mod shapes;
pub mod spool;

/// All of them, in their order. Those that leave much behind come last.
const ALL: [Phase; 8] = [
    Phase::Accept,
    Phase::Drain,
    Phase::Ramp,
    Phase::Paced,
    Phase::Shapes,
    Phase::Scale,
    Phase::Spool,
    Phase::Million,
];

/// Runs these phases; all if none is named. One that fails doesn't keep the others from running.
pub async fn run(bench: &mut Bench, only: &[Phase]) {
    let mut backlog = None;
    for phase in ALL.into_iter().filter(|phase| only.is_empty() || only.contains(phase)) {
        let name = format!("{phase:?}").to_lowercase();
        let done = match phase {
            Phase::Accept => accept::run(bench).await.map(|left| backlog = Some(left)),
            Phase::Drain => drain::run(bench, backlog.take()).await,
            Phase::Ramp => ramp::run(bench).await,
            Phase::Paced => paced::run(bench).await,
            Phase::Shapes => shapes::run(bench).await,
            Phase::Scale => scale::run(bench).await,
            Phase::Spool => spool::run(bench).await,
            Phase::Million => million::run(bench).await,
        };
        if let Err(error) = done {
            bench.fail(&name, &error);
        }
    }
}
