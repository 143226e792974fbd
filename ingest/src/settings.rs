//! The settings of ingest.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use lapin::uri::AMQPUri;
use shared::env::{Env, Problems};
use shared::traces::Export;
use shared::verify::Keys;
use shared::{amqp, partition, shutdown, tenant};

use crate::STOPPING;

/// Everything that can be set from outside, checked.
#[derive(Debug)]
pub struct Settings {
    /// Where RabbitMQ is.
    pub amqp_url: AMQPUri,
    /// Address of the public port.
    pub public: (String, u16),
    /// Address of the admin port.
    pub admin: (String, u16),
    /// The tenants served, each with how its signatures are checked.
    pub tenants: BTreeMap<String, Signing>,
    /// Partitions of each tenant's work.
    pub partitions: u16,
    /// Shown by `/health`; the workers act on it.
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
    /// How long a stopping ingest goes on serving, unready, so that load balancers notice.
    pub drain_delay: Duration,
    /// How much longer it may take to drain the spool when stopping.
    pub spare_grace: Duration,
    /// Where traces go.
    pub traces: Export,
}

/// What becomes of a webhook without a good signature.
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
    /// The policy of this name.
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

/// How a tenant's signatures are checked.
#[derive(Debug)]
pub struct Signing {
    /// What becomes of a webhook without a good signature.
    pub policy: Policy,
    /// The keys of the tenant's webhooks.
    pub keys: Keys,
}

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_hours(24);

impl Settings {
    /// Reads the settings, or reports all that is wrong with them.
    pub fn read(mut env: Env) -> Result<Self, Problems> {
        let drain_delay = env.duration("DRAIN_DELAY", SECOND, Duration::ZERO..=60 * SECOND);
        let names = tenant::served(&mut env);
        let policy = policy(&mut env);
        let tenants = names.into_iter().map(|name| {
            let signing = Signing::read(&mut env, &name, policy);
            (name, signing)
        });
        let settings = Self {
            tenants: tenants.collect(),
            amqp_url: amqp::url(&mut env),
            public: (env.text_or("HOST", "0.0.0.0"), env.number("PORT", 8000, 0..=u16::MAX)),
            admin: (env.text_or("ADMIN_HOST", "127.0.0.1"), env.number("ADMIN_PORT", 9100, 0..=u16::MAX)),
            partitions: partition::partitions(&mut env),
            test_mode: env.flag("TEST_MODE", false),
            // A body like [0,0,0] unfolds to six times its size, and a message holds its attachment twice: more
            // could make a document that is beyond MongoDB's 16 MiB.
            max_body_bytes: env.number("MAX_BODY_BYTES", 1 << 20, 1..=5 << 18),
            // With the time for the body and the spool, more would put respond.io's deadline at stake.
            publish_timeout: env.duration("PUBLISH_TIMEOUT", 250 * MS, MS..=SECOND),
            spool_dir: env.text_or("SPOOL_DIR", "spool").into(),
            spool_max_bytes: env.number("SPOOL_MAX_BYTES", 1 << 30, 0..=1 << 50),
            refusal_budget: env.number("REFUSAL_BUDGET", 10, 0..=1000),
            refusal_window: env.duration("REFUSAL_WINDOW", 1800 * SECOND, SECOND..=DAY),
            quarantine: (
                env.number("QUARANTINE_BURST", 20_000, 0..=1_000_000),
                env.number("QUARANTINE_RATE", 5, 0..=100_000),
            ),
            breaker_threshold: env.number("CIRCUIT_BREAKER_THRESHOLD", 10, 1..=1_000_000),
            drain_delay,
            spare_grace: shutdown::spare_grace(&mut env, drain_delay + STOPPING),
            traces: Export::read(&mut env, "penstock-ingest"),
        };
        if settings.public == settings.admin && settings.public.1 != 0 {
            env.problem("ADMIN_PORT: is the public port too");
        }
        env.finish(settings)
    }
}

impl Settings {
    /// What is not forbidden, but should be known.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let unchecked = self.tenants.iter().filter(|(_, signing)| signing.policy == Policy::Off);
        let unchecked = unchecked.map(|(tenant, _)| {
            format!("tenant {tenant}: signatures are not checked: anybody who knows the URL can send events")
        });
        unchecked.chain(amqp::exposed(&self.amqp_url)).collect()
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
        // Without keys nothing could be verified; start-up warns about it.
        let policy = if keys.is_empty() { Policy::Off } else { policy.unwrap_or(Policy::Quarantine) };
        Self { policy, keys }
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
        let env = [("VIP_SIGNING_KEYS", "a, b"), ("SIGNATURE_POLICY", "reject")];
        let settings = Settings::read(Env::of(&env)).unwrap();
        assert_eq!(settings.tenants["vip"].policy, Policy::Reject);
        assert_eq!(settings.tenants["faster"].policy, Policy::Off);
        let settings = Settings::read(Env::of(&env[..1])).unwrap();
        assert_eq!(settings.tenants["vip"].policy, Policy::Quarantine);
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
        assert_eq!(problems.0.len(), 8, "{problems}");
        assert!(!problems.to_string().contains("secret"));
    }
}
