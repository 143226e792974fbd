//! Reads a `.env` file exactly as python-dotenv 1.0 does, which the Flask bridge reads it with. Pure.
//!
//! `tests/dotenv` holds what python-dotenv makes of many files. The crate dotenvy refuses unquoted values
//! with spaces and expands `$NAME` without braces: a password with a `$` in it would change when Penstock
//! replaces the bridge.

use std::collections::BTreeMap;

/// The content of a `.env` file.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Dotenv {
    /// The variables that it sets.
    pub variables: BTreeMap<String, String>,
    /// Numbers of the lines that can't be read and are ignored.
    pub ignored: Vec<usize>,
}

/// A statement's name and value. A comment has neither, and a name alone has no value.
type Statement<'a> = (Option<&'a str>, Option<String>);

/// Reads a file in which `known` (the process environment) can be referred to as `${NAME}` or
/// `${NAME:-default}`.
#[must_use]
pub fn parse(text: &str, known: &BTreeMap<String, String>) -> Dotenv {
    // Python reads every kind of line end as this one.
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let mut read: BTreeMap<String, Option<String>> = BTreeMap::new();
    let mut ignored = Vec::new();
    let mut rest = text.trim_start_matches(is_space);
    while !rest.is_empty() {
        let line = text[..text.len() - rest.len()].matches('\n').count() + 1;
        let after = match statement(rest) {
            Ok(((name, value), after)) => {
                let value = value.map(|value| expand(&value, known, &read));
                read.extend(name.map(|name| (name.to_owned(), value)));
                after
            }
            Err(misunderstood) => {
                ignored.push(line);
                after_line(misunderstood)
            }
        };
        rest = after.trim_start_matches(is_space);
    }
    // The last statement on a name counts, also if it removes the value.
    let set = read.into_iter().filter_map(|(name, value)| Some((name, value?)));
    Dotenv { variables: set.collect(), ignored }
}

/// A statement and what follows it; or the place from which on it can't be understood.
fn statement(text: &str) -> Result<(Statement<'_>, &str), &str> {
    let (name, rest) = name(after_export(text))?;
    let rest = rest.trim_start_matches(is_blank);
    let (value, rest) = match rest.strip_prefix('=') {
        Some(rest) => value(rest.trim_start_matches(is_blank)).map(|(value, rest)| (Some(value), rest))?,
        None => (None, rest),
    };
    let left = rest.trim_start_matches(is_blank);
    match left.chars().next() {
        None | Some('#' | '\n') => Ok(((name, value), after_line(left))),
        Some(_) => Err(rest),
    }
}

fn after_export(text: &str) -> &str {
    let after = text.strip_prefix("export").filter(|after| after.starts_with(is_blank));
    after.map_or(text, |after| after.trim_start_matches(is_blank))
}

fn name(text: &str) -> Result<(Option<&str>, &str), &str> {
    if text.starts_with('#') {
        return Ok((None, text));
    }
    if let Some(quoted) = text.strip_prefix('\'') {
        let (name, rest) = quoted.split_once('\'').filter(|(name, _)| !name.is_empty()).ok_or(text)?;
        return Ok((Some(name), rest));
    }
    let end = text.find(|c: char| c == '=' || c == '#' || is_space(c)).unwrap_or(text.len());
    if end == 0 { Err(text) } else { Ok((Some(&text[..end]), &text[end..])) }
}

fn value(text: &str) -> Result<(String, &str), &str> {
    if let Some(quote @ ('\'' | '"')) = text.chars().next() {
        let (value, rest) = quoted(&text[1..], quote).ok_or(text)?;
        return Ok((unescaped(value, quote), rest));
    }
    let line = text.split('\n').next().unwrap_or_default();
    let comment = line.match_indices('#').find(|(at, _)| line[..*at].ends_with(is_space));
    let value = comment.map_or(line, |(at, _)| &line[..at]);
    Ok((value.trim_end_matches(is_space).to_owned(), &text[line.len()..]))
}

/// The text up to the quote that ends it, and what follows: up to the first without a backslash before it or,
/// if there is none, the last one.
fn quoted(text: &str, quote: char) -> Option<(&str, &str)> {
    let mut quotes = text.match_indices(quote).map(|(at, _)| at);
    let end = quotes.clone().find(|at| !text[..*at].ends_with('\\')).or_else(|| quotes.next_back())?;
    Some((&text[..end], &text[end + 1..]))
}

