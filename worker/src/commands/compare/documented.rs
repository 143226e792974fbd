//! Where Penstock's documents differ from the bridge's on purpose, as `worker/README.md` lists it. Pure.

use mongodb::bson::{RawArray, RawBsonRef, RawDocument};

use super::pair::Fields;

/// Whether a field that differs is among them.
#[must_use]
pub fn is_documented(name: &str, bridge: &Fields<'_>, ours: &Fields<'_>) -> bool {
    let Some(ours_is) = ours.get(name) else { return false };
    // Fields of ours that the bridge doesn't have are told in its documents by nothing.
    let Some(bridges) = bridge.get(name) else { return true };
    match (name, bridges, ours_is) {
        ("ts", RawBsonRef::DateTime(_), _) => is_in_seconds(name, bridge, ours),
        ("first_message_ts", ..) => is_earlier(bridge, ours) || is_in_seconds(name, bridge, ours),
        ("last_message_ts", RawBsonRef::DateTime(bridges), RawBsonRef::DateTime(ours)) => ours > bridges,
        ("message_count" | "internal_note_count", ..) => is_lower(name, bridge, ours),
        ("media_counts", ..) => is_lower("message_count", bridge, ours),
        ("sender_info.name", RawBsonRef::String(bridges), RawBsonRef::String(ours)) => {
            without_none(bridges) == *ours
        }
        ("sender_info.phone" | "contact.phone" | "phone", RawBsonRef::String(""), RawBsonRef::Null)
        | ("sender" | "sender_info.source", RawBsonRef::Null, RawBsonRef::String("system")) => true,
        ("sender" | "chat_id", RawBsonRef::String(bridges), RawBsonRef::String(ours)) => {
            bridges.trim() == *ours
        }
        ("status", RawBsonRef::Array(bridges), RawBsonRef::Array(ours)) => has_all(ours, bridges),
        ("tags", RawBsonRef::Array(bridges), RawBsonRef::Array(_)) => bridges.is_empty(),
        ("assignee" | "contact.assignee", RawBsonRef::Document(bridges), RawBsonRef::Null) => {
            is_nothing(bridges)
        }
        _ => name.starts_with("channel_info.") && is_earlier(bridge, ours),
    }
}

/// Whether a document that the bridge lacks is one that only Penstock makes: a conversation of notes and
/// lifecycles alone.
#[must_use]
pub fn is_ours_alone(document: &RawDocument) -> bool {
    matches!(document.get("message_count"), Ok(Some(RawBsonRef::Int32(0) | RawBsonRef::Int64(0))))
}

fn millis(name: &str, fields: &Fields<'_>) -> Option<i64> {
    Some(fields.get(name)?.as_datetime()?.timestamp_millis())
}

/// The bridge took seconds for milliseconds.
fn is_in_seconds(name: &str, bridge: &Fields<'_>, ours: &Fields<'_>) -> bool {
    let seconds = millis(name, bridge);
    seconds.is_some() && seconds == millis(name, ours).map(|at| at / 1000)
}

fn is_earlier(bridge: &Fields<'_>, ours: &Fields<'_>) -> bool {
    let [bridges, ours] = [bridge, ours].map(|fields| millis("first_message_ts", fields));
    ours.is_some() && ours < bridges
}

/// The bridge counts twice what comes twice.
fn is_lower(name: &str, bridge: &Fields<'_>, ours: &Fields<'_>) -> bool {
    let count = |fields: &Fields<'_>| match fields.get(name)? {
        RawBsonRef::Int32(count) => Some(i64::from(*count)),
        RawBsonRef::Int64(count) => Some(*count),
        _ => None,
    };
    count(ours).is_some() && count(ours) < count(bridge)
}

fn without_none(name: &str) -> String {
    name.split(' ').filter(|part| *part != "None").collect::<Vec<_>>().join(" ")
}

fn has_all(list: &RawArray, some: &RawArray) -> bool {
    let all: Vec<_> = list.into_iter().flatten().collect();
    some.into_iter().flatten().all(|element| all.contains(&element))
}

fn is_nothing(document: &RawDocument) -> bool {
    document.iter().flatten().all(|(_, value)| value == RawBsonRef::Null)
}

#[cfg(test)]
mod tests {
    use mongodb::bson::{DateTime, RawDocumentBuf, rawdoc};

    use super::super::pair;
    use super::*;

    fn at(millis: i64) -> DateTime {
        DateTime::from_millis(millis)
    }

    fn documented(bridge: &RawDocumentBuf, ours: &RawDocumentBuf) -> bool {
        let (bridge, ours) = (pair::fields(bridge), pair::fields(ours));
        ours.keys().all(|name| bridge.get(name) == ours.get(name) || is_documented(name, &bridge, &ours))
    }

    #[test]
    fn what_the_table_lists_is_documented_and_the_opposite_is_not() {
        for (bridge, ours) in [
            (rawdoc! {"ts": at(1_792_171_860)}, rawdoc! {"ts": at(1_792_171_860_000)}),
            (rawdoc! {"last_message_ts": at(1)}, rawdoc! {"last_message_ts": at(2)}),
            (
                rawdoc! {"first_message_ts": at(2), "channel_info": {"id": 1}},
                rawdoc! {"first_message_ts": at(1), "channel_info": {"id": 2}},
            ),
            (
                rawdoc! {"message_count": 3, "media_counts": {"image": 2}},
                rawdoc! {"message_count": 2, "media_counts": {"image": 1}},
            ),
            (rawdoc! {"internal_note_count": 2_i64}, rawdoc! {"internal_note_count": 1}),
            (rawdoc! {"sender_info": {"name": "Lena None"}}, rawdoc! {"sender_info": {"name": "Lena"}}),
            (rawdoc! {"sender_info": {"phone": ""}}, rawdoc! {"sender_info": {"phone": null}}),
            (rawdoc! {"sender": null}, rawdoc! {"sender": "system"}),
            (rawdoc! {"chat_id": " +1555"}, rawdoc! {"chat_id": "+1555"}),
            (
                rawdoc! {"status": [{"value": "read"}]},
                rawdoc! {"status": [{"value": "sent"}, {"value": "read"}]},
            ),
            (rawdoc! {"tags": []}, rawdoc! {"tags": ["a"]}),
            (rawdoc! {"assignee": {"id": null, "email": null}}, rawdoc! {"assignee": null}),
        ] {
            assert!(documented(&bridge, &ours), "{bridge:?} {ours:?}");
            assert!(!documented(&ours, &bridge), "{bridge:?} {ours:?}");
        }
        assert!(!documented(&rawdoc! {"type": "text"}, &rawdoc! {"type": "image"}));
        assert!(!documented(
            &rawdoc! {"first_message_ts": at(1), "channel_info": {"id": 1}},
            &rawdoc! {"first_message_ts": at(1), "channel_info": {"id": 2}}
        ));
    }

    #[test]
    fn fields_of_ours_alone_are_documented() {
        let (without, with) = (rawdoc! {"type": "text"}, rawdoc! {"type": "text", "extra": {"replyTo": 1}});
        let (without, with) = (pair::fields(&without), pair::fields(&with));
        assert!(is_documented("extra", &without, &with) && !is_documented("extra", &with, &without));
    }

    #[test]
    fn a_conversation_without_messages_is_ours_alone() {
        assert!(is_ours_alone(&rawdoc! {"message_count": 0}));
        assert!(!is_ours_alone(&rawdoc! {"message_count": 1}) && !is_ours_alone(&rawdoc! {"text": "x"}));
    }
}
