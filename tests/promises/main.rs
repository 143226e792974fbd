//! What Penstock promises, checked from outside against real servers. Run with `tests/run`.
#![expect(clippy::disallowed_methods, reason = "tests talk to the script that starts them by variables")]

mod addresses;
mod backfill;
mod balancer;
mod bench;
mod bridge;
mod clusters;
mod commands;
mod confirms;
mod connections;
mod contract;
mod delivery;
mod documents;
mod evidence;
mod exactly_once;
mod fitness;
mod holding;
mod hostile;
mod keys;
mod memory;
mod mongodb;
mod old_documents;
mod order;
mod outages;
mod pressure;
mod queues;
mod refused;
mod settings;
mod shutdown;
mod silent_queues;
mod spool;
mod tenants;
mod tls;
mod traces;
mod visible;
mod workers;
