//! How long and how much.

use std::time::Duration;

/// Sizes of the phases.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Closed loop against the bare server.
    pub bare: Duration,
    /// Rounds in which raw publishing and ingest take turns, after one that isn't counted.
    pub rounds: usize,
    /// Time of each turn.
    pub round: Duration,
    /// Backlog to drain, if accepting has left none.
    pub backlog: u64,
    /// Rates of the ramp.
    pub rates: Vec<u64>,
    /// Time at each of them: long enough that a third of it outlasts a hiccup of MongoDB's checkpoints.
    pub step: Duration,
    /// Closed loop with everything running.
    pub saturation: Duration,
    /// Rate of the paced run.
    pub rate: u64,
    /// Its time, not measured and measured.
    pub paced: (Duration, Duration),
    /// Backlog of each shape.
    pub shape: u64,
    /// Backlog that several workers share.
    pub scale: u64,
    /// Time for these workers to divide the queues among them, before there is a backlog.
    pub division: Duration,
    /// The million.
    pub million: u64,
    /// Longest time to publish it through ingest; the rest goes to RabbitMQ directly.
    pub million_publish: Duration,
    /// Its slices that are compared: from the first to the second event, and so many at the end.
    pub slices: (u64, u64, u64),
    /// Longest time for any backlog to be stored.
    pub patience: Duration,
    /// Closed loop while RabbitMQ is away, for each number of callers.
    pub spool: Duration,
}

impl Plan {
    /// The whole benchmark, in ten minutes on two cores.
    pub fn full() -> Self {
        Self {
            bare: Duration::from_secs(4),
            rounds: 3,
            round: Duration::from_secs(4),
            backlog: 100_000,
            rates: (1..=12).map(|step| step * 1000).collect(),
            step: Duration::from_secs(12),
            saturation: Duration::from_secs(8),
            rate: 1000,
            paced: (Duration::from_secs(4), Duration::from_secs(20)),
            shape: 30_000,
            scale: 40_000,
            division: Duration::from_secs(12),
            million: 1_000_000,
            million_publish: Duration::from_secs(100),
            slices: (10_000, 210_000, 200_000),
            // Three times what a million takes on two idle cores.
            patience: Duration::from_mins(6),
            spool: Duration::from_secs(3),
        }
    }

    /// The same in about a minute.
    pub fn quick() -> Self {
        Self {
            bare: Duration::from_secs(1),
            rounds: 1,
            round: Duration::from_millis(1500),
            backlog: 10_000,
            rates: vec![1000, 3000, 5000],
            step: Duration::from_secs(2),
            saturation: Duration::from_secs(2),
            rate: 1000,
            paced: (Duration::from_secs(2), Duration::from_secs(4)),
            shape: 3_000,
            scale: 1_000,
            division: Duration::from_secs(1),
            million: 20_000,
            million_publish: Duration::from_secs(4),
            slices: (2_000, 8_000, 6_000),
            patience: Duration::from_secs(30),
            spool: Duration::from_millis(700),
        }
    }
}
