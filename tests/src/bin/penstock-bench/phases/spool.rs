//! RabbitMQ is away, and webhooks go to the spool.

use penstock_tests::http::metric;
use penstock_tests::process::Ingest;
use penstock_tests::stack::Place;

use crate::bench::{Bench, CONTACTS};
use crate::client::Target;
use crate::generate::{Generator, Limit};
use crate::number::{float, grouped, rate, short};
use crate::report::Unit;
use crate::stage::TENANT;
use crate::tally::percentile;

const PHASE: &str = "spool";
const CALLERS: [usize; 3] = [1, 16, 64];
/// Nobody listens there.
const AWAY: &str = "amqp://127.0.0.1:1/%2f";

/// Measures.
pub async fn run(bench: &mut Bench) -> anyhow::Result<()> {
    bench.say(&format!("{PHASE}: RabbitMQ is away, closed loop"));
    let place = Place::new().await;
    for callers in CALLERS {
        let mut settings = vec![("AMQP_URL", AWAY), ("RUST_LOG", "error,ingest=info")];
        settings.extend(bench.settings());
        let ingest = Ingest::start_unconnected(&place, &settings).await;
        let generator = Generator::new(Target::new(&ingest.url, TENANT)?, bench.maker(CONTACTS, None));
        let (tally, took) = generator.closed(callers, Limit::time(bench.plan.spool)).await?;
        bench.tell(PHASE, &format!("{callers} callers"), &tally);
        let spooled = rate(tally.accepted(), took);
        let p99 = percentile(&tally.uncorrected, 99.0);
        let name = format!("accepted, {callers} at once");
        bench.report.add(PHASE, name, spooled, Unit::PerSecond);
        let commits = commits(&ingest.admin).await;
        let group = float(tally.accepted()) / commits.max(1.0);
        bench.say(&format!(
            "  {callers} at once: {}/s, reply p99 {} ms, {group:.1} events a commit",
            grouped(spooled),
            short(p99)
        ));
    }
    place.remove().await;
    Ok(())
}

async fn commits(admin: &str) -> f64 {
    metric(admin, "ingest_spool_commit_duration_seconds_count", &[]).await.unwrap_or_default()
}
