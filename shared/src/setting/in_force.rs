//! The settings as a binary has read them, for people.

use super::SETTINGS;
use crate::env::{Env, InForce, Origin};
use crate::table::{Column, Table};

/// A row for each setting that was read: name, value and where that comes from. Secrets are not shown.
#[must_use]
pub fn in_force(env: &Env) -> String {
    let mut read: Vec<(&String, &InForce)> = env.in_force().iter().collect();
    read.sort_by_key(|(name, _)| place(name));
    let width = read.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    let mut table =
        Table::new([Column::text("SETTING", width), Column::text("VALUE", 0), Column::text("FROM", 0)]);
    let mut rows = String::new();
    for (name, InForce { value, origin, is_secret }) in read {
        let value = match value {
            None => "(not set)",
            Some(_) if *is_secret && *origin != Origin::Default => "(not shown)",
            Some(value) => value,
        };
        rows += &(table.row(&[name.as_str(), value, &format!("({origin})")]) + "\n");
    }
    rows
}

/// Where a setting stands in the table.
fn place(name: &str) -> Option<usize> {
    let is_it = |setting: &super::Setting| {
        let prefix = name.strip_suffix(setting.name);
        prefix.is_some_and(|prefix| prefix.is_empty() || setting.is_per_tenant && prefix.ends_with('_'))
    };
    SETTINGS.iter().position(is_it)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_shown_with_their_origin_and_secrets_are_not() {
        let mut env = Env::of(&[("PORT", "80"), ("VIP_SIGNING_KEYS", "k3y"), ("TEST_MODE", "1")]);
        env.add_dotenv("HOST='::'");
        env.flag("TEST_MODE");
        env.number::<u16>("PORT");
        env.text("HOST");
        env.text("RUST_LOG");
        env.text_of_tenant(&["VIP_SIGNING_KEYS".to_owned()], "SIGNING_KEYS");
        env.text("SPOOL_DIR");
        let expected = "\
SETTING           VALUE  FROM
VIP_SIGNING_KEYS  (not shown)  (environment)
HOST              ::  (.env)
PORT              80  (environment)
TEST_MODE         false  (environment)
SPOOL_DIR         spool  (default)
RUST_LOG          (not set)  (default)
";
        assert_eq!(in_force(&env), expected);
    }
}
