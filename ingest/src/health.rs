//! `/health`: the state of the whole pipeline, in the shape that the Flask bridge's users know.

use std::time::Duration;

use serde_json::{Map, Value, json};
use shared::status::{Announcement, BreakerState, TenantStatus};

use crate::spool::Size;

/// What is known at this moment.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct Seen<'a> {
    /// The tenants served.
    pub tenants: &'a [String],
    /// `TEST_MODE`
    pub test_mode: bool,
    /// Messages that wait in the queues.
    pub waiting: u64,
    /// The workers alive.
    pub workers: &'a [Announcement],
    /// Shown while no worker is there to say.
    pub breaker_threshold: u32,
    /// Whether RabbitMQ can be reached.
    pub broker_up: bool,
    /// Whether RabbitMQ blocks publishing.
    pub broker_blocked: bool,
    /// Messages published and not confirmed yet.
    pub publishing: usize,
    /// Whether RabbitMQ was silent, so that only the drain publishes.
    pub broker_suspect: bool,
    /// Webhooks in the spool, and their bytes.
    pub spool: Size,
    /// Time since the oldest of them was received.
    pub spool_oldest_age: Duration,
    /// Whether the spool can be written.
    pub spool_writable: bool,
    /// Refusals that are harmless within the window, and how many are left.
    pub refusals: (usize, usize),
}

/// The report. Pure.
#[must_use]
pub fn report(seen: &Seen<'_>) -> Value {
    let tenants: Vec<(&String, Option<TenantStatus>)> =
        seen.tenants.iter().map(|tenant| (tenant, worst(tenant, seen.workers))).collect();
    let in_flight: usize = seen.workers.iter().flat_map(|w| w.tenants.values()).map(|t| t.in_flight).sum();
    let size = seen.waiting + u64::try_from(in_flight).unwrap_or(u64::MAX);
    let lanes: usize = seen.workers.iter().map(|worker| worker.lanes).sum();
    json!({
        "status": status(seen, &tenants),
        "test_mode": seen.test_mode,
        "queue": {
            "size": size,
            // The queue has no bound of its own; what bounds it is the broker's disk, or a policy.
            "max_size": null,
            "workers": lanes,
            "worker_processes": seen.workers.len(),
        },
        "circuit_breaker": circuit_breaker(seen.breaker_threshold, &tenants),
        "broker": {
            "connected": seen.broker_up,
            "blocked": seen.broker_blocked,
            "suspect": seen.broker_suspect,
            "in_flight": seen.publishing,
        },
        "spool": {
            "records": seen.spool.records,
            "bytes": seen.spool.bytes,
            "oldest_age_seconds": seen.spool_oldest_age.as_secs(),
            "writable": seen.spool_writable,
        },
        "refusals": {"budget": seen.refusals.0, "left": seen.refusals.1},
        "mongodb": tenants.iter().map(|(tenant, status)| ((*tenant).clone(), mongodb(status.as_ref())))
            .collect::<Map<_, _>>(),
    })
}

/// A tenant's state over all its workers: the worst of each figure, since any of them may need help.
fn worst(tenant: &str, workers: &[Announcement]) -> Option<TenantStatus> {
    workers.iter().filter_map(|worker| worker.tenants.get(tenant)).cloned().reduce(|a, b| TenantStatus {
        seconds_in_state: if a.breaker >= b.breaker { a.seconds_in_state } else { b.seconds_in_state },
        breaker: a.breaker.max(b.breaker),
        failures: a.failures.max(b.failures),
        threshold: a.threshold.min(b.threshold),
        mongodb_connected: a.mongodb_connected && b.mongodb_connected,
        in_flight: a.in_flight + b.in_flight,
    })
}

