//! The body of an event, from the parts in bodies.txt. As text: a tree of JSON would cost more than ingest.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::LazyLock;

use crate::event::{Kind, call_id, chat_id, contact_id, event_id, message_id, scatter};

const NAMES: [&str; 7] = ["Amina", "Tomasz", "Noor", "Chloé", "Jürgen", "Li", "Oluwaseun"];
const LANGUAGES: [&str; 5] = ["fr", "pl", "ar", "en", "de"];
const SENTENCES: [&str; 8] = [
    "Bonjour 👋 la table en chêne est-elle encore disponible ? ",
    "I am looking for one of 180 cm, natural or light oak. ",
    "Könnten Sie sie bis Samstag für mich zurücklegen?\\n",
    "Thank you! ",
    "The corner of the shelf arrived damaged, see the photo. ",
    "We will call you tomorrow between nine and eleven. ",
    "مرحبا، هل الطاولة متوفرة؟ ",
    "My order is the one from last Tuesday, in white. ",
];
/// First of the times in bodies, in seconds since 1970: none is ahead of any clock.
const EPOCH: u64 = 1_750_000_000;
/// Bytes of an ordinary message's text.
const TEXT: (usize, usize) = (60, 400);
/// Bytes of an e-mail.
const LONG_TEXT: (usize, usize) = (3_000, 14_000);

/// Each part is text, a name, text, a name, and so on.
static PARTS: LazyLock<HashMap<&str, Vec<String>>> = LazyLock::new(|| {
    let parts = include_str!("bodies.txt").split("\n= ").skip(1);
    let named = parts.filter_map(|part| part.split_once('\n'));
    let pieces = |text: &str| -> Vec<String> {
        let text: String = text.lines().map(str::trim).collect();
        text.split(['<', '>']).map(str::to_owned).collect()
    };
    named.map(|(name, text)| (name, pieces(text))).collect()
});

/// The body of an event about this contact.
pub fn body(n: u64, contact: u64) -> String {
    let mut body = Body { n, contact, text: String::with_capacity(2048) };
    body.put_part(Kind::of(n).event_type);
    body.text
}

struct Body {
    n: u64,
    contact: u64,
    text: String,
}

impl Body {
    fn put_part(&mut self, name: &str) {
        for (place, piece) in PARTS[name].iter().enumerate() {
            if place % 2 == 0 {
                self.text.push_str(piece);
            } else if PARTS.contains_key(piece.as_str()) {
                self.put_part(piece);
            } else {
                self.put_value(piece);
            }
        }
    }

    fn put_value(&mut self, name: &str) {
        // Another one at each place of a body.
        let random = scatter(self.n ^ ((self.text.len() as u64) << 32));
        match name {
            "content" => self.put_part(content(random)),
            "event_id" => self.text.push_str(&event_id(self.n)),
            "event_type" => self.text.push_str(Kind::of(self.n).event_type),
            "contact_id" => self.put(contact_id(self.contact)),
            "message_id" => self.put(message_id(self.n)),
            "call" => self.text.push_str(&call_id(self.n)),
            "phone" => self.text.push_str(&chat_id(self.contact)),
            "name" => self.text.push_str(pick(&NAMES, self.contact)),
            "language" => self.text.push_str(pick(&LANGUAGES, self.contact)),
            "seconds" => self.put(EPOCH + self.n / 1000),
            "milliseconds" => self.put(EPOCH * 1000 + self.n),
            "random" => self.put(random),
            "text" => self.put_text(random, TEXT),
            "long_text" => self.put_text(random, LONG_TEXT),
            _ => self.text.push_str(name),
        }
    }

    fn put(&mut self, number: u64) {
        // Writing to a text can't fail.
        let _ = write!(self.text, "{number}");
    }

    fn put_text(&mut self, random: u64, (shortest, longest): (usize, usize)) {
        let end = self.text.len() + shortest + random as usize % (longest - shortest);
        let mut next = random;
        while self.text.len() < end {
            next = scatter(next);
            self.text.push_str(pick(&SENTENCES, next));
        }
    }
}

fn content(random: u64) -> &'static str {
    match random % 400 {
        0 => "content.email",
        1..80 => "content.attachment",
        _ => "content.text",
    }
}

fn pick<'a>(list: &[&'a str], by: u64) -> &'a str {
    list[by as usize % list.len()]
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
            let event: Value = serde_json::from_str(&body(n, n % 100)).unwrap();
            assert_eq!(event["event_type"], Kind::of(n).event_type);
            assert_eq!(event["contact"]["phone"], chat_id(n % 100));
            assert!(events.insert(event["event_id"].to_string()));
            assert!(!Kind::of(n).is_message() || messages.insert(event["message"]["messageId"].to_string()));
        }
    }

    #[test]
    fn sizes_are_those_of_real_events() {
        let sizes: Vec<usize> = (0..MANY).map(|n| body(n, n % 100).len()).collect();
        let mean = sizes.iter().sum::<usize>() / sizes.len();
        assert!((1_200..1_500).contains(&mean), "{mean}");
        let (least, most) = (sizes.iter().min().unwrap(), sizes.iter().max().unwrap());
        assert!(*least > 850 && *most < 16_384, "{least} to {most}");
        let large = sizes.iter().filter(|size| **size > 4_096).count();
        assert!(large > 10 && large < sizes.len() / 100, "{large} of more than 4 KiB");
    }
}
