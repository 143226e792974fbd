//! JSON as senders really write it: every digit kept, lone surrogates mended, depth bounded.
//!
//! [`parse`] decides once whether a body is something Penstock can keep; whatever it accepts, every
//! later step can work with.

use std::borrow::Cow;
use std::fmt;

use ahash::RandomState;
use compact_str::{CompactString, ToCompactString};
use indexmap::IndexMap;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

/// Deepest nesting accepted, in levels of arrays and objects. The body itself is level 1.
pub const MAX_DEPTH: usize = 128;

/// An object's members in the order they were sent; of duplicate keys the last value counts. Hashed with keys drawn at
/// random, since senders choose the names.
pub type Object = IndexMap<Text, Json, RandomState>;

/// A text. Most are short, and held without a place in memory of their own.
pub type Text = CompactString;

/// Any JSON value. Numbers keep their digits.
#[derive(Clone, Debug, PartialEq)]
pub enum Json {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A number, with the digits it was sent with.
    Number(Text),
    /// A string, unescaped.
    Text(Text),
    /// An array.
    List(Vec<Json>),
    /// An object. In a box, since elements of a list take the room of the largest variant.
    Object(Box<Object>),
}

/// Why a body can't be used. The text of each is the quarantine reason that callers see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// Nothing, or nothing but white space.
    #[error("empty_body")]
    Empty,
    /// Not JSON, or not UTF-8.
    #[error("invalid_json")]
    Invalid,
    /// JSON, but not an object.
    #[error("not_an_object")]
    NotAnObject,
    /// Nested deeper than [`MAX_DEPTH`].
    #[error("too_deep")]
    TooDeep,
}

/// Reads a body as a JSON object.
///
/// A leading byte order mark is skipped and lone surrogates become U+FFFD.
pub fn parse(body: &[u8]) -> Result<Object, Unusable> {
    let text = std::str::from_utf8(body).map_err(|_| Unusable::Invalid)?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.trim_ascii().is_empty() {
        return Err(Unusable::Empty);
    }
    if opened(text.as_bytes()) > MAX_DEPTH && depth(text.as_bytes()) > MAX_DEPTH {
        return Err(Unusable::TooDeep);
    }
    let text = mend_surrogates(text);
    let mut reader = serde_json::Deserializer::from_str(&text);
    // serde_json's own limit is 127 levels; `depth` above has bounded the recursion already.
    reader.disable_recursion_limit();
    let value = Json::deserialize(&mut reader).map_err(|_| Unusable::Invalid)?;
    reader.end().map_err(|_| Unusable::Invalid)?;
    match value {
        Json::Object(object) => Ok(*object),
        // An object whose only key is serde_json's private marker for numbers comes out as a number.
        _ if text.trim_ascii_start().starts_with('{') => Ok(Object::default()),
        _ => Err(Unusable::NotAnObject),
    }
}

/// Number of brackets that open something, or stand in a text: an upper bound of the depth, quickly counted.
fn opened(text: &[u8]) -> usize {
    text.iter().filter(|byte| matches!(byte, b'[' | b'{')).count()
}

/// Deepest nesting of arrays and objects in a text that may not even be JSON.
fn depth(text: &[u8]) -> usize {
    let (mut level, mut deepest, mut in_string, mut escaped) = (0_usize, 0, false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                level += 1;
                deepest = deepest.max(level);
            }
            b']' | b'}' if !in_string => level = level.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// Replaces each `\uXXXX` that is half of a surrogate pair without its other half by `\ufffd`.
///
/// serde_json refuses them, and some senders cut texts in the middle of an emoji.
fn mend_surrogates(text: &str) -> Cow<'_, str> {
    let bytes = text.as_bytes();
    let mut mended: Vec<u8> = Vec::new();
    let (mut copied, mut at) = (0, 0);
    while let Some(found) = bytes[at..].iter().position(|b| *b == b'\\') {
        at += found;
        at += match escaped_unit(&bytes[at..]) {
            Some(0xD800..=0xDBFF)
                if matches!(bytes.get(at + 6..).and_then(escaped_unit), Some(0xDC00..=0xDFFF)) =>
            {
                12
            }
            Some(0xD800..=0xDFFF) => {
                mended.extend_from_slice(&bytes[copied..at]);
                mended.extend_from_slice(b"\\ufffd");
                copied = at + 6;
                6
            }
            Some(_) => 6,
            None => 2,
        };
        if at >= bytes.len() {
            break;
        }
    }
    if mended.is_empty() {
        return Cow::Borrowed(text);
    }
    mended.extend_from_slice(&bytes[copied..]);
    String::from_utf8(mended).map_or(Cow::Borrowed(text), Cow::Owned)
}

