//! Requests, and what they are answered.

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::{Client, Method};
use serde_json::Value;

/// respond.io gives up after this.
pub const PROVIDER_DEADLINE: Duration = Duration::from_secs(5);

/// An answer.
#[derive(Debug, PartialEq)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Headers, by lower-case name.
    pub headers: BTreeMap<String, String>,
    /// The body, null if it isn't JSON.
    pub body: Value,
}

/// A client as patient as respond.io.
pub fn client() -> Client {
    Client::builder().timeout(PROVIDER_DEADLINE).build().expect("a client")
}

/// Sends a request.
pub async fn send(
    method: Method,
    url: &str,
    headers: &[(&str, &str)],
    body: impl Into<reqwest::Body>,
) -> Answer {
    let mut request = client().request(method, url).body(body);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = request.send().await.unwrap_or_else(|error| panic!("{url}: {error:?}"));
    let headers = response.headers().iter();
    let headers =
        headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap_or_default().to_owned()));
    Answer {
        status: response.status().as_u16(),
        headers: headers.collect(),
        body: response.json().await.unwrap_or_default(),
    }
}

/// Posts a body.
pub async fn post(url: &str, body: impl Into<reqwest::Body>) -> Answer {
    send(Method::POST, url, &[("content-type", "application/json")], body).await
}

/// Posts a body and expects that it is received.
pub async fn post_received(url: &str, body: impl Into<reqwest::Body>) {
    let answer = post(url, body).await;
    assert_eq!((answer.status, &answer.body["status"]), (200, &"received".into()), "{answer:?}");
}

/// Gets a page.
pub async fn get(url: &str) -> Answer {
    send(Method::GET, url, &[], "").await
}

/// The text of `/metrics`.
pub async fn metrics(admin: &str) -> String {
    let response = client().get(format!("{admin}/metrics")).send().await.expect("metrics");
    response.text().await.expect("text")
}

/// The value of a series, if it exists.
pub async fn metric(admin: &str, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let text = metrics(admin).await;
    let is_it = |line: &&str| {
        let series = line.strip_prefix(name)?;
        let labelled = labels.iter().all(|(label, value)| series.contains(&format!("{label}=\"{value}\"")));
        (series.starts_with(['{', ' ']) && labelled).then_some(())
    };
    let line = text.lines().find(|line| is_it(line).is_some())?;
    line.rsplit(' ').next()?.parse().ok()
}
