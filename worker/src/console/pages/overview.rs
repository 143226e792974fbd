//! The overview: whether webhooks are safe, and the state of each tenant.

use std::time::{Duration, Instant};

use askama::Template;
use shared::pipeline;
use shared::status::{Announcement, BreakerState};

use super::Page;
use crate::commands::now_ms;
use crate::console::queries::rates::{self, Known, MOST_COUNTED, Stored};
use crate::console::reply::Reply;
use crate::console::request::Request;
use crate::console::safety::{self, Verdict};
use crate::console::state::Console;
use crate::console::words::{self, NONE};

#[derive(Template)]
#[template(path = "overview.html")]
struct Overview {
    page: Page,
    live: Live,
}

/// What changes while somebody looks.
#[derive(Template)]
#[template(path = "live.html")]
struct Live {
    verdict: Verdict,
    tenants: Vec<Card>,
    ingests: Vec<Ingest>,
    at: String,
}

/// A tenant.
struct Card {
    name: String,
    accepted: String,
    stored: String,
    last_week: String,
    oldest: String,
    waiting: String,
    in_hand: String,
    workers: usize,
    breaker: String,
    is_breaker_well: bool,
    dead: String,
    has_dead: bool,
    quarantined: String,
    /// What the console can't reach now.
    notice: String,
}

/// An ingest.
struct Ingest {
    name: String,
    records: String,
    bytes: String,
    oldest: String,
    is_writable: bool,
    refusals_left: u32,
}

/// The page.
pub async fn page(request: Request) -> Reply {
    let page = request.page("Overview", "overview");
    Reply::page(&Overview { page, live: look(&request.console).await })
}

/// The part of it that changes.
pub async fn live(request: Request) -> Reply {
    Reply::page(&look(&request.console).await)
}

async fn look(console: &Console) -> Live {
    let asked = console.tenants.values().cloned().map(rates::known);
    let rates = futures_util::future::join_all(asked).await;
    let now = Instant::now();
    let peers = console.seen.peers(now);
    let seen: Vec<_> = console.tenants.keys().map(|name| (name, console.seen.tenant(name, now))).collect();
    let of_safety = seen.iter().zip(&rates).map(|((name, seen), rates)| safety::Tenant {
        name: (*name).clone(),
        dead: seen.as_ref().and_then(|seen| seen.lengths.dead),
        quarantined: seen.as_ref().and_then(|seen| seen.lengths.quarantined).unwrap_or(0),
        quarantined_lately: seen.as_ref().map_or(0, |seen| seen.quarantined_lately),
        oldest: seen
            .as_ref()
            .and_then(|seen| oldest(seen, rates.as_ref(), oldest_in_hand(name, &peers), now)),
    });
    let of_safety: Vec<_> = of_safety.collect();
    let verdict = safety::verdict(&safety::Known {
        is_connected: console.broker.link().is_up() && console.reading.link().is_up(),
        is_blocked: console.broker.link().is_blocked(),
        listens_for: console.seen.listens_for(now),
        silent_for: console.seen.silent_for(now),
        peers: &peers,
        left_spools: &console.seen.left_spools(now),
        unroutable: console.seen.unroutable(now).unwrap_or(0),
        tenants: &of_safety,
    });
    let cards = seen.iter().zip(&rates).zip(&of_safety);
    Live {
        verdict,
        tenants: cards
            .map(|(((name, seen), rates), of)| card(name, seen.as_ref(), rates.as_ref(), &peers, of))
            .collect(),
        ingests: peers.iter().filter_map(ingest).collect(),
        at: words::moment(now_ms()),
    }
}

fn in_hand(tenant: &str, peers: &[Announcement]) -> u64 {
    let in_flight: usize = safety::statuses(tenant, peers).map(|status| status.in_flight).sum();
    u64::try_from(in_flight).unwrap_or(u64::MAX)
}

/// How long the oldest waiting event has waited, at most. What waits in a queue came after that was last
/// empty. Of one that the console has never seen empty, it takes the event that was stored last: that holds
/// only if no other queue flows.
fn oldest(
    seen: &pipeline::Tenant,
    rates: Option<&Known>,
    in_hand: Option<Duration>,
    now: Instant,
) -> Option<Duration> {
    let latest = rates.and_then(|known| known.stored.as_ref().ok()?.latest_received_at_ms);
    let since_latest = latest.map(|at| Duration::from_millis(u64::try_from(now_ms() - at).unwrap_or(0)));
    let since_empty = |at: &Option<Instant>| at.map(|at| now.duration_since(at)).or(since_latest);
    seen.empty_at.iter().filter_map(since_empty).chain(in_hand).max()
}

/// How long the oldest event in the hands of workers has waited.
fn oldest_in_hand(tenant: &str, peers: &[Announcement]) -> Option<Duration> {
    let with_any = safety::statuses(tenant, peers).filter(|status| status.in_flight > 0);
    with_any.map(|status| Duration::from_secs(status.oldest_waiting_seconds)).max()
}

