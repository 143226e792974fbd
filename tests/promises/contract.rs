//! The public port answers as the contract says.

use penstock_tests::broker::{Broker, header};
use penstock_tests::http::{get, post, post_received, send};
use penstock_tests::process::Ingest;
use penstock_tests::stack::Place;
use reqwest::Method;
use serde_json::json;

const FLASK_SAMPLE: &str = r#"{"contact":{"id":"123","phone":"+1234567890"},"message":{"messageId":"msg_123","timestamp":1234567890000},"channel":{"id":"ch_123","name":"WhatsApp"}}"#;

#[tokio::test]
async fn every_route_of_both_tenants_receives() {
    let place = Place::new().await;
    let ingest = Ingest::start(&place, &[]).await;
    for tenant in ["faster", "vip"] {
        for stream in ["", "/incoming", "/outgoing", "/lifecycle", "/internal-note"] {
            post_received(&ingest.path(&format!("/webhook/{tenant}{stream}")), FLASK_SAMPLE).await;
        }
    }
    ingest.process.stop().await;
    place.remove().await;
}

#[tokio::test]
async fn unknown_paths_are_404_and_wrong_methods_405() {
    let place = Place::new().await;
    let ingest = Ingest::start(&place, &[]).await;
    for path in [
        "/webhook/nobody",
        "/webhook/nobody/incoming",
        "/webhook/faster/any",
        "/webhook/faster/incoming/x",
        "/x",
    ] {
        let answer = post(&ingest.path(path), "{}").await;
        assert_eq!((answer.status, &answer.body["status"]), (404, &json!("error")), "{path}");
    }
    for (path, method, allow) in [
        ("/webhook/faster", Method::GET, "OPTIONS, POST"),
        ("/webhook/vip/incoming", Method::PUT, "OPTIONS, POST"),
        ("/health", Method::POST, "GET, HEAD, OPTIONS"),
        ("/", Method::DELETE, "GET, HEAD, OPTIONS"),
    ] {
        let answer = send(method, &ingest.path(path), &[], "").await;
        assert_eq!((answer.status, answer.headers["allow"].as_str()), (405, allow), "{path}");
        assert_eq!(answer.body["status"], "error");
        let answer = send(Method::OPTIONS, &ingest.path(path), &[], "").await;
        assert_eq!((answer.status, answer.headers["allow"].as_str()), (204, allow), "{path}");
    }
    assert_eq!(send(Method::OPTIONS, &ingest.path("/nowhere"), &[], "").await.status, 204);
    for path in ["/", "/health"] {
        let answer = send(Method::HEAD, &ingest.path(path), &[], "").await;
        assert_eq!((answer.status, answer.body), (200, json!(null)), "{path}");
    }
    place.remove().await;
}

#[tokio::test]
async fn the_root_names_service_version_and_endpoints() {
    let place = Place::new().await;
    let ingest = Ingest::start(&place, &[]).await;
    let answer = get(&ingest.path("/")).await;
    assert_eq!((answer.status, &answer.body["service"]), (200, &json!("penstock")));
    assert!(answer.body["version"].is_string());
    let endpoints = answer.body["endpoints"].as_array().unwrap();
    assert!(endpoints.contains(&json!("POST /webhook/{tenant}/incoming")));
    place.remove().await;
}

#[tokio::test]
async fn a_message_carries_the_bytes_and_what_is_known_of_them() {
    let place = Place::new().await;
    let ingest = Ingest::start(&place, &[]).await;
    let body = "\u{feff}{ \"event_id\":\"e-1\", \"event_type\":\"message.received\" ,\"x\":\"\\ud83d\"}";
    let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let url = ingest.path("/webhook/vip/outgoing");
    let answer = send(Method::POST, &url, &[("traceparent", traceparent)], body).await;
    assert_eq!((answer.status, answer.body), (200, json!({"status": "received"})));

    let broker = Broker::connect(&place.amqp_url).await;
    let message = broker.next_event("vip").await;
    assert_eq!(message.data, body.as_bytes());
    let key = broker.queue_of("vip", body.as_bytes()).await.routing_key("vip", "message.received");
    assert_eq!((message.exchange.as_str(), message.routing_key.as_str()), ("webhooks", key.as_str()));
    let properties = &message.properties;
    assert_eq!(properties.delivery_mode(), &Some(2));
    assert_eq!(properties.message_id().as_ref().unwrap().as_str(), "e-1");
    assert_eq!(properties.kind().as_ref().unwrap().as_str(), "message.received");
    assert_eq!(header(properties, "tenant").as_deref(), Some("vip"));
    assert_eq!(header(properties, "stream").as_deref(), Some("outgoing"));
    assert_eq!(header(properties, "signature").as_deref(), Some("unsigned"));
    assert_eq!(header(properties, "traceparent").as_deref(), Some(traceparent));
    let received_at_ms: u64 = header(properties, "received_at_ms").unwrap().parse().unwrap();
    assert_eq!(properties.timestamp(), &Some(received_at_ms / 1000));

    let unfit = r#"{"event_type":"no good","n":1}"#;
    post_received(&ingest.path("/webhook/vip"), unfit).await;
    let message = broker.next_event("vip").await;
    let key = broker.queue_of("vip", unfit.as_bytes()).await.routing_key("vip", "unknown");
    assert_eq!(message.routing_key.as_str(), key);
    assert!(message.properties.message_id().as_ref().unwrap().as_str().starts_with("sha256:"));
    assert!(header(&message.properties, "traceparent").is_some());
    place.remove().await;
}

#[tokio::test]
async fn what_nobody_is_bound_for_is_not_lost() {
    let place = Place::new().await;
    let _ingest = Ingest::start(&place, &[]).await;
    let broker = Broker::connect(&place.amqp_url).await;
    broker.publish_event("nobody", "any", 1, b"{}").await;
    assert!(broker.take("unroutable").await.is_some());
    place.remove().await;
}
