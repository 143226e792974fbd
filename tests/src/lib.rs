//! The harness: real servers, the real binaries, and ways to break what is between them.

pub mod broker;
pub mod database;
pub mod http;
pub mod poll;
pub mod process;
pub mod relay;
pub mod stack;
