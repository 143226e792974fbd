//! Bodies and documents as people read them. Pure.

use std::iter::Peekable;
use std::str::Chars;

use mongodb::bson::{Bson, Document};
use serde_json::{Value, json};

/// Longest text that a page shows of a body or a document, in bytes.
pub const MAX_SHOWN: usize = 256 << 10;

/// A JSON text with a line for each member. Nothing but blanks is changed: numbers keep their digits, and
/// what is no JSON stays legible.
#[must_use]
pub fn json(text: &str) -> String {
    let mut pretty = String::with_capacity(text.len() * 2);
    let (mut depth, mut rest) = (0_usize, text.chars().peekable());
    while let Some(c) = rest.next() {
        match c {
            '"' => string(&mut rest, &mut pretty),
            '{' | '[' => {
                pretty.push(c);
                while rest.next_if(char::is_ascii_whitespace).is_some() {}
                if let Some(end) = rest.next_if(|next| matches!(next, '}' | ']')) {
                    pretty.push(end);
                } else {
                    depth += 1;
                    new_line(&mut pretty, depth);
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                new_line(&mut pretty, depth);
                pretty.push(c);
            }
            ',' => {
                pretty.push(c);
                new_line(&mut pretty, depth);
            }
            ':' => pretty.push_str(": "),
            c if c.is_ascii_whitespace() => {}
            c => pretty.push(c),
        }
    }
    pretty
}

/// The rest of a string, as it is.
fn string(rest: &mut Peekable<Chars<'_>>, pretty: &mut String) {
    pretty.push('"');
    while let Some(c) = rest.next() {
        pretty.push(c);
        match c {
            '\\' => pretty.extend(rest.next()),
            '"' => return,
            _ => {}
        }
    }
}

/// Deeper levels aren't indented any further: that would make a text of a million lines of a small body.
const MAX_INDENT: usize = 32;

fn new_line(pretty: &mut String, depth: usize) {
    pretty.push('\n');
    pretty.extend(std::iter::repeat_n("  ", depth.min(MAX_INDENT)));
}

/// The beginning of a text, and whether there is more of it.
#[must_use]
pub fn beginning(text: &str) -> (&str, bool) {
    let end = text.floor_char_boundary(MAX_SHOWN.min(text.len()));
    (&text[..end], end < text.len())
}

/// A document.
#[must_use]
pub fn document(document: Document) -> String {
    serde_json::to_string_pretty(&readable(Bson::Document(document))).unwrap_or_default()
}

/// JSON with dates as people read them.
#[must_use]
pub fn readable(value: Bson) -> Value {
    match value {
        Bson::Document(document) => {
            let members = document.into_iter().map(|(name, value)| (name, readable(value)));
            members.collect::<serde_json::Map<_, _>>().into()
        }
        Bson::Array(list) => list.into_iter().map(readable).collect::<Vec<_>>().into(),
        Bson::DateTime(at) => at.try_to_rfc3339_string().unwrap_or_default().into(),
        Bson::String(text) => text.into(),
        Bson::Boolean(flag) => flag.into(),
        Bson::Int32(number) => number.into(),
        Bson::Int64(number) => number.into(),
        Bson::Double(number) => json!(number),
        Bson::Null => Value::Null,
        other => other.to_string().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_gets_lines_and_keeps_all_else() {
        let body = r#"{"a":1.50,"b":[ ],"c":{"d":"x, y: {\"z\\"},"e":[1,2]}"#;
        let expected = "{\n  \"a\": 1.50,\n  \"b\": [],\n  \"c\": {\n    \"d\": \"x, y: {\\\"z\\\\\"\n  },\n  \"e\": [\n    1,\n    2\n  ]\n}";
        assert_eq!(json(body), expected);
        assert_eq!(json(&json(body)), expected);
        assert_eq!(json("]]no"), "\n]\n]no");
        assert_eq!(json("\"open \\"), "\"open \\");
    }

    #[test]
    fn a_body_of_brackets_stays_small() {
        let text = json(&"[".repeat(1000));
        assert!(text.len() < 1000 * (2 + 2 * MAX_INDENT), "{}", text.len());
    }

    #[test]
    fn long_texts_are_cut_between_letters() {
        assert_eq!(beginning("short"), ("short", false));
        let long = format!("x{}", "é".repeat(MAX_SHOWN));
        let (shown, is_cut) = beginning(&long);
        assert!(is_cut && shown.len() == MAX_SHOWN - 1, "{}", shown.len());
    }
}
