//! Routes, headers, deadlines.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::Server;
use actix_web::http::StatusCode;
use actix_web::http::header::{ALLOW, CACHE_CONTROL};
use actix_web::middleware::DefaultHeaders;
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, Resource, Responder, Route, guard, web};
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
        .service(asset("/style.css", "text/css; charset=utf-8", STYLE))
        .service(asset("/console.js", "text/javascript; charset=utf-8", SCRIPT))
        .service(asset("/icon.svg", "image/svg+xml", ICON))
        .service(at("/login", "GET, POST", [web::get().to(login::form), web::post().to(login::enter)]))
        .service(post("/logout", login::leave))
        .service(get("/", overview::page))
        .service(get("/live", overview::live))
        .service(get("/runbook", runbook::page))
        .service(get("/t/{tenant}/events", events::page))
        .service(get("/t/{tenant}/event", event::page))
        .service(get("/t/{tenant}/event/body", event::body))
        .service(get("/t/{tenant}/conversation", conversation::page))
        .service(get("/t/{tenant}/erase", erase::page))
        .service(post("/t/{tenant}/erase/count", erase::count))
        .service(post("/t/{tenant}/erase/apply", erase::apply))
        .service(get("/t/{tenant}/dead", aside::dead))
        .service(get("/t/{tenant}/dead/message", aside::dead_message))
        .service(get("/t/{tenant}/dead/confirm", actions::confirm_dead))
        .service(post("/t/{tenant}/dead/apply", actions::apply_dead))
        .service(get("/t/{tenant}/quarantine", aside::quarantine))
        .service(get("/t/{tenant}/quarantine/message", aside::quarantined_message))
        .service(get("/t/{tenant}/quarantine/confirm", actions::confirm_quarantined))
        .service(post("/t/{tenant}/quarantine/apply", actions::apply_quarantined))
}

/// A path with its routes, one for each of these methods.
fn at(path: &str, methods: &'static str, routes: impl IntoIterator<Item = Route>) -> Resource {
    let resource = routes.into_iter().fold(web::resource(path), Resource::route);
    let wrong_method = move |request: HttpRequest| async move {
        let page = problem(StatusCode::METHOD_NOT_ALLOWED, "There is no page for this method.");
        page.respond_to(&request).customize().insert_header((ALLOW, methods))
    };
    resource.default_service(web::to(wrong_method))
}

fn asset(path: &str, kind: &'static str, text: &'static str) -> Resource {
    let answer = move || async move {
        HttpResponse::Ok().content_type(kind).insert_header((CACHE_CONTROL, "max-age=300")).body(text)
    };
    at(path, "GET", [web::get().to(answer)])
}

/// A page for operators who have logged in. It changes nothing.
fn get<F, R>(path: &str, page: F) -> Resource
where
    F: Fn(Request) -> R + Clone + 'static,
    R: Future<Output = Reply> + Send + 'static,
{
    let route = web::get().to(move |request: Request| {
        let runtime = request.console.runtime.clone();
        let page = page(request);
        let made = runtime.spawn(async move { timeout(PAGE_TIMEOUT, page).await });
        async { made_in_time(made.await) }
    });
    at(path, "GET", [route])
}

/// What a form of ours does, if it was sent by an operator who has logged in.
fn post<F, R>(path: &str, action: F) -> Resource
where
    F: Fn(Request) -> R + Clone + 'static,
    R: Future<Output = Reply> + Send + 'static,
{
    let route = web::post().to(move |request: Request, Form(form): Form| {
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
    });
    at(path, "POST", [route])
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
