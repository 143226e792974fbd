//! The admin port of both binaries: `/livez`, `/readyz`, `/metrics` and, where there is one, `/health`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::telemetry::chain;
use actix_web::dev::Server;
use actix_web::{App, HttpResponse, HttpServer, web};
use prometheus::{Registry, TextEncoder};

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
            .route("/livez", web::get().to(async || HttpResponse::Ok().body("ok\n")))
            .route("/readyz", web::get().to(ready))
            .route("/metrics", web::get().to(metrics))
            .route("/health", web::get().to(health))
    })
    .workers(1)
    .disable_signals()
    .client_request_timeout(Duration::from_secs(5))
    .shutdown_timeout(1)
    .bind(address)?;
    Ok((server.addrs(), server.run()))
}

async fn ready(admin: web::Data<Admin>) -> HttpResponse {
    match (admin.unready)() {
        None => HttpResponse::Ok().body("ok\n"),
        Some(reason) => HttpResponse::ServiceUnavailable().body(reason + "\n"),
    }
}

async fn metrics(admin: web::Data<Admin>) -> HttpResponse {
    (admin.before_scrape)();
    match TextEncoder::new().encode_to_string(&admin.registry.gather()) {
        Ok(text) => HttpResponse::Ok().content_type("text/plain; version=0.0.4; charset=utf-8").body(text),
        Err(error) => {
            tracing::error!(error = chain(&error), "can't encode the metrics");
            HttpResponse::InternalServerError().finish()
        }
    }
}

async fn health(admin: web::Data<Admin>) -> HttpResponse {
    match &admin.health {
        Some(health) => HttpResponse::Ok().json(health()),
        None => HttpResponse::NotFound().finish(),
    }
}
