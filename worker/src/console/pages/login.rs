//! Login and logout.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use actix_web::http::StatusCode;
use actix_web::http::header::HeaderName;
use actix_web::{HttpRequest, web};
use askama::Template;
use shared::event;
use tracing::{error, info, warn};

use super::{FOREIGN_FORM, problem};
use crate::console::fields::Fields;
use crate::console::reply::Reply;
use crate::console::request::{self, Form, Request, SESSION_COOKIE, header, is_foreign, query};
use crate::console::state::Console;

/// Longest name of an operator, in characters.
const MAX_NAME: usize = 64;

#[derive(Template)]
#[template(path = "login.html")]
struct Login<'a> {
    needs_token: bool,
    next: &'a str,
    name: &'a str,
    notice: &'a str,
}

/// The form.
pub async fn form(request: HttpRequest, console: web::Data<Console>) -> Reply {
    let fields = query(&request);
    let has_ended = !fields.get("ended").is_empty();
    let notice =
        if has_ended { "Your session has ended. Please log in again; nothing was changed." } else { "" };
    shown(StatusCode::OK, &console, &fields, notice)
}

fn shown(status: StatusCode, console: &Console, fields: &Fields, notice: &str) -> Reply {
    let needs_token = console.settings.token.is_some();
    let page = Login { needs_token, next: next(fields), name: fields.get("name"), notice };
    Reply::page_with(status, &page)
}

/// The page to go to: one of ours.
fn next(fields: &Fields) -> &str {
    let next = fields.get("next");
    // Two slashes begin the name of another host, and browsers take a backslash for a slash. Nothing else may
    // be in a header.
    let is_plain = |byte: u8| byte.is_ascii_graphic() && byte != b'\\';
    if next.starts_with("/t/") && next.bytes().all(is_plain) { next } else { "/" }
}

/// What the form does.
pub async fn enter(request: HttpRequest, console: web::Data<Console>, Form(fields): Form) -> Reply {
    if is_foreign(&request) {
        return problem(StatusCode::FORBIDDEN, FOREIGN_FORM);
    }
    let name: String = fields.get("name").chars().filter(|c| !c.is_control()).take(MAX_NAME).collect();
    if name.is_empty() {
        return shown(StatusCode::BAD_REQUEST, &console, &fields, "Please give your name.");
    }
    let address = address(&request);
    if !console.wrong_tokens(|wrong, now| wrong.may_try(address, now)) {
        let notice = "Too many wrong tokens. Please try again in a minute.";
        return shown(StatusCode::TOO_MANY_REQUESTS, &console, &fields, notice);
    }
    if !is_right(&console, fields.get("token")) {
        console.wrong_tokens(|wrong, now| wrong.record(address, now));
        warn!(by = name, %address, "a login with a wrong token");
        return shown(StatusCode::FORBIDDEN, &console, &fields, "That is not the token.");
    }
    match console.sessions.begin(name.clone(), Instant::now()) {
        Ok(session) => {
            request::cookie(&request).inspect(|earlier| console.sessions.end(earlier));
            info!(by = name, %address, "logged in");
            Reply::see(next(&fields).to_owned()).with_cookie(cookie(&session, is_secure(&request)))
        }
        Err(error) => {
            error!(%error, "no randomness for a session");
            problem(StatusCode::INTERNAL_SERVER_ERROR, "There is no randomness for a session.")
        }
    }
}

/// Who asks: the last address that a proxy in front of the console has added, else whoever has connected.
/// Somebody who makes addresses up has to share the number of tries that all have together.
fn address(request: &HttpRequest) -> IpAddr {
    let forwarded = header(request, &HeaderName::from_static("x-forwarded-for"));
    let last = forwarded.and_then(|addresses| addresses.rsplit(',').next()?.trim().parse().ok());
    let peer = || request.peer_addr().map(|peer| peer.ip());
    last.or_else(peer).unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
}

/// Whether a token is the right one. Compares hashes: so the time for it tells nothing about the token.
fn is_right(console: &Console, token: &str) -> bool {
    let digest = |token: &str| event::body_digest(token.as_bytes(), "");
    console.settings.token.as_ref().is_none_or(|right| digest(&right.0) == digest(token))
}

/// Whether the browser uses TLS, as the proxy in front of the console says.
fn is_secure(request: &HttpRequest) -> bool {
    header(request, &HeaderName::from_static("x-forwarded-proto")) == Some("https")
}

fn cookie(session: &str, is_secure: bool) -> String {
    let secure = if is_secure { "; Secure" } else { "" };
    format!("{SESSION_COOKIE}={session}; Path=/; HttpOnly; SameSite=Strict{secure}")
}

/// Ends the session.
pub async fn leave(request: Request) -> Reply {
    request.console.sessions.end(&request.session);
    info!(by = request.operator.name, "logged out");
    Reply::see("/login".to_owned()).with_cookie(format!("{}; Max-Age=0", cookie("", false)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_leads_to_pages_of_ours_only() {
        let next_of = |to: &str| next(&Fields(vec![("next".to_owned(), to.to_owned())])).to_owned();
        assert_eq!(next_of("/t/vip/dead?reason=stuck"), "/t/vip/dead?reason=stuck");
        for elsewhere in [
            "",
            "//evil.example",
            "https://evil.example",
            "/\\evil.example",
            "/t/\\evil",
            "/logout",
            "/t/a\r\nb: c",
            "/t/é",
        ] {
            assert_eq!(next_of(elsewhere), "/", "{elsewhere}");
        }
    }
}
