//! The pages: what each shows, and the template that shows it.

use actix_web::http::StatusCode;
use askama::Template;

use super::fields::Fields;
use super::reply::Reply;
use super::words;

pub mod actions;
pub mod aside;
pub mod conversation;
pub mod erase;
pub mod event;
pub mod events;
pub mod login;
pub mod overview;
pub mod runbook;

/// The answer to a form that isn't one of ours.
pub const FOREIGN_FORM: &str = "This form was not sent from a page of your session, so nothing was done. Please go back, reload the page and try again.";

/// The frame of a page.
#[derive(Clone, Debug)]
pub struct Page {
    /// Its title.
    pub title: String,
    /// The part of the console that it belongs to.
    pub here: &'static str,
    /// Every tenant.
    pub tenants: Vec<String>,
    /// The tenant that it is about; empty if it is about all.
    pub tenant: String,
    /// The name of the operator.
    pub operator: String,
    /// The token that each form must have.
    pub csrf: String,
}

impl Page {
    /// The parts of a tenant's pages: path and title.
    #[must_use]
    pub fn parts(&self) -> [(&'static str, &'static str); 5] {
        [
            ("events", "Events"),
            ("conversation", "Conversations"),
            ("dead", "Dead letters"),
            ("quarantine", "Quarantine"),
            ("erase", "Erase"),
        ]
    }

    /// The part that a tenant's link leads to: the same as here.
    #[must_use]
    pub fn part(&self) -> &'static str {
        if self.parts().iter().any(|(path, _)| *path == self.here) { self.here } else { "events" }
    }
}

/// The moment that a field of a form names, in milliseconds since 1970, or what is wrong with it.
pub fn moment(fields: &Fields, name: &str) -> Result<Option<i64>, String> {
    let named = |text: String| words::parse_moment(&text).ok_or(format!("{text:?} is no date and time."));
    fields.given(name).map(named).transpose()
}

/// A few words instead of a page.
#[derive(Template)]
#[template(path = "problem.html")]
struct Problem<'a> {
    status: u16,
    what: &'a str,
}

/// A few words instead of a page, also without a login.
#[must_use]
pub fn problem(status: StatusCode, what: &str) -> Reply {
    Reply::page_with(status, &Problem { status: status.as_u16(), what })
}
