use proptest::prelude::*;
use serde::de::IgnoredAny;

use super::*;

/// Reads all of a body.
fn read(body: &[u8]) -> Result<Vec<Token<'_>>, Unusable> {
    let (mut tokens, mut read) = (Tokens::of_members(body)?, Vec::new());
    loop {
        match tokens.next_token()? {
            Token::End => return Ok(read),
            token => read.push(token),
        }
    }
}

/// What another parser, which bounds no depth, makes of the same body.
fn is_object_for_serde_json(body: &[u8]) -> bool {
    let text = std::str::from_utf8(body).unwrap_or_default();
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    text.trim_ascii_start().starts_with('{') && serde_json::from_str::<IgnoredAny>(text).is_ok()
}

fn value(sent: &str) -> (Option<String>, Option<String>) {
    let body = format!(r#"{{"v":{sent}}}"#);
    let mut tokens = Tokens::of_members(body.as_bytes()).unwrap();
    tokens.next_name().unwrap();
    let token = tokens.next_value().unwrap();
    let text = match token {
        Token::Text(text) => Some(text.text().into_owned()),
        Token::Number(number) => Some(digits(number).into_owned()),
        _ => None,
    };
    (text, token.id())
}

fn compacted(body: &[u8]) -> String {
    let mut written = Vec::new();
    compact(body, |piece| written.extend_from_slice(piece)).unwrap();
    String::from_utf8(written).unwrap()
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
        (b"{\"a\":[1,]}", Unusable::Invalid),
        (b"{\"a\":[}}", Unusable::Invalid),
        (b"{\"a\":01}", Unusable::Invalid),
        (b"{\"a\":\"\xff\"}", Unusable::Invalid),
        (b"{\"a\":\"\n\"}", Unusable::Invalid),
        (b"{\"a\":\"\\x\"}", Unusable::Invalid),
        (b"{\"a\":NaN}", Unusable::Invalid),
        (b"{\"a\" 1}", Unusable::Invalid),
        (b"[1", Unusable::Invalid),
        (b"[1]", Unusable::NotAnObject),
        (b"\"text\"", Unusable::NotAnObject),
        (b"1", Unusable::NotAnObject),
        (b"null", Unusable::NotAnObject),
    ] {
        assert_eq!(read(body), Err(reason), "{}", String::from_utf8_lossy(body));
    }
}

