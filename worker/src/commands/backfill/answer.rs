//! What the command answers.

use std::io::Write;

use serde_json::{Value, json};

use super::audit::{Audit, Tally};
use super::progress::Place;
use crate::commands::{CommandError, printable, rfc3339, say};

/// What the API doesn't have.
const NOT_IN_THE_API: [&str; 4] = [
    "comments",
    "openings and closings of conversations",
    "calls",
    "what changed in tags, assignees, lifecycles and other fields of contacts that MongoDB had",
];

/// How a run is reported.
pub struct Answer<'a> {
    /// The tenant.
    pub tenant: &'a str,
    /// Whether it was a dry run.
    pub dry_run: bool,
    /// Whether programs read it.
    pub json: bool,
    /// The beginning of the span.
    pub since: Option<i64>,
    /// Where it ended.
    pub place: &'a Place,
    /// Whether it came to the end.
    pub complete: bool,
    /// Contacts that can't be read, and why.
    pub failures: &'a [(String, String)],
}

impl Answer<'_> {
    /// Tells what was published.
    pub fn published(&self, out: &mut impl Write) -> Result<(), CommandError> {
        let (tenant, counts) = (self.tenant, &self.place.counts);
        if self.json {
            return say(out, self.described(json!(counts)));
        }
        let (messages, contacts) = (counts.published_messages, counts.published_contacts);
        let read = format!("{} messages of {} contacts", counts.messages, counts.contacts);
        say(out, format!("{tenant}: respond.io has {read}{}", self.span()))?;
        say(out, format!("  published: {messages} messages and {contacts} contacts that were missing"))?;
        self.rest(out)
    }

    /// Tells what was found.
    pub fn audited(&self, audit: &Audit, out: &mut impl Write) -> Result<(), CommandError> {
        let (tenant, counts, total) = (self.tenant, &self.place.counts, audit.total());
        let missing_contacts = audit.missing_contacts();
        if self.json {
            audit.objects().into_iter().try_for_each(|object| say(out, object))?;
            let mut summary = json!(total);
            summary["contacts"] = counts.contacts.into();
            summary["missing_contacts"] = missing_contacts.into();
            summary["deleted"] = counts.deleted.into();
            summary["failed"] = counts.failed.into();
            return say(out, self.described(summary));
        }
        audit.lines().into_iter().try_for_each(|line| say(out, line))?;
        let read = counts.contacts;
        say(out, format!("{tenant}: {read} contacts, {missing_contacts} of them missing{}", self.span()))?;
        let Tally { respond_io, mongodb, missing, different } = total;
        let stored = format!("MongoDB {mongodb}, missing {missing}, different {different}");
        say(out, format!("  messages: respond.io {respond_io}, {stored}"))?;
        self.rest(out)
    }

    /// The span, in words.
    fn span(&self) -> String {
        let until = rfc3339(self.place.until);
        match self.since {
            Some(since) => format!(", from {} to {until}", rfc3339(since)),
            None => format!(", up to {until}"),
        }
    }

    /// With the fields that all answers to programs have.
    fn described(&self, mut object: Value) -> Value {
        let failures = self.failures.iter().map(|(id, why)| json!({"contact": id, "why": why}));
        object["tenant"] = self.tenant.into();
        object["dry_run"] = self.dry_run.into();
        object["since"] = self.since.map(rfc3339).into();
        object["complete"] = self.complete.into();
        object["until"] = rfc3339(self.place.until).into();
        object["failures"] = failures.collect();
        object["not_in_the_api"] = NOT_IN_THE_API.into();
        object
    }

    /// The end of all answers to people.
    fn rest(&self, out: &mut impl Write) -> Result<(), CommandError> {
        if !self.complete {
            say(out, "  it stopped before the end: these are the numbers so far")?;
        }
        if self.place.counts.deleted > 0 {
            say(out, format!("  {} contacts were deleted meanwhile", self.place.counts.deleted))?;
        }
        for (id, why) in self.failures {
            say(out, printable(&format!("  contact {id} can't be read: {why}")))?;
        }
        let missed = NOT_IN_THE_API.join("; ");
        say(out, format!("  the API doesn't have, so it isn't brought back: {missed}"))
    }
}
