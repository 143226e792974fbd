//! Signing keys: if a tenant has keys, an event needs a good signature; only ingest needs the keys.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use penstock_tests::broker::Broker;
use penstock_tests::database::Database;
use penstock_tests::http::{Answer, get, send};
use penstock_tests::process::{Ingest, Worker, operate_with, run, run_with_input, until_idle};
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
        let recognised =
            format!("the right value in another spelling ({spelling}), made by key 2 of faster, form raw");
        assert!(said.contains(&recognised) && !said.contains("second"), "{said}");
    }
    assert_eq!(broker.waiting("faster").await, Some(0));
    place.remove().await;
}

#[tokio::test]
async fn what_has_leaked_allows_no_more_than_security_md_says() {
    let place = Place::new().await;
    let settings = [("SIGNING_KEYS", "leaked,other"), ("VIP_SIGNING_KEYS", "of vip")];
    let (ingest, worker) = (Ingest::start(&place, &settings).await, Worker::start(&place, &[]).await);
    let (database, broker) = (Database::of(&place, "faster").await, Broker::connect(&place.amqp_url).await);
    let (faster, vip) = (ingest.path("/webhook/faster"), ingest.path("/webhook/vip"));
    let contact = |event: &str, name: &str| {
        json!({"event_id": event, "event_type": "contact.updated", "contact": {"id": 1, "firstName": name}})
            .to_string()
    };
    let (captured, later) = (contact("1", "Ann"), contact("2", "Anne"));
    let signature = STANDARD.encode(mac("other", &captured));
    for (body, stored) in [(&captured, 1), (&later, 2), (&captured, 2)] {
        let signature = STANDARD.encode(mac("other", body));
        assert_eq!(post_signed(&faster, &signature, body).await.body["status"], "received");
        database.until_stored(stored).await;
    }
    until_idle(&broker, &[&worker]).await;
    assert_eq!(database.count("webhook_events").await, 2);
    assert_eq!(
        database.get("contacts", "1").await.get_str("firstName").unwrap(),
        "Anne",
        "not the one sent again"
    );

    // A signature fits its body alone, a body needs one, and neither is believed at another tenant.
    for (url, signature, body, reason) in [
        (&faster, signature.as_str(), &later, "invalid_signature"),
        (&vip, &signature, &captured, "invalid_signature"),
        (&faster, "", &captured, "missing_signature"),
    ] {
        assert_eq!(post_signed(url, signature, body).await.body["reason"], reason);
    }

    // A key signs whatever its owner likes, for its tenant, until it is removed.
    let forged = contact("3", "Mallory");
    let signature = STANDARD.encode(mac("leaked", &forged));
    assert_eq!(post_signed(&vip, &signature, &forged).await.body["reason"], "invalid_signature");
    assert_eq!(post_signed(&faster, &signature, &forged).await.body["status"], "received");
    ingest.process.stop().await;
    let without = Ingest::start(&place, &[("SIGNING_KEYS", "other")]).await;
    let answer = post_signed(&without.path("/webhook/faster"), &signature, &contact("4", "Mallory")).await;
    assert_eq!(answer.body["reason"], "invalid_signature");
    worker.process.stop().await;
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_worker_needs_a_senders_key_but_to_verify_again() {
    let place = Place::new().await;
    let ingest = Ingest::start(&place, &[("SIGNING_KEYS", "right")]).await;
    let gone = [("SIGNING_KEYS_FILE", "/nowhere/at/all")];
    let worker = Worker::start(&place, &gone).await;
    let (url, body) = (ingest.path("/webhook/faster"), r#"{"event_id":"1"}"#);
    assert_eq!(
        post_signed(&url, &STANDARD.encode(mac("right", body)), body).await.body["status"],
        "received"
    );
    Database::of(&place, "faster").await.until_stored(1).await;
    assert_eq!(post_signed(&url, "wrong", r#"{"event_id":"2"}"#).await.body["reason"], "invalid_signature");

    let named = ["--tenant", "faster"];
    for command in [
        &["dead", "list"][..],
        &["quarantine", "list"],
        &["quarantine", "replay", "--unverified", "--dry-run"],
    ] {
        let answer = operate_with(&place, &[command, &named].concat(), &gone);
        assert_eq!(answer.status, 0, "{command:?}: {}", answer.errors);
    }
    let again = [&["quarantine", "replay", "--reverify"][..], &named].concat();
    let answer = operate_with(&place, &again, &gone);
    assert!(answer.status == 64 && answer.errors.starts_with("SIGNING_KEYS_FILE: "), "{}", answer.errors);
    let answer = operate_with(&place, &again, &[]);
    assert!(
        answer.status == 64
            && answer.errors.contains("--reverify, the default, needs the keys of tenant faster"),
        "{}",
        answer.errors
    );
    assert_eq!(operate_with(&place, &again, &[("SIGNING_KEYS", "right")]).status, 0);
    worker.process.stop().await;
    place.remove().await;
}
