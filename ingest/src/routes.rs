//! The public port: which path leads where.

use std::sync::Arc;
use std::time::Instant;

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use actix_web::http::{ConnectionType, Method};
use actix_web::middleware::Next;
use actix_web::{Error, HttpResponse, web};
use serde_json::json;

use crate::connections::Connection;
use crate::gateway::Gateway;
use crate::receive::webhook;
use crate::{health, metrics, reply};

/// A connection is closed after this many requests, so that load spreads again when ingests come and go.
const REQUESTS_PER_CONNECTION: u32 = 10_000;

/// All routes of the public port.
pub fn configure(config: &mut web::ServiceConfig) {
    config
        .service(
            web::resource("/webhook/{tenant}")
                .route(web::post().to(webhook))
                .default_service(web::to(async |method| reply::other_method(&method, "OPTIONS, POST"))),
        )
        .service(
            web::resource("/webhook/{tenant}/{stream}")
                .route(web::post().to(webhook))
                .default_service(web::to(async |method| reply::other_method(&method, "OPTIONS, POST"))),
        )
        .service(read_only("/").route(web::get().to(service)).route(web::head().to(service)))
        .service(read_only("/health").route(web::get().to(health)).route(web::head().to(health)))
        .default_service(web::to(unknown));
}

fn read_only(path: &str) -> actix_web::Resource {
    let other = async |method| reply::other_method(&method, "GET, HEAD, OPTIONS");
    web::resource(path).default_service(web::to(other))
}

async fn unknown(method: Method) -> HttpResponse {
    if method == Method::OPTIONS { reply::options("OPTIONS") } else { reply::not_found("path") }
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

/// Times every request, tells its connection how far it is, and asks callers to connect anew once this
/// process is about to stop.
pub async fn observe(
    gateway: web::Data<Gateway>,
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let started = Instant::now();
    let connection = request.conn_data::<Arc<Connection>>().cloned();
    let headers = request.headers();
    let length = headers.get(CONTENT_LENGTH).is_some_and(|length| length != "0");
    let has_body = length || headers.contains_key(TRANSFER_ENCODING);
    let so_far = connection.as_ref().map_or(0, |connection| connection.begin(has_body));
    let mut response = next.call(request).await?;
    let route = response.request().match_pattern();
    let route = route.as_deref().unwrap_or(metrics::UNMATCHED);
    gateway.metrics.replied(route, response.status().as_u16(), started.elapsed());
    if gateway.stop.is_cancelled() || so_far >= REQUESTS_PER_CONNECTION {
        response.response_mut().head_mut().set_connection_type(ConnectionType::Close);
    } else if response.request().head().upgrade() {
        // ingest doesn't accept an offer of another protocol. Without this, actix-web would end the
        // connection.
        response.response_mut().head_mut().set_connection_type(ConnectionType::KeepAlive);
    }
    if let Some(connection) = connection {
        connection.end();
    }
    Ok(response)
}
