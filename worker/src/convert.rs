//! JSON into BSON. Every JSON value becomes something MongoDB can hold; the raw body is in the ledger anyway.

use mongodb::bson::{Bson, Document};
use shared::json::{Json, Object};

/// A value as BSON. Integers keep their type; a number beyond BSON's range becomes its text.
#[must_use]
pub fn value(json: &Json) -> Bson {
    match json {
        Json::Null => Bson::Null,
        Json::Bool(flag) => Bson::Boolean(*flag),
        Json::Number(text) => number(text),
        Json::Text(text) => Bson::String(text.clone()),
        Json::List(list) => Bson::Array(list.iter().map(value).collect()),
        Json::Object(members) => Bson::Document(object(members)),
    }
}

/// An object as BSON. A NUL, which BSON has no place for in names, becomes U+FFFD.
#[must_use]
pub fn object(members: &Object) -> Document {
    members.iter().map(|(name, json)| (name.replace('\0', "\u{fffd}"), value(json))).collect()
}

/// A member as BSON; null if it is missing.
#[must_use]
pub fn member(of: Option<&Json>, name: &str) -> Bson {
    of.and_then(|json| json.get(name)).map_or(Bson::Null, value)
}

/// A member that is an id, as text; null if it is missing or no id.
#[must_use]
pub fn id(of: Option<&Json>, name: &str) -> Bson {
    of.and_then(|json| json.get(name)?.id()).into()
}

fn number(text: &str) -> Bson {
    if let Ok(small) = text.parse::<i32>() {
        return Bson::Int32(small);
    }
    if let Ok(large) = text.parse::<i64>() {
        return Bson::Int64(large);
    }
    let is_integer = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
    match text.parse::<f64>() {
        Ok(float) if float.is_finite() && !is_integer => Bson::Double(float),
        _ => Bson::String(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mongodb::bson::doc;

    #[test]
    fn values_keep_type_and_digits() {
        let body = br#"{"a":1,"b":3000000000,"c":1.5,"d":98765432109876543210,"e":1e400,"f":[null,true,"$x"],
            "$g.h":{"":0},"i\u0000j":"\u0000"}"#;
        let document = object(&shared::json::parse(body).unwrap());
        let expected = doc! {
            "a": 1_i32, "b": 3_000_000_000_i64, "c": 1.5, "d": "98765432109876543210", "e": "1e+400",
            "f": [Bson::Null, true, "$x"], "$g.h": {"": 0_i32}, "i\u{fffd}j": "\0",
        };
        assert_eq!(document, expected);
    }
}
