//! A body as a tree of values.

use std::fmt;

use ahash::RandomState;
use compact_str::CompactString;
use indexmap::IndexMap;
use shared::json::{Token, Tokens, Unusable, digits, number_id, text_id};

/// An object's members in the order they were sent; of duplicate keys the last value counts. Hashed with keys
/// drawn at random, since senders choose the names.
pub type Object = IndexMap<Text, Json, RandomState>;

/// A text. Most are short, and need no allocation.
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

/// Reads a body as a JSON object.
pub fn parse(body: &[u8]) -> Result<Object, Unusable> {
    members(&mut Tokens::of_members(body)?)
}

fn members(tokens: &mut Tokens<'_>) -> Result<Object, Unusable> {
    let mut members = Object::default();
    while let Some(name) = tokens.next_name()? {
        let first = tokens.next_token()?;
        members.insert(name.text().into(), value(first, tokens)?);
    }
    Ok(members)
}

/// The value that begins with this token. As deep as the tokens are: their depth is bounded.
fn value(first: Token<'_>, tokens: &mut Tokens<'_>) -> Result<Json, Unusable> {
    Ok(match first {
        Token::Bool(value) => Json::Bool(value),
        Token::Number(number) => Json::Number(digits(number).into()),
        Token::Text(text) => Json::Text(text.text().into()),
        Token::OpenList => Json::List(elements(tokens)?),
        Token::OpenObject => Json::Object(Box::new(members(tokens)?)),
        // The others begin no value.
        Token::Null | Token::Name(_) | Token::CloseList | Token::CloseObject | Token::End => Json::Null,
    })
}

fn elements(tokens: &mut Tokens<'_>) -> Result<Vec<Json>, Unusable> {
    let mut elements = Vec::new();
    loop {
        match tokens.next_token()? {
            Token::CloseList => return Ok(elements),
            first => elements.push(value(first, tokens)?),
        }
    }
}

/// Writes an object as compact JSON.
#[must_use]
pub fn compact(object: &Object) -> String {
    Members(object).to_string()
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Number(digits) => f.write_str(digits),
            Self::Text(text) => write!(f, "{}", Quoted(text)),
            Self::List(elements) => {
                f.write_str("[")?;
                for (n, element) in elements.iter().enumerate() {
                    write!(f, "{}{element}", if n == 0 { "" } else { "," })?;
                }
                f.write_str("]")
            }
            Self::Object(object) => write!(f, "{}", Members(object)),
        }
    }
}

struct Members<'a>(&'a Object);

impl fmt::Display for Members<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        for (n, (name, value)) in self.0.iter().enumerate() {
            write!(f, "{}{}:{value}", if n == 0 { "" } else { "," }, Quoted(name))?;
        }
        f.write_str("}")
    }
}

struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self.0).map_err(|_| fmt::Error)?)
    }
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
            Json::Text(text) => text_id(text),
            Json::Number(number) => Some(number_id(number)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_has_everything_in_the_order_it_was_sent() {
        let body = br#"{"b":[1,"x",{"c":null,"d":[[],{}]}],"a":true,"b2":1e2,"a":-0.50}"#;
        let tree = parse(body).unwrap();
        let names: Vec<&str> = tree.keys().map(Text::as_str).collect();
        assert_eq!(names, ["b", "a", "b2"]);
        assert_eq!((&tree["a"], &tree["b2"]), (&Json::Number("-0.50".into()), &Json::Number("1e+2".into())));
        let list = tree["b"].list().unwrap();
        assert_eq!((list[0].id().as_deref(), list[1].text()), (Some("1"), Some("x")));
        assert_eq!(list[2].get("c"), Some(&Json::Null));
        let inner = [Json::List(vec![]), Json::Object(Box::default())];
        assert_eq!(list[2].get("d").unwrap().list(), Some(&inner[..]));
    }

    #[test]
    fn a_tree_is_written_as_it_was_sent() {
        let body = r#"{"b":[1,"x\n\u0001",{"c":null,"d":[[],{}]}],"a\"":true,"b2":12345678901234567890.50}"#;
        assert_eq!(compact(&parse(body.as_bytes()).unwrap()), body);
    }
}
