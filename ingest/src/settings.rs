//! The settings of ingest.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use shared::address::Address;
use shared::env::{Env, Problems};
use shared::setting::Binary;
use shared::traces::Export;
use shared::verify::Keys;
use shared::{host, partition, shutdown, tenant};

use crate::STOPPING;

/// Everything that can be set from outside, checked.
#[derive(Debug)]
pub struct Settings {
    /// Where RabbitMQ is.
    pub rabbitmq: Address,
    /// Address of the public port.
    pub public: (String, u16),
    /// Address of the admin port.
    pub admin: (String, u16),
    /// The tenants served, each with how its signatures are checked.
    pub tenants: BTreeMap<String, Signing>,
    /// Partitions of each tenant's work.
    pub partitions: u16,
    /// Shown by `/health`; the workers use it.
    pub test_mode: bool,
    /// Largest body accepted, in bytes.
    pub max_body_bytes: usize,
    /// Longest wait for RabbitMQ's confirm.
    pub publish_timeout: Duration,
    /// Folder of the spool, for this process alone.
    pub spool_dir: PathBuf,
    /// Most bytes in the spool.
    pub spool_max_bytes: u64,
    /// Refusals that are harmless within [`Settings::refusal_window`].
    pub refusal_budget: usize,
    /// The time over which respond.io counts errors.
    pub refusal_window: Duration,
    /// Evidence that is kept at once, and a second from then on, per tenant.
    pub quarantine: (u32, u32),
    /// Shown by `/health` while no worker has told its own.
    pub breaker_threshold: u32,
    /// How long a connection may be idle.
    pub keep_alive: Duration,
    /// How long a stopping ingest keeps serving, unready, so that load balancers notice.
    pub drain_delay: Duration,
    /// How much longer it may take to drain the spool when stopping.
    pub spare_grace: Duration,
    /// Where traces go.
    pub traces: Export,
    /// Warnings about the settings.
    pub noticed: Vec<String>,
    /// Where the settings come from, and which have their default.
    pub origins: Vec<String>,
}

/// What to do with a webhook without a good signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// It is answered 200 and set aside.
    Quarantine,
    /// It is answered 401.
    Reject,
    /// Nobody looks.
    Off,
}

impl Policy {
    /// The policy with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "quarantine" => Some(Self::Quarantine),
            "reject" => Some(Self::Reject),
            "off" => Some(Self::Off),
            _ => None,
        }
    }
}

impl Policy {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Quarantine => "quarantine",
            Self::Reject => "reject",
            Self::Off => "off",
        }
    }
}

/// How a tenant's signatures are checked.
#[derive(Debug)]
pub struct Signing {
    /// What to do with a webhook without a good signature.
    pub policy: Policy,
    /// The keys of the tenant's webhooks.
    pub keys: Keys,
}

impl Settings {
    /// Reads the settings, or reports everything that is wrong with them.
    pub fn read(mut env: Env) -> Result<Self, Problems> {
        let settings = Self::read_from(&mut env);
        env.finish(settings)
    }

    /// Reads the settings; `env` collects what is wrong with them.
    pub fn read_from(env: &mut Env) -> Self {
        env.read_by(Binary::Ingest);
        let drain_delay = env.duration("DRAIN_DELAY");
        let names = tenant::served(env);
        let policy = policy(env);
        let tenants = names.iter().map(|name| (name.clone(), Signing::read(env, name, policy)));
        let mut settings = Self {
            tenants: tenants.collect(),
            rabbitmq: Address::read(env),
            public: (env.host("HOST"), env.number("PORT")),
            admin: (env.host("ADMIN_HOST"), env.number("ADMIN_PORT")),
            test_mode: env.flag("TEST_MODE"),
            partitions: partition::partitions(env),
            max_body_bytes: env.number("MAX_BODY_BYTES"),
            publish_timeout: env.duration("PUBLISH_TIMEOUT"),
            spool_dir: env.text_or_default("SPOOL_DIR").into(),
            spool_max_bytes: env.number("SPOOL_MAX_BYTES"),
            refusal_budget: env.number("REFUSAL_BUDGET"),
            refusal_window: env.duration("REFUSAL_WINDOW"),
            quarantine: (env.number("QUARANTINE_BURST"), env.number("QUARANTINE_RATE")),
            breaker_threshold: env.number("CIRCUIT_BREAKER_THRESHOLD"),
            keep_alive: env.duration("KEEP_ALIVE"),
            drain_delay,
            spare_grace: shutdown::spare_grace(env, drain_delay + STOPPING, "DRAIN_DELAY"),
            traces: Export::read(env),
            noticed: Vec::new(),
            origins: Vec::new(),
        };
        let [public, admin] = [&settings.public, &settings.admin].map(|(host, port)| (host.as_str(), *port));
        if host::is_same_port(public, admin) && !env.is_wrong("PORT") {
            env.problem("ADMIN_PORT: is the public port too");
        }
        env.warn_of_similar_names(&names);
        settings.noticed = env.warnings().to_vec();
        settings.origins = env.origins(&["AMQP_URL", "SPOOL_DIR"]);
        settings
    }

