//! The console in a real browser: each page and action, on a phone and in the dark, with the keyboard alone, and whatever
//! the bodies hold.

use fantoccini::key::Key;
use mongodb::bson::doc;
use penstock_tests::broker::Broker;
use penstock_tests::console::{Console, TOKEN, encoded};
use penstock_tests::database::Database;
use penstock_tests::http::{post_received, send};
use penstock_tests::poll;
use penstock_tests::process::{Ingest, Worker};
use penstock_tests::relay::Fault;
use penstock_tests::stack::Place;
use reqwest::Method;
use serde_json::{Value, json};

use crate::console::{message, rule, signature};

mod window;

use window::{Browser, Screen};

/// Text that would do harm if it weren't text: the attribute's value ends in each of the ways that it may.
const HOSTILE: &str =
    r#"</pre></script>"'><img src=x onerror=ran=1><script>ran=1</script><a href="javascript:ran=1">"#;
const OLD_KEY: &str = "the key of last year";
const NEW_KEY: &str = "the key of this year";

const DESKTOP: Screen = Screen { name: "desktop", width: 1280, is_dark: false };
const SCREENS: [Screen; 4] = [
    DESKTOP,
    Screen { name: "desktop-dark", width: 1280, is_dark: true },
    Screen { name: "phone", width: 320, is_dark: false },
    Screen { name: "phone-dark", width: 320, is_dark: true },
];

/// Everything that runs.
struct Site {
    place: Place,
    ingest: Ingest,
    _worker: Worker,
    database: Database,
    console: Console,
    browser: Browser,
}

impl Site {
    /// Events of two conversations, and two quarantined webhooks of `vip`, of which one verifies by now.
    async fn start() -> Self {
        let place = Place::new().await;
        let ingest = Ingest::start(&place, &[("VIP_SIGNING_KEYS", OLD_KEY)]).await;
        let worker = Worker::start(&place, &[]).await;
        for body in [
            chat("hello", "message.received", "2001", "Hello! Is the green lamp still for sale?"),
            chat("reply", "message.sent", "2002", "It is. Shall I put it aside for you?"),
            chat(HOSTILE, "message.received", HOSTILE, HOSTILE),
            json!({"event_id": "call", "event_type": "call.ended", "call": {"id": "c"}}).to_string(),
        ] {
            post_received(&ingest.path("/webhook/faster"), body).await;
        }
        for key in [NEW_KEY, "a key of somebody else"] {
            let body = chat(key, "message.received", key, HOSTILE);
            let headers = [("x-webhook-signature", &*signature(key, &body))];
            let answer = send(Method::POST, &ingest.path("/webhook/vip"), &headers, body.clone()).await;
            assert_eq!(answer.body["status"], "quarantined");
        }
        let database = Database::of(&place, "faster").await;
        database.until_stored(4).await;
        let console = Console::start(&place, &[("VIP_SIGNING_KEYS", NEW_KEY)]).await;
        let browser = Browser::start(&place).await;
        Self { place, ingest, _worker: worker, database, console, browser }
    }

    /// Makes dead letters.
    async fn dead_letters(&self, keys: &[&str]) {
        rule(&self.database, doc! {"never": 1}).await;
        for key in keys {
            post_received(&self.ingest.path("/webhook/faster"), message(key, key, HOSTILE)).await;
        }
        let broker = Broker::connect(&self.place.amqp_url).await;
        let number = u32::try_from(keys.len()).unwrap();
        poll::until("they are dead", Some(number), async || broker.depth("dead.faster").await).await;
        rule(&self.database, doc! {}).await;
    }

    async fn open(&self, path: &str) {
        self.browser.open(&format!("{}{path}", self.console.url)).await;
    }

    async fn log_in(&self, name: &str) {
        self.open("/login").await;
        enter(&self.browser, name, TOKEN).await;
        self.browser.sees("Webhooks are safe.").await;
    }

    /// Nothing that was sent has run, and the browser has refused nothing.
    async fn is_clean(&self) {
        let ran = self.browser.script("return typeof ran === 'undefined' ? null : ran").await;
        assert_eq!(ran, Value::Null, "in {}", self.browser.path().await);
        let complaints = self.browser.complaints().await;
        // Chromium tells of each answer that is no success.
        let complaints: Vec<_> =
            complaints.into_iter().filter(|words| !words.contains("the server responded with")).collect();
        assert!(complaints.is_empty(), "in {}: {complaints:?}", self.browser.path().await);
    }
}

