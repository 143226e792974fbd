//! The settings of the worker.

use std::time::Duration;

use mongodb::options::{ConnectionString, HostInfo, ServerAddress, Tls};
use shared::address::Address;
use shared::env::{Env, Problems};
use shared::setting::Binary;
use shared::traces::{self, Export};
use shared::{host, partition, shutdown, tenant};

use crate::breaker::Limits;
use crate::commands::address::HttpAddress;
use crate::consume::share;
use crate::management::ManagementAddress;
use crate::{client, mongo_uri};

/// Everything that can be set from outside, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where RabbitMQ is.
    pub rabbitmq: Address,
    /// Where RabbitMQ's management API is, if that is known.
    pub management: Option<ManagementAddress>,
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
    /// Where respond.io's API is.
    pub api: HttpAddress,
    /// Requests to it a second, at most.
    pub api_rate: u32,
    /// How long a stopping worker may take to finish the events in hand.
    pub shutdown_grace: Duration,
    /// Where traces go.
    pub traces: Export,
    /// What MongoDB is used for.
    pub purpose: Purpose,
    /// Warnings about the settings.
    pub noticed: Vec<String>,
    /// Where the settings come from, and which have their default.
    pub origins: Vec<String>,
}

/// What MongoDB is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To write events.
    Work,
    /// To compute documents anew.
    Rebuild,
    /// To look at them.
    Console,
}

/// A tenant's database.
#[derive(Clone)]
pub struct Tenant {
    /// The tenant's name.
    pub name: String,
    /// Where its MongoDB is, for the driver. Holds a password.
    pub mongo_uri: String,
    /// The database's name.
    pub database: String,
    /// The token for respond.io's API.
    pub api_token: Option<String>,
}

impl std::fmt::Debug for Tenant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tenant")
            .field("name", &self.name)
            .field("database", &self.database)
            .finish_non_exhaustive()
    }
}

/// Time after `SHUTDOWN_GRACE` to write acknowledgements, return other deliveries, close connections and send
/// traces.
const CLOSING: Duration = Duration::from_secs(15 + traces::FLUSH_TIMEOUT.as_secs());

/// Connections beside those of the partitions: for large bodies, and for the probe.
const OTHER_CONNECTIONS: u32 = 2;

impl Settings {
    /// Reads the settings, or reports everything that is wrong with them.
    pub fn read(mut env: Env) -> Result<Self, Problems> {
        let settings = Self::read_from(&mut env);
        env.finish(settings)
    }

    /// Reads the settings; `env` collects what is wrong with them.
    pub fn read_from(env: &mut Env) -> Self {
        env.read_by(Binary::Worker);
        let tenants = tenants(env);
        let rabbitmq = Address::read(env);
        let mut settings = Self {
            tenants,
            management: ManagementAddress::read(env, &rabbitmq),
            rabbitmq,
            admin: (env.host("ADMIN_HOST"), env.number("ADMIN_PORT")),
            test_mode: env.flag("TEST_MODE"),
            partitions: partition::partitions(env),
            batch_size: env.number("BATCH_SIZE"),
            batch_linger: env.duration("BATCH_LINGER"),
            mongo_timeout: env.duration("MONGO_TIMEOUT"),
            pool: pool(env),
            event_retention: env.duration("EVENT_RETENTION"),
            api: HttpAddress::read(env),
            api_rate: env.number("RESPOND_API_RATE"),
            breaker: Limits {
                failures: env.number("CIRCUIT_BREAKER_THRESHOLD"),
                longest_open: env.duration("CIRCUIT_BREAKER_TIMEOUT"),
                successes: env.number("CIRCUIT_BREAKER_HALF_OPEN_THRESHOLD"),
            },
            shutdown_grace: env.duration("SHUTDOWN_GRACE"),
            traces: Export::read(env),
            purpose: Purpose::Work,
            noticed: Vec::new(),
            origins: Vec::new(),
        };
        shutdown::spare_grace(env, settings.shutdown_grace + CLOSING, "SHUTDOWN_GRACE");
        for tenant in &settings.tenants {
            if let Err(error) = client::check(tenant, &settings) {
                let name = tenant::spelled(env, &tenant.name, "MONGO_URI");
                env.problem(format!("{name}: can't be used: {}", error.kind));
            }
        }
        let queues = settings.tenants.len() * usize::from(settings.partitions);
        if queues > share::MAX_QUEUES && !env.is_wrong("WEBHOOK_WORKERS") {
            env.problem(format!(
                "WEBHOOK_WORKERS: with so many tenants these are {queues} queues, and a worker can have {} in hand: give some tenants a worker of their own",
                share::MAX_QUEUES
            ));
        }
        let at_once = u32::from(settings.partitions) + OTHER_CONNECTIONS;
        if settings.pool.1 < at_once && !env.is_wrong("MONGO_MAX_POOL_SIZE") {
            let most = settings.pool.1;
            env.warning(format!(
                "MONGO_MAX_POOL_SIZE: {at_once} connections may be needed at the same time, by WEBHOOK_WORKERS, but {most} are allowed"
            ));
        }
        settings.noticed = env.warnings().to_vec();
        settings.origins = env.origins(&["AMQP_URL"]);
        settings
    }

