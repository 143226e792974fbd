//! A publisher gets the result of each message, whatever happens to other publishers' messages.

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use lapin::BasicProperties;
use penstock_tests::broker::Broker;
use penstock_tests::poll;
use penstock_tests::relay::Fault;
use penstock_tests::stack::Place;
use reqwest::Method;
use serde_json::json;
use shared::address::Address;
use shared::amqp::{Link, Purpose};
use shared::env::Env;
use shared::publisher::{Message, PublishError, Publisher};
use shared::topology::WEBHOOKS_EXCHANGE;
use tokio::task::unconstrained;

/// Longer than any confirm takes.
const PATIENCE: Duration = Duration::from_secs(30);

async fn publisher(url: &str) -> Publisher {
    let tenants = ["faster".to_owned(), "vip".to_owned()].into();
    let purpose = Purpose::Publish { channels: 2 };
    let address = Address::read(&mut Env::of(&[("AMQP_URL", url)]));
    let link = Link::start(address, "test", purpose, tenants, 1);
    poll::until("connected", true, async || link.is_up()).await;
    Publisher::new(link, 1000)
}

fn message(tenant: &str) -> Message {
    let key = format!("{tenant}.0.contact.created");
    Message::new(WEBHOOKS_EXCHANGE, key, BasicProperties::default(), "{}").unwrap()
}

async fn depth(broker: &Broker, tenant: &str) -> u32 {
    broker.depth(&format!("webhooks.{tenant}.0")).await.expect("the queue exists")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_publisher_is_told_of_its_own_message_while_others_are_refused_or_leave() {
    let place = Place::new().await;
    let publisher = publisher(&place.amqp_url).await;
    let broker = Broker::connect(&place.amqp_url).await;
    let small =
        json!({"pattern": "^webhooks\\.faster", "definition": {"max-length": 20}, "apply-to": "queues"});
    place.manage(Method::PUT, &format!("policies/{}/small", place.name), Some(small)).await;
    let is_refused = async || broker.is_refused(WEBHOOKS_EXCHANGE, "faster.0.contact.created").await;
    poll::until("the queue is full", true, is_refused).await;
    let before = depth(&broker, "faster").await;
    let told = join_all((0..800).map(|n| {
        let publisher = &publisher;
        async move {
            match n % 4 {
                0 | 2 => Some(("faster", publisher.publish(message("faster"), PATIENCE).await)),
                1 => Some(("vip", publisher.publish(message("vip"), PATIENCE).await)),
                // Leaves when the message has its place, before the confirm.
                _ => {
                    let publish = unconstrained(publisher.publish(message("vip"), PATIENCE));
                    publish.now_or_never().map(|outcome| ("vip", outcome))
                }
            }
        }
    }));
    let told: Vec<_> = told.await.into_iter().flatten().collect();
    let outcomes = |tenant| told.iter().filter(move |told| told.0 == tenant).map(|told| &told.1);
    assert_eq!(outcomes("vip").count(), 200, "the others have left");
    assert!(outcomes("vip").all(Result::is_ok));
    assert!(outcomes("faster").all(|outcome| matches!(outcome, Err(PublishError::Nacked))));
    poll::until("nothing is in flight", 0, async || publisher.in_flight()).await;
    assert_eq!((depth(&broker, "vip").await, depth(&broker, "faster").await), (400, before));
    publisher.close(PATIENCE).await;
    place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_keeps_its_place_until_a_late_confirm_or_the_end_of_the_connection() {
    let place = Place::new().await;
    let (relay, url) = place.relay().await;
    let publisher = publisher(&url).await;
    relay.set(Fault::Stall);
    let outcome = publisher.publish(message("vip"), Duration::from_millis(50)).await;
    assert!(matches!(outcome, Err(PublishError::TimedOut)), "{outcome:?}");
    assert_eq!(publisher.in_flight(), 1);
    relay.set(Fault::None);
    poll::until("it is confirmed", 0, async || publisher.in_flight()).await;
    assert_eq!(depth(&Broker::connect(&place.amqp_url).await, "vip").await, 1);

    relay.set(Fault::Stall);
    let waiting = join_all((0..100).map(|_| publisher.publish(message("vip"), PATIENCE)));
    let cut = async {
        poll::until("all are in flight", 100, async || publisher.in_flight()).await;
        relay.set(Fault::Cut);
    };
    let (outcomes, ()) = tokio::join!(waiting, cut);
    let lost = |outcome: &_| matches!(outcome, Err(PublishError::Lost | PublishError::Failed(_)));
    assert!(outcomes.iter().all(lost), "{outcomes:?}");
    poll::until("nothing is in flight", 0, async || publisher.in_flight()).await;
    place.remove().await;
}
