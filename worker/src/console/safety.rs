//! Whether webhooks are safe: one line, and what to do. Pure.

use std::time::Duration;

use shared::status::{Announcement, BreakerState, Role, SpoolStatus, TenantStatus};

use super::words;

/// If a spool isn't empty after this time, somebody has to act.
const SPOOL_STUCK: Duration = Duration::from_mins(1);
/// Events that wait longer than this are late.
const LATE: Duration = Duration::from_mins(5);

/// What is known.
#[derive(Debug)]
pub struct Known<'a> {
    /// Whether the console reaches RabbitMQ.
    pub is_connected: bool,
    /// Whether RabbitMQ blocks publishing.
    pub is_blocked: bool,
    /// The ingests and workers that are there.
    pub peers: &'a [Announcement],
    /// The tenants.
    pub tenants: &'a [Tenant],
}

/// What is known of a tenant.
#[derive(Debug)]
pub struct Tenant {
    /// Its name.
    pub name: String,
    /// Its dead letters, if that is known.
    pub dead: Option<u64>,
    /// How long the oldest waiting event has waited, if one does.
    pub oldest: Option<Duration>,
}

/// How urgent it is that somebody acts, the least urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Not at all.
    Safe,
    /// Sometime today.
    Attention,
    /// Unknown.
    Unknown,
    /// Now.
    Danger,
}

impl Level {
    /// Its class in the style sheet.
    #[must_use]
    pub fn class(self) -> &'static str {
        match self {
            Self::Safe => "safe",
            Self::Attention => "attention",
            Self::Unknown => "unknown",
            Self::Danger => "danger",
        }
    }

    /// A sign that doesn't depend on colour.
    #[must_use]
    pub fn sign(self) -> &'static str {
        match self {
            Self::Safe => "✓",
            Self::Attention => "!",
            Self::Unknown => "?",
            Self::Danger => "✕",
        }
    }
}

/// A reason for somebody to act.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Concern {
    /// How urgent it is.
    pub level: Level,
    /// What it is.
    pub what: String,
    /// The part of the runbook that says what to do.
    pub runbook: &'static str,
}

/// The line, and all concerns, the gravest first.
#[derive(Debug, PartialEq, Eq)]
pub struct Verdict {
    /// How urgent it is that somebody acts.
    pub level: Level,
    /// One line.
    pub line: &'static str,
    /// Its reasons.
    pub concerns: Vec<Concern>,
}

/// Judges what is known.
#[must_use]
pub fn verdict(known: &Known<'_>) -> Verdict {
    let mut concerns = of_rabbitmq(known);
    if known.is_connected {
        concerns.extend(of_ingests(known));
        concerns.extend(known.tenants.iter().flat_map(|tenant| of_tenant(tenant, known.peers)));
    }
    concerns.sort_by_key(|concern| std::cmp::Reverse(concern.level));
    let level = concerns.first().map_or(Level::Safe, |concern| concern.level);
    let line = match level {
        Level::Safe => "Webhooks are safe.",
        Level::Attention => "Webhooks are safe, but something needs you.",
        Level::Unknown => "Whether webhooks are safe can't be seen from here.",
        Level::Danger => "Webhooks are not safe.",
    };
    Verdict { level, line, concerns }
}

fn concern(level: Level, runbook: &'static str, what: impl Into<String>) -> Concern {
    Concern { level, what: what.into(), runbook }
}

fn of_rabbitmq(known: &Known<'_>) -> Vec<Concern> {
    if !known.is_connected {
        let what =
            "The console can't reach RabbitMQ. If ingest can't either, it keeps webhooks in its spool.";
        return vec![concern(Level::Unknown, "penstockrabbitmqunreachable", what)];
    }
    let what =
        "RabbitMQ takes no messages: it is short of memory or disk. ingest keeps webhooks in its spool.";
    let blocked = concern(Level::Attention, "penstockrabbitmqblocked", what);
    if known.is_blocked { vec![blocked] } else { Vec::new() }
}

fn of_ingests(known: &Known<'_>) -> Vec<Concern> {
    let ingests: Vec<_> = known.peers.iter().filter_map(ingest).collect();
    if ingests.is_empty() {
        return vec![concern(Level::Danger, "penstockingestabsent", "No ingest is there to take webhooks.")];
    }
    ingests
        .into_iter()
        .filter_map(|(name, spool, left)| of_ingest(name, spool, left, known.is_blocked))
        .collect()
}

/// Name, spool and refusals left, if it is an ingest.
#[must_use]
pub fn ingest(peer: &Announcement) -> Option<(&str, &SpoolStatus, u32)> {
    match &peer.role {
        Role::Ingest { spool, refusals_left } => Some((&peer.name, spool, *refusals_left)),
        Role::Worker { .. } => None,
    }
}

fn of_ingest(name: &str, spool: &SpoolStatus, left: u32, is_blocked: bool) -> Option<Concern> {
    let is_stuck = spool.records > 0 && Duration::from_secs(spool.oldest_age_seconds) > SPOOL_STUCK;
    if !spool.writable && is_blocked {
        let what = format!("{name} can keep webhooks nowhere: it refuses {left} more, and then loses them.");
        Some(concern(Level::Danger, "penstockrefusing", what))
    } else if !spool.writable {
        let what = format!("{name} can't write its spool: only RabbitMQ takes its webhooks.");
        Some(concern(Level::Danger, "penstockspoolunwritable", what))
    } else if is_stuck {
        let (records, age) = (words::number(spool.records), Duration::from_secs(spool.oldest_age_seconds));
        let what = format!("{records} webhooks wait in the spool of {name}, for {}.", words::duration(age));
        Some(concern(Level::Attention, "penstockspoolstuck", what))
    } else {
        None
    }
}

