//! `worker tail`: events as they come. RabbitMQ copies them into a queue of the command's own, which is
//! short, drops the oldest when it is full, and is deleted with the command: so a slow reader delays nobody.

use std::io::Write;

use clap::Args;
use futures_util::StreamExt;
use lapin::Consumer;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use serde_json::json;
use shared::address::Address;
use shared::amqp::{self, Link, Purpose, Session};
use shared::env::Env;
use shared::table::{self, Column};
use shared::topology::{self, WEBHOOKS_EXCHANGE};
use tokio::time::timeout;

use super::set_aside::message::{self, SetAside};
use super::set_aside::queue::{ANSWER_TIMEOUT, QueueError};
use super::{CommandError, say};

/// Events that wait for a slow reader, and their bytes, at most: the oldest of them are dropped first.
const MAX_LENGTH: i64 = 1000;
const MAX_BYTES: i64 = 16 << 20;
/// Events on their way to the reader, at most.
const PREFETCH: u16 = 100;

/// Which events.
#[derive(Debug, Args)]
#[command(after_help = "Example: worker tail --tenant vip --event-type 'message.*'")]
pub struct Arguments {
    /// Only this tenant's; several may be given [default: all]
    #[arg(long, value_name = "TENANT", value_delimiter = ',')]
    tenant: Vec<String>,
    /// Only events of this type; a * stands for any words between dots, as in 'message.*'
    #[arg(long, value_name = "TYPE", value_parser = parse_pattern)]
    event_type: Option<String>,
    /// Write JSON, an object a line
    #[arg(long)]
    json: bool,
}

/// A pattern for event types as RabbitMQ writes it, where a star is for a single word.
fn parse_pattern(text: &str) -> Result<String, String> {
    let words: Vec<&str> = text.split('.').map(|word| if word == "*" { "#" } else { word }).collect();
    if words.iter().any(|word| word.contains('*')) {
        return Err("a * stands for whole words between dots, as in message.*".to_owned());
    }
    Ok(words.join("."))
}

/// Runs the command until it is interrupted.
pub async fn run(arguments: Arguments, mut env: Env, out: &mut impl Write) -> Result<(), CommandError> {
    let address = Address::read(&mut env);
    let address = env.finish(address)?;
    let link = Link::start(address, "worker tail", Purpose::Consume, [].into(), 0);
    let mut sessions = link.sessions();
    let first = timeout(ANSWER_TIMEOUT, amqp::next_session(&mut sessions)).await.ok().flatten();
    let mut session = first.ok_or(QueueError::NotConnected)?;
    if !arguments.json {
        say(out, table::heading(&COLUMNS))?;
    }
    loop {
        follow(&session, &arguments, out).await?;
        eprintln!("lost the connection to RabbitMQ: what comes until it is back is not shown");
        session.report_broken("the queue of events is gone");
        session.lost().cancelled().await;
        let Some(next) = amqp::next_session(&mut sessions).await else { return Ok(()) };
        session = next;
    }
}

/// Shows events until the session is lost.
async fn follow(session: &Session, arguments: &Arguments, out: &mut impl Write) -> Result<(), CommandError> {
    let mut events =
        timeout(ANSWER_TIMEOUT, subscribe(session, arguments)).await.map_err(QueueError::from)??;
    while let Some(Ok(event)) = events.next().await {
        say(out, if arguments.json { as_json(&event).to_string() } else { line(&event) })?;
        out.flush().map_err(super::unwritten)?;
        if event.acker.ack(BasicAckOptions::default()).await.is_err() {
            break;
        }
    }
    Ok(())
}

async fn subscribe(session: &Session, arguments: &Arguments) -> Result<Consumer, QueueError> {
    let channel = session.channel().await?;
    let bounds = topology::table(&[
        ("x-max-length", MAX_LENGTH.into()),
        ("x-max-length-bytes", MAX_BYTES.into()),
        ("x-overflow", AMQPValue::LongString("drop-head".into())),
    ])?;
    let options = QueueDeclareOptions { auto_delete: true, ..QueueDeclareOptions::exclusive() };
    let queue = channel.queue_declare(topology::short("")?, options, bounds).await?.name().clone();
    for key in binding_keys(&arguments.tenant, arguments.event_type.as_deref()) {
        let (exchange, key) = (topology::short(WEBHOOKS_EXCHANGE)?, topology::short(key)?);
        let (options, none) = (QueueBindOptions::default(), FieldTable::default());
        channel.queue_bind(queue.clone(), exchange, key, options, none).await?;
    }
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
    let (tag, options) = (topology::short("")?, BasicConsumeOptions::default());
    Ok(channel.basic_consume(queue, tag, options, FieldTable::default()).await?)
}

/// What the routing keys of the wanted events look like: tenant, partition, event type.
fn binding_keys(tenants: &[String], event_type: Option<&str>) -> Vec<String> {
    let event_type = event_type.unwrap_or("#");
    if tenants.is_empty() {
        return vec![format!("*.*.{event_type}")];
    }
    tenants.iter().map(|tenant| format!("{tenant}.*.{event_type}")).collect()
}

const COLUMNS: [Column; 5] = [
    Column::text("RECEIVED AT", 24),
    Column::text("TENANT", 10),
    Column::text("EVENT TYPE", 25),
    Column::number("BYTES", 7),
    Column::text("EVENT KEY", 0),
];

fn line(event: &Delivery) -> String {
    let about = SetAside::of(&tenant(event), &event.properties, &event.data);
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let cells = [
        or_dash(about.received_at),
        about.tenant,
        or_dash(about.event_type),
        about.bytes.to_string(),
        or_dash(about.key),
    ];
    table::line(&COLUMNS, &cells)
}

fn as_json(event: &Delivery) -> serde_json::Value {
    let about = SetAside::of(&tenant(event), &event.properties, &event.data);
    json!({
        "tenant": about.tenant,
        "key": about.key,
        "event_type": about.event_type,
        "received_at": about.received_at,
        "bytes": about.bytes,
        "headers": message::headers(&event.properties),
    })
}

/// The routing key begins with it.
fn tenant(event: &Delivery) -> String {
    event.routing_key.as_str().split('.').next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_words() {
        assert_eq!(parse_pattern("contact.*").unwrap(), "contact.#");
        assert_eq!(parse_pattern("*.updated").unwrap(), "#.updated");
        assert_eq!(parse_pattern("call.ended").unwrap(), "call.ended");
        assert!(parse_pattern("mess*").is_err());
    }

    #[test]
    fn tenants_are_told_by_the_routing_key() {
        let two = ["faster".to_owned(), "vip".to_owned()];
        assert_eq!(binding_keys(&two, Some("message.#")), ["faster.*.message.#", "vip.*.message.#"]);
        assert_eq!(binding_keys(&[], None), ["*.*.#"]);
    }
}
