//! What callers are told.

use actix_web::HttpResponse;
use actix_web::http::Method;
use actix_web::http::header::{ALLOW, RETRY_AFTER};
use serde_json::json;

use crate::judge::Reason;

/// Seconds after which respond.io may try again; it does so after about 30 s anyway.
const RETRY_AFTER_SECONDS: &str = "30";

/// The payload is durable.
#[must_use]
pub fn received() -> HttpResponse {
    HttpResponse::Ok().json(json!({"status": "received"}))
}

/// The payload can't be used, and is kept as evidence.
#[must_use]
pub fn quarantined(reason: Reason) -> HttpResponse {
    HttpResponse::Ok().json(json!({"status": "quarantined", "reason": reason.name()}))
}

/// The payload isn't trusted, and nothing is kept.
#[must_use]
pub fn rejected(reason: Reason) -> HttpResponse {
    HttpResponse::Unauthorized().json(json!({"status": "rejected", "reason": reason.name()}))
}

/// The payload couldn't be made durable.
#[must_use]
pub fn refused() -> HttpResponse {
    HttpResponse::ServiceUnavailable()
        .insert_header((RETRY_AFTER, RETRY_AFTER_SECONDS))
        .json(json!({"status": "unavailable", "error": "can't be stored now, please send it again"}))
}

/// The payload couldn't be made durable, and refusing it would get the webhook disabled.
#[must_use]
pub fn lost() -> HttpResponse {
    HttpResponse::Ok().json(json!({"status": "lost"}))
}

/// The sender didn't finish its body.
#[must_use]
pub fn incomplete() -> HttpResponse {
    // Otherwise actix-web would wait for the rest of the body.
    HttpResponse::RequestTimeout()
        .force_close()
        .json(json!({"status": "error", "error": "the body is incomplete"}))
}

/// No such tenant, stream or path.
#[must_use]
pub fn not_found(what: &str) -> HttpResponse {
    HttpResponse::NotFound().json(json!({"status": "error", "error": format!("unknown {what}")}))
}

/// The endpoints of this service.
#[must_use]
pub fn options(allow: &'static str) -> HttpResponse {
    HttpResponse::NoContent().insert_header((ALLOW, allow)).finish()
}

/// The path exists, but not for this method; or the method is `OPTIONS`, which asks for the allowed ones.
#[must_use]
pub fn other_method(method: &Method, allow: &'static str) -> HttpResponse {
    if method == Method::OPTIONS {
        return options(allow);
    }
    HttpResponse::MethodNotAllowed()
        .insert_header((ALLOW, allow))
        .json(json!({"status": "error", "error": format!("only {allow} here")}))
}
