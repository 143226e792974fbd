//! Numbers and ids. Every digit is kept: floats would cost ids theirs.

use std::borrow::Cow;

/// The length of the number that `bytes` begin with, if they do.
pub(super) fn length(bytes: &[u8]) -> Option<usize> {
    let digits = |from: usize| {
        let count = bytes[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        (count > 0).then_some(from + count)
    };
    let first = usize::from(bytes.starts_with(b"-"));
    let mut end = digits(first)?;
    if end > first + 1 && bytes[first] == b'0' {
        return None;
    }
    if bytes.get(end) == Some(&b'.') {
        end = digits(end + 1)?;
    }
    if let Some(b'e' | b'E') = bytes.get(end) {
        let has_sign = matches!(bytes.get(end + 1), Some(b'+' | b'-'));
        end = digits(end + 1 + usize::from(has_sign))?;
    }
    Some(end)
}

/// A number with the digits it was sent with, and with its exponent as JavaScript writes it: `1E21` becomes
/// `1e+21`.
#[must_use]
pub fn digits(sent: &str) -> Cow<'_, str> {
    let Some((mantissa, exponent)) = sent.split_once(['e', 'E']) else { return Cow::Borrowed(sent) };
    let sign = if exponent.starts_with(['+', '-']) { "" } else { "+" };
    Cow::Owned(format!("{mantissa}e{sign}{exponent}"))
}

/// A text as an id, unless it is blank.
#[must_use]
pub fn text_id(text: &str) -> Option<String> {
    (!text.trim().is_empty()).then(|| text.to_owned())
}

/// A number as an id: without fraction and exponent, if it is whole.
#[must_use]
pub fn number_id(digits: &str) -> String {
    whole_number(digits).unwrap_or_else(|| digits.to_owned())
}

/// `12.0` and `1.2e+1` become `12`.
fn whole_number(number: &str) -> Option<String> {
    let (sign, rest) = number.strip_prefix('-').map_or(("", number), |rest| ("-", rest));
    let (mantissa, exponent) = rest.split_once('e').unwrap_or((rest, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let exponent: i32 = exponent.parse().ok()?;
    let point = i32::try_from(whole.len()).ok()?.checked_add(exponent)?;
    // Beyond this many digits a number is no id, and `1e999999999` must not become a gigabyte.
    if !(0..=64).contains(&point) && exponent != 0 {
        return None;
    }
    let (digits, point) = (format!("{whole}{fraction}"), usize::try_from(point).ok()?);
    let (kept, cut) = digits.split_at_checked(point.min(digits.len()))?;
    if cut.bytes().any(|digit| digit != b'0') {
        return None;
    }
    let padded = format!("{kept}{}", "0".repeat(point - kept.len()));
    let trimmed = padded.trim_start_matches('0');
    Some(if trimmed.is_empty() { "0".into() } else { format!("{sign}{trimmed}") })
}
