//! Prints the documents of a tenant's database, once the ledger has this many events:
//! `penstock-show MONGO_URI DATABASE EVENTS [--documents]`.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures_util::TryStreamExt;
use mongodb::Client;
use mongodb::bson::{Document, doc};
use penstock_show::{COLLECTIONS, summary};
use worker::console::pretty;

/// Longest wait for the events.
const EVENTS_TIMEOUT: Duration = Duration::from_secs(30);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (uri, name, events, in_full) = match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [uri, name, events] => (*uri, *name, *events, false),
        [uri, name, events, "--documents"] => (*uri, *name, *events, true),
        _ => bail!("usage: penstock-show MONGO_URI DATABASE EVENTS [--documents]"),
    };
    let events: u64 = events.parse().context("EVENTS is a number")?;
    let database = Client::with_uri_str(uri).await?.database(name);
    let deadline = Instant::now() + EVENTS_TIMEOUT;
    while database.collection::<Document>(COLLECTIONS[0]).estimated_document_count().await? < events {
        if Instant::now() > deadline {
            bail!("{events} events didn't arrive in {name} within {EVENTS_TIMEOUT:?}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for collection in COLLECTIONS {
        let found = database.collection::<Document>(collection).find(doc! {}).sort(doc! {"_id": 1}).await?;
        for document in found.try_collect::<Vec<_>>().await? {
            let id = document.get("_id").map(|id| id.as_str().map_or_else(|| id.to_string(), str::to_owned));
            let (id, what) = (id.unwrap_or_default(), summary(collection, &document));
            println!("       {collection:<15} {id:<38} {what}");
            if in_full {
                println!("{}", pretty::document(document));
            }
        }
    }
    Ok(())
}
