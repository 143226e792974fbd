//! What happens in respond.io, as its API and its webhooks tell it.

use std::time::SystemTime;

use futures_util::future::join_all;
use penstock_tests::broker::Broker;
use penstock_tests::respond_api::RespondApi;
use serde_json::{Value, json};

/// An hour of traffic, that ended an hour ago.
pub struct Traffic {
    contacts: u64,
    messages: u64,
    began_at_ms: u64,
}

/// A part of the hour.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Before,
    /// The webhook is switched off.
    Gap,
    /// It is on again, and the backfill runs.
    During,
    After,
}

/// What a webhook brings.
pub struct Webhook {
    received_at_ms: u64,
    body: Value,
}

impl Traffic {
    pub fn new(contacts: u64, messages: u64) -> Self {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis();
        Self { contacts, messages, began_at_ms: u64::try_from(now).unwrap() - 2 * 3_600_000 }
    }

    fn phase(&self, n: u64) -> Phase {
        match 8 * n / self.messages {
            0 => Phase::Before,
            1..=5 => Phase::Gap,
            6 => Phase::During,
            _ => Phase::After,
        }
    }

    pub fn at_ms(&self, n: u64) -> u64 {
        self.began_at_ms + n * 3_600_000 / self.messages
    }

    /// One contact in five is new in the gap.
    fn is_new_in_gap(contact: u64) -> bool {
        contact.is_multiple_of(5)
    }

    fn contact_of(&self, n: u64) -> u64 {
        let contact = 1 + n % self.contacts;
        let is_too_early = self.phase(n) == Phase::Before && Self::is_new_in_gap(contact);
        if is_too_early { contact - 1 } else { contact }
    }

    fn contact(&self, id: u64) -> Value {
        json!({"id": id, "firstName": format!("Name {id}"), "lastName": null, "email": null, "language": "en",
            "phone": (!id.is_multiple_of(7)).then(|| format!("+15550{id:06}")), "profilePic": null, "countryCode": "US",
            "status": "open", "lifecycle": id.is_multiple_of(2).then_some("Lead"), "created_at": 1_788_000_000 + id,
            "assignee": id.is_multiple_of(3).then(|| json!({"id": 5, "firstName": "U", "lastName": "V", "email": "u@example.com"}))})
    }

    /// The message as both the API and the webhook have it.
    fn message(&self, n: u64) -> Value {
        let (at_ms, is_incoming) = (self.at_ms(n), !n.is_multiple_of(3));
        let content = match n % 4 {
            0 => {
                json!({"type": "attachment", "attachment": {"type": "image", "url": format!("https://example.com/{n}.jpg")}})
            }
            _ => json!({"type": "text", "text": format!("message {n}")}),
        };
        let mut message = json!({"messageId": at_ms * 1000 + n % 1000, "channelMessageId": format!("wamid.{n}"),
            "contactId": self.contact_of(n), "channelId": 7 + n % 2, "traffic": if is_incoming { "incoming" } else { "outgoing" },
            "message": content});
        if !is_incoming {
            message["status"] =
                json!([{"value": "sent", "timestamp": at_ms}, {"value": "read", "timestamp": at_ms + 900}]);
        }
        message
    }

    fn sender(n: u64) -> Value {
        match n % 9 {
            0 => json!({"source": "user", "userId": 5, "teamId": 1}),
            3 => json!({"source": "workflow", "workflowId": 3}),
            6 => json!({"source": "echo"}),
            _ => json!({"source": "contact"}),
        }
    }

    fn of_the_api(&self, n: u64) -> Value {
        let mut message = self.message(n);
        message["sender"] = Self::sender(n);
        message
    }

    fn webhook(&self, n: u64) -> Webhook {
        let (mut message, mut sender) = (self.message(n), Self::sender(n));
        // Ids and timestamps were seen so far apart.
        message["timestamp"] = (self.at_ms(n) - n % 646).into();
        sender["type"] = sender["source"].clone();
        let is_incoming = message["traffic"] == "incoming";
        let mut body = json!({"event_id": format!("m{n}"), "message": message, "sender": sender,
            "event_type": if is_incoming { "message.received" } else { "message.sent" },
            "contact": self.contact(self.contact_of(n)), "channel": channel(7 + n % 2)});
        match n % 9 {
            0 => (body["user"], body["source"]) = (user(), json!("User")),
            6 => body["source"] = json!("Echo Message"),
            _ => {}
        }
        Webhook { received_at_ms: self.at_ms(n) + 200, body }
    }

    /// Webhooks of a phase: messages, new contacts, and what the API doesn't have.
    pub fn webhooks(&self, phase: Phase) -> Vec<Webhook> {
        let numbers: Vec<u64> = self.numbers(phase);
        let mut webhooks: Vec<Webhook> = numbers.iter().map(|n| self.webhook(*n)).collect();
        let began_at_ms = self.at_ms(numbers[0]);
        for id in 1..=self.contacts {
            if phase == if Self::is_new_in_gap(id) { Phase::Gap } else { Phase::Before } {
                let body = json!({"event_id": format!("c{id}"), "event_type": "contact.created", "contact": self.whole_contact(id)});
                webhooks.push(Webhook { received_at_ms: began_at_ms, body });
            }
        }
        for n in numbers.into_iter().filter(|n| n % 20 == 0) {
            let contact = self.contact(self.contact_of(n));
            let bodies = [
                json!({"event_id": format!("n{n}"), "event_type": "comment.created", "contact": contact, "text": "note"}),
                json!({"event_id": format!("o{n}"), "event_type": "conversation.opened", "contact": contact,
                    "conversation": {"source": "contact", "conversationOpenedAt": self.at_ms(n) / 1000}}),
            ];
            webhooks.extend(bodies.map(|body| Webhook { received_at_ms: self.at_ms(n) + 300, body }));
        }
        webhooks
    }

    fn whole_contact(&self, id: u64) -> Value {
        let mut contact = self.contact(id);
        contact["tags"] = json!([format!("tag {}", id % 3)]);
        contact["custom_fields"] = json!([{"name": "size", "value": id}]);
        contact
    }

    pub fn numbers(&self, phase: Phase) -> Vec<u64> {
        (0..self.messages).filter(|n| self.phase(*n) == phase).collect()
    }

    /// Has respond.io have a phase.
    pub fn happen(&self, api: &RespondApi, phase: Phase) {
        for id in 1..=self.contacts {
            if phase == Phase::Gap || !Self::is_new_in_gap(id) {
                api.put_contact(self.whole_contact(id));
            }
        }
        self.numbers(phase).into_iter().for_each(|n| api.put_message(self.of_the_api(n), None));
    }
}

pub fn channel(id: u64) -> Value {
    json!({"id": id, "name": format!("Channel {id}"), "source": "whatsapp_cloud", "created_at": 1_738_576_800})
}

pub fn user() -> Value {
    json!({"id": 5, "firstName": "U", "lastName": "V", "email": "u@example.com", "role": "agent"})
}

pub async fn publish(broker: &Broker, tenants: &[&str], webhooks: &[Webhook]) {
    for some in webhooks.chunks(50) {
        let all = tenants.iter().flat_map(|tenant| some.iter().map(move |webhook| (*tenant, webhook)));
        join_all(all.map(|(tenant, webhook)| publish_one(broker, tenant, webhook))).await;
    }
}

async fn publish_one(broker: &Broker, tenant: &str, webhook: &Webhook) {
    let received_at_ms = i64::try_from(webhook.received_at_ms).unwrap();
    broker.publish_event(tenant, "any", received_at_ms, webhook.body.to_string().as_bytes()).await;
}
