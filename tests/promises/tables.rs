//! Whatever lists things has a heading, and says "none" where there are none.

use penstock_tests::process::{Worker, operate, operate_well};
use penstock_tests::stack::Place;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_have_a_heading_and_say_none() {
    let place = Place::new().await;
    let worker = Worker::start(&place, &[]).await;
    for list in
        [["dead", "list"], ["dead", "show"], ["quarantine", "list"], ["events", "list"], ["events", "show"]]
    {
        assert_eq!(operate_well(&place, &list).out, "none\n", "{list:?}");
    }
    for (arguments, heading) in [
        (&["doctor"][..], "VERDICT WHAT FOUND"),
        (&["settings"], "SETTING VALUE FROM"),
        (
            &["reconcile"],
            "TENANT ACCEPTED STORED BACKFILLED QUEUED IN WORKERS IN SPOOLS DEAD QUARANTINED UNROUTABLE MISSING",
        ),
    ] {
        let said = operate(&place, arguments).out;
        let first = said.lines().next().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(first, heading, "{arguments:?}: {said}");
        assert!(said.lines().count() > 1, "{arguments:?}: {said}");
    }
    worker.process.stop().await;
    place.remove().await;
}