#[test]
fn the_128th_level_is_the_last() {
    let nested = |levels: usize| format!("{}1{}", r#"{"a":"#.repeat(levels), "}".repeat(levels));
    assert!(read(nested(128).as_bytes()).is_ok());
    assert_eq!(read(nested(129).as_bytes()), Err(Unusable::TooDeep));
    let mixed = |levels: usize| format!(r#"{{"a":{}1{}}}"#, "[".repeat(levels), "]".repeat(levels));
    assert!(read(mixed(127).as_bytes()).is_ok());
    assert_eq!(read(mixed(128).as_bytes()), Err(Unusable::TooDeep));
    let brackets_in_text = format!(r#"{{"a":"\"{}"}}"#, "[".repeat(500));
    assert!(read(brackets_in_text.as_bytes()).is_ok());
}

#[test]
fn oddities_that_are_fine() {
    assert_eq!(read(b"\xef\xbb\xbf{\"a\":1}").unwrap().len(), 3);
    for (sent, text) in [
        (r#""x\ud83dy""#, "x\u{fffd}y"),
        (r#""\udc00\ud83d\ude00\\ud83d""#, "\u{fffd}😀\\ud83d"),
        (r#""\ud83d\ud83d\ude00""#, "\u{fffd}😀"),
        (r#""\ud83d\u0041""#, "\u{fffd}A"),
        (r#""\"\\\/\b\f\n\r\t\u00e9""#, "\"\\/\u{8}\u{c}\n\r\té"),
        ("1E400", "1e+400"),
        ("-0.0e-7", "-0.0e-7"),
    ] {
        assert_eq!(value(sent).0.as_deref(), Some(text), "{sent}");
    }
}

#[test]
fn ids_keep_their_digits() {
    for (sent, id) in [
        ("123", "123"),
        ("98765432109876543210987", "98765432109876543210987"),
        ("-5", "-5"),
        ("12.0", "12"),
        ("1.2e1", "12"),
        ("1.2E+1", "12"),
        ("1791792900104729.0", "1791792900104729"),
        ("1.5", "1.5"),
        ("1e999999999", "1e+999999999"),
        ("1e99999999999", "1e+99999999999"),
        ("0.0", "0"),
        ("\"0042\"", "0042"),
    ] {
        assert_eq!(value(sent).1.as_deref(), Some(id), "{sent}");
    }
    for sent in ["null", "true", "\"\"", "\"  \"", "[1]", "{}"] {
        assert_eq!(value(sent).1, None, "{sent}");
    }
}

#[test]
fn of_members_that_are_there_twice_the_last_one_counts() {
    let body = br#"{"event_id":"a","event_type":"x","contact":{"id":1,"phone":"+1"},"message":{"contactId":5},
        "\u0065vent_id":"b","event_type":7,"contact":{"phone":[{"phone":"+2"}],"id":{"id":3},"id":4},"other":{"event_id":"c"}}"#;
    let scan = Scan::of(body).unwrap();
    assert_eq!((scan.event_id().as_deref(), scan.event_type()), (Some("b"), None));
    assert_eq!(scan.chat_id().as_deref(), Some("4"));
    let message = br#"{"message":{"contactId":5.0},"contact":{"id":1},"contact":[{"id":2}]}"#;
    assert_eq!(Scan::of(message).unwrap().chat_id().as_deref(), Some("5"));
}

#[test]
fn compact_text_is_what_javascript_would_write() {
    let sent = br#" { "b" : "\u00e9\/\u0001\n\"\\\u001F" , "a" : [ 1 , 2.50, {}, [ ] ] , "c": {"d" : null, "d":true } } "#;
    assert_eq!(compacted(sent), r#"{"b":"é/\u0001\n\"\\\u001f","a":[1,2.50,{},[]],"c":{"d":null,"d":true}}"#);
    let long = format!(r#"{{"a":"{}\n","b":[{}]}}"#, "x".repeat(10_000), vec!["7"; 10_000].join(","));
    assert_eq!(compacted(long.as_bytes()), long);
    assert!(compact(b"{} x", |_| ()).is_err() && compact(b"[]", |_| ()).is_err());
}

/// Something like a body, now and then with a mistake in it.
fn nearly_json() -> impl Strategy<Value = String> {
    let leaf = prop::sample::select(vec![
        "0",
        "-1.5e3",
        "01",
        "1.",
        "-",
        "1e",
        "null",
        "tru",
        "\"a\"",
        "\"\\u00e9\\ud800\"",
        "\"\\x\"",
        "\"\\",
        "",
        "\u{7f}\"é\"",
        "\t1 ",
    ]);
    let list = |inner: Vec<String>| format!("[{}]", inner.join(","));
    let object = |inner: Vec<String>| format!("{{\"a\":{}}}", inner.join(",\"b\" :"));
    leaf.prop_map(str::to_owned).prop_recursive(5, 40, 5, move |inner| {
        let several = prop::collection::vec(inner, 0..5);
        prop_oneof![
            several.clone().prop_map(list),
            several.clone().prop_map(object),
            several.prop_map(object)
        ]
    })
}

proptest! {
    #[test]
    fn what_is_json_for_others_is_json_for_us(
        value in nearly_json(),
        junk in r#"[\[\]{}":,\\u0-9dDe.\-tfn \x00]{0,80}"#,
        bytes in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let texts = [value, junk.clone(), format!("{{{junk}}}"), format!("{{\"a\":\"{junk}\"}}")];
        for body in texts.iter().map(String::as_bytes).chain([&bytes[..]]) {
            prop_assert_eq!(read(body).is_ok(), is_object_for_serde_json(body), "{}", body.escape_ascii());
            prop_assert_eq!(Scan::of(body).map(drop), read(body).map(drop));
            prop_assert_eq!(compact(body, |_| ()), read(body).map(drop));
        }
    }

    #[test]
    fn any_number_is_an_id(digits in "[-+.eEé0-9]{0,12}") {
        let _ = (number_id(&digits), number_id(&super::digits(&digits)));
    }

    #[test]
    fn what_serde_json_writes_we_write(text in "\\PC{0,40}", control in "[\\x00-\\x7f]{0,9}", number in any::<f64>()) {
        let written = serde_json::json!({ "text": text, &*control: [number, -7, null, {"x": control}] });
        let pretty = serde_json::to_string_pretty(&written).unwrap();
        prop_assert_eq!(compacted(pretty.as_bytes()), written.to_string());
    }
}
