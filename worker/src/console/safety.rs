//! Whether webhooks are safe: one line, and what to do. Pure.

use std::time::Duration;

use shared::status::{Announcement, BreakerState, Role, SpoolStatus, TenantStatus};
use shared::tenant_queue::QUARANTINE_MAX_LENGTH;

use super::words;

/// If a spool isn't empty after this time, somebody has to act.
const SPOOL_STUCK: Duration = Duration::from_mins(1);
/// Events that wait longer than this are late.
const LATE: Duration = Duration::from_mins(5);
/// By this time after RabbitMQ's start, everybody has connected again and announced itself.
const RECONNECTED: Duration = Duration::from_secs(10);
/// If nobody was heard for this long, RabbitMQ passes no announcement on: each announces itself every second.
const SILENCE: Duration = Duration::from_secs(3);

/// What is known.
#[derive(Debug)]
pub struct Known<'a> {
    /// Whether the console reaches RabbitMQ.
    pub is_connected: bool,
    /// Whether RabbitMQ blocks publishing.
    pub is_blocked: bool,
    /// How long it has listened for announcements.
    pub listens_for: Duration,
    /// How long nobody was heard.
    pub silent_for: Duration,
    /// The ingests and workers that are there.
    pub peers: &'a [Announcement],
    /// Ingests that are gone and had webhooks in their spool: names and numbers.
    pub left_spools: &'a [(String, u64)],
    /// Messages for which no tenant's queue is bound.
    pub unroutable: u64,
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
    /// Webhooks in quarantine.
    pub quarantined: u64,
    /// How many more these are than a minute ago.
    pub quarantined_lately: u64,
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

impl Known<'_> {
    /// Whether those who aren't heard aren't there.
    fn tells_who_is_absent(&self) -> bool {
        self.listens_for > RECONNECTED && self.silent_for < SILENCE
    }
}

