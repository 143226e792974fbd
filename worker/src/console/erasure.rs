//! The running or latest erasure of a person, and the count before it. It may take longer than a page.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use shared::telemetry::chain;
use tracing::{info, warn};

use super::state::Console;
use crate::commands::erase::{Erased, Erasure};
use crate::person::Name;

/// An erasure, or the count before it.
#[derive(Clone, Debug)]
pub struct Job {
    /// What the person is known by.
    pub given: Name,
    /// What was counted or removed; none while it runs.
    pub found: Option<Erased>,
    /// Why it has ended before all was done.
    pub error: Option<String>,
    is_count: bool,
}

impl Job {
    /// One that is over.
    #[cfg(test)]
    #[must_use]
    pub fn ended(given: Name, is_count: bool, found: Erased) -> Self {
        Self { given, found: Some(found), error: None, is_count }
    }

    /// Whether it is under way.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.found.is_none()
    }

    /// Whether the person was only counted.
    #[must_use]
    pub fn is_count(&self) -> bool {
        self.is_count
    }

    /// Whether it has counted what there is about this person.
    #[must_use]
    pub fn has_counted(&self, given: &Name) -> bool {
        self.is_count && !self.is_running() && self.error.is_none() && self.given == *given
    }
}

/// The latest job of a tenant.
#[derive(Debug, Default)]
pub struct Erasures(Mutex<Option<Job>>);

impl Erasures {
    /// The latest job, if there was one.
    #[must_use]
    pub fn latest(&self) -> Option<Job> {
        self.lock().clone()
    }

    /// Begins to count, unless one is under way.
    pub fn count(&self, given: Name) -> bool {
        self.begin(given, true, |latest| !latest.is_some_and(Job::is_running))
    }

    /// Begins to erase the person who was just counted; false if that isn't allowed.
    pub fn erase(&self, given: Name) -> bool {
        let counted = given.clone();
        self.begin(given, false, |latest| latest.is_some_and(|latest| latest.has_counted(&counted)))
    }

    fn begin(&self, given: Name, is_count: bool, may: impl FnOnce(Option<&Job>) -> bool) -> bool {
        let mut latest = self.lock();
        let may = may(latest.as_ref());
        if may {
            *latest = Some(Job { given, is_count, found: None, error: None });
        }
        may
    }

    fn end(&self, found: Erased, error: Option<String>) {
        if let Some(job) = self.lock().as_mut() {
            (job.found, job.error) = (Some(found), error);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Job>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Does a job in the background.
pub fn start(console: &Arc<Console>, tenant: &str, given: Name, is_count: bool, by: &str) {
    let (console, tenant, by) = (console.clone(), tenant.to_owned(), by.to_owned());
    if !is_count {
        info!(tenant, by, "an erasure has begun");
    }
    let runtime = console.runtime.clone();
    runtime.spawn(async move {
        let doing = {
            let (console, tenant) = (console.clone(), tenant.clone());
            tokio::spawn(async move { run(&console, &tenant, &given, is_count, &by).await })
        };
        let (found, error) = doing.await.unwrap_or_else(|_| (Erased::default(), Some("a defect".to_owned())));
        if let Some(pages) = console.tenants.get(&tenant) {
            pages.erasures.end(found, error);
        }
    });
}

/// Tells of what ends with the console: it has to be repeated.
pub fn tell_unfinished(console: &Console) {
    for (tenant, pages) in &console.tenants {
        if pages.erasures.latest().is_some_and(|job| job.is_running() && !job.is_count()) {
            warn!(tenant, "the console stops in the middle of an erasure: please count, and erase again");
        }
    }
}

async fn run(
    console: &Console,
    tenant: &str,
    given: &Name,
    is_count: bool,
    by: &str,
) -> (Erased, Option<String>) {
    let mut found = Erased::default();
    let settings = console.settings.worker.clone();
    let ended = match Erasure::open(tenant, settings, &console.reading, is_count).await {
        Ok(erasure) => erasure.run(given, by, &mut found).await,
        Err(error) => Err(error),
    };
    (found, ended.err().map(|error| chain(&error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_was_counted_is_erased_and_one_at_a_time() {
        let (erasures, ada, bob) =
            (Erasures::default(), Name::Contact("1".to_owned()), Name::Contact("2".to_owned()));
        assert!(!erasures.erase(ada.clone()), "nobody was counted");
        assert!(erasures.count(ada.clone()));
        assert!(!erasures.count(bob.clone()) && !erasures.erase(ada.clone()), "it is under way");
        erasures.end(Erased::default(), Some("failed".to_owned()));
        assert!(!erasures.erase(ada.clone()), "it could not be counted");
        assert!(erasures.count(ada.clone()));
        erasures.end(Erased::default(), None);
        assert!(!erasures.erase(bob), "another was counted");
        assert!(erasures.erase(ada.clone()) && !erasures.erase(ada));
    }
}