fn chat(key: &str, event_type: &str, id: &str, text: &str) -> String {
    json!({
        "event_id": key, "event_type": event_type,
        "contact": {"id": 4711, "phone": "+15550100142", "firstName": "Ada", "lastName": HOSTILE},
        "channel": {"id": 5, "name": "WhatsApp"},
        "message": {"messageId": id, "timestamp": 1_791_792_900, "message": {"type": "text", "text": text}},
    })
    .to_string()
}

async fn enter(browser: &Browser, name: &str, token: &str) {
    browser.fill("name", name).await;
    browser.fill("token", token).await;
    browser.press("Log in").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_sees_and_does_everything_in_a_browser() {
    let site = Site::start().await;
    let browser = &site.browser;
    browser.look_at(DESKTOP).await;
    site.open("/t/faster/events?type=call.ended").await;
    enter(browser, "Ada", "no token").await;
    browser.sees("That is not the token.").await;
    enter(browser, "Ada", TOKEN).await;
    browser.comes_to("/t/faster/events?type=call.ended").await;
    browser.counts("tbody tr", 1).await;

    // The overview renews itself.
    browser.press("Penstock").await;
    browser.sees("Webhooks are safe.").await;
    browser.script("window.same = 1").await;
    site.dead_letters(&["dead-1", "dead-2", "dead-3"]).await;
    browser.sees("3 events of faster could not be stored").await;
    assert_eq!(browser.script("return window.same").await, 1, "the page wasn't loaded again");
    browser.press("What to do").await;
    browser.comes_to("/runbook").await;
    let top = "return document.querySelector(':target')?.getBoundingClientRect().top ?? 1e9";
    let is_in_sight = async || browser.script(top).await.as_f64().unwrap() < 900.0;
    poll::until("the procedure is in sight", true, is_in_sight).await;
    site.is_clean().await;

    // An event that a customer asks about.
    browser.press("faster").await;
    browser.fill("contact", "+15550100142").await;
    browser.press("Search").await;
    browser.counts("tbody tr", 3).await;
    browser.press("hello").await;
    browser.sees("Is the green lamp still for sale?").await;
    browser.press("As it was sent").await;
    browser
        .sees(&chat("hello", "message.received", "2001", "Hello! Is the green lamp still for sale?"))
        .await;
    browser.press("Copy").await;
    browser.sees("Copied").await;
    browser.press("+15550100142").await;
    browser.sees("It is. Shall I put it aside for you?").await;
    browser.sees(HOSTILE).await;
    site.is_clean().await;
    for path in ["/t/faster/event", "/t/faster/events"] {
        site.open(&format!("{path}?{}", encoded(&[("key", HOSTILE)]))).await;
        browser.sees(HOSTILE).await;
        site.is_clean().await;
    }

    // Dead letters: one is dropped, the others go back.
    browser.press("Dead letters").await;
    browser.press("dead-2").await;
    browser.sees("DocumentValidationFailure").await;
    browser.sees(&json!(HOSTILE).to_string()).await;
    browser.press("Drop…").await;
    browser.sees("Drop 1 message of faster?").await;
    browser.press("No, back to dead letters").await;
    browser.press("Replay…").await;
    browser.sees("Nothing is selected.").await;
    site.open("/t/faster/dead").await;
    browser.click("tr:nth-child(2) input[type=checkbox]").await;
    browser.press("Drop…").await;
    browser.press("Drop 1 message").await;
    browser.sees("1 dropped.").await;
    browser.press("Back to dead letters").await;
    browser.click("input[value=all]").await;
    browser.press("Replay…").await;
    browser.press("Replay 2 messages").await;
    browser.sees("2 replayed.").await;
    browser.counts("td[data-label=Result]", 2).await;
    site.is_clean().await;
    site.database.until_stored(6).await;

    // A key was wrong, and isn't any more.
    site.open("/t/vip/quarantine").await;
    browser.sees("no: no signing key").await;
    browser.click("input[value=all]").await;
    browser.press("Replay those that verify…").await;
    browser.press("Replay 2 messages").await;
    browser.sees("1 replayed, 1 stay.").await;
    site.is_clean().await;
    browser.press("Log out").await;
    browser.comes_to("/login").await;
    site.open("/").await;
    browser.sees("Log in").await;
    site.place.remove().await;
}

/// An overview that stood still would say for hours that all is well. One that replaced what an operator is
/// about to click would lose the click.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_overview_renews_itself_under_the_operators_hand() {
    let site = Site::start().await;
    let browser = &site.browser;
    browser.look_at(DESKTOP).await;
    let (mongodb, mongo_uri) = site.place.mongo_relay().await;
    let console = Console::start(&site.place, &[("MONGO_URI", &mongo_uri)]).await;
    browser.open(&format!("{}/login", console.url)).await;
    enter(browser, "Ada", TOKEN).await;
    browser.sees("Webhooks are safe.").await;

    // As after a click that opened another tab.
    browser.script("document.querySelector('.card a').focus()").await;
    site.dead_letters(&["dead"]).await;
    browser.sees("An event of faster could not be stored").await;
    assert_eq!(browser.script("return document.activeElement.innerText").await, "faster");

    // The button is down while an answer comes that took some time.
    mongodb.set(Fault::Stall);
    browser.sees("What is stored can't be seen").await;
    browser.hold(".card a").await;
    let count =
        "return performance.getEntriesByType('resource').filter(it => it.name.endsWith('/live')).length";
    let answers = async || browser.script(count).await.as_u64().unwrap();
    let before = answers().await;
    poll::until("the next state comes", true, async || answers().await > before + 1).await;
    browser.let_go().await;
    browser.comes_to("/t/faster/events").await;
    site.place.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_page_is_legible_on_a_phone_and_in_the_dark() {
    let site = Site::start().await;
    let browser = &site.browser;
    site.open("/login?next=/t/vip/events&ended=1").await;
    for screen in SCREENS {
        legible(browser, screen, "login").await;
    }
    site.log_in("Ada").await;
    site.dead_letters(&["dead-1", "dead-2", "a-key-that-is-as-long-as-some-keys-are-0123456789abcdef"]).await;
    let of_hostile = encoded(&[("key", HOSTILE)]);
    for (name, path) in [
        ("overview", "/".to_owned()),
        ("events", "/t/faster/events".to_owned()),
        ("event", "/t/faster/event?key=hello".to_owned()),
        ("event-hostile", format!("/t/faster/event?{of_hostile}")),
        ("absent", "/t/faster/event?key=none".to_owned()),
        ("conversation", "/t/faster/conversation?chat=4711".to_owned()),
        ("dead", "/t/faster/dead".to_owned()),
        ("confirm", "/t/faster/dead/confirm?action=drop&scope=all".to_owned()),
        ("quarantine", "/t/vip/quarantine".to_owned()),
        ("runbook", "/runbook".to_owned()),
        ("none", "/none".to_owned()),
    ] {
        site.open(&path).await;
        for screen in SCREENS {
            legible(browser, screen, name).await;
        }
        site.is_clean().await;
    }
    site.open("/t/faster/dead/confirm?action=drop&scope=all").await;
    browser.press("Drop 3 messages").await;
    legible(browser, SCREENS[2], "result").await;
    site.place.remove().await;
}

async fn legible(browser: &Browser, screen: Screen, name: &str) {
    browser.look_at(screen).await;
    browser.picture(&format!("{name}-{}", screen.name)).await;
    let obstacles = browser.obstacles().await;
    assert!(obstacles.is_empty(), "{name} on {screen:?}: {obstacles:#?}");
}

/// From the login to a dropped dead letter, without a mouse; where the focus is can always be seen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_keyboard_is_enough() {
    let site = Site::start().await;
    site.dead_letters(&["dead-1"]).await;
    let browser = &site.browser;
    browser.look_at(DESKTOP).await;
    site.open("/login?next=/t/faster/dead").await;
    browser.keys("Ada").await;
    browser.keys(&Key::Tab).await;
    browser.keys(TOKEN).await;
    browser.keys(&Key::Enter).await;
    browser.sees("1 of 1 messages.").await;
    tab_to(browser, "Skip to content").await;
    browser.keys(&Key::Enter).await;
    tab_to(browser, "Select dead-1").await;
    browser.keys(" ").await;
    browser.counts("input[type=checkbox]:checked", 1).await;
    tab_to(browser, "Drop…").await;
    browser.keys(&Key::Enter).await;
    browser.sees("Drop 1 message of faster?").await;
    tab_to(browser, "Drop 1 message").await;
    browser.keys(&Key::Enter).await;
    browser.sees("1 dropped.").await;
    site.place.remove().await;
}

