//! Rebuilding what is too large for one transaction.

use mongodb::bson::DateTime;

use super::groups::Groups;
use super::{BATCH_BYTES, PAGE, Rebuild, add};
use crate::decode::Event;
use crate::project::essential::Essential;
use crate::project::rebuild::Shared;
use crate::project::{Stamp, Wanted};
use crate::store::failure::Failure;
use crate::store::transaction::{Work, Written};

impl Rebuild {
    /// Computes what a group concerns anew that is too large for one transaction: first what belongs to few
    /// events each, and then the conversations and contacts that all of them share.
    pub(super) async fn in_parts(&self, group: &[String], horizon: DateTime) -> Result<Written, Failure> {
        let (mut own, mut essential, mut shared) =
            (Groups::default(), Essential::default(), Shared::default());
        for ids in group.chunks(PAGE) {
            let entries = self.entries(ids).await?;
            for (id, event) in &entries {
                let (key, body) = Stamp::of(event).event();
                shared.told_by.insert((key.to_owned(), body.to_owned()));
                let mut concerned = concerned(event);
                shared.conversations.append(&mut concerned.conversations);
                let concerned = concerned.own();
                if concerned.concerns_documents() {
                    own.add(id.clone(), event.body.len(), &concerned);
                }
            }
            essential.add(entries);
        }
        let mut written = Written::default();
        for batch in own.into_batches(self.settings.batch_size, BATCH_BYTES) {
            let part = self.write(&batch.concat(), &Work::RebuildOwn { horizon }, u32::MAX).await?;
            shared.conversations.extend(part.uncounted.iter().cloned());
            add(&mut written, part);
        }
        let work = Work::RebuildShared { horizon, shared: shared.into() };
        add(&mut written, self.write(&essential.into_ids(), &work, u32::MAX).await?);
        Ok(written)
    }
}

/// The documents that an event concerns, also if its parsed body was given up.
fn concerned(event: &Event) -> Wanted {
    let mut event = event.clone();
    event.recall_members();
    Wanted::by(&[event])
}