    /// What is in force, a line each.
    #[must_use]
    pub fn in_force(&self) -> Vec<String> {
        let version = concat!("worker ", env!("CARGO_PKG_VERSION")).to_owned();
        let rabbitmq = format!("RabbitMQ: {}", self.rabbitmq.shown());
        let tenants = self.tenants.iter().map(|tenant| {
            format!("tenant {}: MongoDB {}, database {}", tenant.name, tenant.hosts(), tenant.database)
        });
        let limits = format!(
            "limits: {} work queues a tenant, batches of {} events, {}ms for a batch, {} connections a tenant, events kept for {}s",
            self.partitions,
            self.batch_size,
            self.mongo_timeout.as_millis(),
            self.pool.1,
            self.event_retention.as_secs()
        );
        let lines = [version].into_iter().chain(self.origins.iter().cloned()).chain([rabbitmq]);
        lines.chain(tenants).chain([limits]).collect()
    }

    /// Warnings.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let exposed = self.tenants.iter().filter_map(Tenant::exposed);
        let is_token_used = self.tenants.iter().any(|tenant| tenant.api_token.is_some());
        let exposed = exposed.chain(is_token_used.then(|| self.api.exposed()).flatten());
        self.noticed.iter().cloned().chain(self.rabbitmq.exposed()).chain(exposed).collect()
    }
}

/// Connections to a tenant's MongoDB, at least and at most.
fn pool(env: &mut Env) -> (u32, u32) {
    let (least, most): (u32, u32) = (env.number("MONGO_MIN_POOL_SIZE"), env.number("MONGO_MAX_POOL_SIZE"));
    if least <= most {
        return (least, most);
    }
    if !env.is_given("MONGO_MIN_POOL_SIZE") {
        env.set_in_force("MONGO_MIN_POOL_SIZE", most);
    } else if !env.is_wrong("MONGO_MAX_POOL_SIZE") {
        env.problem("MONGO_MIN_POOL_SIZE: is above MONGO_MAX_POOL_SIZE");
    }
    (most, most)
}

impl Tenant {
    /// The hosts of its MongoDB.
    fn hosts(&self) -> String {
        match ConnectionString::parse(&self.mongo_uri).map(|uri| uri.host_info) {
            Ok(HostInfo::HostIdentifiers(hosts)) => {
                hosts.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
            }
            Ok(HostInfo::DnsRecord(host)) => host,
            _ => String::new(),
        }
    }

