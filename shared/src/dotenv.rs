//! Reads a `.env` file the way python-dotenv does, which is what the Flask bridge reads it with.
//!
//! The crate dotenvy refuses unquoted values with spaces and expands `$NAME` without braces, so a
//! password with a `$` in it would change its meaning when the bridge is replaced by Penstock.

use std::collections::BTreeMap;

/// The assignments of a `.env` text in which `known` (the process environment) can be referred to as
/// `${NAME}` or `${NAME:-default}`, or the number of the first line that can't be understood.
pub fn parse(text: &str, known: &BTreeMap<String, String>) -> Result<BTreeMap<String, String>, usize> {
    let mut assigned = BTreeMap::new();
    let mut rest = text.trim_start_matches('\u{feff}');
    loop {
        rest = rest.trim_start();
        let line_number = || text[..text.len() - rest.len()].matches('\n').count() + 1;
        if rest.is_empty() {
            return Ok(assigned);
        }
        if rest.starts_with('#') {
            rest = after_line(rest);
            continue;
        }
        let (name, after_name) = name(rest).ok_or_else(line_number)?;
        let Some(value) = after_name.strip_prefix('=') else {
            // A name alone sets nothing.
            rest = Some(after_name)
                .filter(|left| blank_or_comment(left))
                .map(after_line)
                .ok_or_else(line_number)?;
            continue;
        };
        let (value, after_value) = value_of(value.trim_start_matches([' ', '\t'])).ok_or_else(line_number)?;
        let value = expand(&value, |wanted| known.get(wanted).or_else(|| assigned.get(wanted)).cloned());
        assigned.insert(name.to_owned(), value);
        rest = after_line(after_value);
    }
}

fn after_line(text: &str) -> &str {
    text.find('\n').map_or("", |end| &text[end + 1..])
}

fn blank_or_comment(text: &str) -> bool {
    let left = text.lines().next().unwrap_or("").trim_start();
    left.is_empty() || left.starts_with('#')
}

/// `export NAME` or `NAME`, and what follows it and the blanks behind it.
fn name(text: &str) -> Option<(&str, &str)> {
    let text = match text.strip_prefix("export") {
        Some(left) if left.starts_with([' ', '\t']) => left.trim_start_matches([' ', '\t']),
        _ => text,
    };
    let end = text.find(|c: char| c == '=' || c == '#' || c.is_whitespace()).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let name = name.trim_matches('\'');
    (!name.is_empty()).then(|| (name, rest.trim_start_matches([' ', '\t'])))
}

fn value_of(text: &str) -> Option<(String, &str)> {
    if let Some(quote @ ('\'' | '"')) = text.chars().next() {
        let (value, rest) = quoted(&text[1..], quote)?;
        blank_or_comment(rest).then_some((value, rest))
    } else {
        let line = text.split(['\n', '\r']).next().unwrap_or("");
        let comment = line.match_indices('#').find(|(at, _)| *at == 0 || line[..*at].ends_with([' ', '\t']));
        let value = comment.map_or(line, |(at, _)| &line[..at]);
        Some((value.trim_end().to_owned(), &text[line.len()..]))
    }
}

fn quoted(text: &str, quote: char) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            _ if c == quote => return Some((value, &text[at + 1..])),
            '\\' => match (chars.next()?.1, quote) {
                ('n', '"') => value.push('\n'),
                ('r', '"') => value.push('\r'),
                ('t', '"') => value.push('\t'),
                (escaped, _) if escaped == '\\' || escaped == quote => value.push(escaped),
                (other, _) => value.extend(['\\', other]),
            },
            _ => value.push(c),
        }
    }
    None
}

fn expand(value: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let (mut expanded, mut rest) = (String::new(), value);
    while let Some((before, reference, after)) = rest
        .split_once("${")
        .and_then(|(before, left)| left.split_once('}').map(|(name, after)| (before, name, after)))
    {
        let (name, default) = reference.split_once(":-").unwrap_or((reference, ""));
        expanded.push_str(before);
        expanded.push_str(&lookup(name).unwrap_or_else(|| default.to_owned()));
        rest = after;
    }
    expanded.push_str(rest);
    expanded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<(String, String)> {
        let known = BTreeMap::from([("HOST_NAME".to_owned(), "db1".to_owned())]);
        parse(text, &known).unwrap().into_iter().collect()
    }

    fn one(text: &str) -> String {
        read(text).pop().unwrap().1
    }

    #[test]
    fn values_mean_what_the_flask_bridge_took_them_for() {
        assert_eq!(one("A=mongodb://u:p$word@h/?a=b&c=d"), "mongodb://u:p$word@h/?a=b&c=d");
        assert_eq!(one("A=two words # comment"), "two words");
        assert_eq!(one("A=not#comment"), "not#comment");
        assert_eq!(one("A="), "");
        assert_eq!(one("A= # nothing"), "");
        assert_eq!(one("export A = 'x # y'  # z"), "x # y");
        assert_eq!(one(r#"A="a\n\"b\"\$""#), "a\n\"b\"\\$");
        assert_eq!(one(r"A='a\n\'b'"), r"a\n'b");
        assert_eq!(one("A=\"two\nlines\"\r\n"), "two\nlines");
        assert_eq!(one("A=${HOST_NAME}:${PORT:-27017}/${NONE}"), "db1:27017/");
        assert_eq!(one("\u{feff}A=1\r\n"), "1");
    }

    #[test]
    fn names_without_value_and_comments_set_nothing() {
        assert_eq!(read("# A=1\n\nB\nC=2\n  D=3 "), [("C".into(), "2".into()), ("D".into(), "3".into())]);
        assert_eq!(one("A=1\nA=2"), "2");
    }

    #[test]
    fn a_line_that_makes_no_sense_is_named() {
        let known = BTreeMap::new();
        assert_eq!(parse("A=1\n=2", &known), Err(2));
        assert_eq!(parse("A=1\n\nB='open", &known), Err(3));
        assert_eq!(parse("what is this", &known), Err(1));
        assert_eq!(parse("A='x' y", &known), Err(1));
    }
}