/// What the workers say of a tenant.
pub fn statuses<'a>(tenant: &str, peers: &'a [Announcement]) -> impl Iterator<Item = &'a TenantStatus> {
    peers.iter().filter_map(move |peer| peer.served()?.get(tenant))
}

/// Whether a worker writes into a tenant's MongoDB.
fn works(status: &TenantStatus) -> bool {
    status.mongodb_connected && status.breaker == BreakerState::Closed
}

fn of_tenant(tenant: &Tenant, peers: &[Announcement]) -> Vec<Concern> {
    let name = &tenant.name;
    let mut found = Vec::new();
    let mut attention = |runbook, what| found.push(concern(Level::Attention, runbook, what));
    if statuses(name, peers).next().is_none() {
        attention("penstockworkerabsent", format!("{name} has no worker: its events wait in RabbitMQ."));
    } else if !statuses(name, peers).any(works) {
        let what = format!("The MongoDB of {name} can't be used: its events wait in RabbitMQ.");
        attention("penstockbreakeropen", what);
    }
    if let Some(oldest) = tenant.oldest.filter(|oldest| *oldest > LATE) {
        let what = format!("Events of {name} have waited for {}.", words::duration(oldest));
        attention("penstockeventsold", what);
    }
    match tenant.dead {
        None => {
            attention(
                "penstockworkerabsent",
                format!("The queues of {name} are missing, or RabbitMQ is silent."),
            );
        }
        Some(0) => {}
        Some(1) => attention("penstockdeadletters", format!("An event of {name} could not be stored.")),
        Some(dead) => {
            let what = format!("{} events of {name} could not be stored.", words::number(dead));
            attention("penstockdeadletters", what);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn ingest(writable: bool, age: u64) -> Announcement {
        let spool = SpoolStatus { records: u64::from(age > 0), bytes: 0, oldest_age_seconds: age, writable };
        let role = Role::Ingest { spool, refusals_left: 10 };
        Announcement { name: "ingest".into(), partitions: 4, leaving: false, role }
    }

    fn worker(breaker: BreakerState) -> Announcement {
        let status = TenantStatus {
            breaker,
            failures: 0,
            threshold: 10,
            seconds_in_state: 0,
            mongodb_connected: breaker == BreakerState::Closed,
            success_age_ms: None,
            in_flight: 0,
            half_open_successes: 0,
            seconds_since_failure: None,
        };
        let role = Role::Worker { tenants: BTreeMap::from([("vip".to_owned(), status)]) };
        Announcement { name: "worker".into(), partitions: 4, leaving: false, role }
    }

    fn judged(
        is_blocked: bool,
        peers: &[Announcement],
        dead: u64,
        oldest: u64,
    ) -> (Level, Vec<&'static str>) {
        let oldest = (oldest > 0).then(|| Duration::from_secs(oldest));
        let tenants = [Tenant { name: "vip".into(), dead: Some(dead), oldest }];
        let verdict = verdict(&Known { is_connected: true, is_blocked, peers, tenants: &tenants });
        (verdict.level, verdict.concerns.into_iter().map(|concern| concern.runbook).collect())
    }

    #[test]
    fn webhooks_are_safe_as_long_as_they_are_kept() {
        let well = [ingest(true, 0), worker(BreakerState::Closed)];
        assert_eq!(judged(false, &well, 0, 10), (Level::Safe, vec![]));
        let mongodb_down = [ingest(true, 0), worker(BreakerState::Open)];
        for (found, runbook) in [
            (judged(true, &well, 0, 0), "penstockrabbitmqblocked"),
            (judged(false, &[ingest(true, 90), worker(BreakerState::Closed)], 0, 0), "penstockspoolstuck"),
            (judged(false, &well[..1], 0, 0), "penstockworkerabsent"),
            (judged(false, &mongodb_down, 0, 0), "penstockbreakeropen"),
            (judged(false, &well, 2, 0), "penstockdeadletters"),
            (judged(false, &well, 0, 301), "penstockeventsold"),
        ] {
            assert_eq!(found, (Level::Attention, vec![runbook]));
        }
        let one_works = [&mongodb_down[..], &well[1..]].concat();
        assert_eq!(judged(false, &one_works, 0, 0).0, Level::Safe);
    }

    #[test]
    fn they_are_not_where_nobody_can_keep_them() {
        let full = [ingest(false, 0), worker(BreakerState::Closed)];
        assert_eq!(judged(false, &full, 1, 0).1, ["penstockspoolunwritable", "penstockdeadletters"]);
        assert_eq!(
            judged(true, &full, 0, 0),
            (Level::Danger, vec!["penstockrefusing", "penstockrabbitmqblocked"])
        );
        assert_eq!(judged(false, &full[1..], 0, 0), (Level::Danger, vec!["penstockingestabsent"]));
    }

    #[test]
    fn what_cannot_be_seen_is_said_to_be_unknown() {
        let known = Known { is_connected: false, is_blocked: false, peers: &[], tenants: &[] };
        assert_eq!(verdict(&known).level, Level::Unknown);
    }
}
