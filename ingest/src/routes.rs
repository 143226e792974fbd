//! The public port: which path leads where.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::ConnectionType;
use actix_web::middleware::Next;
use actix_web::{Error, HttpResponse, web};
use serde_json::json;

use crate::gateway::Gateway;
use crate::receive::webhook;
use crate::{health, metrics, reply};

/// A connection is closed after so many requests, so that load spreads again when ingests come and go.
const REQUESTS_PER_CONNECTION: u32 = 10_000;

/// All routes of the public port.
pub fn configure(config: &mut web::ServiceConfig) {
    config
        .service(
            web::resource("/webhook/{tenant}")
                .route(web::post().to(webhook))
                .default_service(web::to(async || reply::wrong_method("POST"))),
        )
        .service(
            web::resource("/webhook/{tenant}/{stream}")
                .route(web::post().to(webhook))
                .default_service(web::to(async || reply::wrong_method("POST"))),
        )
        .service(read_only("/").route(web::get().to(service)).route(web::head().to(service)))
        .service(read_only("/health").route(web::get().to(health)).route(web::head().to(health)))
        .default_service(web::to(async || reply::not_found("path")));
}

fn read_only(path: &str) -> actix_web::Resource {
    web::resource(path).default_service(web::to(async || reply::wrong_method("GET, HEAD")))
}

async fn service() -> HttpResponse {
    HttpResponse::Ok().json(json!({
        "service": "penstock",
        "version": env!("CARGO_PKG_VERSION"),
        "endpoints": health::ENDPOINTS,
    }))
}

async fn health(gateway: web::Data<Gateway>) -> HttpResponse {
    HttpResponse::Ok().json(gateway.health())
}

/// Requests on a connection so far.
#[derive(Debug, Default)]
pub struct Requests(AtomicU32);

/// Times every request, and asks callers to connect anew once this process is about to stop.
pub async fn observe(
    gateway: web::Data<Gateway>,
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let started = Instant::now();
    let mut response = next.call(request).await?;
    let route = response.request().match_pattern();
    let route = route.as_deref().unwrap_or(metrics::UNMATCHED);
    gateway.metrics.replied(route, response.status().as_u16(), started.elapsed());
    let requests = response.request().conn_data::<Requests>();
    let is_last = requests
        .is_some_and(|so_far| so_far.0.fetch_add(1, Ordering::Relaxed) + 1 >= REQUESTS_PER_CONNECTION);
    if gateway.stop.is_cancelled() || is_last {
        response.response_mut().head_mut().set_connection_type(ConnectionType::Close);
    }
    Ok(response)
}
