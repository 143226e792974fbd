//! JSON into BSON. Every JSON value becomes something MongoDB can hold; the raw body is in the ledger anyway.

use std::borrow::Cow;

use mongodb::bson::raw::CStr;
use mongodb::bson::{DateTime, RawBson, RawDocumentBuf, cstr};

use crate::json::{Json, Object};

/// A value as BSON. Integers keep their type; a number beyond BSON's range becomes its text.
#[must_use]
pub fn value(json: &Json) -> RawBson {
    match json {
        Json::Null => RawBson::Null,
        Json::Bool(flag) => RawBson::Boolean(*flag),
        Json::Number(text) => number(text),
        Json::Text(text) => RawBson::String(text.to_string()),
        Json::List(list) => RawBson::Array(list.iter().map(value).collect()),
        Json::Object(members) => RawBson::Document(object(members)),
    }
}

/// An object as BSON. A NUL, which BSON has no place for in names, becomes U+FFFD.
#[must_use]
pub fn object(members: &Object) -> RawDocumentBuf {
    let mut object = with_room(32 * members.len());
    for (name, json) in without_nul(members).iter() {
        let Ok(name) = <&CStr>::try_from(name.as_str()) else { continue };
        match json {
            Json::Text(text) => object.append(name, text.as_str()),
            json => object.append(name, value(json)),
        }
    }
    object
}

/// An empty document with room for this many bytes: one that grows from nothing is moved again and again.
#[must_use]
pub fn with_room(bytes: usize) -> RawDocumentBuf {
    let mut empty = RawDocumentBuf::new().into_bytes();
    empty.reserve(bytes);
    RawDocumentBuf::from_bytes(empty).unwrap_or_default()
}

/// Of names that become the same the last value counts, as always.
fn without_nul(members: &Object) -> Cow<'_, Object> {
    if !members.keys().any(|name| name.contains('\0')) {
        return Cow::Borrowed(members);
    }
    Cow::Owned(
        members.iter().map(|(name, json)| (name.replace('\0', "\u{fffd}").into(), json.clone())).collect(),
    )
}

/// A member as BSON; null if it is missing.
#[must_use]
pub fn member(of: Option<&Json>, name: &str) -> RawBson {
    of.and_then(|json| json.get(name)).map_or(RawBson::Null, value)
}

/// A member that is an id, see [`id_value`]; null if it is missing or no id.
#[must_use]
pub fn id(of: Option<&Json>, name: &str) -> RawBson {
    or_null(of.and_then(|json| id_value(json.get(name)?)))
}

/// An id of the type it was sent with: text stays text, a whole number becomes an integer, or its digits if
/// BSON has none that large.
#[must_use]
pub fn id_value(json: &Json) -> Option<RawBson> {
    let id = json.id()?;
    match json {
        Json::Number(_) => Some(number(&id)),
        _ => Some(id.into()),
    }
}

/// An object as BSON, with its `id` as [`id_value`] has it; any other value as it is.
#[must_use]
pub fn with_id(json: &Json) -> RawBson {
    let (Some(members), Some(id)) = (json.object(), json.get("id").and_then(id_value)) else {
        return value(json);
    };
    let converted = object(members);
    let fields = converted
        .iter()
        .flatten()
        .map(|(name, field)| if name == cstr!("id") { (name, id.as_raw_bson_ref()) } else { (name, field) });
    RawBson::Document(fields.collect())
}

/// A value, or null if there is none.
#[must_use]
pub fn or_null(value: Option<impl Into<RawBson>>) -> RawBson {
    value.map_or(RawBson::Null, Into::into)
}

/// A moment in milliseconds since 1970, as BSON.
#[must_use]
pub fn date(at_ms: i64) -> RawBson {
    DateTime::from_millis(at_ms).into()
}

fn number(text: &str) -> RawBson {
    if let Ok(small) = text.parse::<i32>() {
        return RawBson::Int32(small);
    }
    if let Ok(large) = text.parse::<i64>() {
        return RawBson::Int64(large);
    }
    let is_integer = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
    match text.parse::<f64>() {
        Ok(float) if float.is_finite() && !is_integer => RawBson::Double(float),
        _ => RawBson::String(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mongodb::bson::{Bson, Document, bson, doc};

    fn document(body: &[u8]) -> Document {
        object(&crate::json::parse(body).unwrap()).try_into().unwrap()
    }

    #[test]
    fn values_keep_type_and_digits() {
        let body = br#"{"a":1,"b":3000000000,"c":1.5,"d":98765432109876543210,"e":1e400,"f":[null,true,"$x"],
            "$g.h":{"":0},"i\u0000j":"\u0000"}"#;
        let expected = doc! {
            "a": 1_i32, "b": 3_000_000_000_i64, "c": 1.5, "d": "98765432109876543210", "e": "1e+400",
            "f": [Bson::Null, true, "$x"], "$g.h": {"": 0_i32}, "i\u{fffd}j": "\0",
        };
        assert_eq!(document(body), expected);
    }

    #[test]
    fn ids_keep_the_type_they_came_in() {
        let sent = crate::json::parse(
            br#"{"a":7,"b":"7","c":7.0,"d":3000000000,"e":7e9,"f":9223372036854775808,"g":1e19,"h":" ","i":null,"j":-2.50}"#,
        );
        let sent = Json::Object(Box::new(sent.unwrap()));
        let ids: Vec<RawBson> = "abcdefghij".chars().map(|name| id(Some(&sent), &name.to_string())).collect();
        let expected = bson!([
            7_i32,
            "7",
            7_i32,
            3_000_000_000_i64,
            7_000_000_000_i64,
            "9223372036854775808",
            "10000000000000000000",
            null,
            null,
            -2.5,
        ]);
        assert_eq!(Bson::try_from(RawBson::Array(ids.into_iter().collect())).unwrap(), expected);
        let user = crate::json::parse(br#"{"name":"x","id":7.0,"n":7.0}"#).unwrap();
        let expected = bson!({"name": "x", "id": 7_i32, "n": 7.0});
        assert_eq!(Bson::try_from(with_id(&Json::Object(Box::new(user)))).unwrap(), expected);
    }

    #[test]
    fn no_name_is_there_twice() {
        let sent = object(&crate::json::parse(br#"{"a\u0000":1,"b":2,"a\ufffd":3}"#).unwrap());
        assert_eq!(sent.iter().count(), 2);
        assert_eq!(Document::try_from(sent).unwrap(), doc! {"a\u{fffd}": 3, "b": 2});
    }
}
