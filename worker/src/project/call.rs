//! `calls`: one document per call id.

use mongodb::bson::{DateTime, RawBson};

use super::record::Record;
use super::stamp::Stamp;
use super::table::Table;
use crate::decode::Event;
use crate::decode::moment;
use crate::json::Json;
use crate::project::convert::{self, or_null};

/// The `_id` of a call.
#[must_use]
pub fn id(event: &Event) -> String {
    event.member("call").and_then(|call| call.get("id")?.id()).unwrap_or_else(|| event.key.clone())
}

/// Applies a call.
pub fn apply(calls: &mut Table, event: &Event, now: DateTime) {
    let call = calls.get_or_insert(&id(event), || Record::from([("created_at", now.into())]));
    if Stamp::of(event).claim_as_latest(call, "call") {
        call.extend(record(event));
    }
}

fn record(event: &Event) -> Record {
    let (call, channel) = (event.member("call"), event.member("channel"));
    let moment = |name: &str| -> RawBson {
        let read = call.and_then(|call| call.get(name)).and_then(moment::read);
        read.map_or(RawBson::Null, convert::date)
    };
    Record::from([
        ("chat_id", or_null(event.chat_id.as_deref())),
        ("ts", convert::date(event.at_ms)),
        ("contact_id", convert::id(event.contact(), "id")),
        ("channel_id", convert::id(channel, "id")),
        ("channel_name", convert::member(channel, "name")),
        ("channel_source", convert::member(channel, "source")),
        ("user", or_null(event.member("user").map(convert::with_id))),
        ("status", convert::member(call, "status")),
        ("direction", convert::member(call, "direction")),
        ("start_time", moment("start_time")),
        ("end_time", moment("end_time")),
        ("duration_seconds", convert::member(call, "durationSeconds")),
        ("language", convert::member(call, "language")),
        ("recording_url", convert::member(call, "recordingURL")),
        ("transcript", convert::member(call, "transcript")),
        ("call_summary", convert::member(call, "callSummary")),
        ("event_type", or_null(event.event_type.as_deref())),
        ("event_id", or_null(event.members.get("event_id").map(convert::value))),
        ("raw_call", or_null(call.and_then(Json::object).map(convert::object))),
    ])
}