    /// What is in force, a line each.
    #[must_use]
    pub fn in_force(&self) -> Vec<String> {
        let tenants = self
            .tenants
            .iter()
            .map(|(name, signing)| format!("tenant {name}: signatures {}", signing.policy.name()));
        let limits = format!(
            "limits: bodies of {} bytes, a spool of {} bytes, {} refusals in {}s",
            self.max_body_bytes,
            self.spool_max_bytes,
            self.refusal_budget,
            self.refusal_window.as_secs()
        );
        let (rabbitmq, spool) = (self.rabbitmq.shown(), self.spool_dir.display());
        let version = concat!("ingest ", env!("CARGO_PKG_VERSION")).to_owned();
        let places = [format!("RabbitMQ: {rabbitmq}"), format!("spool: {spool}")];
        let lines = [version].into_iter().chain(self.origins.iter().cloned()).chain(places);
        lines.chain(tenants).chain([limits]).collect()
    }

    /// The tenants whose signatures nobody checks.
    pub fn unchecked(&self) -> impl Iterator<Item = &String> {
        self.tenants.iter().filter(|(_, signing)| signing.policy == Policy::Off).map(|(tenant, _)| tenant)
    }

    /// Warnings.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let unchecked = self.unchecked().map(|tenant| {
            format!("tenant {tenant}: signatures are not checked: anybody who knows the URL can send events")
        });
        self.noticed.iter().cloned().chain(unchecked).chain(self.rabbitmq.exposed()).collect()
    }
}

/// `SIGNATURE_POLICY`, if it is set.
fn policy(env: &mut Env) -> Option<Policy> {
    let text = env.text("SIGNATURE_POLICY")?;
    let policy = Policy::from_name(&text.to_ascii_lowercase());
    if policy.is_none() {
        env.problem(format!("SIGNATURE_POLICY: {text:?} is none of quarantine, reject and off"));
    }
    policy
}

