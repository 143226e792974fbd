//! Numbers for people.

use std::time::Duration;

/// How many per second; not a number if there was no time.
pub fn rate(count: u64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64()
}

/// What ceilings allow together: each event takes the machine's time of one after the other.
pub fn together(ceilings: &[f64]) -> f64 {
    1.0 / ceilings.iter().map(|ceiling| 1.0 / ceiling).sum::<f64>()
}

/// The middle one of some numbers.
pub fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or_default()
}

/// Percentiles of some times, in milliseconds.
pub fn percentiles<const N: usize>(times: impl Iterator<Item = Duration>, percents: [f64; N]) -> [f64; N] {
    let mut times: Vec<_> = times.collect();
    times.sort_unstable();
    percents.map(|percent| {
        let rank = (percent / 100.0 * times.len() as f64).ceil() as usize;
        times.get(rank.saturating_sub(1)).map_or(0.0, |time| time.as_secs_f64() * 1000.0)
    })
}

/// A whole number with its thousands apart.
pub fn grouped(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut out = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Three digits or so.
pub fn short(number: f64) -> String {
    match number {
        large if large >= 100.0 => grouped(large),
        middling if middling >= 10.0 => format!("{middling:.1}"),
        small => format!("{small:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!([1_234_567.0, 999.6, 12.0].map(grouped), ["1,234,567", "1,000", "12"]);
        assert_eq!([12_345.0, 12.34, 1.234].map(short), ["12,345", "12.3", "1.23"]);
    }

    #[test]
    fn what_stands_for_many_numbers() {
        let times = (1..=200).rev().map(Duration::from_millis);
        assert_eq!(percentiles(times, [50.0, 99.0, 100.0]), [100.0, 198.0, 200.0]);
        assert_eq!(percentiles([].into_iter(), [50.0]), [0.0]);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(together(&[100_000.0, 25_000.0, 20_000.0]).round(), 10_000.0);
    }
}
