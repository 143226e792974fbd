//! The settings of the worker.

use std::time::Duration;

use lapin::uri::AMQPUri;
use mongodb::options::{ConnectionString, HostInfo, ServerAddress, Tls};
use shared::env::{self, Env, Problems};
use shared::traces::{self, Export};
use shared::{amqp, partition, shutdown, tenant};

use crate::breaker::Limits;

/// Everything that can be set from outside, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where RabbitMQ is.
    pub amqp_url: AMQPUri,
    /// Address of the admin port.
    pub admin: (String, u16),
    /// The tenants served.
    pub tenants: Vec<Tenant>,
    /// Verbose logs, and collections with the prefix `test_`.
    pub test_mode: bool,
    /// Partitions of each tenant's work.
    pub partitions: u16,
    /// Most events in a batch.
    pub batch_size: usize,
    /// How long a batch waits for more events at most.
    pub batch_linger: Duration,
    /// Longest time for a batch to be written.
    pub mongo_timeout: Duration,
    /// Connections to each tenant's MongoDB, at least and at most.
    pub pool: (u32, u32),
    /// How long the ledger keeps events.
    pub event_retention: Duration,
    /// When the circuit breaker in front of MongoDB opens and closes.
    pub breaker: Limits,
    /// How long a stopping worker may take to finish what it has in hand.
    pub shutdown_grace: Duration,
    /// Where traces go.
    pub traces: Export,
}

/// A tenant's database.
#[derive(Clone)]
pub struct Tenant {
    /// The tenant's name.
    pub name: String,
    /// Where its MongoDB is. Holds a password.
    pub mongo_uri: String,
    /// The database's name.
    pub database: String,
}

impl std::fmt::Debug for Tenant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tenant")
            .field("name", &self.name)
            .field("database", &self.database)
            .finish_non_exhaustive()
    }
}

/// Time after `SHUTDOWN_GRACE` to write acknowledgements, give back what is left, close connections and send traces.
const CLOSING: Duration = Duration::from_secs(15 + traces::FLUSH_TIMEOUT.as_secs());

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_hours(24);

impl Settings {
    /// Reads the settings, or reports all that is wrong with them.
    pub fn read(mut env: Env) -> Result<Self, Problems> {
        let most = env.number("MONGO_MAX_POOL_SIZE", 50, 1..=10_000);
        let pool = (env.number("MONGO_MIN_POOL_SIZE", most.min(10), 0..=10_000), most);
        if pool.0 > pool.1 {
            env.problem("MONGO_MIN_POOL_SIZE: is above MONGO_MAX_POOL_SIZE");
        }
        let settings = Self {
            tenants: tenants(&mut env),
            amqp_url: amqp::url(&mut env),
            admin: (env.text_or("ADMIN_HOST", "127.0.0.1"), env.number("ADMIN_PORT", 9101, 0..=u16::MAX)),
            test_mode: env.flag("TEST_MODE", false),
            partitions: partition::partitions(&mut env),
            batch_size: env.number("BATCH_SIZE", 200, 1..=1000),
            batch_linger: env.duration("BATCH_LINGER", 50 * MS, Duration::ZERO..=SECOND),
            mongo_timeout: env.duration("MONGO_TIMEOUT", 5 * SECOND, 100 * MS..=60 * SECOND),
            pool,
            event_retention: env.duration("EVENT_RETENTION", 30 * DAY, 60 * SECOND..=3650 * DAY),
            breaker: Limits {
                failures: env.number("CIRCUIT_BREAKER_THRESHOLD", 10, 1..=1_000_000),
                longest_open: env.seconds("CIRCUIT_BREAKER_TIMEOUT", 60 * SECOND, 100 * MS..=DAY),
                successes: env.number("CIRCUIT_BREAKER_HALF_OPEN_THRESHOLD", 3, 1..=1000),
            },
            shutdown_grace: env.duration("SHUTDOWN_GRACE", 20 * SECOND, SECOND..=600 * SECOND),
            traces: Export::read(&mut env, "penstock-worker"),
        };
        shutdown::spare_grace(&mut env, settings.shutdown_grace + CLOSING);
        env.finish(settings)
    }
}

impl Settings {
    /// What is not forbidden, but should be known.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        amqp::exposed(&self.amqp_url)
            .into_iter()
            .chain(self.tenants.iter().filter_map(Tenant::exposed))
            .collect()
    }
}

impl Tenant {
    /// A warning, if the password goes to another machine for everybody on the way to read.
    fn exposed(&self) -> Option<String> {
        let uri = ConnectionString::parse(&self.mongo_uri).ok()?;
        let is_encrypted = matches!(uri.tls, Some(Tls::Enabled(_)));
        // With a DNS record for the servers, TLS is the rule.
        let HostInfo::HostIdentifiers(hosts) = &uri.host_info else { return None };
        let is_far = |host: &&ServerAddress| match host {
            ServerAddress::Tcp { host, .. } => !env::is_local(host),
            _ => false,
        };
        let far = hosts.iter().find(is_far).filter(|_| uri.credential.is_some() && !is_encrypted)?;
        let name = spelled(&self.name, "MONGO_URI");
        Some(format!(
            "{name}: documents go to {far} unencrypted, and the password is open to attack; use tls=true outside a trusted network"
        ))
    }
}

