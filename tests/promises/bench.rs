//! The benchmark tells how fast any server with these endpoints is.

use penstock_tests::process::{Ingest, run};
use penstock_tests::stack::Place;
use serde_json::Value;

/// The benchmark against this URL: its exit status, and what it has found.
fn measure(place: &Place, url: &str, folder: &str) -> (Option<i32>, Value) {
    let arguments = ["--url", url, "--quick", "--out", folder];
    let output = run("penstock-bench", &place.folder, &arguments, &[]);
    let text = std::fs::read_to_string(place.folder.join(folder).join("bench.json")).unwrap_or_default();
    (output.status.code(), serde_json::from_str(&text).unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn any_server_with_these_endpoints_can_be_measured() {
    let place = Place::new().await;
    let ingest = Ingest::start(&place, &[]).await;
    let (status, found) = tokio::task::block_in_place(|| measure(&place, &ingest.url, "well"));
    assert_eq!(status, Some(0), "{found}");
    let figures = found["figures"].as_array().expect("figures").clone();
    let value = |name: &str| {
        let figure = figures.iter().find(|figure| figure["name"].as_str().unwrap().contains(name));
        figure.and_then(|figure| figure["value"].as_f64()).unwrap_or_else(|| panic!("{name}: {found}"))
    };
    assert!(value("at the same time") > 0.0, "{found}");
    assert!(value("accepted, of what was due") > 99.0, "{found}");
    assert!(place.folder.join("well/bench.md").exists());

    // What isn't answered as a bridge would doesn't count.
    let (_, found) =
        tokio::task::block_in_place(|| measure(&place, &format!("{}/health", ingest.url), "ill"));
    let figures = found["figures"].as_array().expect("figures").clone();
    assert_eq!(figures[0]["value"], 0.0, "{found}");
    ingest.process.stop().await;
    place.remove().await;
}
