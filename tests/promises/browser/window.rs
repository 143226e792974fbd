//! Chromium, used as a person would use it.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fantoccini::actions::{
    InputSource, KeyAction, KeyActions, MOUSE_BUTTON_LEFT, MouseActions, PointerAction,
};
use fantoccini::wd::WebDriverCompatibleCommand;
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use penstock_tests::poll;
use penstock_tests::stack::Place;
use reqwest::{Method, Url};
use serde_json::{Value, json};

/// Finds what a person would stumble over in a page.
const EXAMINE: &str = include_str!("examine.js");

/// A browser window.
#[derive(Debug)]
pub struct Browser {
    window: Client,
    // Chromium ends with it.
    _driver: Driver,
}

/// How a page is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Screen {
    /// Its name.
    pub name: &'static str,
    /// In CSS pixels.
    pub width: u32,
    /// Whether the person prefers dark colours.
    pub is_dark: bool,
}

impl Browser {
    /// Starts one, with a profile of its own.
    pub async fn start(place: &Place) -> Self {
        let driver = Driver::start(&place.folder).await;
        let profile = format!("--user-data-dir={}", driver.folder.join("profile").display());
        // By the pipe Chromium notices that its driver is gone.
        let mut arguments =
            vec!["--headless=new", "--remote-debugging-pipe", "--disable-dev-shm-usage", &profile];
        if std::fs::metadata("/proc/self").expect("Linux").uid() == 0 {
            arguments.push("--no-sandbox");
        }
        let wanted =
            json!({"goog:chromeOptions": {"args": arguments}, "goog:loggingPrefs": {"browser": "ALL"}});
        let wanted = wanted.as_object().cloned().expect("an object");
        let mut builder = ClientBuilder::new(HttpConnector::new());
        let window = builder.capabilities(wanted).connect(&driver.url).await.expect("Chromium starts");
        Self { window, _driver: driver }
    }

    /// Goes to an address.
    pub async fn open(&self, url: &str) {
        self.window.goto(url).await.unwrap_or_else(|error| panic!("{url}: {error}"));
    }

    /// Goes to the same page once more.
    pub async fn reload(&self) {
        self.window.refresh().await.expect("a page");
    }

    /// Opens another tab and goes there.
    pub async fn new_tab(&self) {
        let tab = self.window.new_window(true).await.expect("a tab");
        self.window.switch_to_window(tab.handle).await.expect("a tab");
    }

    /// Goes to a tab, by its number.
    pub async fn tab(&self, number: usize) {
        let tabs = self.window.windows().await.expect("tabs");
        self.window.switch_to_window(tabs[number].clone()).await.expect("a tab");
    }

    /// The path and query of the page.
    pub async fn path(&self) -> String {
        let url = self.window.current_url().await.expect("an address");
        url.query().map_or_else(|| url.path().to_owned(), |query| format!("{}?{query}", url.path()))
    }

    /// Waits until this is the path and query of the page.
    pub async fn comes_to(&self, path: &str) {
        poll::until("the page is there", path.to_owned(), async || self.path().await).await;
    }

    /// Waits until the page shows these words, without loading it again.
    pub async fn sees(&self, words: &str) {
        // While one page follows another, there may be none.
        let text = async || {
            let text = self.window.execute("return document.body.innerText", Vec::new()).await;
            text.ok().and_then(|text| Some(text.as_str()?.to_owned())).unwrap_or_default()
        };
        poll::until(words, true, async || text().await.contains(words)).await;
    }

    /// Waits until the page has so many elements of a kind.
    pub async fn counts(&self, css: &str, number: usize) {
        let count = async || self.window.find_all(Locator::Css(css)).await.map_or(0, |found| found.len());
        poll::until(css, number, count).await;
    }

    /// Clicks the first element of a kind, as soon as there is one.
    pub async fn click(&self, css: &str) {
        self.click_on(css, Locator::Css(css)).await;
    }

    /// Clicks the first button or link with these words, as soon as there is one.
    pub async fn press(&self, words: &str) {
        let path = format!("//*[(self::a or self::button or self::summary) and normalize-space()='{words}']");
        self.click_on(words, Locator::XPath(&path)).await;
    }

    // What is found may be replaced before it is clicked, as a part that renews itself is.
    async fn click_on(&self, what: &str, locator: Locator<'_>) {
        let click = async || self.window.find(locator).await?.click().await;
        poll::until(what, None, async || click().await.err().map(|error| error.to_string())).await;
    }

    /// Puts the mouse on the first element of a kind and presses its button.
    pub async fn hold(&self, css: &str) {
        let element = self.window.find(Locator::Css(css)).await.expect("an element");
        let there = PointerAction::MoveToElement { element, duration: None, x: 0.0, y: 0.0 };
        self.mouse(&[there, PointerAction::Down { button: MOUSE_BUTTON_LEFT }]).await;
    }

    /// Lets the mouse's button go.
    pub async fn let_go(&self) {
        self.mouse(&[PointerAction::Up { button: MOUSE_BUTTON_LEFT }]).await;
    }