/// The tenants of `TENANTS`, or those of the Flask bridge whose MongoDB is named.
fn tenants(env: &mut Env) -> Vec<Tenant> {
    let is_listed = env.text("TENANTS").is_some();
    let mut tenants = Vec::new();
    for name in tenant::served(env) {
        match tenant::setting(env, &name, "MONGO_URI") {
            Some(uri) => tenants.push(tenant(env, name, uri)),
            None if is_listed => env.problem(format!("{}: is not set", spelled(&name, "MONGO_URI"))),
            None => {}
        }
    }
    for (position, tenant) in tenants.iter().enumerate() {
        let same =
            |other: &&Tenant| (&other.mongo_uri, &other.database) == (&tenant.mongo_uri, &tenant.database);
        if let Some(other) = tenants[..position].iter().find(same) {
            env.problem(format!(
                "{} and {}: name the same database, where documents of both would mix",
                spelled(&other.name, "DB_NAME"),
                spelled(&tenant.name, "DB_NAME")
            ));
        }
    }
    if tenants.is_empty() && !is_listed {
        env.problem("MONGO_URI: is not set, nor VIP_MONGO_URI nor TENANTS, so there is nothing to do");
    }
    tenants
}

fn tenant(env: &mut Env, name: String, mongo_uri: String) -> Tenant {
    let parsed = ConnectionString::parse(&mongo_uri);
    if parsed.is_err() {
        // The driver's message may quote the password.
        let name = spelled(&name, "MONGO_URI");
        env.problem(format!("{name}: is not a URI like mongodb://user:password@host:27017/?replicaSet=rs0"));
    }
    let in_uri = || parsed.ok().and_then(|uri| uri.default_database);
    let database = tenant::setting(env, &name, "DB_NAME").or_else(in_uri).unwrap_or_default();
    let spelled = spelled(&name, "DB_NAME");
    if database.is_empty() {
        env.problem(format!("{spelled}: is not set, and the URI names no database"));
    } else if database.len() > 63 || database.contains(['/', '\\', '.', ' ', '"', '$', '\0']) {
        env.problem(format!("{spelled}: {database:?} is no name for a database"));
    }
    Tenant { name, mongo_uri, database }
}

fn spelled(tenant: &str, setting: &str) -> String {
    tenant::setting_names(tenant, setting).join(" or ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(settings: &Settings) -> Vec<&str> {
        settings.tenants.iter().map(|tenant| tenant.name.as_str()).collect()
    }

    #[test]
    fn a_tenant_exists_when_its_mongodb_is_named() {
        let env =
            [("MONGO_URI", "mongodb://h"), ("DB_NAME", "d"), ("VIP_MONGO_URI", ""), ("VIP_DB_NAME", "v")];
        let settings = Settings::read(Env::of(&env)).unwrap();
        assert_eq!(names(&settings), ["faster"]);
        let env = [("VIP_MONGO_URI", "mongodb://u:p@h/inuri")];
        let settings = Settings::read(Env::of(&env)).unwrap();
        assert_eq!((names(&settings), settings.tenants[0].database.as_str()), (vec!["vip"], "inuri"));
    }

    #[test]
    fn a_password_that_others_can_read_is_warned_about() {
        let warnings = |amqp, mongo| {
            let env = [("AMQP_URL", amqp), ("MONGO_URI", mongo)];
            Settings::read(Env::of(&env)).unwrap().warnings().len()
        };
        let (near, safe) = ("amqp://u:p@[::1]", "amqps://u:p@far.example");
        for harmless in [
            "mongodb://u:p@127.0.0.1/d",
            "mongodb://far.example/d",
            "mongodb://u:p@far.example/d?tls=true",
            "mongodb+srv://u:p@far.example/d",
        ] {
            assert_eq!((warnings(near, harmless), warnings(safe, harmless)), (0, 0), "{harmless}");
        }
        assert_eq!(warnings("amqp://u:p@far.example", "mongodb://u:p@localhost,far.example/d"), 2);
    }

    #[test]
    fn a_small_pool_needs_no_second_setting() {
        let pool = |most| {
            let env = [("MONGO_URI", "mongodb://h/d"), ("MONGO_MAX_POOL_SIZE", most)];
            Settings::read(Env::of(&env)).unwrap().pool
        };
        assert_eq!((pool(""), pool("5")), ((10, 50), (5, 5)));
    }

    #[test]
    fn every_problem_is_reported_and_no_secret() {
        let problems = Settings::read(Env::of(&[
            ("TENANTS", "faster,acme,vip"),
            ("MONGO_URI", "mongo://user:secret@h"),
            ("DB_NAME", "a.b"),
            ("ACME_MONGO_URI", "mongodb://h"),
            ("BATCH_SIZE", "0"),
            ("MONGO_TIMEOUT", "5"),
            ("MONGO_MIN_POOL_SIZE", "51"),
            ("SHUTDOWN_GRACE", "26s"),
            ("TERMINATION_GRACE", "40s"),
        ]));
        let problems = problems.unwrap_err();
        // The URI, the name of the database, acme's database, vip's URI, the batch, the timeout, the pool, the grace.
        assert_eq!(problems.0.len(), 8, "{problems}");
        assert!(!problems.to_string().contains("secret"));
        let mixed =
            [("MONGO_URI", "mongodb://h/d"), ("VIP_MONGO_URI", "mongodb://h/d"), ("VIP_DB_NAME", "d")];
        let problems = Settings::read(Env::of(&mixed)).unwrap_err().to_string();
        assert!(problems.contains("VIP_DB_NAME") && problems.lines().count() == 1, "{problems}");
        assert_eq!(Settings::read(Env::of(&[])).unwrap_err().0.len(), 1);
    }
}
