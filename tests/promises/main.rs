//! What Penstock promises, checked from outside against real servers. Run with `tests/run`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod contract;
mod delivery;
mod documents;
mod evidence;
mod exactly_once;
mod order;
mod settings;
mod shutdown;
mod visible;
