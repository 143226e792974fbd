//! A request: its operator, tenant and values.

use std::future::{Ready, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_web::dev::Payload;
use actix_web::error::InternalError;
use actix_web::http::StatusCode;
use actix_web::http::header::{COOKIE, HOST, HeaderName, ORIGIN};
use actix_web::{Error, FromRequest, HttpRequest, Responder, web};
use tokio::time::timeout;

use super::fields::{self, Fields};
use super::origin;
use super::pages::{Page, problem};
use super::reply::Reply;
use super::sessions::Operator;
use super::state::{Console, TenantPages};

/// The name of the cookie that holds a session's id.
pub const SESSION_COOKIE: &str = "penstock_console";

/// A form has to arrive within this time: otherwise, a few clients could take all connections.
const FORM_TIMEOUT: Duration = Duration::from_secs(5);

/// A request of an operator who has logged in.
pub struct Request {
    /// Everything that there is.
    pub console: Arc<Console>,
    /// Who asks.
    pub operator: Operator,
    /// The session's id.
    pub session: String,
    /// The tenant that the path names; empty if it names none.
    pub tenant: String,
    /// Values of the URL, or of the form.
    pub fields: Fields,
    /// Whether the form comes from a page of another site.
    is_foreign: bool,
}

impl Request {
    /// The tenant's pages; none if the path names no tenant.
    #[must_use]
    pub fn pages(&self) -> Option<Arc<TenantPages>> {
        self.console.tenants.get(&self.tenant).cloned()
    }

    /// The same request with what a form brought; none if the form isn't one of ours.
    #[must_use]
    pub fn with_form(self, fields: Fields) -> Option<Self> {
        let is_ours = !self.is_foreign && fields.get("csrf") == self.operator.csrf;
        is_ours.then_some(Self { fields, ..self })
    }

    /// The address of a page of the tenant.
    #[must_use]
    pub fn path(&self, page: &str) -> String {
        format!("/t/{}/{page}", self.tenant)
    }

    /// The frame of a page.
    #[must_use]
    pub fn page(&self, title: impl Into<String>, here: &'static str) -> Page {
        let tenants = self.console.tenants.keys().cloned().collect();
        let (operator, csrf) = (self.operator.name.clone(), self.operator.csrf.clone());
        Page { title: title.into(), here, tenants, tenant: self.tenant.clone(), operator, csrf }
    }
}

impl FromRequest for Request {
    type Error = Error;
    type Future = Ready<Result<Self, Error>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(read(request).map_err(|reply| instead(request, reply)))
    }
}

/// What a form brings.
pub struct Form(pub Fields);

impl FromRequest for Form {
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self, Error>>>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let reading = web::Form::<Vec<(String, String)>>::from_request(request, payload);
        let request = request.clone();
        Box::pin(async move {
            let unread = |what| instead(&request, problem(StatusCode::BAD_REQUEST, what));
            let form =
                timeout(FORM_TIMEOUT, reading).await.map_err(|_| unread("The form came too slowly."))?;
            let form = form.map_err(|_| unread("This is no form of the console, or it is too large."))?;
            Ok(Self(Fields(form.into_inner())))
        })
    }
}

fn instead(request: &HttpRequest, reply: Reply) -> Error {
    InternalError::from_response("the request isn't answered", reply.respond_to(request)).into()
}

/// The values that a URL brings.
#[must_use]
pub fn query(request: &HttpRequest) -> Fields {
    let fields = web::Query::<Vec<(String, String)>>::from_query(request.query_string());
    Fields(fields.map(web::Query::into_inner).unwrap_or_default())
}

fn read(request: &HttpRequest) -> Result<Request, Reply> {
    let Some(console) = request.app_data::<web::Data<Console>>() else {
        return Err(problem(StatusCode::INTERNAL_SERVER_ERROR, "The console isn't ready."));
    };
    let session = cookie(request).unwrap_or_default();
    let Some(operator) = console.sessions.operator(&session, Instant::now()) else {
        return Err(login_first(request));
    };
    let tenant = request.match_info().get("tenant").unwrap_or_default().to_owned();
    if !tenant.is_empty() && !console.tenants.contains_key(&tenant) {
        return Err(problem(StatusCode::NOT_FOUND, "There is no such tenant."));
    }
    let (console, fields) = (console.clone().into_inner(), query(request));
    Ok(Request { console, operator, session, tenant, fields, is_foreign: is_foreign(request) })
}

/// Leads to the login, and from there back to the page. A form's action isn't done.
fn login_first(request: &HttpRequest) -> Reply {
    let is_form = request.method() == actix_web::http::Method::POST;
    let page = request.uri().path_and_query().map_or("/", |page| page.as_str());
    let next = if is_form || page == "/" { "" } else { page };
    let ended = if is_form || cookie(request).is_some() { "1" } else { "" };
    Reply::see(fields::url("/login", [("next", next), ("ended", ended)]))
}

/// Whether a form comes from a page of another site.
#[must_use]
pub fn is_foreign(request: &HttpRequest) -> bool {
    let site = header(request, &HeaderName::from_static("sec-fetch-site"));
    !origin::is_own(site, header(request, &ORIGIN), header(request, &HOST))
}

/// The session's id that a browser sends.
#[must_use]
pub fn cookie(request: &HttpRequest) -> Option<String> {
    let pairs = header(request, &COOKIE)?.split(';').filter_map(|pair| pair.trim().split_once('='));
    pairs.into_iter().find(|(name, _)| *name == SESSION_COOKIE).map(|(_, value)| value.to_owned())
}

/// A header's value.
pub fn header<'a>(request: &'a HttpRequest, name: &HeaderName) -> Option<&'a str> {
    request.headers().get(name)?.to_str().ok()
}
