//! Feeds the target that `FUZZ_TARGET` names with what libFuzzer breeds.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::{Corpus, fuzz_target};
use penstock_fuzz::{TARGETS, Target};

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var_os("FUZZ_TARGET");
    let chosen = TARGETS.iter().find(|(known, _)| name.as_deref() == Some(known.as_ref()));
    chosen.map_or_else(|| std::process::exit(64), |(_, target)| *target)
});

fuzz_target!(|input: &[u8]| -> Corpus { if TARGET(input) { Corpus::Keep } else { Corpus::Reject } });
