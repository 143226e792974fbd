//! Is every event that was answered 200 stored, exactly once?

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::bail;
use futures_util::TryStreamExt;
use mongodb::bson::{Document, RawDocumentBuf, doc};
use mongodb::options::Hint;

use crate::mix::{self, Kind};
use crate::number::grouped;
use crate::stage::Stage;
use crate::tally::Tally;

/// What has to come out.
#[derive(Debug, Default)]
pub struct Expected {
    /// Numbers of the events that were accepted.
    pub accepted: BTreeSet<u64>,
    /// Numbers of those that may have been.
    pub uncertain: BTreeSet<u64>,
}

impl Expected {
    /// Adds what a load has seen.
    pub fn add(&mut self, tally: &Tally) {
        self.accepted.extend(tally.received.iter().map(|(n, _)| n));
        self.uncertain.extend(&tally.uncertain);
    }

    /// Number of events that were accepted.
    pub fn len(&self) -> u64 {
        self.accepted.len() as u64
    }
}

/// Compares, once everything is stored. Gives a line for people.
pub async fn check(stage: &Stage, expected: &Expected, patience: Duration) -> anyhow::Result<String> {
    stage.until_stored(expected.len(), patience).await?;
    let stored = ledger(stage).await?;
    compare(expected, &stored)?;
    let messages = stored.iter().filter(|n| Kind::of(**n).is_message()).count() as u64;
    let counted = counted(stage).await?;
    if counted != messages {
        bail!("conversations count {counted} messages, of {messages} that are stored");
    }
    Ok(format!(
        "check: {} accepted, each stored once; conversations count {} messages",
        grouped(crate::number::float(expected.len())),
        grouped(crate::number::float(counted))
    ))
}

fn compare(expected: &Expected, stored: &BTreeSet<u64>) -> anyhow::Result<()> {
    let missing: Vec<_> = expected.accepted.difference(stored).collect();
    if let Some(first) = missing.first() {
        bail!("{} accepted events are missing, such as {}", missing.len(), mix::event_id(**first));
    }
    let nobodys = |n: &&u64| !expected.accepted.contains(n) && !expected.uncertain.contains(n);
    let nobodys: Vec<_> = stored.iter().filter(nobodys).collect();
    if let Some(first) = nobodys.first() {
        bail!("{} events are stored that nobody has sent, such as {}", nobodys.len(), mix::event_id(**first));
    }
    Ok(())
}

/// Numbers of all events in the ledger, read from the index of their ids.
async fn ledger(stage: &Stage) -> anyhow::Result<BTreeSet<u64>> {
    let ledger = stage.database.0.collection::<RawDocumentBuf>("webhook_events");
    let by_id = Hint::Keys(doc! {"_id": 1});
    let mut found = ledger.find(doc! {}).projection(doc! {"_id": 1}).hint(by_id).batch_size(50_000).await?;
    let mut numbers = BTreeSet::new();
    while let Some(entry) = found.try_next().await? {
        let id = entry.get_str("_id")?;
        let Some(n) = mix::number(id) else { bail!("{id} is in the ledger, and no event of ours") };
        if !numbers.insert(n) {
            bail!("{id} is stored twice");
        }
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
