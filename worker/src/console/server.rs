//! Routes, headers, deadlines.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::Server;
use actix_web::http::StatusCode;
use actix_web::http::header::CACHE_CONTROL;
use actix_web::middleware::DefaultHeaders;
use actix_web::{App, HttpResponse, HttpServer, Route, guard, web};
use tokio::time::timeout;
use tracing::error;

use super::origin;
use super::pages::{
    self, actions, aside, conversation, erase, event, events, login, overview, problem, runbook,
};
use super::reply::Reply;
use super::request::{Form, Request};
use super::state::Console;

/// Longest time for a page, and for an action: then both say what they have done so far.
const PAGE_TIMEOUT: Duration = Duration::from_secs(20);
const ACTION_TIMEOUT: Duration = Duration::from_mins(2);
/// Largest form, in bytes.
const MAX_FORM: usize = 64 << 10;
/// Requests at the same time.
const MAX_CONNECTIONS: usize = 256;

/// No script, style or picture but our own; no page of ours within another's, no form to elsewhere.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
    form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("console.js");
const ICON: &str = include_str!("icon.svg");

/// Binds the port. The server runs when it is awaited.
pub fn bind(console: &Arc<Console>) -> io::Result<(Vec<SocketAddr>, Server)> {
    let data = web::Data::from(console.clone());
    let (host, port) = (console.settings.host.clone(), console.settings.port);
    let is_open = console.settings.token.is_none();
    let server = HttpServer::new(move || {
        App::new()
            .app_data(data.clone())
            .app_data(web::FormConfig::default().limit(MAX_FORM))
            .wrap(headers())
            // Always ready: the console is useful whatever else is down.
            .route("/readyz", web::get().to(async || HttpResponse::Ok().body("ok\n")))
            .service(routes(is_open))
            .default_service(web::to(async || problem(StatusCode::NOT_FOUND, "There is no such page.")))
    })
    .workers(1)
    .max_connections(MAX_CONNECTIONS)
    .disable_signals()
    .client_request_timeout(Duration::from_secs(5))
    .shutdown_timeout(1)
    .bind((host, port))?;
    Ok((server.addrs(), server.run()))
}

fn headers() -> DefaultHeaders {
    DefaultHeaders::new()
        .add(("Content-Security-Policy", POLICY))
        .add(("X-Content-Type-Options", "nosniff"))
        .add(("X-Frame-Options", "DENY"))
        // Without any referrer, browsers wouldn't say where a form comes from.
        .add(("Referrer-Policy", "same-origin"))
        .add(("Cross-Origin-Opener-Policy", "same-origin"))
        .add(("Cross-Origin-Resource-Policy", "same-origin"))
        .add(("Permissions-Policy", "camera=(), geolocation=(), microphone=()"))
        .add((CACHE_CONTROL, "no-store"))
}

fn routes(is_open: bool) -> actix_web::Scope {
    // Where a name is enough to log in, see `origin::is_local`.
    let is_expected = move |context: &guard::GuardContext<'_>| {
        let host = context.head().headers().get("host").and_then(|host| host.to_str().ok());
        !is_open || host.is_some_and(origin::is_local)
    };
    web::scope("")
        .guard(guard::fn_guard(is_expected))
        .route("/style.css", web::get().to(async || asset("text/css; charset=utf-8", STYLE)))
        .route("/console.js", web::get().to(async || asset("text/javascript; charset=utf-8", SCRIPT)))
        .route("/icon.svg", web::get().to(async || asset("image/svg+xml", ICON)))
        .route("/login", web::get().to(login::form))
        .route("/login", web::post().to(login::enter))
        .route("/logout", post(login::leave))
        .route("/", get(overview::page))
        .route("/live", get(overview::live))
        .route("/runbook", get(runbook::page))
        .route("/t/{tenant}/events", get(events::page))
        .route("/t/{tenant}/event", get(event::page))
        .route("/t/{tenant}/event/body", get(event::body))
        .route("/t/{tenant}/conversation", get(conversation::page))
        .route("/t/{tenant}/erase", get(erase::page))
        .route("/t/{tenant}/erase/count", post(erase::count))
        .route("/t/{tenant}/erase/apply", post(erase::apply))
        .route("/t/{tenant}/dead", get(aside::dead))
        .route("/t/{tenant}/dead/message", get(aside::dead_message))
        .route("/t/{tenant}/dead/confirm", get(actions::confirm_dead))
        .route("/t/{tenant}/dead/apply", post(actions::apply_dead))
        .route("/t/{tenant}/quarantine", get(aside::quarantine))
        .route("/t/{tenant}/quarantine/message", get(aside::quarantined_message))
        .route("/t/{tenant}/quarantine/confirm", get(actions::confirm_quarantined))
        .route("/t/{tenant}/quarantine/apply", post(actions::apply_quarantined))
}

fn asset(kind: &'static str, text: &'static str) -> HttpResponse {
    HttpResponse::Ok().content_type(kind).insert_header((CACHE_CONTROL, "max-age=300")).body(text)
}

/// A page for operators who have logged in. It changes nothing.
fn get<F, R>(page: F) -> Route
where
    F: Fn(Request) -> R + Clone + 'static,
    R: Future<Output = Reply> + Send + 'static,
{
    web::get().to(move |request: Request| {
        let runtime = request.console.runtime.clone();
        let page = page(request);
        let made = runtime.spawn(async move { timeout(PAGE_TIMEOUT, page).await });
        async { made_in_time(made.await) }
    })
}

/// What a form of ours does, if it was sent by an operator who has logged in.
fn post<F, R>(action: F) -> Route
where
    F: Fn(Request) -> R + Clone + 'static,
    R: Future<Output = Reply> + Send + 'static,
{
    web::post().to(move |request: Request, Form(form): Form| {
        let runtime = request.console.runtime.clone();
        let checked = request.with_form(form);
        let done = checked.map(|request| {
            let action = action(request);
            runtime.spawn(async move { timeout(ACTION_TIMEOUT, action).await })
        });
        async {
            match done {
                Some(done) => made_in_time(done.await),
                None => problem(StatusCode::FORBIDDEN, pages::FOREIGN_FORM),
            }
        }
    })
}

type Made = Result<Result<Reply, tokio::time::error::Elapsed>, tokio::task::JoinError>;

fn made_in_time(made: Made) -> Reply {
    match made {
        Ok(Ok(reply)) => reply,
        Ok(Err(_)) => problem(StatusCode::GATEWAY_TIMEOUT, "That took too long, and was given up."),
        Err(error) => {
            error!(panicked = error.is_panic(), "a page could not be made: a defect");
            problem(
                StatusCode::INTERNAL_SERVER_ERROR,
                "This page could not be made: a defect of the console.",
            )
        }
    }
}
