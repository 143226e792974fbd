//! The harness: real servers, the real binaries, and ways to break what is between them.

#![expect(clippy::disallowed_methods, reason = "tests talk to the script that starts them by variables")]

pub mod broker;
pub mod certificates;
pub mod collector;
pub mod console;
pub mod database;
pub mod feed;
pub mod http;
pub mod load;
pub mod poll;
pub mod process;
pub mod rabbit_cluster;
pub mod relay;
pub mod replica_set;
pub mod respond_api;
pub mod stack;
