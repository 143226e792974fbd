//! Lets messages out in groups: RabbitMQ reads, writes to disk and confirms what reaches it together as one, and with few
//! messages at a time that, and waking up for each, is most of the work.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

/// A group of so many doesn't wait for the one before it. Measured: twice as many leave RabbitMQ idle meanwhile, half
/// as many cost it a tenth more.
const LARGE: usize = 16;
/// Longest wait: the confirm that is waited for may be of a queue that is slow, and nobody else should suffer from that.
const LONGEST: Duration = Duration::from_millis(2);

/// Whoever comes while something is unconfirmed waits until nothing is, and then leaves with all others that wait.
#[derive(Debug, Default)]
pub struct Gate {
    unconfirmed: AtomicUsize,
    waiting: AtomicUsize,
    go: Notify,
}

/// Held until the confirm.
#[derive(Debug)]
pub struct Passed<'a> {
    gate: &'a Gate,
}

impl Gate {
    /// Waits to be let out.
    pub async fn pass(&self) -> Passed<'_> {
        // Before the look, or what happens in between would be missed.
        let go = self.go.notified();
        if self.unconfirmed.load(Ordering::SeqCst) > 0 {
            let waiting = Waiting::one_more(&self.waiting);
            if waiting.number >= LARGE {
                self.go.notify_waiters();
            } else {
                let _ = timeout(LONGEST, go).await;
            }
        }
        self.unconfirmed.fetch_add(1, Ordering::SeqCst);
        Passed { gate: self }
    }
}

impl Drop for Passed<'_> {
    fn drop(&mut self) {
        if self.gate.unconfirmed.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.gate.go.notify_waiters();
        }
    }
}

/// Counts one that waits, also if it gives up.
struct Waiting<'a> {
    counter: &'a AtomicUsize,
    number: usize,
}

impl<'a> Waiting<'a> {
    fn one_more(counter: &'a AtomicUsize) -> Self {
        Self { counter, number: counter.fetch_add(1, Ordering::SeqCst) + 1 }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.counter.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;

    use futures_util::FutureExt;
    use futures_util::future::join_all;

    use super::*;

    type Passing<'a> = Pin<Box<dyn Future<Output = Passed<'a>> + 'a>>;

    fn waiting(gate: &Gate, number: usize) -> Vec<Passing<'_>> {
        let mut passing: Vec<Passing<'_>> = (0..number).map(|_| gate.pass().boxed_local()).collect();
        assert!(passing.iter_mut().all(|one| one.as_mut().now_or_never().is_none()));
        passing
    }

    fn passed(passing: Vec<Passing<'_>>) -> Vec<Passed<'_>> {
        passing.into_iter().map(|one| one.now_or_never().expect("it is let out")).collect()
    }

    #[tokio::test]
    async fn those_who_come_meanwhile_leave_together() {
        let gate = Gate::default();
        let first = gate.pass().now_or_never().expect("nothing is unconfirmed");
        let group = waiting(&gate, 3);
        drop(first);
        let group = passed(group);
        let next = waiting(&gate, 1);
        drop(group);
        passed(next);
    }

    #[tokio::test]
    async fn a_large_group_does_not_wait() {
        let gate = Gate::default();
        let _first = gate.pass().await;
        let group = waiting(&gate, LARGE - 1);
        let _last = gate.pass().now_or_never().expect("that makes it large");
        passed(group);
    }

    #[tokio::test]
    async fn a_confirm_that_never_comes_holds_nobody_up_for_long() {
        let gate = Gate::default();
        let _first = gate.pass().await;
        join_all((0..LARGE - 1).map(|_| gate.pass())).await;
        // Who gives up doesn't count as waiting any more.
        for _ in 0..LARGE {
            drop(waiting(&gate, 1));
        }
        waiting(&gate, LARGE - 1);
    }
}
