//! The same events in any order, any batches, any number of times: the same documents, with the counts that a
//! simple look at all of the events gives.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use shared::event::Stream;

use super::*;
use crate::decode::Kind;
use crate::json::Json;

/// Members that an object may have, each in all its ways; the empty one is its absence.
type Members = &'static [&'static [&'static str]];

const ENVELOPE: Members = &[
    &[
        r#""event_id":"a""#,
        r#""event_id":"b""#,
        r#""event_id":"c""#,
        r#""event_id":"d""#,
        "",
        r#""event_id":7"#,
    ],
    &[
        r#""event_type":"message.received""#,
        r#""event_type":"message.received""#,
        r#""event_type":"message.sent""#,
        r#""event_type":"message.sent""#,
        r#""event_type":"comment.created""#,
        r#""event_type":"comment.created""#,
        r#""event_type":"conversation.opened""#,
        r#""event_type":"conversation.closed""#,
        r#""event_type":"contact.created""#,
        r#""event_type":"contact.updated""#,
        r#""event_type":"contact.assignee.updated""#,
        r#""event_type":"contact.tag.updated""#,
        r#""event_type":"contact.tag.updated""#,
        r#""event_type":"contact.lifecycle.updated""#,
        r#""event_type":"contact.lifecycle.updated""#,
        r#""event_type":"call.ended""#,
        r#""event_type":"message.edited""#,
        r#""event_type":"message.delivered""#,
        r#""event_type":null"#,
        "",
    ],
    &[r#""text":"x""#, r#""text":"$y""#, r#""text":null"#, ""],
    &["", r#""lifecycle":null"#, r#""lifecycle":"Lead""#, r#""lifecycle":"Customer""#],
    &["", r#""oldLifecycle":"Lead""#],
    &["", r#""channel":null"#, r#""channel":{"id":1,"name":"x"}"#, r#""channel":{"id":2,"source":"y"}"#],
    &["", r#""user":{"email":"u@example.com"}"#, r#""source":"Echo Message""#],
    &["", r#""tag":"a""#, r#""tag":"c""#, r#""tag":"$d""#],
    &["", r#""action":"add""#, r#""action":"remove""#],
    &["", r#""timestamp":1799000003"#],
];

const CONTACT: Members = &[
    &[r#""id":1"#, r#""id":2"#, r#""id":"1""#, r#""id":1.0"#, r#""id":null"#],
    &["", r#""phone":"+1""#, r#""phone":" +2""#, r#""phone":null"#],
    &[r#""firstName":"A""#, r#""firstName":"B""#, r#""firstName":null"#, ""],
    &["", r#""assignee":null"#, r#""assignee":{"id":1}"#, r#""assignee":{"id":null}"#],
    &["", r#""tags":null"#, r#""tags":["a"]"#, r#""tags":["b","a"]"#],
    &["", r#""lifecycle":null"#, r#""lifecycle":"Lead""#, r#""lifecycle":"Hot""#],
    &["", r#""color":"red""#, r#""custom_fields":[{"name":"$color","value":1}]"#, r#""custom_fields":[]"#],
    &["", r#""created_at":1798000000"#, r#""created_at":1798000001"#],
];

const MESSAGE: Members = &[
    &[
        r#""messageId":1"#,
        r#""messageId":"1""#,
        r#""messageId":2"#,
        r#""messageId":3"#,
        r#""messageId":null"#,
    ],
    &["", r#""contactId":1"#, r#""contactId":2"#],
    &[
        r#""timestamp":1799000000"#,
        r#""timestamp":"1799000000000""#,
        r#""timestamp":1799000001000"#,
        r#""timestamp":1799000002"#,
        r#""timestamp":0"#,
        "",
    ],
    &[
        r#""message":{"type":"text","text":"$x"}"#,
        r#""message":{"type":"image","url":"u"}"#,
        r#""message":{"type":"attachment","attachment":{"type":"image"}}"#,
        r#""message":{"type":"attachment","attachment":{}}"#,
        r#""message":{"type":"document","url":"v","filename":"f"}"#,
        r#""message":{"type":"location","latitude":1.5}"#,
        r#""message":null"#,
        "",
        "",
    ],
    &["", "", r#""type":"text","text":"flat""#, r#""type":"image","url":"flat""#, r#""type":null"#],
    &["", r#""replyTo":{"id":1}"#],
    &["", r#""channelId":"1""#, r#""channelId":1"#],
    &[
        "",
        r#""status":[{"value":"sent","timestamp":1799000000}]"#,
        r#""status":[{"value":"sent","timestamp":1799000000000},{"value":"read","timestamp":1799000009}]"#,
        r#""status":[{"value":"failed","timestamp":1799000005,"message":"m"},{"value":"sent"}]"#,
    ],
];

const CONVERSATION: Members = &[
    &["", r#""conversationOpenedAt":1799000000"#, r#""conversationOpenedAt":1799000003"#],
    &["", r#""openedTime":1799000001"#, r#""openedTime":1799000005"#],
    &["", r#""closedTime":1799000004"#, r#""closedTime":1799000003000"#],
    &["", r#""category":"Sale""#, r#""source":"contact""#],
];

const CALL: Members = &[
    &[r#""id":"c""#, r#""id":9"#, r#""id":null"#],
    &["", r#""end_time":1799000001"#, r#""end_time":1799000002"#],
    &[r#""status":"done""#, r#""status":"missed""#],
];

fn members(all: Members) -> impl Strategy<Value = String> {
    let choices: Vec<_> = all.iter().map(|choices| select(*choices)).collect();
    choices.prop_map(|chosen| {
        let present: Vec<_> = chosen.into_iter().filter(|member| !member.is_empty()).collect();
        present.join(",")
    })
}

/// A member that is an object, or null, or not there.
fn nested(name: &'static str, all: Members) -> impl Strategy<Value = String> {
    prop_oneof![
        1 => Just(String::new()),
        1 => Just(format!(r#""{name}":null"#)),
        8 => members(all).prop_map(move |members| format!(r#""{name}":{{{members}}}"#)),
    ]
}

fn body() -> impl Strategy<Value = String> {
    let nested = [
        nested("contact", CONTACT).boxed(),
        nested("message", MESSAGE).boxed(),
        nested("conversation", CONVERSATION).boxed(),
        nested("call", CALL).boxed(),
    ];
    (members(ENVELOPE), nested).prop_map(|(envelope, nested)| {
        let all = std::iter::once(&envelope).chain(&nested).filter(|members| !members.is_empty());
        format!("{{{}}}", all.cloned().collect::<Vec<_>>().join(","))
    })
}

/// Some events. Each body comes with one stamp.
fn events() -> impl Strategy<Value = Vec<Event>> {
    let stamped = (select(&Stream::ALL[..]), 0..4_i64, body());
    vec(stamped, 1..16).prop_map(|stamped| {
        let mut bodies = BTreeSet::new();
        let fresh = stamped.into_iter().filter(|(_, _, body)| bodies.insert(body.clone()));
        fresh.map(|(stream, after, body)| arrived(stream, RECEIVED + after, &body)).collect()
    })
}

/// Some events, and how they arrive: each at least once, in any order, in batches.
pub(super) fn arrivals() -> impl Strategy<Value = (Vec<Event>, Vec<Vec<Event>>)> {
    let ordered = events().prop_flat_map(|events| {
        let again = vec(0..events.len(), 0..events.len());
        let count = events.len();
        let arriving =
            again.prop_map(move |again| (0..count).chain(again).collect::<Vec<_>>()).prop_shuffle();
        (Just(events), arriving, vec(1..8_usize, 32))
    });
    ordered.prop_map(|(events, arriving, sizes)| {
        let mut arriving = arriving.into_iter().map(|position| events[position].clone());
        let batches = sizes.into_iter().map(|size| arriving.by_ref().take(size).collect::<Vec<_>>());
        let batches = batches.filter(|batch| !batch.is_empty()).collect();
        (events, batches)
    })
}

/// The latest event of each thing that events are about.
fn latest<'a, K: Ord>(events: &'a [Event], about: impl Fn(&'a Event) -> Option<K>) -> BTreeMap<K, &'a Event> {
    let mut sorted: Vec<_> = events.iter().collect();
    sorted.sort_by_key(|event| (event.at_ms, &event.key, &event.digest));
    sorted.into_iter().filter_map(|event| Some((about(event)?, event))).collect()
}

fn is_message(event: &Event) -> bool {
    matches!(event.kind, Kind::Message(_))
}

/// The event that tells most of each message, and the latest of those.
fn latest_messages(events: &[Event]) -> BTreeMap<String, &Event> {
    let id = |event: &Event| {
        let sent = || event.members.get("message")?.get("messageId")?.id();
        let is_about_one = matches!(event.kind, Kind::Message(_) | Kind::Status(_));
        is_about_one.then(|| sent().unwrap_or_else(|| event.key.clone()))
    };
    let of = |has: fn(&Event) -> bool| latest(events, move |event| id(event).filter(|_| has(event)));
    let mut messages = of(|event| matches!(event.kind, Kind::Status(_)));
    messages.extend(of(|event| is_message(event) && content(event).is_none()));
    messages.extend(of(|event| is_message(event) && content(event).is_some()));
    messages
}

/// The object in which the content of a message is.
fn content(event: &Event) -> Option<&Json> {
    let message = event.members.get("message")?;
    let is_flat = message.get("type").is_some_and(|kind| kind.text().is_some());
    message.get("message").filter(|inner| inner.object().is_some()).or(is_flat.then_some(message))
}

/// What of the generated messages is a medium.
fn medium(event: &Event) -> Option<&str> {
    match content(event)?.get("type")?.text()? {
        "text" | "location" => None,
        "attachment" => {
            Some(content(event)?.get("attachment")?.get("type").map_or("file", |kind| kind.text().unwrap()))
        }
        kind => Some(kind),
    }
}

fn count<T: Ord>(things: impl Iterator<Item = T>) -> BTreeMap<T, i32> {
    things.fold(BTreeMap::new(), |mut counts, thing| {
        *counts.entry(thing).or_default() += 1;
        counts
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn neither_order_nor_batches_nor_repetition_show((events, batches) in arrivals()) {
        prop_assert_eq!(after(&batches).timeless(), one_by_one(events.iter()).timeless());
    }

    #[test]
    fn to_take_events_for_new_first_does_not_show((events, batches) in arrivals()) {
        let mut database = Database::default();
        for batch in &batches {
            if !database.write_as_new(batch) {
                database.write(batch);
            }
        }
        prop_assert_eq!(database.timeless(), one_by_one(events.iter()).timeless());
    }

    #[test]
    fn what_is_stored_is_not_written_again((events, batches) in arrivals()) {
        let database = after(&batches);
        let mut documents = database.load(&events);
        let now = DateTime::from_millis(0);
        for event in &events {
            prop_assert_eq!(documents.apply(event, now), Outcome::Duplicate);
        }
        prop_assert_eq!(writes(&documents, now), <[Writes; 6]>::default());
    }

    #[test]
    fn a_message_counts_once_and_where_its_latest_delivery_says((events, batches) in arrivals()) {
        let database = after(&batches);
        let messages = latest_messages(&events);
        prop_assert_eq!(database.messages.ids(), messages.keys().collect::<Vec<_>>());
        let counted = messages.values().filter(|event| is_message(event));
        let chats = count(counted.clone().map(|event| event.chat_id.as_deref()));
        let media = counted.filter_map(|event| Some((event.chat_id.as_deref()?, medium(event)?)));
        let media = count(media);
        for chat_id in database.conversations.ids() {
            let counted = chats.get(&Some(chat_id)).copied().unwrap_or_default();
            prop_assert_eq!(database.conversations.at(chat_id, "message_count"), Bson::Int32(counted));
            let in_chat = media.iter().filter(|((chat, _), _)| *chat == chat_id);
            let counted = in_chat.map(|((_, kind), count)| ((*kind).to_owned(), Bson::Int32(*count)));
            prop_assert_eq!(
                database.conversations.at(chat_id, "media_counts"),
                Bson::Document(counted.collect())
            );
        }
        for (id, event) in messages {
            prop_assert_eq!(database.messages.at(&id, "chat_id"), Bson::from(event.chat_id.clone()));
            let at = if is_message(event) { date(event.at_ms) } else { Bson::Null };
            prop_assert_eq!(database.messages.at(&id, "ts"), at);
            if let Some(chat_id) = event.chat_id.as_ref().filter(|_| is_message(event)) {
                prop_assert!(database.conversations.0.contains_key(chat_id));
            }
        }
    }

    #[test]
    fn first_and_last_message_span_all_deliveries((events, batches) in arrivals()) {
        let database = after(&batches);
        for chat_id in database.conversations.ids() {
            let messages = events.iter().filter(|event| is_message(event));
            let in_chat = messages.filter(|event| event.chat_id.as_deref() == Some(chat_id));
            let times: BTreeSet<i64> = in_chat.map(|event| event.at_ms).collect();
            let moment = |at: Option<&i64>| at.map_or(Bson::Null, |at| date(*at));
            prop_assert_eq!(database.conversations.at(chat_id, "first_message_ts"), moment(times.first()));
            prop_assert_eq!(database.conversations.at(chat_id, "last_message_ts"), moment(times.last()));
        }
    }

    #[test]
    fn a_note_counts_once_and_where_its_latest_body_says((events, batches) in arrivals()) {
        let database = after(&batches);
        let notes = latest(&events, |event| (event.kind == Kind::Note).then_some(event.key.as_str()));
        prop_assert_eq!(database.notes.ids(), notes.keys().copied().collect::<Vec<_>>());
        let chats = count(notes.values().map(|event| event.chat_id.as_deref()));
        for chat_id in database.conversations.ids() {
            let counted = chats.get(&Some(chat_id)).copied().unwrap_or_default();
            prop_assert_eq!(database.conversations.at(chat_id, "internal_note_count"), Bson::Int32(counted));
        }
    }

    #[test]
    fn the_latest_snapshot_of_a_contact_is_the_one_that_shows((events, batches) in arrivals()) {
        let database = after(&batches);
        let name = |event: &Event| {
            event.contact().and_then(|contact| contact.get("firstName")?.text()).map(str::to_owned)
        };
        let contacts = latest(&events, |event| {
            matches!(event.kind, Kind::Contact | Kind::Lifecycle).then(|| event.contact_id()).flatten()
        });
        prop_assert_eq!(database.contacts.ids(), contacts.keys().collect::<Vec<_>>());
        for (id, event) in contacts {
            prop_assert_eq!(database.contacts.at(&id, "firstName"), Bson::from(name(event)));
        }
        let conversations = latest(&events, |event| {
            let is_concerned = !matches!(event.kind, Kind::Contact | Kind::Call | Kind::Other | Kind::Status(_));
            (is_concerned && event.contact().is_some()).then(|| event.chat_id.clone()).flatten()
        });
        for (chat_id, event) in conversations {
            let shown = database.conversations.at(&chat_id, "contact.firstName");
            prop_assert_eq!(shown, Bson::from(name(event)));
        }
    }

    #[test]
    fn tags_are_the_latest_snapshot_and_the_latest_change_of_each_since((events, batches) in arrivals()) {
        let database = after(&batches);
        let id = |event: &Event| {
            matches!(event.kind, Kind::Contact | Kind::Lifecycle).then(|| event.contact_id()).flatten()
        };
        let stamp = |event: &Event| (event.at_ms, event.key.clone(), event.digest.clone());
        let snapshots = latest(&events, |event| {
            let tags = event.contact()?.get("tags")?;
            let is_said = tags.list().is_some() || event.event_type.as_deref() != Some("contact.tag.updated");
            id(event).filter(|_| is_said)
        });
        let changes = latest(&events, |event| {
            let is_single = event.contact()?.get("tags").is_none_or(|tags| tags.list().is_none());
            let is_of_type = event.event_type.as_deref() == Some("contact.tag.updated");
            event.members.get("action").filter(|_| is_single && is_of_type)?;
            Some((id(event)?, event.members.get("tag")?.text()?))
        });
        for contact in database.contacts.ids() {
            let snapshot = snapshots.get(contact);
            let listed = snapshot.and_then(|event| event.contact()?.get("tags")?.list()).unwrap_or_default();
            let mut expected: BTreeSet<&str> = listed.iter().filter_map(Json::text).collect();
            for ((_, tag), event) in changes.iter().filter(|((id, _), _)| id == contact) {
                if snapshot.is_some_and(|snapshot| stamp(snapshot) > stamp(event)) {
                    continue;
                }
                match event.members["action"].text() {
                    Some("add") => drop(expected.insert(tag)),
                    _ => drop(expected.remove(tag)),
                }
            }
            let tags = database.contacts.0[contact].get_array("tags").unwrap().iter();
            prop_assert_eq!(tags.map(|tag| tag.as_str().unwrap()).collect::<BTreeSet<_>>(), expected);
        }
    }

    #[test]
    fn lifecycle_history_has_each_event_once_in_order((events, batches) in arrivals()) {
        let database = after(&batches);
        for id in database.contacts.ids() {
            let told = events.iter().filter(|event| {
                event.kind == Kind::Lifecycle && event.contact_id().as_deref() == Some(id)
            });
            let told: BTreeSet<&str> = told.map(|event| event.key.as_str()).collect();
            let history = database.contacts.0[id].get_array("lifecycle_history").unwrap();
            let history = history.iter().map(|entry| entry.as_document().unwrap());
            let places: Vec<_> = history
                .map(|entry| (*entry.get_datetime("timestamp").unwrap(), entry.get_str("event_id").unwrap()))
                .collect();
            prop_assert!(places.is_sorted(), "{places:?}");
            prop_assert_eq!(places.len(), told.len());
            prop_assert_eq!(places.into_iter().map(|(_, key)| key).collect::<BTreeSet<_>>(), told);
        }
    }

    #[test]
    fn the_ledger_has_every_body_once_the_first_under_its_key((events, batches) in arrivals()) {
        let database = after(&batches);
        let entries = database.ledger.0.values().map(|entry| entry.get_str("body").unwrap());
        prop_assert_eq!(
            entries.collect::<BTreeSet<_>>(),
            events.iter().map(|event| event.body.as_str()).collect::<BTreeSet<_>>()
        );
        prop_assert_eq!(database.ledger.ids().len(), events.len());
        let mut sorted = events.clone();
        sorted.sort_by(|a, b| (b.received_at_ms, &b.digest).cmp(&(a.received_at_ms, &a.digest)));
        let first: BTreeMap<_, _> = sorted.iter().map(|event| (&event.key, &event.body)).collect();
        for event in &events {
            let id = if first[&event.key] == &event.body {
                event.key.clone()
            } else {
                format!("{}~{}", event.key, &event.digest[..16])
            };
            prop_assert_eq!(database.ledger.at(&id, "body"), Bson::from(&event.body));
        }
    }

    #[test]
    fn each_body_is_entered_once_whenever_it_is_received(
        deliveries in vec((0..4_u8, 0..5_i64), 1..12),
        size in 1..5_usize,
    ) {
        let events: Vec<_> = deliveries
            .iter()
            .map(|(n, after)| sent_at(RECEIVED + after, &format!(r#"{{"event_id":"e","n":{n}}}"#)))
            .collect();
        let database = after_batches(events.chunks(size));
        let bodies = events.iter().map(|event| event.body.as_str()).collect::<BTreeSet<_>>();
        prop_assert_eq!(database.ledger.ids().len(), bodies.len());
        for entry in database.ledger.0.values() {
            let same = events.iter().filter(|event| entry.get_str("body").unwrap() == event.body);
            let first = same.map(|event| event.received_at_ms).min().unwrap();
            prop_assert_eq!(entry.get("received_at"), Some(&date(first)));
        }
    }
}

pub(super) fn after(batches: &[Vec<Event>]) -> Database {
    after_batches(batches.iter().map(Vec::as_slice))
}

fn after_batches<'a>(batches: impl Iterator<Item = &'a [Event]>) -> Database {
    let mut database = Database::default();
    for batch in batches {
        database.write(batch);
    }
    database
}
