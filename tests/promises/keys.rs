//! What keys are for: nobody is believed without one where one is asked for, and only ingest needs them.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use penstock_tests::broker::Broker;
use penstock_tests::http::{Answer, get, send};
use penstock_tests::process::{Ingest, run, run_with_input};
use penstock_tests::stack::Place;
use reqwest::Method;
use serde_json::json;
use sha2::Sha256;

/// The 32 bytes that a key makes of a body.
fn mac(key: &str, body: &str) -> Vec<u8> {
    let mac = Hmac::<Sha256>::new_from_slice(key.as_bytes()).unwrap().chain_update(body);
    mac.finalize().into_bytes().to_vec()
}

async fn post_signed(url: &str, signature: &str, body: &str) -> Answer {
    send(Method::POST, url, &[("x-webhook-signature", signature)], body.to_owned()).await
}

#[tokio::test]
async fn a_policy_for_a_tenant_without_keys_is_refused_and_the_tenant_is_named() {
    let place = Place::new().await;
    for policy in ["quarantine", "reject"] {
        let settings = [("SIGNATURE_POLICY", policy), ("SIGNING_KEYS", "k")];
        for arguments in [&["--check"][..], &[]] {
            let output = run("ingest", &place.folder, arguments, &settings);
            let said = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(64), "{said}");
            assert!(said.starts_with("VIP_SIGNING_KEYS: is not set") && said.lines().count() == 1, "{said}");
        }
    }
    let ingest = Ingest::start(&place, &[("VIP_SIGNING_KEYS", "k")]).await;
    assert!(ingest.process.log_text().contains("tenant faster: signatures are not checked"));
    let health = get(&ingest.path("/health")).await.body;
    assert_eq!(health["signatures"], json!({"faster": "unchecked", "vip": "checked"}));
    place.remove().await;
}

#[tokio::test]
async fn the_right_value_in_another_spelling_is_refused_and_recognised_by_hand() {
    let place = Place::new().await;
    let (settings, body) = ([("SIGNING_KEYS", "first,second")], r#"{"n":1}"#);
    let ingest = Ingest::start(&place, &settings).await;
    let broker = Broker::connect(&place.amqp_url).await;
    let right = mac("second", body);
    for (signature, spelling) in [
        (hex::encode(&right), "hexadecimal"),
        (format!("sha256={}", hex::encode(&right)), "sha256= in front, hexadecimal"),
        (format!("sha256={}", STANDARD.encode(&right)), "sha256= in front"),
        (STANDARD_NO_PAD.encode(&right), "without padding"),
    ] {
        let answer = post_signed(&ingest.path("/webhook/faster"), &signature, body).await;
        assert_eq!(answer.body["reason"], "invalid_signature", "{signature}");
        let arguments = ["verify", "--tenant", "faster", "--signature", &signature];
        let output = run_with_input("ingest", &place.folder, &arguments, &settings, body);
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        let recognised = format!("the right value in another spelling ({spelling}), made by key 2 of faster, form raw");
        assert!(said.contains(&recognised) && !said.contains("second"), "{said}");
    }
    assert_eq!(broker.waiting("faster").await, Some(0));
    place.remove().await;
}
