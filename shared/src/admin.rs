//! The admin port of both binaries: `/livez`, `/readyz`, `/metrics` and, where there is one, `/health`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::telemetry::chain;
use actix_web::dev::Server;
use actix_web::http::Method;
use actix_web::http::header::ALLOW;
use actix_web::{App, HttpResponse, HttpServer, Resource, guard, web};
use prometheus::{Registry, TextEncoder};

/// Connections at the same time: of probes, Prometheus and people.
const MAX_CONNECTIONS: usize = 64;

/// What the admin port answers with.
#[derive(Clone)]
pub struct Admin {
    /// Refreshes what is measured on demand.
    pub before_scrape: Arc<dyn Fn() + Send + Sync>,
    /// Everything that `/metrics` shows.
    pub registry: Registry,
    /// Why this process shouldn't get work, if there is a reason.
    pub unready: Arc<dyn Fn() -> Option<String> + Send + Sync>,
    /// The answer to `/health`.
    pub health: Option<Arc<dyn Fn() -> serde_json::Value + Send + Sync>>,
}

/// Binds the admin port. The server runs when it is awaited.
pub fn bind(address: (&str, u16), admin: Admin) -> std::io::Result<(Vec<SocketAddr>, Server)> {
    let server = HttpServer::new(move || {
        App::new()
            .app_data(web::Data::new(admin.clone()))
            .service(page("/livez").to(async |method| asked(&method, HttpResponse::Ok().body("ok\n"))))
            .service(page("/readyz").to(ready))
            .service(page("/metrics").to(metrics))
            .service(page("/health").to(health))
    })
    .workers(1)
    .max_connections(MAX_CONNECTIONS)
    .disable_signals()
    .client_request_timeout(Duration::from_secs(5))
    .shutdown_timeout(1)
    .bind(address)?;
    Ok((server.addrs(), server.run()))
}

/// A page for these methods alone.
fn page(path: &str) -> Resource {
    let methods = guard::Any(guard::Get()).or(guard::Head()).or(guard::Options());
    web::resource(path).guard(methods)
}

/// An answer for `GET`, the allowed methods for others.
fn asked(method: &Method, answer: HttpResponse) -> HttpResponse {
    // Some load balancers send only this, so it, too, must fail while the process is unready.
    if method == Method::OPTIONS && answer.status().is_success() {
        return HttpResponse::NoContent().insert_header((ALLOW, "GET, HEAD, OPTIONS")).finish();
    }
    answer
}

async fn ready(admin: web::Data<Admin>, method: Method) -> HttpResponse {
    let answer = match (admin.unready)() {
        None => HttpResponse::Ok().body("ok\n"),
        Some(reason) => HttpResponse::ServiceUnavailable().body(reason + "\n"),
    };
    asked(&method, answer)
}

async fn metrics(admin: web::Data<Admin>, method: Method) -> HttpResponse {
    (admin.before_scrape)();
    let answer = match TextEncoder::new().encode_to_string(&admin.registry.gather()) {
        Ok(text) => HttpResponse::Ok().content_type("text/plain; version=0.0.4; charset=utf-8").body(text),
        Err(error) => {
            tracing::error!(error = chain(&error), "can't encode the metrics");
            HttpResponse::InternalServerError().finish()
        }
    };
    asked(&method, answer)
}

async fn health(admin: web::Data<Admin>, method: Method) -> HttpResponse {
    let answer = match &admin.health {
        Some(health) => HttpResponse::Ok().json(health()),
        None => HttpResponse::NotFound().finish(),
    };
    asked(&method, answer)
}
