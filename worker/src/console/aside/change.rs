//! Replays and drops.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use lapin::message::BasicGetMessage;
use shared::telemetry::chain;

use super::item::Item;
use super::{Aside, AsideError, Looking, Reach, in_time};
use crate::commands::CommandError;
use crate::commands::set_aside::message::{Replay, SetAside};
use crate::commands::set_aside::queue::{self, Queue, WINDOW};
use crate::commands::set_aside::{Action, Work};

/// The result for a chosen message.
#[derive(Debug)]
pub struct Done {
    /// By what it was chosen.
    pub id: String,
    /// Its metadata.
    pub about: SetAside,
    /// Why it is still there, if it is.
    pub stays: Option<String>,
}

impl Aside<'_> {
    /// Does this with the messages of these ids. Returns the result of each that was seen, and how far the
    /// queue was seen, or what has ended it early.
    pub async fn change(
        &self,
        action: Action,
        ids: &BTreeSet<String>,
    ) -> (Vec<Done>, Result<Reach, AsideError>) {
        let mut done = Vec::new();
        let ended = self.change_all(action, ids, &mut done).await;
        (done, ended)
    }

    async fn change_all(
        &self,
        action: Action,
        ids: &BTreeSet<String>,
        done: &mut Vec<Done>,
    ) -> Result<Reach, AsideError> {
        let work = self.work(action);
        if action != Action::Drop {
            in_time(queue::declare_work(work.broker, work.tenant, work.partitions)).await?;
        }
        let mut queue = self.open().await?;
        let mut looking = Looking::begin();
        loop {
            let mut window = Vec::new();
            while window.len() < WINDOW as usize
                && let Some(message) = looking.next(&mut queue).await?
            {
                let item = Item::of(self, &message);
                if ids.contains(&item.id) {
                    window.push((item, message));
                }
            }
            if window.is_empty() {
                break;
            }
            let settling = window.into_iter().map(|(item, message)| settle(&work, &queue, item, message));
            done.extend(join_all(settling).await);
        }
        let reach = looking.reach(&queue);
        in_time(queue.close()).await?;
        Ok(reach)
    }

    fn work(&self, action: Action) -> Work<'_> {
        let own = self.console.settings.worker.partitions;
        Work {
            kind: self.kind,
            action,
            tenant: self.tenant,
            keys: self.pages.keys.clone(),
            broker: &self.console.broker,
            partitions: self.console.seen.partitions(own, std::time::Instant::now()),
        }
    }
}

async fn settle(work: &Work<'_>, queue: &Queue, item: Item, message: BasicGetMessage) -> Done {
    let stays = match work.replacement(&message) {
        Err(unfit) => Some(unfit.to_string()),
        Ok(replay) => replaced(work, queue, &message, replay).await.err().map(|error| chain(&error)),
    };
    Done { id: item.id, about: item.about, stays }
}

async fn replaced(
    work: &Work<'_>,
    queue: &Queue,
    message: &BasicGetMessage,
    replay: Option<Replay>,
) -> Result<(), CommandError> {
    if let Some(replay) = &replay {
        work.publish(replay, message).await?;
    }
    Ok(queue.remove(message).await?)
}