impl Signing {
    fn read(env: &mut Env, tenant: &str, policy: Option<Policy>) -> Self {
        let keys = Keys::read(env, tenant);
        if !keys.is_empty() {
            return Self { policy: policy.unwrap_or(Policy::Quarantine), keys };
        }
        let names = tenant::setting_names(tenant, "SIGNING_KEYS");
        let spelled = tenant::spelled(env, tenant, "SIGNING_KEYS");
        if names.iter().any(|name| env.is_given(name)) {
            // No second problem if the file with the keys can't be read.
            if !env.is_wrong(&spelled) {
                env.problem(format!("{spelled}: names no key"));
            }
        } else if matches!(policy, Some(Policy::Quarantine | Policy::Reject)) {
            env.problem(format!(
                "{spelled}: is not set, but SIGNATURE_POLICY wants the webhooks of tenant {tenant} to be signed; \
                 set it, or leave {tenant} out of TENANTS"
            ));
        }
        // Nothing could be verified; start-up and /health warn about it.
        Self { policy: Policy::Off, keys }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flask_bridges_settings_are_enough() {
        let settings = Settings::read(Env::of(&[
            ("MONGO_URI", "mongodb://localhost:27017/"),
            ("DB_NAME", "faster"),
            ("PORT", "8080"),
            ("TEST_MODE", "true"),
            ("WEBHOOK_WORKERS", "4"),
            ("CIRCUIT_BREAKER_THRESHOLD", "10"),
            ("CIRCUIT_BREAKER_TIMEOUT", "60"),
        ]));
        let settings = settings.unwrap();
        assert_eq!(settings.public, ("0.0.0.0".into(), 8080));
        assert_eq!(settings.tenants.keys().collect::<Vec<_>>(), ["faster", "vip"]);
        assert!(settings.test_mode);
        assert_eq!(settings.partitions, 4);
    }

    #[test]
    fn signatures_are_checked_where_there_are_keys() {
        let env = [("VIP_SIGNING_KEYS", "a, b"), ("SIGNATURE_POLICY", "reject"), ("TENANTS", "vip")];
        let settings = Settings::read(Env::of(&env)).unwrap();
        assert_eq!(settings.tenants["vip"].policy, Policy::Reject);
        let settings = Settings::read(Env::of(&env[..1])).unwrap();
        assert_eq!(settings.tenants["vip"].policy, Policy::Quarantine);
        assert_eq!(settings.tenants["faster"].policy, Policy::Off);
        assert_eq!(settings.unchecked().collect::<Vec<_>>(), ["faster"]);
    }

    #[test]
    fn a_policy_without_keys_is_an_error_that_names_the_tenant() {
        for (env, named) in [
            (
                &[("SIGNATURE_POLICY", "reject"), ("SIGNING_KEYS", "k")][..],
                &["VIP_SIGNING_KEYS: is not set"][..],
            ),
            (
                &[("SIGNATURE_POLICY", "quarantine")],
                &["FASTER_SIGNING_KEYS or SIGNING_KEYS: ", "VIP_SIGNING_KEYS: "],
            ),
            (&[("SIGNATURE_POLICY", "off")], &[]),
            (&[("SIGNING_KEYS", " , ")], &["SIGNING_KEYS: names no key"]),
            (&[("SIGNATURE_POLICY", "off"), ("VIP_SIGNING_KEYS", ",")], &["VIP_SIGNING_KEYS: names no key"]),
            (
                &[
                    ("SIGNATURE_POLICY", "reject"),
                    ("TENANTS", "vip"),
                    ("VIP_SIGNING_KEYS_FILE", "/nowhere/at/all"),
                ],
                &["VIP_SIGNING_KEYS_FILE: /nowhere/at/all: "],
            ),
        ] {
            let read = Settings::read(Env::of(env));
            let problems = read.err().map(|refused| refused.problems).unwrap_or_default();
            let are_named = problems.iter().zip(named).all(|(problem, named)| problem.starts_with(named));
            assert!(problems.len() == named.len() && are_named, "{env:?}: {problems:?}");
        }
    }

    #[test]
    fn what_follows_from_a_mistake_is_not_reported() {
        let env = [("PORT", "eighty"), ("HOST", "127.0.0.1"), ("ADMIN_PORT", "8000")];
        let problems = Settings::read(Env::of(&env)).unwrap_err().problems;
        assert_eq!(problems.len(), 1, "{problems:?}");
        let problems = Settings::read(Env::of(&[("DRAIN_DELAY", "61"), ("TERMINATION_GRACE", "20s")]));
        assert_eq!(problems.unwrap_err().problems.len(), 1);
    }

    #[test]
    fn every_problem_is_reported() {
        let problems = Settings::read(Env::of(&[
            ("PORT", "eighty"),
            ("AMQP_URL", "http://u:secret@h"),
            ("PUBLISH_TIMEOUT", "9s"),
            ("SIGNATURE_POLICY", "maybe"),
            ("TENANTS", "a.b"),
            ("TERMINATION_GRACE", "20s"),
            ("WEBHOOK_WORKERS", "65"),
        ]));
        let problems = problems.unwrap_err();
        assert_eq!(problems.problems.len(), 7, "{problems}");
        assert!(!problems.to_string().contains("secret"));
    }
}