/// The UTF-16 unit of a `\uXXXX` at the start of `bytes`.
fn escaped_unit(bytes: &[u8]) -> Option<u16> {
    let digits = bytes.strip_prefix(b"\\u")?.get(..4)?;
    digits.iter().try_fold(0_u16, |unit, digit| {
        let value = char::from(*digit).to_digit(16)?;
        Some(unit << 4 | u16::try_from(value).ok()?)
    })
}

impl Json {
    /// The object's member, if this is an object that has it.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Json> {
        self.object()?.get(key)
    }

    /// The members, if this is an object.
    #[must_use]
    pub fn object(&self) -> Option<&Object> {
        match self {
            Json::Object(object) => Some(object),
            _ => None,
        }
    }

    /// The string, if this is one.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        match self {
            Json::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The elements, if this is an array.
    #[must_use]
    pub fn list(&self) -> Option<&[Json]> {
        match self {
            Json::List(list) => Some(list),
            _ => None,
        }
    }

    /// An id as text: a string that isn't blank, or a number with the digits it was sent with.
    #[must_use]
    pub fn id(&self) -> Option<String> {
        match self {
            Json::Text(text) if !text.trim().is_empty() => Some(text.to_string()),
            Json::Number(number) => Some(whole_number(number).unwrap_or_else(|| number.to_string())),
            _ => None,
        }
    }
}

/// Whether this is how numbers look: a sender may write the marker itself, with anything behind it.
fn is_number(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte)) && text.parse::<f64>().is_ok()
}

/// Writes a number without its fraction and exponent, if it is whole: `12.0` and `1.2e1` become `12`.
fn whole_number(number: &str) -> Option<String> {
    if !number.is_ascii() {
        return None;
    }
    let (sign, rest) = number.strip_prefix('-').map_or(("", number), |rest| ("-", rest));
    let (mantissa, exponent) = rest.split_once(['e', 'E']).unwrap_or((rest, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let exponent: i32 = exponent.trim_start_matches('+').parse().ok()?;
    let point = i32::try_from(whole.len()).ok()?.checked_add(exponent)?;
    // Beyond this many digits a number is no id, and `1e999999999` must not become a gigabyte.
    if !(0..=64).contains(&point) && exponent != 0 {
        return None;
    }
    let (digits, point) = (format!("{whole}{fraction}"), usize::try_from(point).ok()?);
    let (kept, cut) = digits.split_at(point.min(digits.len()));
    if cut.bytes().any(|digit| digit != b'0') {
        return None;
    }
    let padded = format!("{kept}{}", "0".repeat(point - kept.len()));
    let trimmed = padded.trim_start_matches('0');
    Some(if trimmed.is_empty() { "0".into() } else { format!("{sign}{trimmed}") })
}

/// Compact JSON, keys in order, nothing escaped that needn't be: what `JSON.stringify` would write.
impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Json::Null => f.write_str("null"),
            Json::Bool(value) => write!(f, "{value}"),
            Json::Number(number) => f.write_str(number),
            Json::Text(text) => write_text(f, text),
            Json::List(list) => {
                f.write_str("[")?;
                for (position, value) in list.iter().enumerate() {
                    if position > 0 {
                        f.write_str(",")?;
                    }
                    write!(f, "{value}")?;
                }
                f.write_str("]")
            }
            Json::Object(object) => write_object(f, object),
        }
    }
}

