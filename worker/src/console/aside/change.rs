//! Replays and drops.

use futures_util::future::join_all;
use lapin::message::BasicGetMessage;
use shared::telemetry::chain;

use super::item::{Chosen, Item};
use super::{Aside, AsideError, Looking, in_time};
use crate::commands::set_aside::message::{Replay, SetAside};
use crate::commands::set_aside::queue::{self, Queue, WINDOW};
use crate::commands::set_aside::{Action, Work};
use crate::commands::{CommandError, now_ms};

/// The result for a chosen message.
#[derive(Debug)]
pub struct Done {
    /// Its metadata.
    pub about: SetAside,
    /// Why it is still there, if it is.
    pub stays: Option<String>,
}

impl Aside<'_> {
    /// Does this with the chosen messages, and returns the result of each; and the failure, if that
    /// ended it early.
    pub async fn change(&self, action: Action, chosen: &Chosen) -> (Vec<Done>, Result<(), AsideError>) {
        let mut done = Vec::new();
        let ended = self.change_all(action, chosen, &mut done).await;
        (done, ended)
    }

    async fn change_all(
        &self,
        action: Action,
        chosen: &Chosen,
        done: &mut Vec<Done>,
    ) -> Result<(), AsideError> {
        let work = self.work(action);
        if action != Action::Drop {
            in_time(queue::declare_work(work.broker, work.tenant, work.partitions)).await?;
        }
        let mut queue = self.open().await?;
        let (mut looking, now_ms) = (Looking::begin(), now_ms());
        loop {
            let mut window = Vec::new();
            while window.len() < WINDOW as usize
                && let Some(message) = looking.next(&mut queue).await?
            {
                let item = Item::of(self, &message);
                if chosen.takes(&item, now_ms) && chosen.is_about(self.tenant, &message) {
                    window.push((item.about, message));
                }
            }
            if window.is_empty() {
                break;
            }
            let settling = window.into_iter().map(|(about, message)| settle(&work, &queue, about, message));
            done.extend(join_all(settling).await);
        }
        in_time(queue.close()).await
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

async fn settle(work: &Work<'_>, queue: &Queue, about: SetAside, message: BasicGetMessage) -> Done {
    let stays = match work.replacement(&message) {
        Err(unfit) => Some(unfit.to_string()),
        Ok(replay) => replaced(work, queue, &message, replay).await.err().map(|error| chain(&error)),
    };
    Done { about, stays }
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
