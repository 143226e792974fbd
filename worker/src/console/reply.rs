//! Answers to requests.

use actix_web::body::BoxBody;
use actix_web::http::StatusCode;
use actix_web::http::header::{CONTENT_DISPOSITION, LOCATION, SET_COOKIE};
use actix_web::{HttpRequest, HttpResponse, Responder};
use askama::Template;
use shared::telemetry::chain;
use tracing::error;

/// An answer, made on another thread than the one that sends it.
#[derive(Debug)]
pub struct Reply {
    /// Its status.
    pub status: StatusCode,
    content: Content,
    cookie: Option<String>,
}

#[derive(Debug)]
enum Content {
    Html(String),
    /// A file to be saved: a browser must not show what others have written as a page of ours.
    Download(String),
    Elsewhere(String),
}

impl Reply {
    /// A page.
    #[must_use]
    pub fn page(template: &impl Template) -> Self {
        Self::page_with(StatusCode::OK, template)
    }

    /// A page with another status than 200.
    #[must_use]
    pub fn page_with(status: StatusCode, template: &impl Template) -> Self {
        match template.render() {
            Ok(html) => Self { status, content: Content::Html(html), cookie: None },
            Err(error) => {
                error!(error = chain(&error), "a page can't be written");
                let html = "<!doctype html><title>Penstock</title><p>This page can't be written.".to_owned();
                Self { status: StatusCode::INTERNAL_SERVER_ERROR, content: Content::Html(html), cookie: None }
            }
        }
    }

    /// On to another page.
    #[must_use]
    pub fn see(url: String) -> Self {
        Self { status: StatusCode::SEE_OTHER, content: Content::Elsewhere(url), cookie: None }
    }

    /// A text to be saved.
    #[must_use]
    pub fn download(text: String) -> Self {
        Self { status: StatusCode::OK, content: Content::Download(text), cookie: None }
    }

    /// The same with a cookie.
    #[must_use]
    pub fn with_cookie(self, cookie: String) -> Self {
        Self { cookie: Some(cookie), ..self }
    }
}

impl Responder for Reply {
    type Body = BoxBody;

    fn respond_to(self, _: &HttpRequest) -> HttpResponse {
        let mut response = HttpResponse::build(self.status);
        if let Some(cookie) = self.cookie {
            response.insert_header((SET_COOKIE, cookie));
        }
        match self.content {
            Content::Html(html) => response.content_type("text/html; charset=utf-8").body(html),
            Content::Download(text) => response
                .content_type("text/plain; charset=utf-8")
                .insert_header((CONTENT_DISPOSITION, "attachment; filename=\"body.txt\""))
                .body(text),
            Content::Elsewhere(url) => response.insert_header((LOCATION, url)).finish(),
        }
    }
}
