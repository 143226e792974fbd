//! Tenants: customers' databases behind one gateway, each with its own URL, queues and settings.

use crate::env::Env;

/// The tenants of the Flask bridge, served when `TENANTS` is not set.
pub const DEFAULT_TENANTS: [&str; 2] = ["faster", "vip"];

/// The tenant whose settings may be written without prefix.
pub const UNPREFIXED: &str = "faster";

/// Names from `TENANTS`, or none if it isn't set. Bad and double names become problems of `env`.
pub fn listed(env: &mut Env) -> Option<Vec<String>> {
    let list = env.text("TENANTS")?;
    let mut names: Vec<String> = Vec::new();
    for name in list.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        if !is_valid(name) {
            env.problem(format!("TENANTS: {name:?} must be 1 to 32 of a-z, 0-9, - and _, a letter first"));
        } else if names.iter().any(|known| known == name) {
            env.problem(format!("TENANTS: {name:?} stands there twice"));
        } else if let Some(other) = names.iter().find(|known| prefix(known) == prefix(name)) {
            env.problem(format!("TENANTS: {name:?} and {other:?} would share their variables"));
        } else {
            names.push(name.to_owned());
        }
    }
    if names.is_empty() && !env.is_wrong("TENANTS") {
        env.problem("TENANTS: names no tenant");
    }
    Some(names)
}

/// The tenants of `TENANTS`, or those of the Flask bridge.
pub fn served(env: &mut Env) -> Vec<String> {
    listed(env).unwrap_or_else(|| DEFAULT_TENANTS.map(str::to_owned).to_vec())
}

/// Names become parts of queue names, routing keys (where a dot separates) and environment variables.
fn is_valid(name: &str) -> bool {
    name.len() <= 32
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b))
}

fn prefix(tenant: &str) -> String {
    tenant.to_ascii_uppercase().replace('-', "_")
}

/// The names under which a tenant's setting may be given, the first that is set wins.
#[must_use]
pub fn setting_names(tenant: &str, setting: &str) -> Vec<String> {
    let prefixed = format!("{}_{setting}", prefix(tenant));
    if tenant == UNPREFIXED { vec![prefixed, setting.to_owned()] } else { vec![prefixed] }
}

/// A tenant's setting as text, if one of its names is set.
pub fn setting(env: &mut Env, tenant: &str, setting: &str) -> Option<String> {
    env.text_of_tenant(&setting_names(tenant, setting), setting)
}

/// The name under which a tenant's setting is given, or all possible names, for messages.
#[must_use]
pub fn spelled(env: &Env, tenant: &str, setting: &str) -> String {
    let names = setting_names(tenant, setting);
    names.iter().find(|name| env.is_given(name)).cloned().unwrap_or_else(|| names.join(" or "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fasters_settings_need_no_prefix_but_the_prefix_wins() {
        let mut env = Env::of(&[("MONGO_URI", "a"), ("VIP_MONGO_URI", "b"), ("B2B_EU_DB_NAME", "c")]);
        assert_eq!(setting(&mut env, "faster", "MONGO_URI").as_deref(), Some("a"));
        assert_eq!(setting(&mut env, "vip", "MONGO_URI").as_deref(), Some("b"));
        assert_eq!(setting(&mut env, "b2b-eu", "DB_NAME").as_deref(), Some("c"));
        let mut env = Env::of(&[("MONGO_URI", "a"), ("FASTER_MONGO_URI", "z")]);
        assert_eq!(setting(&mut env, "faster", "MONGO_URI").as_deref(), Some("z"));
    }

    #[test]
    fn bad_names_are_problems() {
        let mut env = Env::of(&[("TENANTS", "faster, Acme,a.b,faster,a-b,a_b,")]);
        assert_eq!(listed(&mut env), Some(vec!["faster".to_owned(), "a-b".to_owned()]));
        assert_eq!(env.finish(()).unwrap_err().problems.len(), 4);
    }
}
