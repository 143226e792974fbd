//! Variables whose names are similar to those of settings: most likely misspelt, and not read. Pure.

use std::collections::BTreeSet;

use strsim::osa_distance;

use crate::setting::SETTINGS;
use crate::tenant;

/// Settings of tenants that are ours in all likelihood, whatever stands before them. A `…_DB_NAME` may be
/// others'.
const OURS: [&str; 3] = ["MONGO_URI", "SIGNING_KEYS", "RESPOND_API_TOKEN"];

/// Says of each of these names what it may have been meant for.
#[must_use]
pub fn warnings(given: &BTreeSet<&str>, tenants: &[String]) -> Vec<String> {
    let known = known(tenants);
    given
        .iter()
        .filter(|name| !known.contains(**name))
        .filter_map(|name| warning(name, given, &known))
        .collect()
}

/// Every name that is read by one of the binaries.
fn known(tenants: &[String]) -> BTreeSet<String> {
    let names = SETTINGS.iter().flat_map(|setting| {
        let of_tenants = || tenants.iter().flat_map(|tenant| tenant::setting_names(tenant, setting.name));
        if setting.is_per_tenant { of_tenants().collect() } else { vec![setting.name.to_owned()] }
    });
    names.flat_map(|name| [format!("{name}_FILE"), name]).collect()
}

fn warning(name: &str, given: &BTreeSet<&str>, known: &BTreeSet<String>) -> Option<String> {
    let upper = name.to_ascii_uppercase();
    // A setting that is set, too, isn't the one that was meant.
    let free = known.iter().filter(|known| !given.contains(known.as_str()));
    let near = free.map(|known| (osa_distance(&upper, known), known)).min();
    if let Some((_, meant)) = near.filter(|(distance, meant)| *distance <= tolerance(meant)) {
        return Some(format!("{name}: is not read; did you mean {meant}?"));
    }
    let setting = upper.strip_suffix("_FILE").unwrap_or(&upper);
    let prefix = OURS.iter().find_map(|ours| setting.strip_suffix(ours))?;
    let tenant = match prefix.strip_suffix('_') {
        Some(prefix) => prefix.to_ascii_lowercase(),
        None if prefix.is_empty() => tenant::UNPREFIXED.to_owned(),
        None => return None,
    };
    Some(format!("{name}: is not read; did you mean to name {tenant} in TENANTS?"))
}

/// This many letters may be wrong. Short names are near to many that others use, and so are OpenTelemetry's.
fn tolerance(name: &str) -> usize {
    match name.len() {
        _ if name.starts_with("OTEL_") => 0,
        9.. => 2,
        6.. => 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warned(given: &[&str], tenants: &[&str]) -> Vec<String> {
        let tenants: Vec<String> = tenants.iter().map(|tenant| (*tenant).to_owned()).collect();
        warnings(&given.iter().copied().collect(), &tenants)
    }

    #[test]
    fn a_misspelt_name_is_recognised() {
        for (given, meant) in [
            ("SIGNING_KEY", "SIGNING_KEYS"),
            ("WEBHOOK_WORKER", "WEBHOOK_WORKERS"),
            ("AMPQ_URL", "AMQP_URL"),
            ("AMQP_URI", "AMQP_URL"),
            ("MONGODB_URI", "MONGO_URI"),
            ("VIP_MONGO_URL", "VIP_MONGO_URI"),
            ("VPI_SIGNING_KEYS", "VIP_SIGNING_KEYS"),
            ("VIP_SIGNING_KEY_FILE", "VIP_SIGNING_KEYS_FILE"),
            ("test_mode", "TEST_MODE"),
            ("TENANT", "TENANTS"),
        ] {
            let expected = format!("{given}: is not read; did you mean {meant}?");
            assert_eq!(warned(&[given], &["faster", "vip"]), [expected]);
        }
        assert_eq!(warned(&["AMQP_URI", "AMQP_URL"], &["vip"]), [""; 0]);
    }

    #[test]
    fn settings_of_tenants_that_are_not_served_are_recognised() {
        for (given, tenant) in
            [("ACME_SIGNING_KEYS", "acme"), ("ACME_MONGO_URI_FILE", "acme"), ("MONGO_URI", "faster")]
        {
            let expected = format!("{given}: is not read; did you mean to name {tenant} in TENANTS?");
            assert_eq!(warned(&[given], &["vip"]), [expected]);
        }
    }

    #[test]
    fn what_others_use_is_none_of_ours() {
        let others = [
            "PATH",
            "HOME",
            "HOSTNAME",
            "HOST",
            "PORTS",
            "POST",
            "SORT",
            "USER",
            "LOGNAME",
            "LANG",
            "DB_USER",
            "DB_HOST",
            "POSTGRES_DB_NAME",
            "DATABASE_URL",
            "REDIS_URL",
            "MONGO_PORT",
            "MONGO_HOST",
            "MONGO_SERVICE_HOST",
            "MONGO_PORT_27017_TCP_ADDR",
            "RABBITMQ_SERVICE_PORT",
            "RUST_BACKTRACE",
            "OTEL_TRACES_SAMPLER",
            "OTEL_EXPORTER_OTLP_HEADERS",
            "KUBERNETES_SERVICE_PORT",
            "SSL_CERT_DIR",
            "ADMIN_USER",
            "FLASK_ENV",
            "SOME_TEXT",
            "TEST_NAME",
            "LOG_LEVEL",
            "SECRET_KEY",
        ];
        assert_eq!(warned(&others, &["faster", "vip"]), [""; 0]);
    }
}
