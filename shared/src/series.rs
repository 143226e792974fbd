//! Series of metrics, as both binaries define them.

use prometheus::{HistogramOpts, IntCounterVec, IntGaugeVec, Opts};

/// A histogram with these buckets.
#[must_use]
pub fn histogram(name: &str, help: &str, buckets: &[f64]) -> HistogramOpts {
    HistogramOpts::new(name, help).buckets(buckets.to_vec())
}

/// Counters, told apart by these labels.
pub fn counters(name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntCounterVec> {
    IntCounterVec::new(Opts::new(name, help), labels)
}

/// A gauge for each tenant.
pub fn gauges(name: &str, help: &str) -> prometheus::Result<IntGaugeVec> {
    IntGaugeVec::new(Opts::new(name, help), &["tenant"])
}
