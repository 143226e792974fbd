//! Is every event that was answered 200 stored, exactly once?

use std::collections::BTreeSet;

use anyhow::{Context, bail, ensure};
use futures_util::TryStreamExt;
use mongodb::bson::{Document, RawDocumentBuf, doc};
use mongodb::options::Hint;

use crate::event::{Kind, event_id, number};
use crate::load::Load;
use crate::number::grouped;
use crate::stage::Stage;

/// What has to come out.
#[derive(Debug, Default)]
pub struct Expected {
    /// Numbers of the events that were accepted.
    accepted: BTreeSet<u64>,
    /// Numbers of those that may have been.
    uncertain: BTreeSet<u64>,
}

impl Expected {
    /// Adds what a load has seen.
    pub fn add(&mut self, load: &Load) {
        for sent in &load.sent {
            let numbers = if sent.outcome.is_ok() { &mut self.accepted } else { &mut self.uncertain };
            numbers.insert(sent.n);
        }
    }

    /// Number of events that were accepted.
    pub fn len(&self) -> u64 {
        self.accepted.len() as u64
    }
}

/// Compares, once everything is stored. Gives a line for people.
pub async fn check(stage: &Stage, expected: &Expected) -> anyhow::Result<String> {
    stage.until_stored(expected.len()).await?;
    let stored = ledger(stage).await?;
    compare(expected, &stored)?;
    let messages = stored.iter().filter(|n| Kind::of(**n).is_message()).count() as u64;
    let counted = counted(stage).await?;
    ensure!(counted == messages, "conversations count {counted} messages, of {messages} that are stored");
    let (accepted, counted) = (grouped(expected.len() as f64), grouped(counted as f64));
    Ok(format!("check: {accepted} accepted, each stored once; conversations count {counted} messages"))
}

fn compare(expected: &Expected, stored: &BTreeSet<u64>) -> anyhow::Result<()> {
    if let Some(missing) = expected.accepted.difference(stored).next() {
        let number = expected.accepted.difference(stored).count();
        bail!("{number} accepted events are missing, such as {}", event_id(*missing));
    }
    let unknown = |n: &&u64| !expected.accepted.contains(n) && !expected.uncertain.contains(n);
    let unknown = stored.iter().find(unknown).map(|n| event_id(*n));
    ensure!(unknown.is_none(), "{} is stored, but nobody has sent it", unknown.unwrap_or_default());
    Ok(())
}

/// Numbers of all events in the ledger.
async fn ledger(stage: &Stage) -> anyhow::Result<BTreeSet<u64>> {
    let ledger = stage.database.0.collection::<RawDocumentBuf>("webhook_events");
    // Read from the index of the ids alone.
    let by_id = Hint::Keys(doc! {"_id": 1});
    let mut found = ledger.find(doc! {}).projection(doc! {"_id": 1}).hint(by_id).batch_size(50_000).await?;
    let mut numbers = BTreeSet::new();
    while let Some(entry) = found.try_next().await? {
        let id = entry.get_str("_id")?;
        let n = number(id).with_context(|| format!("{id} is in the ledger, and no event of ours"))?;
        ensure!(numbers.insert(n), "{id} is stored twice");
    }
    Ok(numbers)
}

/// Messages that the conversations count.
async fn counted(stage: &Stage) -> anyhow::Result<u64> {
    let conversations = stage.database.0.collection::<Document>("conversations");
    let sum = doc! {"$group": {"_id": null, "messages": {"$sum": {"$toLong": "$message_count"}}}};
    let total = conversations.aggregate([sum]).await?.try_next().await?;
    Ok(total.map_or(Ok(0), |total| total.get_i64("messages"))?.try_into()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_sent_may_be_stored_and_what_was_accepted_must() {
        let expected = Expected { accepted: [1, 2].into(), uncertain: [3].into() };
        assert!(compare(&expected, &[1, 2].into()).is_ok());
        assert!(compare(&expected, &[1, 2, 3].into()).is_ok());
        assert!(compare(&expected, &[1, 3].into()).is_err());
        assert!(compare(&expected, &[1, 2, 4].into()).is_err());
    }
}