    async fn mouse(&self, actions: &[PointerAction]) {
        let mouse = MouseActions::new("mouse".to_owned());
        let actions = actions.iter().cloned().fold(mouse, MouseActions::then);
        self.window.perform_actions(actions).await.expect("a mouse");
    }

    /// Writes into the first field of this name, in the place of what is there, as soon as there is one.
    pub async fn fill(&self, name: &str, text: &str) {
        let css = format!("input[name={name}]:not([type=hidden])");
        let write = async || {
            let field = self.window.find(Locator::Css(&css)).await?;
            field.clear().await?;
            field.send_keys(text).await
        };
        poll::until(&css, None, async || write().await.err().map(|error| error.to_string())).await;
    }

    /// Presses keys, wherever the focus is.
    pub async fn keys(&self, keys: &str) {
        let press =
            |keys: KeyActions, value| keys.then(KeyAction::Down { value }).then(KeyAction::Up { value });
        let pressed = keys.chars().fold(KeyActions::new("keyboard".to_owned()), press);
        self.window.perform_actions(pressed).await.expect("a keyboard");
    }

    /// Runs a script in the page and gives its answer.
    pub async fn script(&self, script: &str) -> Value {
        let answer = self.window.execute(script, Vec::new()).await;
        answer.unwrap_or_else(|error| panic!("{script}: {error}"))
    }

    /// Looks at pages in this way from now on, also at the one that is open.
    pub async fn look_at(&self, screen: Screen) {
        let colours = if screen.is_dark { "dark" } else { "light" };
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": colours}]});
        // As on a phone the page decides how wide it is.
        let size = json!({"width": screen.width, "height": 900, "deviceScaleFactor": 1, "mobile": screen.width < 600});
        for (command, values) in
            [("Emulation.setEmulatedMedia", media), ("Emulation.setDeviceMetricsOverride", size)]
        {
            self.order(command, values).await;
        }
    }

    /// What a person would stumble over in this page: what is too wide, too pale, or has no name.
    pub async fn obstacles(&self) -> Vec<String> {
        let found = self.script(EXAMINE).await;
        found.as_array().expect("a list").iter().map(Value::to_string).collect()
    }

    /// What the browser has complained about since it was asked last, such as a violated policy.
    pub async fn complaints(&self) -> Vec<String> {
        let log = self.say("se/log", json!({"type": "browser"})).await;
        let message = |entry: &Value| entry["message"].as_str().expect("a message").to_owned();
        log.as_array().expect("a list").iter().map(message).collect()
    }

    /// Keeps a picture of the whole page in the folder `PENSTOCK_PICTURES`, if there is one.
    pub async fn picture(&self, name: &str) {
        let Ok(folder) = std::env::var("PENSTOCK_PICTURES") else { return };
        let values = json!({"captureBeyondViewport": true});
        let answer = self.order("Page.captureScreenshot", values).await;
        let png = STANDARD.decode(answer["data"].as_str().expect("a picture")).expect("a picture");
        std::fs::write(Path::new(&folder).join(format!("{name}.png")), png).expect("a folder");
    }

    /// Has Chromium do what no WebDriver can.
    async fn order(&self, command: &str, values: Value) -> Value {
        self.say("goog/cdp/execute", json!({"cmd": command, "params": values})).await
    }

    async fn say(&self, path: &'static str, body: Value) -> Value {
        self.window.issue_cmd(Chromiums { path, body }).await.expect("Chromium obeys")
    }
}

/// A command of Chromium's own.
#[derive(Debug)]
struct Chromiums {
    path: &'static str,
    body: Value,
}

impl WebDriverCompatibleCommand for Chromiums {
    fn endpoint(&self, driver: &Url, session: Option<&str>) -> Result<Url, <Url as FromStr>::Err> {
        driver.join(&format!("session/{}/{}", session.unwrap_or_default(), self.path))
    }

    fn method_and_body(&self, _: &Url) -> (Method, Option<String>) {
        (Method::POST, Some(self.body.to_string()))
    }
}

/// `chromedriver`, on a port of its choice. Killed when dropped.
#[derive(Debug)]
struct Driver {
    process: Child,
    folder: PathBuf,
    url: String,
}

impl Driver {
    async fn start(place: &Path) -> Self {
        let folder = place.join(format!("browser-{:08x}", fastrand::u32(..)));
        std::fs::create_dir(&folder).expect("a folder for the browser");
        let log = folder.join("log");
        // The kernel kills it when the test's thread ends, even if nothing of ours is left to do so.
        let process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "chromedriver", "--port=0"])
            .env("HOME", &folder)
            .stdin(Stdio::null())
            .stdout(File::create(&log).expect("a log file"))
            .spawn()
            .expect("chromedriver starts: tests/run installs it");
        let mut driver = Self { process, folder, url: String::new() };
        let port = || {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            text.split_once("successfully on port ")?.1.split('.').next().map(str::to_owned)
        };
        poll::until("chromedriver listens", true, async || port().is_some()).await;
        driver.url = format!("http://127.0.0.1:{}", port().expect("a port"));
        driver
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
