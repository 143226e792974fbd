//! How fast ingest accepts, next to what a bare server replies and what RabbitMQ confirms. A machine's speed
//! varies, so ingest and raw publishing take turns.

use std::sync::Arc;
use std::time::Duration;

use actix_web::{App, HttpResponse, HttpServer, web};
use anyhow::Context;
use bytes::Bytes;

use crate::bench::{AT_ONCE, Bench, CONTACTS};
use crate::check::Expected;
use crate::client::HttpTarget;
use crate::load::{Generator, Sent, Target};
use crate::number::{median, percentiles};
use crate::report::Aim;
use crate::stage::{CEILING_TENANT, Stage};

const PHASE: &str = "accept";

/// Measures, and leaves a backlog behind.
pub async fn run(bench: &mut Bench) -> anyhow::Result<(Stage, Expected)> {
    bench.say(&format!("{PHASE}: {AT_ONCE} requests at the same time"));
    bare(bench).await?;
    let stage = Stage::start(bench, &[]).await?;
    let (raw, queues) = stage.raw_generator(bench, CEILING_TENANT).await?;
    let ingest = stage.generator(bench, CONTACTS)?;
    let time = bench.size(Duration::from_secs(4), Duration::from_millis(1500));
    // To warm up.
    raw.closed(AT_ONCE, time / 4, u64::MAX).await?;
    let mut expected = Expected::default();
    expected.add(&ingest.closed(AT_ONCE, time / 4, u64::MAX).await?);
    let (mut confirmed, mut accepted, mut p99s) = (Vec::new(), Vec::new(), Vec::new());
    let rounds = bench.size(3, 1);
    for round in 1..=rounds {
        confirmed.push(raw.closed(AT_ONCE, time, u64::MAX).await?.rate());
        queues.purge().await?;
        let (meter, load) = (stage.meter(), ingest.closed(AT_ONCE, time, u64::MAX).await?);
        if round == rounds {
            bench.report.add_cpu(PHASE, load.accepted(), &meter.used());
        }
        bench.note_oddities(PHASE, &load);
        expected.add(&load);
        accepted.push(load.rate());
        p99s.extend(percentiles(load.sent.iter().map(Sent::reply_time), [99.0]));
    }
    let (confirmed, accepted) = (median(confirmed), median(accepted));
    bench.ceilings.push(confirmed);
    bench.add(PHASE, "raw confirmed publishing", confirmed, "/s", None);
    bench.add(PHASE, "ingest accepts", accepted, "/s", None);
    let share = 100.0 * accepted / confirmed;
    bench.add(PHASE, "ingest, of raw publishing", share, " %", Some(Aim::AtLeast(55.0)));
    bench.add(PHASE, "reply p99 meanwhile", median(p99s), " ms", None);
    Ok((stage, expected))
}

/// A server that reads the body and answers, and does nothing else.
async fn bare(bench: &mut Bench) -> anyhow::Result<()> {
    let app = || App::new().default_service(web::to(reply));
    let server = HttpServer::new(app).disable_signals().bind(("127.0.0.1", 0))?;
    let url = format!("http://{}", server.addrs().first().context("an address")?);
    let server = server.run();
    let (handle, serving) = (server.handle(), tokio::spawn(server));
    let target = Target::Http(Arc::new(HttpTarget::new(&url)?));
    let time = bench.size(Duration::from_secs(4), Duration::from_secs(1));
    let generator = Generator { target, maker: bench.maker(CONTACTS, None) };
    let replies = generator.closed(AT_ONCE, time, u64::MAX).await?.rate();
    handle.stop(false).await;
    serving.await??;
    bench.ceilings.push(replies);
    bench.add(PHASE, "bare actix-web reply", replies, "/s", None);
    Ok(())
}

async fn reply(_body: Bytes) -> HttpResponse {
    HttpResponse::Ok().content_type("application/json").body(r#"{"status":"received"}"#)
}
