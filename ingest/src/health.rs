//! `/health`: the state of the whole pipeline, in the shape that the Flask bridge's users know.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value, json};
use shared::pipeline::Lengths;
use shared::status::{Announcement, BreakerState, MongoState, TenantStatus};

use crate::route::RouteState;
use crate::spool::Size;

/// What callers may ask for.
pub const ENDPOINTS: [&str; 7] = [
    "POST /webhook/{tenant}",
    "POST /webhook/{tenant}/incoming",
    "POST /webhook/{tenant}/outgoing",
    "POST /webhook/{tenant}/lifecycle",
    "POST /webhook/{tenant}/internal-note",
    "GET /health",
    "GET /",
];

/// Bytes that an event takes in the spool, unless the events in there are larger. Most take less than half of
/// it.
const ASSUMED_EVENT_BYTES: u64 = 4096;

/// What is known at this moment.
#[derive(Debug)]
pub struct Seen<'a> {
    /// The tenants served.
    pub tenants: &'a [String],
    /// `TEST_MODE`
    pub test_mode: bool,
    /// How long each tenant's queues are, if that is known.
    pub lengths: &'a BTreeMap<String, Lengths>,
    /// The ingests and workers that announce themselves; none, not even this one, while RabbitMQ delivers
    /// nothing.
    pub peers: &'a [Announcement],
    /// The largest number of partitions that anybody has.
    pub partitions: u16,
    /// Shown while no worker announces it.
    pub breaker_threshold: u32,
    /// The ways into RabbitMQ, by tenant.
    pub routes: &'a BTreeMap<String, RouteState>,
    /// Webhooks in the spool, and their bytes.
    pub spool: Size,
    /// Bytes that the spool can still take.
    pub spool_room: u64,
    /// Time since the oldest of them was received.
    pub spool_oldest_age: Duration,
    /// Whether the spool can be written.
    pub spool_writable: bool,
    /// Records of damaged files that may still have to be copied.
    pub spool_left_to_copy: u64,
    /// Refusals that are harmless within the window, and how many are left.
    pub refusals: (usize, usize),
    /// Tenants whose signatures nobody checks.
    pub unchecked: &'a [String],
}

/// The report. Pure.
#[must_use]
pub fn report(seen: &Seen<'_>) -> Value {
    let tenants: Vec<(&String, Option<TenantStatus>)> =
        seen.tenants.iter().map(|tenant| (tenant, worst(tenant, seen.peers))).collect();
    json!({
        "status": status(seen, &tenants),
        "test_mode": seen.test_mode,
        "queue": queue(seen),
        "circuit_breaker": circuit_breaker(seen.breaker_threshold, &tenants),
        "broker": broker(seen.routes),
        "spool": {
            "records": seen.spool.records,
            "bytes": seen.spool.bytes,
            "oldest_age_seconds": seen.spool_oldest_age.as_secs(),
            "writable": seen.spool_writable,
            "left_to_copy": seen.spool_left_to_copy,
        },
        "refusals": {"budget": seen.refusals.0, "left": seen.refusals.1},
        "signatures": seen.tenants.iter().map(|tenant| (tenant.clone(), signatures(tenant, seen))).collect::<Map<_, _>>(),
        "endpoints": ENDPOINTS,
        "mongodb": tenants.iter().map(|(tenant, status)| ((*tenant).clone(), json!(mongodb(status.as_ref()))))
            .collect::<Map<_, _>>(),
    })
}

fn broker(routes: &BTreeMap<String, RouteState>) -> Value {
    json!({
        "connected": routes.values().all(|route| route.connected),
        "blocked": routes.values().any(|route| route.blocked),
        "suspect": routes.values().any(|route| route.suspect),
        "in_flight": routes.values().map(|route| route.in_flight).sum::<usize>(),
        "tenants": routes,
    })
}

/// Numbers that aren't known are null.
fn queue(seen: &Seen<'_>) -> Value {
    let workers: Vec<&Announcement> = seen.peers.iter().filter(|peer| peer.served().is_some()).collect();
    // This ingest hears itself, too.
    let is_heard = !seen.peers.is_empty();
    // One worker at a time writes each partition.
    let batches = workers.iter().map(|worker| worker.partitions).max().unwrap_or(0);
    let sum = |of: fn(&Lengths) -> Option<u64>| {
        seen.tenants.iter().map(|tenant| length(tenant, seen, of)).sum::<Option<u64>>()
    };
    let size: Option<u64> = seen.tenants.iter().map(|tenant| size(tenant, seen)).sum();
    json!({
        "size": size,
        "max_size": size.map(|size| size.saturating_add(capacity(seen)).max(1)),
        "dead": sum(|lengths| lengths.dead),
        "quarantined": sum(|lengths| lengths.quarantined),
        "workers": is_heard.then_some(batches),
        "worker_processes": is_heard.then_some(workers.len()),
        "tenants": seen.tenants.iter().map(|name| (name.clone(), queue_of(name, seen))).collect::<Map<_, _>>(),
    })
}

