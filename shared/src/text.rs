//! Text for people.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A line of text from others, fit for a terminal: control characters could make it do things.
#[must_use]
pub fn printable(text: &str) -> String {
    let escaped = |c: char| if c.is_control() { c.escape_unicode().collect() } else { c.to_string() };
    text.chars().map(escaped).collect()
}

/// A moment in milliseconds since 1970 as people read it, and as programs do; empty if it is beyond the year
/// 9999.
#[must_use]
pub fn rfc3339(ms: i64) -> String {
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000).ok();
    at.and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_and_lines_are_fit_for_a_terminal() {
        assert_eq!(rfc3339(1_792_000_000_120), "2026-10-14T17:46:40.12Z");
        assert_eq!(rfc3339(i64::MAX), "");
        assert_eq!(printable("a\u{1b}[2J\nb"), "a\\u{1b}[2J\\u{a}b");
    }
}
