//! The fields of a form or a URL. Pure.

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

/// Names and values, in their order; a name may come more than once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields(pub Vec<(String, String)>);

impl Fields {
    /// A value without blanks around it; empty if there is none.
    #[must_use]
    pub fn get(&self, name: &str) -> &str {
        self.all(name).next().unwrap_or_default().trim()
    }

    /// A value, if there is one and it isn't blank.
    #[must_use]
    pub fn given(&self, name: &str) -> Option<String> {
        Some(self.get(name)).filter(|value| !value.is_empty()).map(str::to_owned)
    }

    /// Every value of this name.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The address of a page with these fields and their values, without those that are blank; `other`
    /// replaces or adds one.
    #[must_use]
    pub fn url(&self, path: &str, names: &[&str], other: &[(&str, &str)]) -> String {
        let own = names.iter().flat_map(|name| self.all(name).map(move |value| (*name, value.trim())));
        let is_replaced = |name: &str| other.iter().any(|(known, _)| *known == name);
        let own: Vec<_> = own.filter(|(name, _)| !is_replaced(name)).collect();
        url(path, own.into_iter().chain(other.iter().copied()))
    }
}

/// The address of a page with these values, without those that are blank.
pub fn url<'a>(path: &str, values: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let encoded = |value: &str| utf8_percent_encode(value, NON_ALPHANUMERIC).to_string();
    let given = values.into_iter().filter(|(_, value)| !value.is_empty());
    let pairs: Vec<_> = given.map(|(name, value)| format!("{name}={}", encoded(value))).collect();
    if pairs.is_empty() { path.to_owned() } else { format!("{path}?{}", pairs.join("&")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_carry_what_was_asked_for() {
        let pairs = [("type", "call.ended"), ("key", " a&b=\"<é "), ("empty", " "), ("type", "x")];
        let fields = Fields(pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect());
        assert_eq!((fields.get("key"), fields.given("empty"), fields.get("none")), ("a&b=\"<é", None, ""));
        let names = ["type", "key", "empty"];
        assert_eq!(fields.url("/e", &names, &[]), "/e?type=call%2Eended&type=x&key=a%26b%3D%22%3C%C3%A9");
        assert_eq!(fields.url("/e", &["type"], &[("type", "y"), ("before", "1")]), "/e?type=y&before=1");
        assert_eq!(url("/e", []), "/e");
    }
}
