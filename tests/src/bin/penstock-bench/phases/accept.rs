//! How fast ingest accepts, next to what a bare server replies and what RabbitMQ confirms. Since a machine's speed
//! varies, ingest and raw publishing take turns.

use std::time::Duration;

use crate::bare::BareServer;
use crate::bench::{Bench, CONNECTIONS, CONTACTS};
use crate::check::Expected;
use crate::client::Target;
use crate::generate::{Generator, Limit};
use crate::number::{float, grouped, median, rate};
use crate::processes::{Cpu, Watched, used};
use crate::raw_publish::RawPublisher;
use crate::report::{Aim, Unit};
use crate::stage::{Stage, TENANT};
use crate::tally::percentile;

const PHASE: &str = "accept";
/// Lives beside the real tenant, so that its queue is declared like theirs.
const CEILING_TENANT: &str = "ceiling";

/// What is accepted and not stored yet.
#[derive(Debug)]
pub struct Backlog {
    /// Where.
    pub stage: Stage,
    /// What.
    pub expected: Expected,
}

/// Measures, and leaves a backlog behind.
pub async fn run(bench: &mut Bench) -> anyhow::Result<Backlog> {
    bare(bench).await?;
    let stage = Stage::start(bench).await;
    let raw = RawPublisher::connect(&stage.place.amqp_url, CEILING_TENANT).await?;
    let (mut rates, mut expected) = (Rates::default(), Expected::default());
    bench
        .say(&format!("{PHASE}: raw confirmed publishing and ingest alone, in turns, {CONNECTIONS} at once"));
    for round in 0..=bench.plan.rounds {
        // The first round warms up.
        let time = if round == 0 { bench.plan.round / 4 } else { bench.plan.round };
        let ceiling = raw_round(bench, &raw, time).await?;
        let accepted = rates.ingest_round(bench, &stage, time, &mut expected).await?;
        if round == 0 {
            rates = Rates::default();
            continue;
        }
        rates.raw.push(ceiling);
        rates.ingest.push(accepted);
        let (ceiling, accepted) = (grouped(ceiling), grouped(accepted));
        bench.say(&format!("  round {round}: raw {ceiling}/s, ingest {accepted}/s"));
    }
    rates.report(bench);
    bench.tell_spooled(PHASE, &stage).await;
    Ok(Backlog { stage, expected })
}

async fn bare(bench: &mut Bench) -> anyhow::Result<()> {
    bench.say(&format!("{PHASE}: a bare actix-web reply, {CONNECTIONS} connections"));
    let server = BareServer::start()?;
    let generator = Generator::new(Target::new(&server.url, TENANT)?, bench.maker(CONTACTS, None));
    let watched = Watched::new().and("bare server", server.pid());
    let before = watched.cpu();
    let (tally, took) = generator.closed(CONNECTIONS, Limit::time(bench.plan.bare)).await?;
    bench.report.cpu("bare reply", tally.accepted(), used(&before, &watched.cpu()));
    bench.tell(PHASE, "bare server", &tally);
    let replies = rate(tally.accepted(), took);
    bench.say(&format!("  {}/s", grouped(replies)));
    bench.report.add(PHASE, "bare actix-web reply", replies, Unit::PerSecond);
    bench.ceilings.replies = Some(replies);
    Ok(())
}

async fn raw_round(bench: &Bench, raw: &RawPublisher, time: Duration) -> anyhow::Result<f64> {
    let maker = bench.maker(CONTACTS, None);
    let (confirmed, took) = raw.publish(&maker, CONNECTIONS, Limit::time(time)).await?;
    raw.purge().await?;
    Ok(rate(confirmed.len() as u64, took))
}

#[derive(Default)]
struct Rates {
    raw: Vec<f64>,
    ingest: Vec<f64>,
    p99: Vec<f64>,
    events: u64,
    used: Cpu,
}

impl Rates {
    async fn ingest_round(
        &mut self,
        bench: &mut Bench,
        stage: &Stage,
        time: Duration,
        expected: &mut Expected,
    ) -> anyhow::Result<f64> {
        let (generator, watched) = (stage.generator(bench, CONTACTS)?, stage.watched());
        let before = watched.cpu();
        let (tally, took) = generator.closed(CONNECTIONS, Limit::time(time)).await?;
        for (name, seconds) in used(&before, &watched.cpu()) {
            *self.used.entry(name).or_default() += seconds;
        }
        bench.tell(PHASE, "ingest", &tally);
        expected.add(&tally);
        self.events += tally.accepted();
        self.p99.push(percentile(&tally.uncorrected, 99.0));
        Ok(rate(tally.accepted(), took))
    }

    fn report(self, bench: &mut Bench) {
        let (raw, ingest) = (median(self.raw), median(self.ingest));
        bench.ceilings.publishing = Some(raw);
        let report = &mut bench.report;
        report.add(PHASE, "raw confirmed publishing", raw, Unit::PerSecond);
        report.add(PHASE, "ingest accepts", ingest, Unit::PerSecond);
        let share = 100.0 * ingest / raw;
        report.aim(PHASE, "ingest, of raw publishing", share, Unit::Percent, Aim::AtLeast(50.0));
        report.add(PHASE, "reply p99 at saturation", median(self.p99), Unit::Milliseconds);
        report.cpu(PHASE, self.events, self.used);
        let (events, share) = (grouped(float(self.events)), format!("{share:.0}"));
        bench.say(&format!("  ingest accepts {}/s, {share} % of raw; {events} events", grouped(ingest)));
    }
}