    /// A warning, if the password goes to another machine unencrypted.
    fn exposed(&self) -> Option<String> {
        let uri = ConnectionString::parse(&self.mongo_uri).ok()?;
        let is_encrypted = matches!(uri.tls, Some(Tls::Enabled(_)));
        // With a DNS record for the servers, TLS is the rule.
        let HostInfo::HostIdentifiers(hosts) = &uri.host_info else { return None };
        let is_far = |host: &&ServerAddress| match host {
            ServerAddress::Tcp { host, .. } => !host::is_local(host),
            _ => false,
        };
        let far = hosts.iter().find(is_far).filter(|_| uri.credential.is_some() && !is_encrypted)?;
        let name = tenant::setting_names(&self.name, "MONGO_URI").join(" or ");
        Some(format!(
            "{name}: documents go to {far} unencrypted, and the password is open to attack; use tls=true outside a trusted network"
        ))
    }
}

/// The tenants of `TENANTS`, or those of the Flask bridge whose MongoDB is named.
fn tenants(env: &mut Env) -> Vec<Tenant> {
    let is_listed = env.text("TENANTS").is_some();
    let served = tenant::served(env);
    let mut tenants: Vec<Tenant> = Vec::new();
    let mut missing = Vec::new();
    for name in &served {
        let spelled = tenant::spelled(env, name, "MONGO_URI");
        match tenant::setting(env, name, "MONGO_URI") {
            Some(uri) => tenants.extend(tenant(env, name, &uri)),
            None if env.is_wrong(&spelled) => {}
            None => missing.push(spelled),
        }
    }
    if is_listed {
        for name in missing {
            env.problem(format!("{name}: is not set"));
        }
    } else if missing.len() == served.len() {
        env.problem("MONGO_URI: is not set, nor VIP_MONGO_URI nor TENANTS, so there is nothing to do");
    }
    for (position, tenant) in tenants.iter().enumerate() {
        let same =
            |other: &&Tenant| (&other.mongo_uri, &other.database) == (&tenant.mongo_uri, &tenant.database);
        if let Some(other) = tenants[..position].iter().find(same) {
            let names = [other, tenant].map(|tenant| tenant::spelled(env, &tenant.name, "DB_NAME"));
            env.warning(format!(
                "{}: name the same database, where documents of both mix",
                names.join(" and ")
            ));
        }
    }
    env.warn_of_similar_names(&served);
    tenants
}

