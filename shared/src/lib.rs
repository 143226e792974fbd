//! What both binaries of Penstock share: the event, the broker, settings, telemetry and shutdown.

pub mod address;
pub mod admin;
pub mod amqp;
mod amqp_url;
pub mod dotenv;
pub mod env;
pub mod event;
pub mod host;
pub mod json;
pub mod open_files;
mod outbox;
pub mod partition;
pub mod publisher;
pub mod series;
mod server_version;
pub mod setting;
pub mod shutdown;
mod similar;
pub mod start;
pub mod status;
pub mod telemetry;
pub mod tenant;
pub mod tenant_queue;
pub mod topology;
pub mod traces;
pub mod verify;