/// [`Json`]'s compact form, for an object that isn't wrapped in a [`Json`].
#[must_use]
pub fn compact(object: &Object) -> String {
    struct Borrowed<'a>(&'a Object);
    impl fmt::Display for Borrowed<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write_object(f, self.0)
        }
    }
    Borrowed(object).to_string()
}

fn write_object(f: &mut fmt::Formatter<'_>, object: &Object) -> fmt::Result {
    f.write_str("{")?;
    for (position, (key, value)) in object.iter().enumerate() {
        if position > 0 {
            f.write_str(",")?;
        }
        write_text(f, key)?;
        write!(f, ":{value}")?;
    }
    f.write_str("}")
}

fn write_text(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    f.write_str(&serde_json::to_string(text).map_err(|_| fmt::Error)?)
}

/// The one key under which serde_json hands over a number's text (its `arbitrary_precision` feature).
const NUMBER_MARKER: &str = "$serde_json::private::Number";

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Number(value.to_compact_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Number(value.to_compact_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(Json::Number(value.to_compact_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::Text(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = seq.next_element()? {
            list.push(value);
        }
        Ok(Json::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut object = Object::default();
        while let Some(name) = map.next_key()? {
            let value = map.next_value()?;
            match (name, value) {
                (Name::Number, Json::Text(number)) if object.is_empty() && is_number(&number) => {
                    // As the first of several members it is a name like any other.
                    let Some(name) = map.next_key::<Name>()? else { return Ok(Json::Number(number)) };
                    object.insert(NUMBER_MARKER.into(), Json::Text(number));
                    object.insert(name.into(), map.next_value()?);
                }
                (name, value) => drop(object.insert(name.into(), value)),
            }
        }
        Ok(Json::Object(Box::new(object)))
    }
}

/// A member's name, or the marker, which comes with every number.
enum Name {
    Number,
    Other(Text),
}

impl From<Name> for Text {
    fn from(name: Name) -> Self {
        match name {
            Name::Number => NUMBER_MARKER.into(),
            Name::Other(name) => name,
        }
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(NameVisitor)
    }
}

struct NameVisitor;

impl Visitor<'_> for NameVisitor {
    type Value = Name;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Name, E> {
        Ok(if name == NUMBER_MARKER { Name::Number } else { Name::Other(name.into()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn value(text: &str) -> Json {
        let body = format!(r#"{{"v":{text}}}"#);
        parse(body.as_bytes()).unwrap().swap_remove("v").unwrap()
    }

    #[test]
    fn unusable_bodies_say_why() {
        for (body, reason) in [
            (&b""[..], Unusable::Empty),
            (b" \r\n\t", Unusable::Empty),
            (b"\xef\xbb\xbf", Unusable::Empty),
            (b"{", Unusable::Invalid),
            (b"{} x", Unusable::Invalid),
            (b"{\"a\":1,}", Unusable::Invalid),
            (b"{\"a\":\"\xff\"}", Unusable::Invalid),
            (b"{\"a\":NaN}", Unusable::Invalid),
            (b"[1]", Unusable::NotAnObject),
            (b"\"text\"", Unusable::NotAnObject),
            (b"1", Unusable::NotAnObject),
            (b"null", Unusable::NotAnObject),
        ] {
            assert_eq!(parse(body), Err(reason), "{}", String::from_utf8_lossy(body));
        }
    }

    #[test]
    fn the_128th_level_is_the_last() {
        let nested = |levels: usize| format!("{}1{}", r#"{"a":"#.repeat(levels), "}".repeat(levels));
        assert!(parse(nested(128).as_bytes()).is_ok());
        assert_eq!(parse(nested(129).as_bytes()), Err(Unusable::TooDeep));
        let brackets_in_text = format!(r#"{{"a":"\"{}"}}"#, "[".repeat(500));
        assert!(parse(brackets_in_text.as_bytes()).is_ok());
    }

    #[test]
    fn oddities_that_are_fine() {
        assert!(parse(b"\xef\xbb\xbf{\"a\":1}").unwrap().contains_key("a"));
        assert_eq!(parse(br#"{"a":1,"a":2}"#).unwrap()["a"], Json::Number("2".into()));
        assert_eq!(value(r#""x\ud83dy""#), Json::Text("x\u{fffd}y".into()));
        assert_eq!(value(r#""\udc00\ud83d\ude00\\ud83d""#), Json::Text("\u{fffd}😀\\ud83d".into()));
        assert_eq!(value(r#""\ud83d\ud83d\ude00""#), Json::Text("\u{fffd}😀".into()));
        assert_eq!(value("1e400"), Json::Number("1e+400".into()));
        assert!(parse(br#"{"$serde_json::private::Number":"x"}"#).is_ok());
        let forged = value(r#"{"$serde_json::private::Number":"ée-1"}"#);
        assert_eq!((forged.id(), forged.object().map(Object::len)), (None, Some(1)));
        let several = parse(br#"{"v":{"$serde_json::private::Number":"1","a":"2"}}"#).unwrap();
        assert_eq!(several["v"].to_string(), r#"{"$serde_json::private::Number":"1","a":"2"}"#);
        assert!(parse(br#"{"\ud800":1}"#).unwrap().contains_key("\u{fffd}"));
    }

    #[test]
    fn ids_keep_their_digits() {
        for (sent, id) in [
            ("123", "123"),
            ("98765432109876543210987", "98765432109876543210987"),
            ("-5", "-5"),
            ("12.0", "12"),
            ("1.2e1", "12"),
            ("1791792900104729.0", "1791792900104729"),
            ("1.5", "1.5"),
            ("1e999999999", "1e+999999999"),
            ("0.0", "0"),
            ("\"0042\"", "0042"),
        ] {
            assert_eq!(value(sent).id().as_deref(), Some(id), "{sent}");
        }
        for sent in ["null", "true", "\"\"", "\"  \"", "[1]", "{}"] {
            assert_eq!(value(sent).id(), None, "{sent}");
        }
    }

    #[test]
    fn compact_text_is_what_javascript_would_write() {
        let sent = br#" { "b" : "\u00e9\/\u0001\n" , "a" : [ 1 , 2.50, {} ] } "#;
        assert_eq!(compact(&parse(sent).unwrap()), r#"{"b":"é/\u0001\n","a":[1,2.50,{}]}"#);
    }

    proptest! {
        #[test]
        fn any_bytes_get_an_answer(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&body);
        }

        #[test]
        fn json_like_text_gets_an_answer(body in r#"[\[\]{}":,\\u0-9dDe.\- ]{0,80}"#) {
            let _ = parse(body.as_bytes());
            let _ = parse(format!("{{{body}}}").as_bytes());
            let _ = parse(format!("{{\"a\":\"{body}\"}}").as_bytes());
        }

        #[test]
        fn any_value_is_an_id_or_none(text in "[-+.eEé0-9]{0,12}") {
            for value in [Json::Number(text.clone().into()), Json::Text(text.clone().into())] {
                let _ = value.id();
            }
            let forged = format!(r#"{{"id":{{"$serde_json::private::Number":"{text}"}}}}"#);
            let _ = parse(forged.as_bytes()).unwrap()["id"].id();
        }

        #[test]
        fn whatever_serde_json_reads_we_read(text in "\\PC{0,40}", number in any::<f64>(), id in any::<i64>()) {
            let body = serde_json::json!({ "text": text, "number": number, "id": id }).to_string();
            let object = parse(body.as_bytes()).unwrap();
            prop_assert_eq!(object["text"].text(), Some(text.as_str()));
            prop_assert_eq!(object["id"].id(), Some(id.to_string()));
            prop_assert_eq!(compact(&object), body);
        }
    }
}
