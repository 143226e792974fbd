//! The body of an event, shaped as respond.io's are. Written as text, since a tree of JSON would cost more than what is measured.

use std::fmt::Write;

use crate::mix::{self, Kind};

const FIRST_NAMES: [&str; 8] = ["Amina", "Tomasz", "Noor", "Marek", "Chloé", "Jürgen", "Li", "Oluwaseun"];
const LAST_NAMES: [&str; 7] =
    ["Belhadri", "Wilczarek", "Qasimiya", "Sobolewicz", "Lefèvre", "Müller", "Adeyemi-Okonkwo"];
const LANGUAGES: [&str; 5] = ["fr", "pl", "ar", "en", "de"];
const SENTENCES: [&str; 10] = [
    "Bonjour 👋 la table en chêne est-elle encore disponible ? ",
    "I am looking for one of 180 cm, natural or light oak. ",
    "Könnten Sie sie bis Samstag für mich zurücklegen?\\n",
    "Thank you! ",
    "The corner of the shelf arrived damaged, see the photo. ",
    "Czy można zapłacić przy odbiorze? ",
    "We will call you tomorrow between nine and eleven. ",
    "Oui, il en reste deux. ",
    "مرحبا، هل الطاولة متوفرة؟ ",
    "My order is the one from last Tuesday, in white. ",
];
const MEDIA: [(&str, &str, &str); 4] = [
    ("image", "image/jpeg", "jpg"),
    ("file", "application/pdf", "pdf"),
    ("audio", "audio/ogg", "ogg"),
    ("video", "video/mp4", "mp4"),
];

/// First of the times in bodies, in seconds since 1970: none is ahead of any clock.
const EPOCH: u64 = 1_750_000_000;
/// Bytes of an ordinary message's text.
const TEXT: (u64, u64) = (60, 400);
/// Bytes of an e-mail.
const EMAIL: (u64, u64) = (3_000, 14_000);