fn status(seen: &Seen<'_>, tenants: &[(&String, Option<TenantStatus>)]) -> &'static str {
    let well = |status: &Option<TenantStatus>| {
        status.as_ref().is_some_and(|s| s.mongodb_connected && s.breaker == BreakerState::Closed)
    };
    let broker_takes = seen.broker_up && !seen.broker_blocked && !seen.broker_suspect;
    if !broker_takes && !seen.spool_writable {
        // Webhooks are refused, or lost.
        "unhealthy"
    } else if broker_takes && seen.spool_writable && tenants.iter().all(|(_, status)| well(status)) {
        "healthy"
    } else {
        "degraded"
    }
}

fn circuit_breaker(threshold: u32, tenants: &[(&String, Option<TenantStatus>)]) -> Value {
    let breaker = |status: Option<&TenantStatus>| {
        let state = status.map_or(BreakerState::Closed, |s| s.breaker);
        let (failures, threshold) = status.map_or((0, threshold), |s| (s.failures, s.threshold));
        let seconds = status.map_or(0, |s| s.seconds_in_state);
        json!({"status": state, "failures": failures, "threshold": threshold, "seconds_in_state": seconds})
    };
    let known = tenants.iter().filter_map(|(_, status)| status.as_ref());
    let mut report = breaker(known.max_by_key(|status| (status.breaker, status.failures)));
    report["tenants"] = tenants
        .iter()
        .map(|(tenant, status)| ((*tenant).clone(), breaker(status.as_ref())))
        .collect::<Map<_, _>>()
        .into();
    report
}

fn mongodb(status: Option<&TenantStatus>) -> Value {
    match status {
        Some(status) if status.mongodb_connected => "connected".into(),
        Some(_) => "disconnected".into(),
        // No worker is there to say.
        None => "unknown".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn tenant(breaker: BreakerState, failures: u32) -> TenantStatus {
        let mongodb_connected = breaker == BreakerState::Closed;
        TenantStatus {
            breaker,
            failures,
            threshold: 10,
            seconds_in_state: 7,
            mongodb_connected,
            in_flight: 3,
        }
    }

    fn worker(name: &str, tenants: &[(&str, TenantStatus)]) -> Announcement {
        let tenants: BTreeMap<_, _> = tenants.iter().map(|(t, s)| ((*t).to_owned(), s.clone())).collect();
        Announcement { worker: name.into(), lanes: 4, leaving: false, tenants }
    }

    fn seen<'a>(tenants: &'a [String], workers: &'a [Announcement]) -> Seen<'a> {
        Seen {
            tenants,
            test_mode: false,
            waiting: 5,
            workers,
            breaker_threshold: 7,
            broker_up: true,
            broker_blocked: false,
            publishing: 1,
            broker_suspect: false,
            spool: Size { records: 3, bytes: 400 },
            spool_oldest_age: Duration::from_millis(2500),
            spool_writable: true,
            refusals: (10, 9),
        }
    }

    #[test]
    fn the_worst_of_all_workers_is_shown() {
        let names = ["faster".to_owned(), "vip".to_owned()];
        let (good, bad) = (tenant(BreakerState::Closed, 0), tenant(BreakerState::Open, 12));
        let workers = [
            worker("a", &[("faster", good.clone()), ("vip", good.clone())]),
            worker("b", &[("faster", good.clone()), ("vip", bad)]),
        ];
        let report = report(&seen(&names, &workers));
        assert_eq!(report["status"], "degraded");
        assert_eq!(
            report["queue"],
            json!({"size": 17, "max_size": null, "workers": 8, "worker_processes": 2})
        );
        assert_eq!(report["circuit_breaker"]["status"], "OPEN");
        assert_eq!(report["circuit_breaker"]["failures"], 12);
        assert_eq!(report["circuit_breaker"]["seconds_in_state"], 7);
        assert_eq!(report["circuit_breaker"]["tenants"]["faster"]["status"], "CLOSED");
        assert_eq!(report["mongodb"], json!({"faster": "connected", "vip": "disconnected"}));
        let healthy = super::report(&seen(&names, &workers[..1]));
        assert_eq!(healthy["status"], "healthy");
    }

    #[test]
    fn without_workers_or_broker_it_says_so() {
        let names = ["faster".to_owned()];
        let alone = report(&seen(&names, &[]));
        assert_eq!((&alone["status"], &alone["mongodb"]["faster"]), (&json!("degraded"), &json!("unknown")));
        assert_eq!(alone["circuit_breaker"]["threshold"], 7);
        let cut_off = report(&Seen { broker_up: false, ..seen(&names, &[]) });
        assert_eq!(cut_off["status"], "degraded");
        let nowhere = report(&Seen { broker_up: false, spool_writable: false, ..seen(&names, &[]) });
        assert_eq!(nowhere["status"], "unhealthy");
        let spool = json!({"records": 3, "bytes": 400, "oldest_age_seconds": 2, "writable": true});
        assert_eq!(alone["spool"], spool);
    }
}