/// The words of what has the focus, or of its label, and how its outline is drawn.
const FOCUSED: &str = "const it = document.activeElement;
    return [(it.labels?.[0] ?? it).innerText ?? '', getComputedStyle(it).outlineStyle]";

/// Presses the tabulator until something with these words has the focus.
async fn tab_to(browser: &Browser, words: &str) {
    for _ in 0..40 {
        browser.keys(&Key::Tab).await;
        let focused = browser.script(FOCUSED).await;
        assert_ne!(focused[1], "none", "{} shows that it has the focus", focused[0]);
        if focused[0] == words {
            return;
        }
    }
    panic!("{words:?} can't be reached in {}", browser.path().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_operators_a_session_that_has_ended_and_servers_that_are_down() {
    let site = Site::start().await;
    site.dead_letters(&["dead-1", "dead-2"]).await;
    let browser = &site.browser;
    let (rabbitmq, amqp_url) = site.place.relay().await;
    let (mongodb, mongo_uri) = site.place.mongo_relay().await;
    let settings = [("AMQP_URL", &*amqp_url), ("MONGO_URI", &*mongo_uri)];
    let console = Console::start(&site.place, &settings).await;
    let port = console.url.rsplit_once(':').unwrap().1.to_owned();
    // The same console by two names, of which each has cookies of its own.
    let operators = [("Ada", console.url.clone()), ("Grace", format!("http://localhost:{port}"))];
    for (name, url) in &operators {
        if name == &"Grace" {
            browser.new_tab().await;
        }
        browser.open(&format!("{url}/login?next=/t/faster/dead")).await;
        enter(browser, name, TOKEN).await;
        browser.sees("2 of 2 messages.").await;
        browser.click("input[value=all]").await;
        browser.press("Replay…").await;
        browser.sees("Replay 2 messages of faster?").await;
    }
    browser.press("Replay 2 messages").await;
    browser.sees("2 replayed.").await;
    browser.tab(0).await;
    browser.press("Replay 2 messages").await;
    browser.sees("somebody was faster").await;
    site.database.until_stored(6).await;

    // One tenant's MongoDB is silent: the other pages work.
    browser.open(&format!("{}/", console.url)).await;
    browser.sees("Webhooks are safe.").await;
    mongodb.set(Fault::Stall);
    browser.sees("What is stored can't be seen").await;
    browser.press("faster").await;
    browser.sees("MongoDB did not answer").await;
    browser.press("Dead letters").await;
    browser.sees("0 of 0 messages.").await;
    mongodb.set(Fault::None);
    browser.press("Events").await;
    browser.counts("tbody tr", 6).await;

    // RabbitMQ is gone: what is stored can be read.
    browser.press("Penstock").await;
    browser.sees("Webhooks are safe.").await;
    rabbitmq.set(Fault::Cut);
    browser.sees("reach RabbitMQ").await;
    browser.press("faster").await;
    browser.counts("tbody tr", 6).await;
    browser.press("Dead letters").await;
    browser.sees("RabbitMQ").await;
    rabbitmq.set(Fault::None);
    browser.press("Penstock").await;
    browser.sees("Webhooks are safe.").await;

    // The console starts anew: the session is gone, the page leads to the login by itself, and from there back.
    browser.tab(1).await;
    browser.open(&format!("{}/t/faster/events?type=call.ended", operators[1].1)).await;
    console.process.stop().await;
    let console = Console::start(&site.place, &[&settings[..], &[("CONSOLE_PORT", &port)]].concat()).await;
    browser.tab(0).await;
    browser.sees("Your session has ended.").await;
    browser.tab(1).await;
    browser.reload().await;
    browser.sees("Your session has ended.").await;
    enter(browser, "Grace", TOKEN).await;
    browser.comes_to("/t/faster/events?type=call.ended").await;
    console.process.stop().await;
    site.place.remove().await;
}