/// The body of an event about one of so many contacts.
pub fn body(n: u64, contacts: u64) -> String {
    let (kind, mut out) = (Kind::of(n), String::with_capacity(2048));
    put(
        &mut out,
        format_args!(r#"{{"event_id":"{}","event_type":"{}""#, mix::event_id(n), kind.event_type()),
    );
    let id = mix::contact(n, contacts);
    contact(&mut out, id, kind);
    match kind {
        Kind::Received => received(&mut out, n, id),
        Kind::Sent => sent(&mut out, n, id),
        Kind::Comment => comment(&mut out, n),
        Kind::Opened => opened(&mut out, n),
        Kind::Closed => closed(&mut out, n),
        Kind::ContactCreated | Kind::Assignee => {}
        Kind::ContactUpdated => out.push_str(r#","action":"updated""#),
        Kind::Tag => out.push_str(r#","tag":"reserved","action":"add""#),
        Kind::Lifecycle => {
            out.push_str(r#","lifecycle":"Customer","oldLifecycle":"New lead","action":"updated""#);
        }
        Kind::Call => call(&mut out, n),
    }
    out.push('}');
    out
}

/// Writing to a text can't fail.
fn put(out: &mut String, what: std::fmt::Arguments<'_>) {
    let _ = out.write_fmt(what);
}

fn pick<T: Copy, const N: usize>(list: [T; N], by: u64) -> T {
    list[usize::try_from(by % N as u64).unwrap_or_default()]
}

fn contact(out: &mut String, id: u64, kind: Kind) {
    let (first, last) = (pick(FIRST_NAMES, id), pick(LAST_NAMES, id));
    put(
        out,
        format_args!(
            r#","contact":{{"id":{},"firstName":"{first}","lastName":"{last}","phone":"{}","email":"contact.{id}@example.com","language":"{}","profilePic":"https://cdn.example.com/contacts/{id}.jpg","countryCode":"US","status":"open","lifecycle":"New lead","#,
            mix::CONTACT_IDS + id,
            mix::chat_id(id),
            pick(LANGUAGES, id),
        ),
    );
    match id % 3 {
        0 => out.push_str(r#""assignee":null"#),
        _ => put(
            out,
            format_args!(
                r#""assignee":{{"id":{},"firstName":"Marek","lastName":"Sobolewicz","email":"marek.sobolewicz@example.com"}}"#,
                70_000 + id % 20
            ),
        ),
    }
    put(out, format_args!(r#","created_at":{},"tags":["website","trade"]"#, EPOCH - 86_400 - id));
    if !matches!(kind, Kind::Received | Kind::Sent) {
        out.push_str(r#","custom_fields":[{"name":"preferred_store","value":"Harbour Street"},{"name":"newsletter","value":true},{"name":"delivery_notes","value":"Third floor, no lift. Please ring twice and call before you come."},{"name":"customer_number","value":100482},{"name":"price_list","value":"trade"},{"name":"last_order","value":"2025-05-14"},{"name":"campaign","value":"spring-2025, newsletter of the second week"},{"name":"remarks","value":"Asked for samples of oak and walnut, prefers to be written to rather than called."}]"#);
    }
    out.push('}');
}

fn text(out: &mut String, h: u64, (shortest, longest): (u64, u64)) {
    let wanted = usize::try_from(shortest + h % (longest - shortest)).unwrap_or_default();
    let (begin, mut next) = (out.len(), h >> 8);
    while out.len() - begin < wanted {
        out.push_str(pick(SENTENCES, next));
        next = mix::scatter(next);
    }
}

/// The head of a message; its content follows.
fn message(out: &mut String, n: u64, contact: u64, traffic: &str) {
    put(
        out,
        format_args!(
            r#","message":{{"messageId":{},"channelMessageId":"wamid.{:016X}{n:08X}","contactId":{},"channelId":55310,"traffic":"{traffic}","timestamp":{},"message":"#,
            mix::message_id(n),
            mix::scatter(n),
            mix::CONTACT_IDS + contact,
            EPOCH * 1000 + n,
        ),
    );
}

fn content(out: &mut String, h: u64) {
    match h % 10 {
        0 | 1 => {
            let (media, mime, extension) = pick(MEDIA, h >> 8);
            put(
                out,
                format_args!(
                    r#"{{"type":"attachment","attachment":{{"type":"{media}","url":"https://files.example.com/in/9d/{h:016x}.{extension}","mimeType":"{mime}","fileName":"{h:016x}.{extension}","ext":"{extension}","size":{},"description":""#,
                    h % 3_000_000
                ),
            );
            text(out, h, (20, 120));
            out.push_str(r#""}}"#);
        }
        _ => {
            out.push_str(r#"{"type":"text","text":""#);
            text(out, h, TEXT);
            out.push_str(r#""}"#);
        }
    }
}

fn channel(out: &mut String, n: u64) {
    let at = EPOCH + n / 1000;
    put(
        out,
        format_args!(
            r#","channel":{{"id":55310,"name":"WhatsApp Showroom","source":"whatsapp_cloud","meta":"{{\"displayName\":\"Example Furniture\",\"phone\":\"+15550100900\"}}","created_at":1738576800,"lastMessageTime":{at},"lastIncomingMessageTime":{at}}}"#,
        ),
    );
}

fn received(out: &mut String, n: u64, contact: u64) {
    message(out, n, contact, "incoming");
    content(out, mix::scatter(n ^ 1));
    out.push('}');
    channel(out, n);
    out.push_str(r#","sender":{"type":"contact","source":"contact"}"#);
}

fn sent(out: &mut String, n: u64, contact: u64) {
    let h = mix::scatter(n ^ 2);
    message(out, n, contact, "outgoing");
    if h.is_multiple_of(128) {
        out.push_str(r#"{"type":"email","subject":"Your order","text":""#);
        text(out, h >> 8, EMAIL);
        out.push_str(r#""}"#);
    } else {
        content(out, h);
    }
    let at = EPOCH * 1000 + n;
    put(
        out,
        format_args!(
            r#","status":[{{"value":"sent","timestamp":{at}}},{{"value":"delivered","timestamp":{}}}]}}"#,
            at + 700
        ),
    );
    channel(out, n);
    user(out);
    out.push_str(r#","sender":{"type":"user","source":"user","userId":70121,"teamId":9014},"source":"User""#);
}

fn user(out: &mut String) {
    out.push_str(r#","user":{"id":70121,"firstName":"Marek","lastName":"Sobolewicz","email":"marek.sobolewicz@example.com","role":"agent"}"#);
}

fn comment(out: &mut String, n: u64) {
    out.push_str(r#","text":""#);
    text(out, mix::scatter(n ^ 3), TEXT);
    out.push_str(
        r#"","mentionedUserIds":[70133],"mentionedUserEmails":["noor@example.com"],"attachments":[]"#,
    );
}

fn opened(out: &mut String, n: u64) {
    let at = EPOCH + n / 1000;
    put(
        out,
        format_args!(
            r#","conversation":{{"source":"contact","conversationOpenedAt":{at},"firstIncomingMessage":""#
        ),
    );
    text(out, mix::scatter(n ^ 4), TEXT);
    out.push_str(r#"","firstIncomingMessageChannelId":55310}"#);
}

fn closed(out: &mut String, n: u64) {
    out.push_str(r#","conversation":{"category":"Sale","summary":""#);
    text(out, mix::scatter(n ^ 5), TEXT);
    let at = EPOCH + n / 1000;
    put(
        out,
        format_args!(
            r#"","openedTime":{},"openedBySource":"contact","closedTime":{at},"closedBy":{{"id":70121,"firstName":"Marek","lastName":"Sobolewicz","email":"marek.sobolewicz@example.com"}},"closedBySource":"user","firstResponseTime":190,"resolutionTime":4000,"incomingMessageCount":3,"outgoingMessageCount":2,"assigneeTeam":"Showroom","lastAssignmentTime":{}}}"#,
            at - 4000,
            at - 3600
        ),
    );
}

fn call(out: &mut String, n: u64) {
    channel(out, n);
    user(out);
    let (at, h) = (EPOCH + n / 1000, mix::scatter(n ^ 6));
    put(
        out,
        format_args!(
            r#","call":{{"id":"{}","status":"completed","channel":"whatsapp_cloud","direction":"incoming","start_time":{},"end_time":{at},"durationSeconds":134,"language":"fr","recordingURL":"https://recordings.example.com/{n}.mp3","transcript":["#,
            mix::call_id(n),
            at - 134
        ),
    );
    for line in 0..4 + h % 12 {
        let comma = if line == 0 { "" } else { "," };
        put(
            out,
            format_args!(
                r#"{comma}{{"start":{}.0,"end":{}.5,"speaker":"agent","text":""#,
                line * 3,
                line * 3 + 2
            ),
        );
        text(out, mix::scatter(h ^ line), (20, 100));
        out.push_str(r#""}"#);
    }
    out.push_str(r#"],"callSummary":{"title":"Pick-up of the reserved table","summary":["The table is ready"],"actionItems":["Print the invoice"]}}"#);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    const MANY: u64 = 20_000;

    #[test]
    fn bodies_are_json_with_unique_ids() {
        let (mut events, mut messages) = (BTreeSet::new(), BTreeSet::new());
        for n in 0..MANY {
            let event: Value = serde_json::from_str(&body(n, 10_000)).unwrap();
            assert_eq!(event["event_type"], Kind::of(n).event_type());
            assert_eq!(event["contact"]["phone"], mix::chat_id(mix::contact(n, 10_000)));
            assert!(events.insert(event["event_id"].to_string()));
            if Kind::of(n).is_message() {
                assert!(messages.insert(event["message"]["messageId"].to_string()));
            }
        }
    }

    #[test]
    fn sizes_are_those_of_real_events() {
        let sizes: Vec<usize> = (0..MANY).map(|n| body(n, 10_000).len()).collect();
        let (mean, (least, most)) =
            (sizes.iter().sum::<usize>() / sizes.len(), (sizes.iter().min(), sizes.iter().max()));
        assert!((1_200..1_500).contains(&mean), "{mean}");
        assert!(least.unwrap() > &850 && most.unwrap() < &16_384, "{least:?} to {most:?}");
        let large = sizes.iter().filter(|size| **size > 4_096).count();
        assert!(large > 10 && large < sizes.len() / 100, "{large} of more than 4 KiB");
    }

    #[test]
    fn the_same_number_is_the_same_event() {
        assert_eq!(body(4711, 10), body(4711, 10));
        assert_ne!(body(4711, 10), body(4712, 10));
    }
}
