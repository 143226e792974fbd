//! `worker console`, and an operator before it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{Client, Method};

use crate::poll;
use crate::process::Process;
use crate::stack::Place;

/// No page may take longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// The token that the tests' consoles ask for.
pub const TOKEN: &str = "only for tests, and long enough";

/// A running console.
#[derive(Debug)]
pub struct Console {
    /// The process.
    pub process: Process,
    /// Where its pages are.
    pub url: String,
}

/// A page, or what came in its place.
#[derive(Debug)]
pub struct Page {
    /// Status code.
    pub status: u16,
    /// Headers, by lower-case name.
    pub headers: BTreeMap<String, String>,
    /// What it shows, as HTML.
    pub html: String,
}

impl Page {
    /// Where it leads to, if it is elsewhere.
    #[must_use]
    pub fn location(&self) -> &str {
        self.headers.get("location").map_or("", String::as_str)
    }

    /// The values of all hidden or other inputs of this name.
    #[must_use]
    pub fn inputs(&self, name: &str) -> Vec<String> {
        let mark = format!("name=\"{name}\" value=\"");
        let values = self.html.split(&mark).skip(1).filter_map(|rest| rest.split_once('"'));
        values.map(|(value, _)| value.to_owned()).collect()
    }
}

impl Console {
    /// Starts one for the tenants `faster` and `vip`, and waits until it listens.
    pub async fn start(place: &Place, settings: &[(&str, &str)]) -> Self {
        let all: Vec<_> = [("CONSOLE_TOKEN", TOKEN)].into_iter().chain(settings.iter().copied()).collect();
        let mut process = Process::start_command(place, &["console"], &all);
        let url = format!("http://{}", process.address("console").await);
        Self { process, url }
    }

    /// Asks for something as a browser would that follows no redirect.
    pub async fn ask(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        form: &[(&str, &str)],
    ) -> Page {
        let client = Client::builder().redirect(Policy::none()).timeout(PATIENCE).build().expect("a client");
        let mut request = client.request(method.clone(), format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if method == Method::POST {
            request = request.header("content-type", "application/x-www-form-urlencoded").body(encoded(form));
        }
        let response = request.send().await.unwrap_or_else(|error| panic!("{path}: {error:?}"));
        let header = |(name, value): (&reqwest::header::HeaderName, &reqwest::header::HeaderValue)| {
            (name.to_string(), value.to_str().unwrap_or_default().to_owned())
        };
        Page {
            status: response.status().as_u16(),
            headers: response.headers().iter().map(header).collect(),
            html: response.text().await.expect("text"),
        }
    }

    /// Logs in, and waits until the console is connected.
    pub async fn log_in(&self, name: &str) -> Operator<'_> {
        let page = self.ask(Method::POST, "/login", &[], &[("name", name), ("token", TOKEN)]).await;
        assert_eq!(page.status, 303, "{page:?}");
        let cookie = page.headers["set-cookie"].split(';').next().expect("a cookie").to_owned();
        let operator = Operator { console: self, cookie };
        let connected = async || !operator.get("/live").await.html.contains("reach RabbitMQ. If ingest");
        poll::until("the console is connected to RabbitMQ", true, connected).await;
        operator
    }
}

/// Somebody who has logged in.
#[derive(Debug)]
pub struct Operator<'a> {
    console: &'a Console,
    /// The cookie of the session.
    pub cookie: String,
}

impl Operator<'_> {
    /// Opens a page.
    pub async fn get(&self, path: &str) -> Page {
        self.console.ask(Method::GET, path, &[("cookie", &self.cookie)], &[]).await
    }

    /// Opens a page that must be there.
    pub async fn open(&self, path: &str) -> Page {
        let page = self.get(path).await;
        assert_eq!(page.status, 200, "{path}: {}", page.html);
        page
    }

    /// Sends a form with these fields.
    pub async fn post(&self, path: &str, form: &[(&str, &str)]) -> Page {
        self.console.ask(Method::POST, path, &[("cookie", &self.cookie)], form).await
    }

    /// What the forms of the session have to bring.
    pub async fn csrf(&self) -> String {
        self.open("/").await.inputs("csrf").remove(0)
    }
}

/// Fields as a form sends them, or the query of an address.
#[must_use]
pub fn encoded(fields: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (name, value) in fields {
        let separator = if text.is_empty() { "" } else { "&" };
        write!(text, "{separator}{name}=").expect("memory");
        for byte in value.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => text.push(byte.into()),
                _ => write!(text, "%{byte:02X}").expect("memory"),
            }
        }
    }
    text
}
