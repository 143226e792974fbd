//! Makes a message or a contact of the API into the webhook that would have brought it. Pure.

use std::collections::HashMap;

use crate::json::{self, Json, Object, Text};
use mongodb::bson::{Document, doc};

use super::plan::Message;
use crate::decode::BACKFILLED;

/// What the event keys of all backfilled events begin with.
const KEY_PREFIX: &str = "backfill-";
/// The first text behind all that begin so.
const BEHIND_KEYS: &str = "backfill.";

/// Fields of a contact that only contact events need.
const OF_CONTACT_EVENTS: [&str; 2] = ["tags", "custom_fields"];
/// Fields of a user that webhooks have.
const OF_USER: [&str; 5] = ["id", "firstName", "lastName", "email", "role"];

/// The workspace's users and channels, by their ids.
#[derive(Debug, Default)]
pub struct Directory {
    /// The users.
    pub users: HashMap<String, Object>,
    /// The channels.
    pub channels: HashMap<String, Object>,
}

/// The ledger's entries of backfilled events. By their keys, since there is no index of signatures.
#[must_use]
pub fn entries() -> Document {
    doc! {"_id": {"$gte": KEY_PREFIX, "$lt": BEHIND_KEYS}, "signature": BACKFILLED}
}

/// The body of the event that a message becomes.
#[must_use]
pub fn of_message(message: &Message, contact: &Object, directory: &Directory) -> String {
    let Message { id, at_ms, item } = message;
    let is_incoming = is_incoming(item);
    let event_type = if is_incoming { "message.received" } else { "message.sent" };
    let mut event = envelope(&format!("{KEY_PREFIX}{id}"), event_type);
    let contact = as_in_webhooks(contact).into_iter();
    let contact = contact.filter(|(name, _)| !OF_CONTACT_EVENTS.contains(&name.as_str()));
    event.insert("contact".into(), object(contact.collect()));
    let outer = item.iter().filter(|(name, _)| *name != "sender");
    let mut outer: Object = outer.map(|(name, value)| (name.clone(), value.clone())).collect();
    outer.insert("timestamp".into(), Json::Number(at_ms.to_string().into()));
    event.insert("message".into(), object(outer));
    let find = |known: &HashMap<String, Object>, id: Option<&Json>| known.get(&id?.id()?).cloned();
    // Without its name, a channel would count as another one.
    let channel = find(&directory.channels, item.get("channelId"));
    event.extend(channel.map(|channel| ("channel".into(), object(channel))));
    let sender = item.get("sender").and_then(Json::object);
    if !is_incoming {
        let user = find(&directory.users, sender.and_then(|sender| sender.get("userId")));
        let user =
            user.map(|user| user.into_iter().filter(|(name, _)| OF_USER.contains(&name.as_str())).collect());
        event.insert("user".into(), user.map_or(Json::Null, object));
    }
    let source = sender.and_then(|sender| sender.get("source")).and_then(Json::text);
    event.extend(sender.map(|sender| ("sender".into(), object(with_type(sender, source)))));
    event.extend(source.and_then(top_level_source).map(|source| ("source".into(), text(source))));
    json::compact(&event)
}

/// The body of the event that a contact becomes.
#[must_use]
pub fn of_contact(id: &str, contact: &Object) -> String {
    let mut event = envelope(&format!("{KEY_PREFIX}contact-{id}"), "contact.created");
    event.insert("contact".into(), object(as_in_webhooks(contact)));
    json::compact(&event)
}

/// Whether a message is from the contact.
#[must_use]
pub fn is_incoming(item: &Object) -> bool {
    match item.get("traffic").and_then(Json::text) {
        Some(traffic) => traffic.eq_ignore_ascii_case("incoming"),
        None => item.get("sender").and_then(|sender| sender.get("source")?.text()) == Some("contact"),
    }
}

fn envelope(key: &str, event_type: &str) -> Object {
    [("event_id", key), ("event_type", event_type)]
        .map(|(name, value)| (name.into(), text(value)))
        .into_iter()
        .collect()
}

/// A contact, with the status in the words of webhooks.
fn as_in_webhooks(contact: &Object) -> Object {
    let mut contact = contact.clone();
    if let Some(status) = contact.get_mut("status").filter(|status| status.text() == Some("close")) {
        *status = text("closed");
    }
    contact
}

