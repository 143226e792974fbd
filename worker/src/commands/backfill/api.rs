//! respond.io's Developer API, as far as it is needed: contacts, their messages, users, channels.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::json::{self, Json, Object};
use hyper::header::{HeaderMap, RETRY_AFTER};
use hyper::{Method, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::time::sleep;

use super::pace::Pace;
use super::page::{self, Page, Unreadable};
use crate::commands::address::HttpAddress;
use crate::commands::http::{self, Answer, Http, HttpError};
use crate::commands::printable;

/// Most items of a page.
const LIMIT: u32 = 100;
/// Attempts of a request; fewer, if no request has succeeded yet: the address may be wrong.
const ATTEMPTS: u32 = 10;
const FIRST_ATTEMPTS: u32 = 3;
/// After this many attempts, a request about one contact asks whether the API answers about others.
const DOUBT_ATTEMPTS: u32 = 6;
/// Other contacts that are asked for then, and attempts for each request.
const OTHERS: usize = 3;
const OTHER_ATTEMPTS: u32 = 2;
/// What asks for all contacts.
const ALL: &str = r#"{"search":"","timezone":"Etc/UTC","filter":{"$and":[]}}"#;
const CONTACTS: &str = "/contact/list";
/// First and longest pause before the next attempt, if the API doesn't say how long.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_mins(1));
/// Longest pause that the API may ask for.
const LONGEST_PAUSE: Duration = Duration::from_mins(15);
/// Pause after the last request that the API allows for now. It doesn't say when more are allowed; its limits
/// are said to be per second.
const BUDGET_PAUSE: Duration = Duration::from_secs(1);
/// Most of what the API says of an error that is shown, in characters.
const MAX_WORDS: usize = 200;
/// What is not escaped in paths and queries.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Why respond.io's API can't be read.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// It doesn't take the token.
    #[error(
        "respond.io refuses the token ({status}): is RESPOND_API_TOKEN that of this tenant's workspace, and still valid?"
    )]
    Token {
        /// 401 or 403.
        status: u16,
    },
    /// There is no such thing.
    #[error("respond.io knows nothing at {path} (404): if that isn't a contact, is RESPOND_API_URL right?")]
    NotFound {
        /// What was asked for.
        path: String,
    },
    /// It takes the request for a mistake.
    #[error("respond.io refuses the request ({status}): {words}")]
    Refused {
        /// Such as 400.
        status: u16,
        /// What it says.
        words: String,
    },
    /// It fails again and again.
    #[error("respond.io fails ({status}) again and again")]
    Failing {
        /// 500 or above.
        status: u16,
    },
    /// It takes no more requests.
    #[error(
        "respond.io takes no more requests for now (429): lower RESPOND_API_RATE, or see who else uses them up"
    )]
    TooMany,
    /// It asks for a pause that is too long.
    #[error("respond.io asks for a pause of {0:?}: try again then")]
    Exhausted(Duration),
    /// It can't be reached.
    #[error("respond.io can't be reached: is RESPOND_API_URL right?")]
    Unreachable(#[from] HttpError),
    /// The answer makes no sense.
    #[error("respond.io's answer")]
    Unreadable(#[from] Unreadable),
    /// It answers about others.
    #[error("respond.io answers about other contacts, but not about this one")]
    OneContact(#[source] Box<ApiError>),
}

impl ApiError {
    /// Whether it concerns one contact only, and others can be read.
    #[must_use]
    pub fn is_of_one_contact(&self) -> bool {
        matches!(
            self,
            Self::NotFound { .. } | Self::Refused { .. } | Self::Unreadable(_) | Self::OneContact(_)
        )
    }

    /// Whether the API, or the way there, fails. That may be because of what was asked for.
    fn is_failure(&self) -> bool {
        matches!(self, Self::Failing { .. } | Self::Unreachable(_))
    }
}

/// What follows from an answer's status.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Fine,
    /// To be made again; after this pause, if the API says how long.
    Again(Option<Duration>),
    Token,
    NotFound,
    Refused,
}

/// The API, for one token.
pub struct Api {
    http: Http,
    pace: Pace,
    has_answered: AtomicBool,
}

impl Api {
    /// The API at this address, with at most `rate` requests a second.
    pub fn new(address: HttpAddress, token: &str, per_second: u32) -> Result<Self, ApiError> {
        Ok(Self {
            http: Http::new(address, http::bearer(token)?)?,
            pace: Pace::new(per_second),
            has_answered: AtomicBool::new(false),
        })
    }

    /// A page of all contacts.
    pub async fn contacts(&self, cursor: Option<&str>) -> Result<Page, ApiError> {
        self.page(Method::POST, CONTACTS, cursor, ALL).await
    }

    /// A contact.
    pub async fn contact(&self, id: &str) -> Result<Object, ApiError> {
        let path = format!("/contact/id:{}", escaped(id));
        let answer = self.answer_about(id, &path).await?;
        Ok(json::parse(&answer.body).map_err(|_| Unreadable::NoJson)?)
    }

    /// A page of a contact's messages, the newest first.
    pub async fn messages(&self, contact_id: &str, cursor: Option<&str>) -> Result<Page, ApiError> {
        let answer = self.answer_about(contact_id, &message_list(contact_id, cursor)).await?;
        Ok(page::read(&answer.body)?)
    }

    /// A page of the workspace's users.
    pub async fn users(&self, cursor: Option<&str>) -> Result<Page, ApiError> {
        self.page(Method::GET, "/space/user", cursor, "").await
    }

    /// A page of the workspace's channels.
    pub async fn channels(&self, cursor: Option<&str>) -> Result<Page, ApiError> {
        self.page(Method::GET, "/space/channel", cursor, "").await
    }

    async fn page(
        &self,
        method: Method,
        path: &str,
        cursor: Option<&str>,
        body: &str,
    ) -> Result<Page, ApiError> {
        let answer = self.answer(method, &list(path, cursor), body, ATTEMPTS).await?;
        Ok(page::read(&answer.body)?)
    }

    /// Asks about a contact. If that fails again and again, others show whether the API fails, or only this
    /// contact.
    async fn answer_about(&self, contact_id: &str, path: &str) -> Result<Answer, ApiError> {
        match self.answer(Method::GET, path, "", DOUBT_ATTEMPTS).await {
            Err(error) if error.is_failure() => {}
            answered => return answered,
        }
        let answers_about_others = self.answers_about_others(contact_id).await;
        // Once more in any case: the API may work again.
        let attempts = if answers_about_others { OTHER_ATTEMPTS } else { ATTEMPTS };
        match self.answer(Method::GET, path, "", attempts).await {
            Err(error) if answers_about_others && error.is_failure() => {
                Err(ApiError::OneContact(error.into()))
            }
            answered => answered,
        }
    }

    /// Whether it answers about one of some other contacts.
    async fn answers_about_others(&self, contact_id: &str) -> bool {
        let first = self.answer(Method::POST, &list(CONTACTS, None), ALL, OTHER_ATTEMPTS).await;
        let Some(Page { items, .. }) = first.ok().and_then(|first| page::read(&first.body).ok()) else {
            return false;
        };
        let mut others: Vec<String> = items.iter().filter_map(|item| item.get("id")?.id()).collect();
        others.retain(|id| id != contact_id);
        fastrand::shuffle(&mut others);
        for id in others.iter().take(OTHERS) {
            let asked = self.answer(Method::GET, &message_list(id, None), "", OTHER_ATTEMPTS).await;
            if asked.is_ok() {
                return true;
            }
        }
        false
    }

    /// Makes a request until it is answered, at most this many times.
    async fn answer(
        &self,
        method: Method,
        path: &str,
        body: &str,
        attempts: u32,
    ) -> Result<Answer, ApiError> {
        let (mut backoff, mut failures) = (BACKOFF.0, 0);
        loop {
            self.pace.turn().await;
            let (pause, error) = match self.attempt(method.clone(), path, body).await {
                Ok(answer) => return Ok(answer),
                Err(Failed::ForGood(error)) => return Err(error),
                Err(Failed::ForNow(pause, error)) => (pause, error),
            };
            failures += 1;
            let has_answered = self.has_answered.load(Ordering::Relaxed);
            if failures >= if has_answered { attempts } else { attempts.min(FIRST_ATTEMPTS) } {
                return Err(error);
            }
            match pause {
                Some(pause) if pause > LONGEST_PAUSE => return Err(ApiError::Exhausted(pause)),
                // The budget is common to all requests.
                Some(pause) => self.pace.hold(pause),
                None if matches!(error, ApiError::TooMany) => self.pace.hold(backoff),
                None => sleep(backoff.mul_f64(0.5 + fastrand::f64() / 2.0)).await,
            }
            backoff = (backoff * 2).min(BACKOFF.1);
        }
    }

    async fn attempt(&self, method: Method, path: &str, body: &str) -> Result<Answer, Failed> {
        let answer = self.http.request(method, path, body.to_owned()).await;
        let answer = answer.map_err(|error| Failed::ForNow(None, error.into()))?;
        self.has_answered.store(true, Ordering::Relaxed);
        let status = answer.status.as_u16();
        Err(match verdict(answer.status, &answer.headers) {
            Verdict::Fine => {
                if is_budget_spent(&answer.headers) {
                    let pause = retry_after(&answer.headers).unwrap_or(BUDGET_PAUSE);
                    self.pace.hold(pause.min(LONGEST_PAUSE));
                }
                return Ok(answer);
            }
            Verdict::Again(pause) if status == 429 => Failed::ForNow(pause, ApiError::TooMany),
            Verdict::Again(pause) => Failed::ForNow(pause, ApiError::Failing { status }),
            Verdict::Token => Failed::ForGood(ApiError::Token { status }),
            Verdict::NotFound => Failed::ForGood(ApiError::NotFound { path: path.to_owned() }),
            Verdict::Refused => Failed::ForGood(ApiError::Refused { status, words: words(&answer.body) }),
        })
    }
}

/// Why an attempt has no good answer.
enum Failed {
    /// Another attempt makes no sense.
    ForGood(ApiError),
    /// To be tried again; after this pause, if the API says how long.
    ForNow(Option<Duration>, ApiError),
}

/// The path of a page of a list.
fn list(path: &str, cursor: Option<&str>) -> String {
    let cursor = cursor.map(|cursor| format!("&cursorId={}", escaped(cursor))).unwrap_or_default();
    format!("{path}?limit={LIMIT}{cursor}")
}

/// The path of a page of a contact's messages.
fn message_list(contact_id: &str, cursor: Option<&str>) -> String {
    list(&format!("/contact/id:{}/message/list", escaped(contact_id)), cursor)
}

fn escaped(text: &str) -> String {
    utf8_percent_encode(text, ESCAPED).to_string()
}

fn verdict(status: StatusCode, headers: &HeaderMap) -> Verdict {
    match status.as_u16() {
        200..=299 => Verdict::Fine,
        408 | 429 | 500.. => Verdict::Again(retry_after(headers)),
        401 | 403 => Verdict::Token,
        404 => Verdict::NotFound,
        _ => Verdict::Refused,
    }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    number(headers, RETRY_AFTER.as_str()).map(Duration::from_secs)
}

fn is_budget_spent(headers: &HeaderMap) -> bool {
    number(headers, "x-ratelimit-remaining") == Some(0)
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

/// What the API says of an error, fit for a terminal.
fn words(body: &[u8]) -> String {
    let said = json::parse(body).ok();
    let message = said.as_ref().and_then(|said| said.get("message")).and_then(Json::text);
    printable(&message.unwrap_or("without a word").chars().take(MAX_WORDS).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(all: &[(&'static str, &'static str)]) -> HeaderMap {
        all.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn the_status_decides_what_is_done() {
        let of = |status: u16, all| verdict(StatusCode::from_u16(status).unwrap(), &headers(all));
        assert_eq!(of(200, &[]), Verdict::Fine);
        assert_eq!(of(429, &[("retry-after", "7")]), Verdict::Again(Some(Duration::from_secs(7))));
        assert_eq!(of(429, &[("retry-after", "soon")]), Verdict::Again(None));
        assert_eq!(of(503, &[]), Verdict::Again(None));
        assert_eq!((of(401, &[]), of(403, &[])), (Verdict::Token, Verdict::Token));
        assert_eq!(
            (of(404, &[]), of(400, &[]), of(301, &[])),
            (Verdict::NotFound, Verdict::Refused, Verdict::Refused)
        );
    }

    #[test]
    fn a_spent_budget_is_known() {
        assert!(is_budget_spent(&headers(&[("x-ratelimit-remaining", "0")])));
        assert!(
            !is_budget_spent(&headers(&[("x-ratelimit-remaining", "1")])) && !is_budget_spent(&headers(&[]))
        );
    }

    #[test]
    fn what_the_api_says_is_short_and_harmless() {
        assert_eq!(words(br#"{"code":400,"message":"bad\u001b[2J"}"#), "bad\\u{1b}[2J");
        assert_eq!(words(b"<html>"), "without a word");
        assert_eq!(words(format!(r#"{{"message":"{}"}}"#, "x".repeat(999)).as_bytes()).len(), MAX_WORDS);
    }
}