/// Judges what is known.
#[must_use]
pub fn verdict(known: &Known<'_>) -> Verdict {
    let mut concerns = of_rabbitmq(known);
    if known.is_connected {
        concerns.extend(if known.peers.is_empty() { vec![nobody(known)] } else { of_ingests(known) });
        concerns.extend(known.tenants.iter().flat_map(|tenant| of_tenant(tenant, known)));
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
    let mut found = Vec::new();
    if known.is_blocked {
        let what =
            "RabbitMQ takes no messages: it is short of memory or disk. ingest keeps webhooks in its spool.";
        found.push(concern(Level::Attention, "penstockrabbitmqblocked", what));
    }
    if known.unroutable > 0 {
        let what = format!("{} messages wait in unroutable.", words::number(known.unroutable));
        found.push(concern(Level::Attention, "penstockunroutable", what));
    }
    found
}

/// RabbitMQ passes no announcement on while it takes no messages, and tells only those of it who publish.
fn nobody(known: &Known<'_>) -> Concern {
    let what = if known.listens_for > RECONNECTED {
        "Neither an ingest nor a worker is heard: RabbitMQ takes no messages, as it is short of memory or disk, or none runs."
    } else {
        "Neither an ingest nor a worker has been heard yet."
    };
    concern(Level::Unknown, "penstockrabbitmqblocked", what)
}

fn of_ingests(known: &Known<'_>) -> Vec<Concern> {
    let ingests: Vec<_> = known.peers.iter().filter_map(ingest).collect();
    if ingests.is_empty() {
        let (level, what) = if known.tells_who_is_absent() {
            (Level::Danger, "No ingest is there to take webhooks.")
        } else {
            (Level::Unknown, "No ingest is heard.")
        };
        return vec![concern(level, "penstockingestabsent", what)];
    }
    let left = known.left_spools.iter().map(|(name, records)| {
        let records = words::number(*records);
        let what = format!("{name} is gone, and was last heard with {records} webhooks in its spool.");
        concern(Level::Attention, "drain-a-spool", what)
    });
    let of_each = |(name, spool, left)| of_ingest(name, spool, left, known.is_blocked);
    ingests.into_iter().filter_map(of_each).chain(left).collect()
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

fn of_tenant(tenant: &Tenant, known: &Known<'_>) -> Vec<Concern> {
    let name = &tenant.name;
    let mut found = Vec::new();
    if tenant.quarantined >= u64::from(QUARANTINE_MAX_LENGTH) {
        let what = format!("The quarantine of {name} is full: the oldest webhooks in it are dropped.");
        found.push(concern(Level::Danger, "penstockevidencedropped", what));
    }
    let mut attention = |runbook, what| found.push(concern(Level::Attention, runbook, what));
    let serving = statuses(name, known.peers).count();
    let working = statuses(name, known.peers).filter(|status| works(status)).count();
    if serving == 0 && known.tells_who_is_absent() {
        attention("penstockworkerabsent", format!("{name} has no worker: its events wait in RabbitMQ."));
    } else if serving > 0 && working == 0 {
        let what = format!("The MongoDB of {name} can't be used: its events wait in RabbitMQ.");
        attention("penstockbreakeropen", what);
    } else if working < serving {
        let what = format!("{} of {serving} workers can't use the MongoDB of {name}.", serving - working);
        attention("penstockworkercutoff", what);
    }
    if tenant.quarantined_lately > 0 {
        let number = words::number(tenant.quarantined_lately);
        let what =
            format!("Webhooks of {name} were quarantined, not stored: {number} more than a minute ago.");
        attention("penstockquarantining", what);
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
            oldest_waiting_seconds: 0,
        };
        let role = Role::Worker { tenants: BTreeMap::from([("vip".to_owned(), status)]) };
        Announcement { name: "worker".into(), partitions: 4, leaving: false, role }
    }

    fn tenant() -> Tenant {
        Tenant { name: "vip".into(), dead: Some(0), quarantined: 7, quarantined_lately: 0, oldest: None }
    }

    fn known<'a>(peers: &'a [Announcement], tenants: &'a [Tenant]) -> Known<'a> {
        Known {
            is_connected: true,
            is_blocked: false,
            listens_for: Duration::from_mins(1),
            silent_for: Duration::from_secs(1),
            peers,
            left_spools: &[],
            unroutable: 0,
            tenants,
        }
    }

    fn judged(known: &Known<'_>) -> (Level, Vec<&'static str>) {
        let verdict = verdict(known);
        (verdict.level, verdict.concerns.into_iter().map(|concern| concern.runbook).collect())
    }

    #[test]
    fn webhooks_are_safe_as_long_as_they_are_kept() {
        let (well, fine) = ([ingest(true, 0), worker(BreakerState::Closed)], [tenant()]);
        let late = |seconds| [Tenant { oldest: Some(Duration::from_secs(seconds)), ..tenant() }];
        assert_eq!(judged(&known(&well, &late(10))), (Level::Safe, vec![]));
        let mongodb_down = [ingest(true, 0), worker(BreakerState::Open)];
        let one_works = [&mongodb_down[..], &well[1..]].concat();
        let spooling = [ingest(true, 90), worker(BreakerState::Closed)];
        let (left, late) = ([("ingest-2".to_owned(), 7)], late(301));
        let dead = [Tenant { dead: Some(2), ..tenant() }];
        let quarantining = [Tenant { quarantined_lately: 1, ..tenant() }];
        for (known, runbook) in [
            (Known { is_blocked: true, ..known(&well, &fine) }, "penstockrabbitmqblocked"),
            (Known { unroutable: 1, ..known(&well, &fine) }, "penstockunroutable"),
            (Known { left_spools: &left, ..known(&well, &fine) }, "drain-a-spool"),
            (known(&spooling, &fine), "penstockspoolstuck"),
            (known(&well[..1], &fine), "penstockworkerabsent"),
            (known(&mongodb_down, &fine), "penstockbreakeropen"),
            (known(&one_works, &fine), "penstockworkercutoff"),
            (known(&well, &dead), "penstockdeadletters"),
            (known(&well, &quarantining), "penstockquarantining"),
            (known(&well, &late), "penstockeventsold"),
        ] {
            assert_eq!(judged(&known), (Level::Attention, vec![runbook]));
        }
    }

    #[test]
    fn they_are_not_where_nobody_can_keep_them() {
        let (full, fine) = ([ingest(false, 0), worker(BreakerState::Closed)], [tenant()]);
        let dead = [Tenant { dead: Some(1), ..tenant() }];
        assert_eq!(judged(&known(&full, &dead)).1, ["penstockspoolunwritable", "penstockdeadletters"]);
        assert_eq!(
            judged(&Known { is_blocked: true, ..known(&full, &fine) }),
            (Level::Danger, vec!["penstockrefusing", "penstockrabbitmqblocked"])
        );
        assert_eq!(judged(&known(&full[1..], &fine)), (Level::Danger, vec!["penstockingestabsent"]));
        let dropping = [Tenant { quarantined: 100_000, ..tenant() }];
        let well = [ingest(true, 0), worker(BreakerState::Closed)];
        assert_eq!(judged(&known(&well, &dropping)), (Level::Danger, vec!["penstockevidencedropped"]));
    }

    #[test]
    fn what_cannot_be_seen_is_said_to_be_unknown() {
        let fine = [tenant()];
        let unconnected = Known { is_connected: false, ..known(&[], &fine) };
        assert_eq!(judged(&unconnected), (Level::Unknown, vec!["penstockrabbitmqunreachable"]));
        // An alarm of RabbitMQ silences everybody.
        let silenced = Known { silent_for: Duration::from_secs(6), ..known(&[], &fine) };
        assert_eq!(judged(&silenced), (Level::Unknown, vec!["penstockrabbitmqblocked"]));
        // After a start of RabbitMQ, some are heard later than others; before an alarm, some were heard
        // longer ago.
        let one = [worker(BreakerState::Closed)];
        let early = Known { listens_for: Duration::from_secs(2), ..known(&one, &fine) };
        let silenced = Known { silent_for: Duration::from_secs(4), ..known(&one, &fine) };
        for known in [early, silenced] {
            assert_eq!(judged(&known), (Level::Unknown, vec!["penstockingestabsent"]));
        }
    }
}