/// A sender, with the type that webhooks have beside the source, of the same value.
fn with_type(sender: &Object, source: Option<&str>) -> Object {
    let told = (!sender.contains_key("type")).then_some(source).flatten();
    let told = told.map(|source| (Text::from("type"), text(source)));
    told.into_iter().chain(sender.iter().map(|(name, value)| (name.clone(), value.clone()))).collect()
}

/// What webhooks say at the top level of who has sent a message.
fn top_level_source(source: &str) -> Option<&'static str> {
    match source {
        "user" => Some("User"),
        "echo" => Some("Echo Message"),
        _ => None,
    }
}

fn object(members: Object) -> Json {
    Json::Object(Box::new(members))
}

fn text(value: &str) -> Json {
    Json::Text(value.into())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parsed(value: &Value) -> Object {
        json::parse(value.to_string().as_bytes()).unwrap()
    }

    fn directory() -> Directory {
        let of = |value: Value| HashMap::from([("5".to_owned(), parsed(&value))]);
        Directory {
            users: of(
                json!({"id": 5, "firstName": "U", "lastName": null, "email": "u@example.com", "team": {"id": 1}}),
            ),
            channels: of(json!({"id": 5, "name": "C", "source": "whatsapp"})),
        }
    }

    fn event(item: &Value) -> Value {
        let message = Message { id: "7".into(), at_ms: 1_791_792_900_104, item: parsed(item) };
        let contact = json!({"id": 1, "phone": "+1", "status": "close", "tags": ["t"], "custom_fields": [], "created_at": 9});
        serde_json::from_str(&of_message(&message, &parsed(&contact), &directory())).unwrap()
    }

    #[test]
    fn a_message_becomes_the_webhook_that_it_would_have_been() {
        let item = json!({"messageId": 7, "channelMessageId": "w", "contactId": 1, "channelId": "5", "traffic": "outgoing",
            "message": {"type": "text", "text": "hi"}, "status": [{"value": "sent", "timestamp": 1}],
            "sender": {"source": "user", "userId": 5, "teamId": 2}});
        let expected = json!({"event_id": "backfill-7", "event_type": "message.sent",
            "contact": {"id": 1, "phone": "+1", "status": "closed", "created_at": 9},
            "message": {"messageId": 7, "channelMessageId": "w", "contactId": 1, "channelId": "5", "traffic": "outgoing",
                "message": {"type": "text", "text": "hi"}, "status": [{"value": "sent", "timestamp": 1}],
                "timestamp": 1_791_792_900_104_i64},
            "channel": {"id": 5, "name": "C", "source": "whatsapp"},
            "user": {"id": 5, "firstName": "U", "lastName": null, "email": "u@example.com"},
            "sender": {"type": "user", "source": "user", "userId": 5, "teamId": 2}, "source": "User"});
        assert_eq!(event(&item), expected);
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let item =
            json!({"messageId": 7, "channelId": 6, "traffic": "incoming", "message": null, "sender": null});
        let expected = json!({"event_id": "backfill-7", "event_type": "message.received",
            "contact": {"id": 1, "phone": "+1", "status": "closed", "created_at": 9},
            "message": {"messageId": 7, "channelId": 6, "traffic": "incoming", "message": null, "timestamp": 1_791_792_900_104_i64}});
        assert_eq!(event(&item), expected);
        let echo = event(&json!({"messageId": 7, "sender": {"source": "echo", "userId": 6}}));
        assert_eq!((&echo["source"], &echo["user"]), (&json!("Echo Message"), &Value::Null));
        let from_contact = json!({"messageId": 7, "sender": {"source": "contact"}});
        assert_eq!(event(&from_contact)["event_type"], "message.received");
    }

    #[test]
    fn a_contact_keeps_all_that_it_has() {
        let contact =
            json!({"id": 1, "status": "open", "tags": ["t"], "custom_fields": [{"name": "x", "value": 1}]});
        let event: Value = serde_json::from_str(&of_contact("1", &parsed(&contact))).unwrap();
        let expected =
            json!({"event_id": "backfill-contact-1", "event_type": "contact.created", "contact": contact});
        assert_eq!(event, expected);
    }
}