fn card(
    name: &str,
    seen: Option<&pipeline::Tenant>,
    rates: Option<&Known>,
    peers: &[Announcement],
    of: &safety::Tenant,
) -> Card {
    let stored = rates.and_then(|known| known.stored.as_ref().ok());
    let breaker = safety::statuses(name, peers).map(|status| status.breaker).max();
    let is_unreachable = safety::statuses(name, peers).any(|status| !status.mongodb_connected);
    let lengths = seen.map(|seen| seen.lengths);
    Card {
        name: name.to_owned(),
        accepted: accepted(stored, seen.and_then(|seen| seen.growth)),
        stored: stored.map_or_else(|| NONE.to_owned(), |stored| counted(stored.now)),
        last_week: stored.and_then(|stored| stored.last_week).map_or_else(|| NONE.to_owned(), counted),
        oldest: match (of.oldest, lengths) {
            (Some(oldest), _) => words::duration(oldest),
            (None, Some(_)) => "none waits".to_owned(),
            (None, None) => NONE.to_owned(),
        },
        waiting: words::known(lengths.and_then(|lengths| lengths.waiting)),
        in_hand: words::number(in_hand(name, peers)),
        workers: safety::statuses(name, peers).count(),
        breaker: breaker.map_or("no worker", said).to_owned(),
        is_breaker_well: breaker == Some(BreakerState::Closed) && !is_unreachable,
        dead: words::known(of.dead),
        has_dead: of.dead.is_some_and(|dead| dead > 0),
        quarantined: words::known(lengths.and_then(|lengths| lengths.quarantined)),
        notice: notice(rates),
    }
}

fn said(breaker: BreakerState) -> &'static str {
    match breaker {
        BreakerState::Closed => "closed: MongoDB is used",
        BreakerState::HalfOpen => "half-open: MongoDB is tried",
        BreakerState::Open => "open: MongoDB is left alone",
    }
}

/// Events that came in within the last minute: those that were stored, and what waits now and didn't then.
fn accepted(stored: Option<&Stored>, growth: Option<i64>) -> String {
    let (Some(stored), Some(growth)) = (stored, growth) else { return NONE.to_owned() };
    counted(stored.now.saturating_add_signed(growth))
}

fn counted(number: u64) -> String {
    let at_least = if number >= MOST_COUNTED.unsigned_abs() { "≥ " } else { "" };
    format!("{at_least}{}", words::number(number))
}

fn notice(rates: Option<&Known>) -> String {
    match rates {
        None => "MongoDB hasn't answered yet.".to_owned(),
        Some(Known { stored: Err(why), .. }) => format!("What is stored can't be seen: {why}"),
        Some(Known { at, .. }) if at.elapsed() > Duration::from_secs(15) => {
            format!("MongoDB is slow: what is stored was seen {} ago.", words::duration(at.elapsed()))
        }
        Some(_) => String::new(),
    }
}

fn ingest(peer: &Announcement) -> Option<Ingest> {
    let (name, spool, refusals_left) = safety::ingest(peer)?;
    let has_any = spool.records > 0;
    Some(Ingest {
        name: name.to_owned(),
        records: words::number(spool.records),
        bytes: words::bytes(spool.bytes),
        oldest: if has_any {
            words::duration(Duration::from_secs(spool.oldest_age_seconds))
        } else {
            NONE.to_owned()
        },
        is_writable: spool.writable,
        refusals_left,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::pipeline::Lengths;

    #[test]
    fn accepted_is_what_was_stored_and_what_waits_since() {
        let stored = Stored { now: 100, last_week: None, latest_received_at_ms: None };
        assert_eq!(accepted(Some(&stored), Some(20)), "120");
        assert_eq!(accepted(Some(&stored), Some(-30)), "70");
        assert_eq!((accepted(None, Some(1)), accepted(Some(&stored), None)), (NONE.into(), NONE.into()));
    }

    #[test]
    fn the_oldest_event_came_after_its_queue_was_empty_and_a_queue_that_flows_hides_none_that_is_stuck() {
        let now = Instant::now() + Duration::from_mins(10);
        let lengths = Lengths { waiting: Some(1), dead: None, quarantined: None };
        let seen = |empty: &[Option<u64>]| pipeline::Tenant {
            lengths,
            growth: None,
            quarantined_lately: 0,
            empty_at: empty
                .iter()
                .map(|seconds| seconds.and_then(|seconds| now.checked_sub(Duration::from_secs(seconds))))
                .collect(),
        };
        let stored = |seconds: i64| {
            let latest_received_at_ms = Some(now_ms() - seconds * 1000);
            Known { stored: Ok(Stored { now: 0, last_week: None, latest_received_at_ms }), at: now }
        };
        let seconds = |empty: &[Option<u64>], known: Option<Known>, in_hand: Option<u64>| {
            let in_hand = in_hand.map(Duration::from_secs);
            oldest(&seen(empty), known.as_ref(), in_hand, now).map(|age| age.as_secs())
        };
        assert_eq!(seconds(&[], Some(stored(90)), None), None);
        assert_eq!(seconds(&[], Some(stored(0)), Some(70)), Some(70));
        assert_eq!(seconds(&[Some(2), Some(300)], Some(stored(0)), Some(1)), Some(300));
        assert_eq!(seconds(&[None], Some(stored(90)), None), Some(90));
        assert_eq!(seconds(&[None], None, None), None);
    }
}
