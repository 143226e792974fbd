//! Asks a tenant's MongoDB.

use std::time::{Duration, Instant};

use mongodb::bson::doc;
use shared::telemetry::chain;
use tokio::time::timeout;

use super::facts::{self, Hello, Known};
use crate::commands::now_ms;
use crate::inspect;
use crate::settings::{Settings, Tenant};
use crate::store::Store;
use crate::store::failure::Failure;

/// Longest wait for each of the questions.
const DEADLINE: Duration = Duration::from_secs(15);

/// What is known of it.
pub async fn look(tenant: &Tenant, settings: &Settings) -> facts::Tenant {
    let name = tenant.name.clone();
    let store = match within(Store::open(tenant, settings)).await {
        Ok(store) => store,
        Err(error) => {
            let unknown = || "it wasn't asked".to_owned();
            let (warnings, hello, write) = (Err(unknown()), Err(unknown()), Err(unknown()));
            return facts::Tenant { name, fitness: Err(error), warnings, hello, write };
        }
    };
    // The first makes the collection that the others write to.
    let fitness = within(inspect::server::check(&store)).await;
    let (warnings, hello, write) =
        tokio::join!(within(inspect::warnings(&store)), within(hello(&store)), within(write(&store)));
    facts::Tenant { name, fitness, warnings, hello, write }
}

async fn within<T>(asked: impl Future<Output = Result<T, Failure>>) -> Known<T> {
    match timeout(DEADLINE, asked).await {
        Ok(answer) => answer.map_err(|failure| chain(&failure)),
        Err(_) => Err(format!("no answer within {} s", DEADLINE.as_secs())),
    }
}

async fn hello(store: &Store) -> Result<Hello, Failure> {
    let build = store.database.run_command(doc! {"buildInfo": 1}).await?;
    let (before, started) = (now_ms(), Instant::now());
    let hello = store.database.run_command(doc! {"hello": 1}).await?;
    let half = i64::try_from(started.elapsed().as_millis() / 2).unwrap_or(i64::MAX);
    let its_time = hello.get_datetime("localTime").map_or(before + half, |at| at.timestamp_millis());
    Ok(Hello {
        version: build.get_str("version").unwrap_or_default().to_owned(),
        replica_set: hello.get_str("setName").unwrap_or_default().to_owned(),
        members: hello.get_array("hosts").map_or(0, Vec::len),
        ahead_ms: its_time - before - half,
        margin_ms: half + 1,
    })
}

async fn write(store: &Store) -> Result<Duration, Failure> {
    let started = Instant::now();
    store.probe().await?;
    Ok(started.elapsed())
}
