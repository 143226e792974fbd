//! When did an event happen? Senders write seconds, milliseconds, microseconds or ISO 8601.

use time::format_description::well_known::Iso8601;
use time::{Date, OffsetDateTime, PrimitiveDateTime, Time};

use crate::json::Json;

/// Clocks of senders may be ahead of ours, but not by more than this, in milliseconds.
const MAX_AHEAD_MS: i64 = 24 * 60 * 60 * 1000;
/// The last millisecond of the year 9999.
const LAST_MS: i64 = 253_402_300_799_999;

/// The moment that `sent` tells, in milliseconds since 1970, or `received_at_ms` if it tells none that can
/// be.
#[must_use]
pub fn event_time(sent: Option<&Json>, received_at_ms: i64) -> i64 {
    sent.and_then(read)
        .filter(|at| *at <= received_at_ms.saturating_add(MAX_AHEAD_MS))
        .unwrap_or(received_at_ms)
}

/// Reads a moment, in milliseconds since 1970. Zero, negative, or past the year 9999 it is none: many readers
/// of MongoDB fail on a date that their calendar doesn't have.
#[must_use]
pub fn read(sent: &Json) -> Option<i64> {
    let read = match sent {
        Json::Number(number) => from_number(number),
        Json::Text(text) => from_number(text.trim()).or_else(|| from_iso(text.trim())),
        _ => None,
    };
    read.filter(|at| (1..=LAST_MS).contains(at))
}

/// Tells the unit by magnitude: 1e11 seconds and 1e14 milliseconds both lie in the 52nd century.
fn from_number(text: &str) -> Option<i64> {
    let number: f64 = text.parse().ok().filter(|n: &f64| n.is_finite())?;
    // Microseconds of this century need 51 bits; f64 has 53.
    let ms = match number.abs() {
        seconds if seconds < 1e11 => number * 1e3,
        ms if ms < 1e14 => number,
        _ => number / 1e3,
    };
    #[expect(clippy::cast_possible_truncation, reason = "saturates, and is far out of range then")]
    Some(ms.floor() as i64)
}

fn from_iso(text: &str) -> Option<i64> {
    // A blank instead of the T is common, and what ISO 8601's sibling RFC 3339 allows.
    let text = text.replacen(' ', "T", 1);
    let at = OffsetDateTime::parse(&text, &Iso8601::PARSING)
        .or_else(|_| PrimitiveDateTime::parse(&text, &Iso8601::PARSING).map(PrimitiveDateTime::assume_utc))
        .or_else(|_| {
            Date::parse(&text, &Iso8601::PARSING)
                .map(|date| PrimitiveDateTime::new(date, Time::MIDNIGHT).assume_utc())
        });
    i64::try_from(at.ok()?.unix_timestamp_nanos() / 1_000_000).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RECEIVED: i64 = 1_791_792_905_000;

    fn number(text: &str) -> i64 {
        event_time(Some(&Json::Number(text.into())), RECEIVED)
    }

    fn text(text: &str) -> i64 {
        event_time(Some(&Json::Text(text.into())), RECEIVED)
    }

    #[test]
    fn the_unit_is_told_by_magnitude() {
        assert_eq!(number("1791792900"), 1_791_792_900_000);
        assert_eq!(number("1791792900.25"), 1_791_792_900_250);
        assert_eq!(number("1791792900037"), 1_791_792_900_037);
        assert_eq!(number("1791792900037999"), 1_791_792_900_037);
        assert_eq!(number("1.7917929e9"), 1_791_792_900_000);
        assert_eq!(text(" 1791792900 "), 1_791_792_900_000);
        assert_eq!(number("99999999"), 99_999_999_000);
    }

    #[test]
    fn iso_8601_is_read() {
        for (sent, at) in [
            ("2025-10-16T17:45:00Z", 1_760_636_700_000),
            ("2025-10-16T17:45:00.250Z", 1_760_636_700_250),
            ("2025-10-16T19:45:00+02:00", 1_760_636_700_000),
            ("2025-10-16T17:45:00", 1_760_636_700_000),
            ("2025-10-16 17:45:00", 1_760_636_700_000),
            ("2025-10-16", 1_760_572_800_000),
        ] {
            assert_eq!(text(sent), at, "{sent}");
        }
    }

    #[test]
    fn what_cannot_be_is_the_time_of_receipt() {
        for sent in ["0", "-5", "-1791792900", "1e300", "99999999999999999999"] {
            assert_eq!(number(sent), RECEIVED, "{sent}");
        }
        for sent in ["", "yesterday", "NaN", "inf", "2025-13-01"] {
            assert_eq!(text(sent), RECEIVED, "{sent}");
        }
        assert_eq!(event_time(None, RECEIVED), RECEIVED);
        assert_eq!(event_time(Some(&Json::Null), RECEIVED), RECEIVED);
        let day = 86_400_000;
        assert_eq!(number(&(RECEIVED + day).to_string()), RECEIVED + day);
        assert_eq!(number(&(RECEIVED + day + 1).to_string()), RECEIVED);
    }

    proptest! {
        #[test]
        fn any_text_gives_a_moment_that_can_be(sent in "\\PC{0,30}") {
            prop_assert!((1..=RECEIVED + MAX_AHEAD_MS).contains(&text(&sent)));
        }
    }
}
