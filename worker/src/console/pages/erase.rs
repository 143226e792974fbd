//! Erases a person: counts first, and asks.

use actix_web::http::StatusCode;
use askama::Template;

use super::{Page, problem};
use crate::commands::erase;
use crate::console::erasure::{self, Job};
use crate::console::fields::Fields;
use crate::console::reply::Reply;
use crate::console::request::Request;
use crate::console::words;
use crate::person::Name;

#[derive(Template)]
#[template(path = "erase.html")]
struct Erase {
    page: Page,
    is_running: bool,
    /// The fields by which the counted person is erased.
    counted: Option<(&'static str, String)>,
    summary: String,
    /// The ids of the contacts that were counted.
    contacts: String,
    /// What there is of the person, or was: a collection or a queue, and how much.
    lines: Vec<(String, String)>,
    notice: String,
}

/// The result of the latest erasure, and the form for the next one.
pub async fn page(request: Request) -> Reply {
    let Some(pages) = request.pages() else {
        return problem(StatusCode::NOT_FOUND, "There is no such tenant.");
    };
    let job = pages.erasures.latest();
    let found = job.as_ref().and_then(|job| job.found.clone()).unwrap_or_default();
    let counted = job.as_ref().filter(|job| job.has_counted(&job.given));
    Reply::page(&Erase {
        page: request.page(format!("Erase a person of {}", request.tenant), "erase"),
        is_running: job.as_ref().is_some_and(Job::is_running),
        counted: counted.map(|job| field(&job.given)),
        summary: job.as_ref().map(summary).unwrap_or_default(),
        contacts: found.contact_ids.join(", "),
        lines: found.removed.into_iter().map(|(place, number)| (place, words::number(number))).collect(),
        notice: job.as_ref().and_then(notice).unwrap_or_default(),
    })
}

/// Counts what there is of a person.
pub async fn count(request: Request) -> Reply {
    begin(&request, true)
}

/// Erases the person who was just counted.
pub async fn apply(request: Request) -> Reply {
    begin(&request, false)
}

fn begin(request: &Request, is_count: bool) -> Reply {
    let (Some(pages), Some(given)) = (request.pages(), given(&request.fields)) else {
        return problem(StatusCode::BAD_REQUEST, "Give the id of a contact or a phone, and not both.");
    };
    let has_begun =
        if is_count { pages.erasures.count(given.clone()) } else { pages.erasures.erase(given.clone()) };
    if !has_begun {
        return problem(
            StatusCode::CONFLICT,
            "Another erasure is under way, or somebody has counted another person since: please look again.",
        );
    }
    erasure::start(&request.console, &request.tenant, given, is_count, &request.operator.name);
    Reply::see(request.path("erase"))
}

fn given(fields: &Fields) -> Option<Name> {
    match (fields.given("contact"), fields.given("phone")) {
        (Some(id), None) => erase::contact(&id).ok(),
        (None, Some(phone)) => erase::phone(&phone).ok(),
        _ => None,
    }
}

fn field(given: &Name) -> (&'static str, String) {
    match given {
        Name::Contact(id) => ("contact", id.clone()),
        Name::Phone(phone) => ("phone", phone.clone()),
    }
}

fn notice(job: &Job) -> Option<String> {
    let error = job.error.as_ref()?;
    Some(if job.is_count() {
        format!("It could not be counted: {error}.")
    } else {
        format!("It failed half way: {error}. Please count, and erase again.")
    })
}

fn summary(job: &Job) -> String {
    let who = match field(&job.given) {
        // An erased person is no longer named.
        _ if !job.is_count() => "the person".to_owned(),
        ("contact", id) => format!("contact {id}"),
        (_, phone) => format!("phone {phone}"),
    };
    let Some(found) = &job.found else {
        return if job.is_count() {
            format!("Counting what is stored about {who}…")
        } else {
            format!("Erasing {who}…")
        };
    };
    let known_by = format!("contact ids: {}, phones: {}", found.contacts, found.phones);
    match &found.received_before {
        _ if job.error.is_some() && !job.is_count() => format!("Removed so far ({known_by}):"),
        None => format!("Stored about {who} ({known_by}):"),
        Some(before) => format!(
            "Removed everything about {who} ({known_by}) that was received before {before}. Later events that stay: {}.",
            found.later
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::erase::Erased;

    #[test]
    fn what_failed_half_way_has_not_removed_everything() {
        let found = Erased { received_before: Some("then".to_owned()), ..Erased::default() };
        let mut job = Job::ended(Name::Contact("7".to_owned()), false, found);
        assert!(summary(&job).starts_with("Removed everything") && notice(&job).is_none());
        job.error = Some("MongoDB".to_owned());
        assert!(summary(&job).starts_with("Removed so far"), "{}", summary(&job));
        assert!(notice(&job).is_some_and(|notice| notice.contains("half way: MongoDB.")));
    }
}