fn queue_of(tenant: &str, seen: &Seen<'_>) -> Value {
    let processes = (!seen.peers.is_empty()).then(|| statuses(tenant, seen.peers).count());
    json!({
        "size": size(tenant, seen),
        "dead": length(tenant, seen, |lengths| lengths.dead),
        "quarantined": length(tenant, seen, |lengths| lengths.quarantined),
        "partitions": seen.partitions,
        "worker_processes": processes,
        // More workers than partitions: these have nothing to do.
        "surplus_worker_processes": processes.map(|count| count.saturating_sub(seen.partitions.into())),
    })
}

fn length(tenant: &str, seen: &Seen<'_>, of: fn(&Lengths) -> Option<u64>) -> Option<u64> {
    seen.lengths.get(tenant).and_then(of)
}

/// Events of a tenant that wait, or that workers have in hand.
fn size(tenant: &str, seen: &Seen<'_>) -> Option<u64> {
    let in_flight: usize = statuses(tenant, seen.peers).map(|status| status.in_flight).sum();
    let waiting = length(tenant, seen, |lengths| lengths.waiting)?;
    Some(waiting + u64::try_from(in_flight).unwrap_or(u64::MAX))
}

/// What each of its workers says of a tenant.
fn statuses<'a>(tenant: &str, peers: &'a [Announcement]) -> impl Iterator<Item = &'a TenantStatus> {
    peers.iter().filter_map(move |peer| peer.served()?.get(tenant))
}

/// Events that can be taken for sure: those that fit into the spool. What fits into RabbitMQ's queues depends
/// on its disk and policies, and while RabbitMQ is down, nothing does.
fn capacity(seen: &Seen<'_>) -> u64 {
    let mean = seen.spool.bytes / seen.spool.records.max(1);
    seen.spool_room / mean.max(ASSUMED_EVENT_BYTES)
}

/// A tenant's state over all its workers: the worst of each figure, since any of them may need help.
fn worst(tenant: &str, peers: &[Announcement]) -> Option<TenantStatus> {
    statuses(tenant, peers).cloned().reduce(|a, b| TenantStatus {
        seconds_in_state: if a.breaker >= b.breaker { a.seconds_in_state } else { b.seconds_in_state },
        breaker: a.breaker.max(b.breaker),
        failures: a.failures.max(b.failures),
        threshold: a.threshold.min(b.threshold),
        mongodb_connected: a.mongodb_connected && b.mongodb_connected,
        // The tenant's MongoDB has answered, no matter which worker asked.
        success_age_ms: [a.success_age_ms, b.success_age_ms].into_iter().flatten().min(),
        in_flight: a.in_flight + b.in_flight,
        half_open_successes: if a.breaker >= b.breaker {
            a.half_open_successes
        } else {
            b.half_open_successes
        },
        seconds_since_failure: a.seconds_since_failure.into_iter().chain(b.seconds_since_failure).min(),
        oldest_waiting_seconds: a.oldest_waiting_seconds.max(b.oldest_waiting_seconds),
    })
}

