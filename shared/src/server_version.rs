//! Which RabbitMQ this is. The older ones don't let consumer priorities decide which consumer is the active
//! one.

use std::io;

use futures_util::{AsyncReadExt, AsyncWriteExt};
use lapin::protocol::{AMQPClass, connection, parse_class};
use lapin::types::AMQPValue;
use tokio::sync::OnceCell;

use crate::address::Address;

/// The oldest major version that has everything that Penstock needs.
const OLDEST_MAJOR: u32 = 4;
/// What a client says first: AMQP 0-9-1.
const PROTOCOL_HEADER: &[u8] = b"AMQP\0\0\x09\x01";
/// A frame's type, channel and length.
const FRAME_HEAD: usize = 7;
/// More than any server says of itself, in bytes.
const MAX_START: usize = 64 << 10;

/// Why this RabbitMQ can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Unsupported {
    /// It couldn't be asked.
    #[error("can't ask RabbitMQ for its version")]
    Unknown(#[from] io::Error),
    /// It is too old.
    #[error("RabbitMQ {0} is too old: 4.0 is the oldest that Penstock works with")]
    TooOld(String),
}

/// Refuses what is older than RabbitMQ 4.0. Asks once per process, which uses one RabbitMQ only: lapin keeps
/// the server's answer to itself, so that this takes a connection, and RabbitMQ logs that it was given up.
pub async fn check(address: &Address) -> Result<(), Unsupported> {
    static CHECKED: OnceCell<()> = OnceCell::const_new();
    let ask = async || {
        let version = ask(address).await?;
        if is_supported(&version) { Ok(()) } else { Err(Unsupported::TooOld(version)) }
    };
    CHECKED.get_or_try_init(ask).await.copied()
}

/// Asks RabbitMQ for its version.
pub async fn ask(address: &Address) -> io::Result<String> {
    let mut stream = address.stream().await?;
    stream.write_all(PROTOCOL_HEADER).await?;
    stream.flush().await?;
    let mut head = [0; FRAME_HEAD];
    stream.read_exact(&mut head).await?;
    let [_, _, _, length @ ..] = head;
    let length = u32::from_be_bytes(length) as usize;
    let mut method = vec![0; length.min(MAX_START)];
    stream.read_exact(&mut method).await?;
    version(&method).ok_or_else(|| io::Error::other("this is not how a RabbitMQ answers"))
}

/// The version in the method `connection.start`.
fn version(method: &[u8]) -> Option<String> {
    let (_, method) = parse_class(method).ok()?;
    let AMQPClass::Connection(connection::AMQPMethod::Start(start)) = method else { return None };
    match start.server_properties.inner().get("version")? {
        AMQPValue::LongString(version) => Some(version.to_string()),
        _ => None,
    }
}

fn is_supported(version: &str) -> bool {
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    major.is_some_and(|major| major >= OLDEST_MAJOR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_older_than_4_0_is_not_supported() {
        for version in ["4.0.5", "4.3.6", "4.1.0-beta.1", "10.0.0"] {
            assert!(is_supported(version), "{version}");
        }
        for version in ["3.13.7", "3.10.8", "2.1.0", "", "unknown"] {
            assert!(!is_supported(version), "{version}");
        }
        let text = Unsupported::TooOld("3.13.7".into()).to_string();
        assert!(text.contains("3.13.7") && text.contains("4.0"), "{text}");
    }

    #[test]
    fn the_version_is_read_from_the_servers_first_words() {
        // connection.start of AMQP 0-9, the properties {"version": "4.0.5"}, PLAIN, en_US.
        let start = b"\0\x0a\0\x0a\0\x09\0\0\0\x12\x07versionS\0\0\0\x054.0.5\0\0\0\x05PLAIN\0\0\0\x05en_US";
        assert_eq!(version(start).as_deref(), Some("4.0.5"));
        assert_eq!(version(b"HTTP/1.1 400"), None);
        assert_eq!(version(b""), None);
    }
}
