//! Numbers and times as people read them. Pure.

use std::time::Duration;

use crate::commands::rfc3339;

/// What isn't known or isn't there.
pub const NONE: &str = "–";

/// A moment, in UTC: `2026-11-26 07:31:02`.
#[must_use]
pub fn moment(ms: i64) -> String {
    let text = rfc3339(ms);
    let seconds = text.get(..19).unwrap_or(&text);
    seconds.replace('T', " ")
}

/// A duration in its largest unit: `480 ms`, `12 s`, `5 min`, `3 h`, `2 d`.
#[must_use]
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{} ms", duration.as_millis()),
        1..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// The time from one moment to another, in milliseconds since 1970.
#[must_use]
pub fn between(from_ms: i64, to_ms: i64) -> String {
    duration(Duration::from_millis(u64::try_from(to_ms.saturating_sub(from_ms)).unwrap_or(0)))
}

/// A number with its thousands apart: `12 345`.
#[must_use]
pub fn number(number: u64) -> String {
    let digits = number.to_string();
    let apart = |(n, digit): (usize, char)| {
        let is_group = n > 0 && (digits.len() - n).is_multiple_of(3);
        is_group.then_some('\u{202f}').into_iter().chain([digit])
    };
    digits.chars().enumerate().flat_map(apart).collect()
}

/// A number, or a dash.
#[must_use]
pub fn known(known: Option<u64>) -> String {
    known.map_or_else(|| NONE.to_owned(), number)
}

/// A number of bytes.
#[must_use]
pub fn bytes(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{} KiB", bytes / 1024),
        _ => format!("{} MiB", bytes / 1_048_576),
    }
}

/// The moment, in milliseconds since 1970, that a form's field of date and time in UTC names; none if it
/// names none.
#[must_use]
pub fn parse_moment(text: &str) -> Option<i64> {
    let seconds = if text.len() == 16 { ":00Z" } else { "Z" };
    let parsed = mongodb::bson::DateTime::parse_rfc3339_str(format!("{}{seconds}", text.trim()));
    parsed.ok().map(mongodb::bson::DateTime::timestamp_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_numbers_are_legible() {
        assert_eq!(moment(1_791_792_900_037), "2026-10-12 08:15:00");
        assert_eq!(parse_moment("2026-10-12T08:15"), Some(1_791_792_900_000));
        assert_eq!(parse_moment("2026-10-12T08:15:30"), Some(1_791_792_930_000));
        assert_eq!(parse_moment("yesterday"), None);
        let words = |ms| duration(Duration::from_millis(ms));
        assert_eq!([words(480), words(1500), words(300_000)], ["480 ms", "1 s", "5 min"]);
        assert_eq!([words(7_200_000), words(200_000_000)], ["2 h", "2 d"]);
        let apart = "12\u{202f}345\u{202f}678";
        assert_eq!([number(0), number(999), number(12_345_678)], ["0", "999", apart]);
        assert_eq!([bytes(5), bytes(2048), bytes(3 << 20)], ["5 B", "2 KiB", "3 MiB"]);
    }
}