fn status(seen: &Seen<'_>, tenants: &[(&String, Option<TenantStatus>)]) -> &'static str {
    let well = |status: &Option<TenantStatus>| {
        status.as_ref().is_some_and(|status| {
            status.mongodb() == MongoState::Connected && status.breaker == BreakerState::Closed
        })
    };
    let broker_takes = seen.routes.values().all(|route| route.is_open());
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
        json!({
            "status": state,
            "failures": failures,
            "threshold": threshold,
            "half_open_successes": status.map_or(0, |s| s.half_open_successes),
            "seconds_in_state": seconds,
            // Without a failure the breaker has been closed ever since the worker started.
            "time_since_last_failure": status.and_then(|s| s.seconds_since_failure).unwrap_or(seconds),
        })
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

fn signatures(tenant: &String, seen: &Seen<'_>) -> Value {
    // Everybody who knows the URL can send events of this tenant.
    if seen.unchecked.contains(tenant) { "unchecked" } else { "checked" }.into()
}

fn mongodb(status: Option<&TenantStatus>) -> MongoState {
    // Without a worker nobody can say.
    status.map_or(MongoState::Unknown, TenantStatus::mongodb)
}

#[cfg(test)]
mod tests {
    use shared::status::{Role, SpoolStatus};
    use std::sync::LazyLock;

    use super::*;

    const NOTHING: Lengths = Lengths { waiting: Some(0), dead: Some(0), quarantined: Some(0) };

    fn tenant(breaker: BreakerState, failures: u32) -> TenantStatus {
        let mongodb_connected = breaker == BreakerState::Closed;
        TenantStatus {
            breaker,
            failures,
            threshold: 10,
            seconds_in_state: 7,
            mongodb_connected,
            success_age_ms: Some(5),
            in_flight: 3,
            half_open_successes: 0,
            seconds_since_failure: None,
            oldest_waiting_seconds: 0,
        }
    }

    fn worker(name: &str, tenants: &[(&str, TenantStatus)]) -> Announcement {
        let tenants: BTreeMap<_, _> = tenants.iter().map(|(t, s)| ((*t).to_owned(), s.clone())).collect();
        Announcement { name: name.into(), partitions: 4, leaving: false, role: Role::Worker { tenants } }
    }

    fn ingest() -> Announcement {
        let spool = SpoolStatus { records: 0, bytes: 0, oldest_age_seconds: 0, writable: true };
        let role = Role::Ingest { spool, refusals_left: 10 };
        Announcement { name: "ingest".into(), partitions: 4, leaving: false, role }
    }

    /// The way of `vip` is as well as this.
    fn routes(vip: bool) -> BTreeMap<String, RouteState> {
        let route = |connected| RouteState { connected, blocked: false, suspect: !connected, in_flight: 1 };
        [("faster".to_owned(), route(true)), ("vip".to_owned(), route(vip))].into()
    }

    fn seen<'a>(tenants: &'a [String], peers: &'a [Announcement]) -> Seen<'a> {
        static LENGTHS: LazyLock<BTreeMap<String, Lengths>> = LazyLock::new(|| {
            let faster = Lengths { waiting: Some(5), dead: Some(2), quarantined: Some(1) };
            [("faster".to_owned(), faster), ("vip".to_owned(), NOTHING)].into()
        });
        static ROUTES: LazyLock<BTreeMap<String, RouteState>> = LazyLock::new(|| routes(true));
        Seen {
            tenants,
            test_mode: false,
            lengths: &LENGTHS,
            peers,
            partitions: 4,
            breaker_threshold: 7,
            routes: &ROUTES,
            spool: Size { records: 3, bytes: 400 },
            spool_room: 1 << 30,
            spool_oldest_age: Duration::from_millis(2500),
            spool_writable: true,
            spool_left_to_copy: 0,
            refusals: (10, 9),
            unchecked: &tenants[..1],
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
        let queue = |size, dead, quarantined| {
            json!({
                "size": size, "dead": dead, "quarantined": quarantined, "partitions": 4, "worker_processes": 2,
                "surplus_worker_processes": 0
            })
        };
        let tenants = json!({"faster": queue(11, 2, 1), "vip": queue(6, 0, 0)});
        let queues = json!({
            "size": 17, "max_size": 17 + (1 << 18), "dead": 2, "quarantined": 1, "workers": 4, "worker_processes": 2,
            "tenants": tenants
        });
        assert_eq!(report["queue"], queues);
        assert_eq!(report["circuit_breaker"]["status"], "OPEN");
        assert_eq!(report["circuit_breaker"]["failures"], 12);
        assert_eq!(report["circuit_breaker"]["seconds_in_state"], 7);
        assert_eq!(report["circuit_breaker"]["tenants"]["faster"]["status"], "CLOSED");
        assert_eq!(report["mongodb"], json!({"faster": "connected", "vip": "disconnected"}));
        assert_eq!(report["signatures"], json!({"faster": "unchecked", "vip": "checked"}));
        let healthy = super::report(&seen(&names, &workers[..1]));
        assert_eq!(healthy["status"], "healthy");
    }

    #[test]
    fn workers_beyond_the_number_of_partitions_are_named() {
        let (names, good) = (["faster".to_owned()], tenant(BreakerState::Closed, 0));
        let worker = |n: u8| worker(&format!("w{n}"), &[("faster", good.clone())]);
        let peers: Vec<Announcement> = (0..6).map(worker).chain([ingest()]).collect();
        let surplus = |partitions| {
            let report = report(&Seen { partitions, ..seen(&names, &peers) });
            report["queue"]["tenants"]["faster"]["surplus_worker_processes"].clone()
        };
        assert_eq!((surplus(4), surplus(8)), (json!(2), json!(0)));
    }

    #[test]
    fn what_the_bridge_told_in_numbers_is_told_in_numbers() {
        let names = ["faster".to_owned(), "vip".to_owned()];
        let mut failed = tenant(BreakerState::HalfOpen, 10);
        (failed.half_open_successes, failed.seconds_since_failure) = (2, Some(61));
        let well = tenant(BreakerState::Closed, 0);
        let workers = [
            worker("a", &[("faster", well.clone()), ("vip", failed)]),
            worker("b", &[("faster", well.clone()), ("vip", well)]),
        ];
        let report = report(&seen(&names, &workers));
        let breaker = &report["circuit_breaker"];
        assert_eq!(
            (&breaker["half_open_successes"], &breaker["time_since_last_failure"]),
            (&2.into(), &61.into())
        );
        assert_eq!(breaker["tenants"]["faster"]["time_since_last_failure"], 7);
        assert_eq!(report["endpoints"], json!(ENDPOINTS));
        let none = names.clone().map(|name| (name, NOTHING)).into();
        // Large events take more room, and none is left while the spool can't be written.
        let large = Seen { spool: Size { records: 2, bytes: 1 << 20 }, lengths: &none, ..seen(&names, &[]) };
        assert_eq!(super::report(&large)["queue"]["max_size"], 2048);
        let full = Seen { spool_room: 0, lengths: &none, ..seen(&names, &[]) };
        let full = super::report(&full);
        assert_eq!((&full["queue"]["size"], &full["queue"]["max_size"]), (&0.into(), &1.into()));
    }

    #[test]
    fn what_isnt_known_is_said_to_be_unknown() {
        let names = ["faster".to_owned()];
        let (well, none) = (tenant(BreakerState::Closed, 0), BTreeMap::new());
        let frozen = report(&Seen { lengths: &none, ..seen(&names, &[]) });
        for number in ["size", "max_size", "dead", "quarantined", "workers", "worker_processes"] {
            assert_eq!(frozen["queue"][number], Value::Null, "{number}");
        }
        assert_eq!(frozen["queue"]["tenants"]["faster"]["size"], Value::Null);
        assert_eq!(
            (&frozen["status"], &frozen["mongodb"]["faster"]),
            (&json!("degraded"), &json!("unknown"))
        );
        // Nobody has heard of it for a while, but nothing has failed yet.
        let silent = TenantStatus { success_age_ms: Some(4500), ..well };
        let silent = report(&seen(&names, &[worker("w", &[("faster", silent)])]));
        assert_eq!(
            (&silent["status"], &silent["mongodb"]["faster"]),
            (&json!("degraded"), &json!("unknown"))
        );
    }

    #[test]
    fn without_workers_or_broker_it_says_so() {
        let names = ["faster".to_owned()];
        let alone = report(&seen(&names, &[ingest()]));
        assert_eq!((&alone["queue"]["workers"], &alone["queue"]["size"]), (&json!(0), &json!(5)));
        assert_eq!((&alone["status"], &alone["mongodb"]["faster"]), (&json!("degraded"), &json!("unknown")));
        assert_eq!(alone["circuit_breaker"]["threshold"], 7);
        let vip_is_cut_off = routes(false);
        let cut_off = report(&Seen { routes: &vip_is_cut_off, ..seen(&names, &[]) });
        assert_eq!(cut_off["status"], "degraded");
        let broker = &cut_off["broker"];
        assert_eq!(
            (&broker["connected"], &broker["suspect"], &broker["in_flight"]),
            (&json!(false), &json!(true), &json!(2))
        );
        assert_eq!(
            (&broker["tenants"]["faster"]["suspect"], &broker["tenants"]["vip"]["suspect"]),
            (&json!(false), &json!(true))
        );
        let nowhere = report(&Seen { routes: &vip_is_cut_off, spool_writable: false, ..seen(&names, &[]) });
        assert_eq!(nowhere["status"], "unhealthy");
        let spool = json!({
            "records": 3, "bytes": 400, "oldest_age_seconds": 2, "writable": true, "left_to_copy": 0
        });
        assert_eq!(alone["spool"], spool);
    }
}