/// A tenant, unless its URI can't be used.
fn tenant(env: &mut Env, name: &str, uri: &str) -> Option<Tenant> {
    let spelled = tenant::spelled(env, name, "MONGO_URI");
    let database = tenant::setting(env, name, "DB_NAME");
    let uri = match mongo_uri::translate(uri) {
        Ok(uri) => uri,
        Err(refused) => {
            env.problem(format!("{spelled}: {refused}"));
            return None;
        }
    };
    for remark in uri.remarks {
        env.warning(format!("{spelled}: {remark}"));
    }
    let database = database.or(uri.database).unwrap_or_default();
    let spelled = tenant::spelled(env, name, "DB_NAME");
    if database.is_empty() {
        env.problem(format!("{spelled}: is not set, and the URI names no database"));
    } else if database.len() > 63 || database.contains(['/', '\\', '.', ' ', '"', '$', '\0']) {
        env.problem(format!("{spelled}: {database:?} is no name for a database"));
    }
    let api_token = tenant::setting(env, name, "RESPOND_API_TOKEN");
    if api_token.as_ref().is_some_and(|token| !token.bytes().all(|byte| byte.is_ascii_graphic())) {
        let spelled = tenant::spelled(env, name, "RESPOND_API_TOKEN");
        env.problem(format!("{spelled}: has blanks or letters in it that no token has"));
    }
    Some(Tenant { name: name.to_owned(), mongo_uri: uri.text, database, api_token })
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
    fn more_queues_than_can_be_in_hand_are_refused() {
        let problems = |tenants: u32| {
            let names: Vec<String> = (0..tenants).map(|n| format!("t{n}")).collect();
            let uris: Vec<_> =
                (0..tenants).map(|n| (format!("T{n}_MONGO_URI"), format!("mongodb://h/d{n}"))).collect();
            let names = names.join(",");
            let mut env =
                vec![("TENANTS", names.as_str()), ("WEBHOOK_WORKERS", "64"), ("MONGO_MAX_POOL_SIZE", "66")];
            env.extend(uris.iter().map(|(name, uri)| (name.as_str(), uri.as_str())));
            Settings::read(Env::of(&env)).err().map_or(0, |refused| refused.problems.len())
        };
        assert_eq!((problems(64), problems(65)), (0, 1));
    }

    #[test]
    fn a_pool_that_is_smaller_than_what_is_done_at_once_is_warned_about() {
        let warnings = |most, partitions| {
            let env = [
                ("MONGO_URI", "mongodb://h/d"),
                ("MONGO_MAX_POOL_SIZE", most),
                ("WEBHOOK_WORKERS", partitions),
            ];
            Settings::read(Env::of(&env)).unwrap().warnings().len()
        };
        assert_eq!([warnings("6", "4"), warnings("5", "4"), warnings("50", "64")], [0, 1, 1]);
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
        // The URI, acme's database, vip's URI, the batch, the timeout, the pool, the grace.
        assert_eq!(problems.problems.len(), 7, "{problems}");
        assert!(!problems.to_string().contains("secret"));
        assert_eq!(Settings::read(Env::of(&[])).unwrap_err().problems.len(), 1);
    }

    #[test]
    fn what_follows_from_a_mistake_is_not_reported() {
        for mistake in [
            ("MONGO_URI", "mongo://u:p@h"),
            ("MONGO_URI_FILE", "/nowhere/at/all"),
            ("TENANTS", "A"),
            ("MONGO_MAX_POOL_SIZE", "many"),
            ("SHUTDOWN_GRACE", "20"),
        ] {
            let mut env =
                vec![("TERMINATION_GRACE", "25s"), ("SHUTDOWN_GRACE", "1s"), ("MONGO_MIN_POOL_SIZE", "60")];
            env.extend([("MONGO_URI", "mongodb://h/d"), ("MONGO_MAX_POOL_SIZE", "60")]);
            env.retain(|(name, _)| !mistake.0.starts_with(name));
            env.push(mistake);
            let problems = Settings::read(Env::of(&env)).unwrap_err().problems;
            assert_eq!(problems.len(), 1, "{problems:?}");
        }
    }

    #[test]
    fn two_tenants_may_share_a_database_with_a_warning() {
        let mixed =
            [("MONGO_URI", "mongodb://h/d"), ("VIP_MONGO_URI", "mongodb://h/d"), ("VIP_DB_NAME", "d")];
        let settings = Settings::read(Env::of(&mixed)).unwrap();
        assert_eq!(names(&settings), ["faster", "vip"]);
        assert!(settings.warnings()[0].contains("VIP_DB_NAME"), "{:?}", settings.warnings());
    }

    #[test]
    fn what_passes_can_be_opened() {
        let read = |uri: &str| Settings::read(Env::of(&[("MONGO_URI", uri), ("DB_NAME", "d")]));
        let taken = read("mongodb://h/?socketTimeoutMS=20000&uuidRepresentation=standard").unwrap();
        assert_eq!(taken.warnings().len(), 1, "{:?}", taken.warnings());
        for refused in [
            "mongodb://h/?tlsCAFile=/nowhere/at/all",
            "mongodb://h/?tlsCertificateKeyFile=/nowhere/at/all",
            "mongodb://a,b/?directConnection=true",
            "mongodb+srv://h.example/?directConnection=true",
        ] {
            let problems = read(refused).unwrap_err().problems;
            assert!(problems.len() == 1 && problems[0].starts_with("MONGO_URI: "), "{problems:?}");
        }
        assert!(read("mongodb+srv://cluster.example").is_ok());
    }

    #[test]
    fn a_misspelt_name_is_recognised() {
        let problems = Settings::read(Env::of(&[("MONGO_URL", "mongodb://h/d")])).unwrap_err();
        assert_eq!((problems.problems.len(), problems.warnings.len()), (1, 1), "{problems}");
        assert!(problems.to_string().contains("did you mean MONGO_URI?"), "{problems}");
    }
}
