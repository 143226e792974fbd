//! What can't be used is kept; what isn't signed by respond.io isn't trusted.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use penstock_tests::broker::{Broker, header};
use penstock_tests::http::{Answer, metric, post, send};
use penstock_tests::process::Ingest;
use penstock_tests::stack::Place;
use reqwest::Method;
use serde_json::{Value, json};

use crate::documents::sample;

fn quarantined(reason: &str) -> Value {
    json!({"status": "quarantined", "reason": reason})
}

#[tokio::test]
async fn a_body_that_cannot_be_used_is_answered_200_and_kept() {
    let place = Place::new().await;
    let ingest = Ingest::start(&place, &[("MAX_BODY_BYTES", "2000")]).await;
    let broker = Broker::connect(&place.amqp_url).await;
    let (url, deep) =
        (ingest.path("/webhook/faster/incoming"), format!("{}{}", r#"{"a":"#.repeat(129), "}".repeat(129)));
    let large = format!("{{\"a\":\"{}\"}}", "x".repeat(100_000));
    for (body, reason) in [
        ("", "empty_body"),
        ("{\"a\":", "invalid_json"),
        ("[{\"event_type\":\"message.received\"}]", "not_an_object"),
        (deep.as_str(), "too_deep"),
        (large.as_str(), "body_too_large"),
    ] {
        let answer = post(&url, body.to_owned()).await;
        assert_eq!((answer.status, answer.body), (200, quarantined(reason)));
        let evidence = broker.next("quarantine.faster").await;
        assert_eq!(header(&evidence.properties, "reason").as_deref(), Some(reason));
        assert_eq!(header(&evidence.properties, "body_bytes"), Some(body.len().to_string()));
        assert!(
            body.as_bytes().starts_with(&evidence.data) && evidence.data.len() == body.len().min(64 << 10)
        );
        let labels = [("tenant", "faster"), ("reason", reason)];
        assert_eq!(metric(&ingest.admin, "ingest_quarantined_total", &labels).await, Some(1.0));
    }
    let answer = send(Method::POST, &url, &[("content-encoding", "gzip")], "{}").await;
    assert_eq!((answer.status, answer.body), (200, quarantined("unsupported_encoding")));
    let invalid_utf8 = post(&url, b"{\"a\":\"\xff\"}".to_vec()).await;
    assert_eq!(invalid_utf8.body, quarantined("invalid_json"));
    assert_eq!(broker.waiting("faster").await, Some(0));
    place.remove().await;
}

#[tokio::test]
async fn every_form_of_signature_seen_in_the_field_is_accepted() {
    let place = Place::new().await;
    let cases: Value = serde_json::from_slice(&sample("signature")).unwrap();
    let keys: Vec<&str> = cases["keys"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let keys = keys.join(",");
    let settings = [("VIP_SIGNING_KEYS", keys.as_str())];
    let ingest = Ingest::start(&place, &settings).await;
    let broker = Broker::connect(&place.amqp_url).await;
    let url = ingest.path("/webhook/vip");
    let mut checked = 0;
    for case in cases["cases"].as_array().unwrap() {
        let body = sample(case["file"].as_str().unwrap().trim_end_matches(".json"));
        let same = case["reserialised_equals_raw"] == true;
        for (form, name) in [
            ("utf8_key_raw", "raw"),
            ("base64_key_raw", "raw_decoded_key"),
            ("utf8_key_reserialised", if same { "raw" } else { "reserialised" }),
            ("base64_key_reserialised", if same { "raw_decoded_key" } else { "reserialised_decoded_key" }),
        ] {
            let Some(signature) = case[form].as_str() else { continue };
            let answer = signed(&url, signature, body.clone()).await;
            assert_eq!((answer.status, answer.body), (200, json!({"status": "received"})), "{form}");
            let mut message = broker.next_event("vip").await;
            // Where RabbitMQ is slow to confirm, one comes through the spool, too.
            while header(&message.properties, "signature").as_deref() != Some(name) {
                println!("{form}: not yet {name}");
                message = broker.next_event("vip").await;
            }
            checked += 1;
        }
    }
    assert_eq!(checked, 22);

    let wrong = signed(&url, &STANDARD.encode([7; 32]), sample("ping")).await;
    assert_eq!((wrong.status, wrong.body), (200, quarantined("invalid_signature")));
    let missing = post(&url, sample("ping")).await;
    assert_eq!((missing.status, missing.body), (200, quarantined("missing_signature")));
    for reason in ["invalid_signature", "missing_signature"] {
        let evidence = broker.next("quarantine.vip").await;
        assert_eq!(header(&evidence.properties, "reason").as_deref(), Some(reason));
        assert_eq!(evidence.data, sample("ping"));
    }
    place.remove().await;
}

#[tokio::test]
async fn the_policy_decides_what_becomes_of_the_unsigned() {
    let place = Place::new().await;
    let settings = [("FASTER_SIGNING_KEYS", "k"), ("SIGNATURE_POLICY", "reject"), ("TENANTS", "faster")];
    let ingest = Ingest::start(&place, &settings).await;
    let rejected = post(&ingest.path("/webhook/faster"), "{}").await;
    assert_eq!((rejected.status, &rejected.body["reason"]), (401, &json!("missing_signature")));

    let off = Ingest::start(&place, &[("SIGNING_KEYS", "k"), ("SIGNATURE_POLICY", "off")]).await;
    assert_eq!(post(&off.path("/webhook/faster"), "{}").await.body, json!({"status": "received"}));
    assert!(off.process.log_text().contains("signatures are not checked"));
    place.remove().await;
}

async fn signed(url: &str, signature: &str, body: Vec<u8>) -> Answer {
    send(Method::POST, url, &[("x-webhook-signature", signature)], body).await
}
