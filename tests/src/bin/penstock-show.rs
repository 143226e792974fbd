//! Prints the documents of a tenant's database, for people: `penstock-show MONGO_URI DATABASE`.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures_util::TryStreamExt;
use mongodb::Client;
use mongodb::bson::{Document, doc};
use penstock_tests::database::{COLLECTIONS, readable};

/// Longest wait for the first event.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(uri), Some(name)) = (arguments.next(), arguments.next()) else {
        bail!("usage: penstock-show MONGO_URI DATABASE");
    };
    let database = Client::with_uri_str(&uri).await?.database(&name);
    let deadline = Instant::now() + PATIENCE;
    while database.collection::<Document>(COLLECTIONS[0]).estimated_document_count().await? == 0 {
        if Instant::now() > deadline {
            bail!("no event arrived in {name} within {PATIENCE:?}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for collection in COLLECTIONS {
        let found = database.collection::<Document>(collection).find(doc! {}).sort(doc! {"_id": 1}).await?;
        let documents: Vec<Document> = found.try_collect().await?;
        println!("{name}.{collection}: {}", documents.len());
        for document in documents {
            let text =
                serde_json::to_string_pretty(&readable(document.into())).context("a document as JSON")?;
            println!("  {}", text.replace('\n', "\n  "));
        }
    }
    Ok(())
}