fn unescaped(text: &str, quote: char) -> String {
    let (mut unescaped, mut chars) = (String::with_capacity(text.len()), text.chars());
    while let Some(c) = chars.next() {
        let escaped = if c == '\\' { chars.clone().next() } else { None };
        match escaped.and_then(|escaped| meant(escaped, quote)) {
            Some(meant) => {
                chars.next();
                unescaped.push(meant);
            }
            None => unescaped.push(c),
        }
    }
    unescaped
}

/// What a character behind a backslash stands for between these quotes.
fn meant(escaped: char, quote: char) -> Option<char> {
    match (escaped, quote) {
        ('\\' | '\'', _) | ('"', '"') => Some(escaped),
        ('a', '"') => Some('\x07'),
        ('b', '"') => Some('\x08'),
        ('f', '"') => Some('\x0c'),
        ('n', '"') => Some('\n'),
        ('r', '"') => Some('\r'),
        ('t', '"') => Some('\t'),
        ('v', '"') => Some('\x0b'),
        _ => None,
    }
}

/// The value with what `${NAME}` and `${NAME:-default}` stand for. The environment comes before the file.
fn expand(value: &str, known: &BTreeMap<String, String>, read: &BTreeMap<String, Option<String>>) -> String {
    let (mut expanded, mut rest) = (String::with_capacity(value.len()), value);
    while let Some(at) = rest.find("${") {
        let (before, reference) = rest.split_at(at);
        expanded.push_str(before);
        let Some((name, default, after)) = reference_in(&reference[2..]) else {
            expanded.push('$');
            rest = &reference[1..];
            continue;
        };
        // A name that stands alone is there, without a value, so that no default takes its place.
        let found =
            known.get(name).map(String::as_str).or_else(|| Some(read.get(name)?.as_deref().unwrap_or("")));
        expanded.push_str(found.unwrap_or(default));
        rest = after;
    }
    expanded.push_str(rest);
    expanded
}

/// The parts of `NAME}` or `NAME:-default}`, and what follows.
fn reference_in(text: &str) -> Option<(&str, &str, &str)> {
    let (name, rest) = text.split_at(text.find(['}', ':'])?);
    if let Some(after) = rest.strip_prefix('}') {
        return Some((name, "", after));
    }
    let (default, after) = rest.strip_prefix(":-")?.split_once('}')?;
    Some((name, default, after))
}

fn after_line(text: &str) -> &str {
    text.find('\n').map_or("", |end| &text[end + 1..])
}

/// White space as Python sees it.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

fn is_blank(c: char) -> bool {
    c != '\n' && is_space(c)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    /// Written by `tests/dotenv/record.py`.
    const FILES: &str = include_str!("../../tests/dotenv/files.json");

    /// What python-dotenv makes of a file.
    #[derive(Debug, Deserialize)]
    struct Recorded {
        environment: BTreeMap<String, String>,
        text: String,
        variables: BTreeMap<String, String>,
        ignored: usize,
    }

    #[test]
    fn every_file_is_read_as_python_dotenv_reads_it() {
        let all: Vec<Recorded> = serde_json::from_str(FILES).unwrap();
        assert!(all.len() > 500, "{}", all.len());
        let differs: Vec<String> = all.iter().filter_map(differs).collect();
        assert!(differs.is_empty(), "{} of {}:\n{}", differs.len(), all.len(), differs.join("\n"));
    }

    fn differs(recorded: &Recorded) -> Option<String> {
        let Dotenv { variables, ignored } = parse(&recorded.text, &recorded.environment);
        let is_same = variables == recorded.variables && ignored.len() == recorded.ignored;
        (!is_same).then(|| format!("{:?}\n  {variables:?} {ignored:?}\n  {recorded:?}", recorded.text))
    }

    #[test]
    fn what_is_ignored_is_told_by_its_line() {
        let ignored = |text| parse(text, &BTreeMap::new()).ignored;
        assert_eq!(ignored("A=1\n=2\r\nB=3\n\n  'open"), [2, 5]);
        assert_eq!(ignored("A='x\ny' z\nB=1"), [1]);
    }
}
