//! The settings of the console: the worker's, and its own.

use std::collections::BTreeMap;

use shared::env::{Env, Problems};
use shared::host;
use shared::verify::Keys;

use crate::settings::{Purpose, Settings};

/// Shorter tokens can be guessed.
const SHORTEST_TOKEN: usize = 16;
/// Connections to each tenant's MongoDB, at least and at most: pages need few.
const POOL: (u32, u32) = (0, 8);

/// Everything that can be set from outside, checked.
#[derive(Debug)]
pub struct ConsoleSettings {
    /// What a worker reads too.
    pub worker: Settings,
    /// Where the pages are served.
    pub host: String,
    /// Their port.
    pub port: u16,
    /// What an operator has to know to log in; none if a name is enough, which it is on this machine only.
    pub token: Option<Token>,
    /// Whether bodies and what was made of them may be shown.
    pub shows_bodies: bool,
    /// The signing keys of each tenant, as they are now.
    pub keys: BTreeMap<String, Keys>,
}

/// A secret that no log shows.
#[derive(Clone)]
pub struct Token(pub String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

impl ConsoleSettings {
    /// Reads the settings, or reports all that is wrong with them.
    pub fn read(mut env: Env) -> Result<Self, Problems> {
        let worker = Settings::read_from(&mut env);
        let (host, port, token, shows_bodies) = own(&mut env);
        let admin = (worker.admin.0.as_str(), worker.admin.1);
        if host::is_same_port((&host, port), admin) {
            env.warning(
                "CONSOLE_PORT: is the worker's ADMIN_PORT too, so that both can't run on one machine",
            );
        }
        let names = worker.tenants.iter().map(|tenant| tenant.name.clone());
        let keys = names.map(|name| (name.clone(), Keys::read(&mut env, &name))).collect();
        let noticed = env.warnings().to_vec();
        let worker = Settings { noticed, purpose: Purpose::Console, pool: POOL, ..worker };
        env.finish(Self { worker, host, port, token, shows_bodies, keys })
    }

    /// The address of the pages.
    #[must_use]
    pub fn address(&self) -> String {
        host::with_port(&self.host, self.port)
    }
}

/// Reads what only the console reads.
pub fn own(env: &mut Env) -> (String, u16, Option<Token>, bool) {
    let (host, port) = (env.host("CONSOLE_HOST"), env.number("CONSOLE_PORT"));
    let token = env.text("CONSOLE_TOKEN");
    if token.as_ref().is_some_and(|token| token.len() < SHORTEST_TOKEN) {
        env.problem(format!("CONSOLE_TOKEN: is shorter than {SHORTEST_TOKEN} characters"));
    }
    if token.is_none() && !env.is_wrong("CONSOLE_TOKEN") && !host::is_local(&host) {
        env.problem(format!(
            "CONSOLE_TOKEN: is not set, which is possible on this machine only, not on {host}"
        ));
    }
    let bodies = env.text_or_default("CONSOLE_BODIES");
    if !matches!(bodies.as_str(), "on" | "off") {
        env.problem(format!("CONSOLE_BODIES: {bodies:?} is neither on nor off"));
    }
    (host, port, token.map(Token), bodies == "on")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(given: &[(&str, &str)]) -> Result<ConsoleSettings, Problems> {
        let all: Vec<_> = [("MONGO_URI", "mongodb://h/d")].into_iter().chain(given.iter().copied()).collect();
        ConsoleSettings::read(Env::of(&all))
    }

    #[test]
    fn only_this_machine_needs_no_token() {
        let settings = read(&[]).unwrap();
        assert_eq!((settings.address().as_str(), settings.shows_bodies), ("127.0.0.1:9102", true));
        assert!(settings.token.is_none());
        for host in ["0.0.0.0", "::", "10.0.0.1", "console.example"] {
            let problems = read(&[("CONSOLE_HOST", host)]).unwrap_err().problems;
            assert!(problems.len() == 1 && problems[0].starts_with("CONSOLE_TOKEN: "), "{problems:?}");
            assert!(read(&[("CONSOLE_HOST", host), ("CONSOLE_TOKEN", "long enough, it is")]).is_ok());
        }
        assert!(read(&[("CONSOLE_HOST", "::1")]).is_ok());
    }

    #[test]
    fn what_can_be_guessed_or_makes_no_sense_is_refused() {
        for (name, value) in [("CONSOLE_TOKEN", "short"), ("CONSOLE_BODIES", "hidden"), ("CONSOLE_PORT", "x")]
        {
            let problems = read(&[(name, value)]).unwrap_err().problems;
            assert!(problems.len() == 1 && problems[0].starts_with(name), "{problems:?}");
        }
        let settings = read(&[("CONSOLE_BODIES", "off"), ("CONSOLE_TOKEN", "0123456789abcdef")]).unwrap();
        assert!(!settings.shows_bodies && !format!("{settings:?}").contains("0123456789abcdef"));
    }
}
