//! `calls`: one document per call id.

use mongodb::bson::{Bson, DateTime, Document, doc};
use shared::json::Json;

use super::Stamp;
use super::table::Table;
use crate::convert;
use crate::decode::Event;
use crate::moment;

/// The `_id` of a call.
#[must_use]
pub fn id(event: &Event) -> String {
    event.member("call").and_then(|call| call.get("id")?.id()).unwrap_or_else(|| event.key.clone())
}

/// Applies a call.
pub fn apply(calls: &mut Table, event: &Event, now: DateTime) {
    let call = calls.get_or_insert(&id(event), || doc! {"created_at": now});
    if Stamp::of(event).claim_as_latest(call, "call") {
        call.extend(document(event));
    }
}

fn document(event: &Event) -> Document {
    let (call, channel) = (event.member("call"), event.member("channel"));
    let moment = |name: &str| -> Bson {
        let read = call.and_then(|call| call.get(name)).and_then(moment::read);
        read.map(DateTime::from_millis).into()
    };
    doc! {
        "chat_id": event.chat_id.clone(),
        "ts": DateTime::from_millis(event.at_ms),
        "contact_id": event.contact_id(),
        "channel_id": convert::id(channel, "id"),
        "channel_name": convert::member(channel, "name"),
        "channel_source": convert::member(channel, "source"),
        "user": event.member("user").map(convert::value),
        "status": convert::member(call, "status"),
        "direction": convert::member(call, "direction"),
        "start_time": moment("start_time"),
        "end_time": moment("end_time"),
        "duration_seconds": convert::member(call, "durationSeconds"),
        "language": convert::member(call, "language"),
        "recording_url": convert::member(call, "recordingURL"),
        "transcript": convert::member(call, "transcript"),
        "call_summary": convert::member(call, "callSummary"),
        "event_type": event.event_type.clone(),
        "event_id": event.members.get("event_id").map(convert::value),
        "raw_call": call.filter(|call| matches!(call, Json::Object(_))).map(convert::value),
    }
}
