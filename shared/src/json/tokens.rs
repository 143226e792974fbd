//! A body, token by token.

use std::borrow::Cow;

use super::Unusable;
use super::number::{self, number_id, text_id};

/// Deepest nesting accepted, in levels of arrays and objects. The body itself is level 1.
pub const MAX_DEPTH: usize = 128;

/// A part of a JSON text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token<'a> {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A number, as sent.
    Number(&'a str),
    /// A string.
    Text(Quoted<'a>),
    /// The name of a member. Its value follows.
    Name(Quoted<'a>),
    /// The beginning of an array.
    OpenList,
    /// The end of an array.
    CloseList,
    /// The beginning of an object.
    OpenObject,
    /// The end of an object.
    CloseObject,
    /// Nothing is left.
    End,
}

impl Token<'_> {
    /// An id as text: a string that isn't blank, or a number with the digits it was sent with.
    #[must_use]
    pub fn id(self) -> Option<String> {
        match self {
            Self::Text(text) => text_id(&text.text()),
            Self::Number(number) => Some(number_id(&number::digits(number))),
            _ => None,
        }
    }
}

/// A string between its quotes, as sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quoted<'a> {
    sent: &'a str,
    has_escapes: bool,
}

impl<'a> Quoted<'a> {
    /// The string. Half of a surrogate pair is U+FFFD: some senders cut texts in the middle of an emoji.
    #[must_use]
    pub fn text(self) -> Cow<'a, str> {
        if !self.has_escapes {
            return Cow::Borrowed(self.sent);
        }
        let mut text = String::with_capacity(self.sent.len());
        for (plain, escaped) in self.pieces() {
            text.push_str(plain);
            text.extend(escaped);
        }
        Cow::Owned(text)
    }

    /// Its pieces: what needs no unescaping, and the character that was escaped behind it.
    pub(super) fn pieces(self) -> impl Iterator<Item = (&'a str, Option<char>)> {
        let mut rest = self.sent;
        std::iter::from_fn(move || {
            let Some((plain, _)) = rest.split_once('\\') else {
                return (!rest.is_empty()).then(|| (std::mem::take(&mut rest), None));
            };
            let escape = &rest[plain.len()..];
            let (escaped, length) = unescape(escape.as_bytes());
            rest = &escape[length..];
            Some((plain, Some(escaped)))
        })
    }
}

/// What may come next.
#[derive(Clone, Copy, Debug)]
enum Expected {
    /// A value, behind a name or alone.
    Value,
    /// The first element or member, or the end of what was just opened.
    First,
    /// A further element or member.
    Further,
    /// A comma, or the end of what is open.
    Comma,
    End,
}

/// Reads a JSON text from front to back. After an error, what was read before must not be used.
#[derive(Clone, Debug)]
pub struct Tokens<'a> {
    text: &'a str,
    at: usize,
    expected: Expected,
    depth: usize,
    // A bit for each level that is open, the innermost last: 1 is an object. As many as MAX_DEPTH.
    objects: u128,
}

impl<'a> Tokens<'a> {
    /// The tokens of a body, which has to be an object, from its first member on.
    pub fn of_members(body: &'a [u8]) -> Result<Self, Unusable> {
        let text = std::str::from_utf8(body).map_err(|_| Unusable::Invalid)?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        if text.trim_ascii().is_empty() {
            return Err(Unusable::Empty);
        }
        let mut tokens = Self { text, at: 0, expected: Expected::Value, depth: 0, objects: 0 };
        if tokens.next_token()? == Token::OpenObject {
            return Ok(tokens);
        }
        while tokens.next_token()? != Token::End {}
        Err(Unusable::NotAnObject)
    }

    /// The next token.
    pub fn next_token(&mut self) -> Result<Token<'a>, Unusable> {
        let mut next = self.peek();
        if let (Expected::Comma, Some(b',')) = (self.expected, next) {
            self.at += 1;
            self.expected = Expected::Further;
            next = self.peek();
        }
        let is_in_object = self.objects & 1 == 1;
        match (self.expected, next) {
            (Expected::First | Expected::Comma, Some(b'}')) if is_in_object => self.close(Token::CloseObject),
            (Expected::First | Expected::Comma, Some(b']')) if !is_in_object => self.close(Token::CloseList),
            (Expected::First | Expected::Further, Some(b'"')) if is_in_object => self.name(),
            (Expected::First | Expected::Further, Some(first)) if !is_in_object => self.value(first),
            (Expected::Value, Some(first)) => self.value(first),
            (Expected::End, None) => Ok(Token::End),
            _ => Err(Unusable::Invalid),
        }
    }

    /// The name of the next member; none if the object ends.
    pub fn next_name(&mut self) -> Result<Option<Quoted<'a>>, Unusable> {
        Ok(match self.next_token()? {
            Token::Name(name) => Some(name),
            _ => None,
        })
    }

    /// The next value; of an array or object, which is skipped, only how it begins.
    pub fn next_value(&mut self) -> Result<Token<'a>, Unusable> {
        let level = self.depth;
        let value = self.next_token()?;
        self.skip_to(level)?;
        Ok(value)
    }

    /// Levels that are open.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Skips until no more levels than this are open.
    pub fn skip_to(&mut self, level: usize) -> Result<(), Unusable> {
        while self.depth > level {
            self.next_token()?;
        }
        Ok(())
    }

    fn name(&mut self) -> Result<Token<'a>, Unusable> {
        let name = self.quoted()?;
        if self.peek() != Some(b':') {
            return Err(Unusable::Invalid);
        }
        self.at += 1;
        self.expected = Expected::Value;
        Ok(Token::Name(name))
    }

    fn value(&mut self, first: u8) -> Result<Token<'a>, Unusable> {
        match first {
            b'{' => self.open(Token::OpenObject),
            b'[' => self.open(Token::OpenList),
            b'"' => {
                let text = self.quoted()?;
                self.complete(Token::Text(text))
            }
            b'-' | b'0'..=b'9' => self.number(),
            b't' => self.word("true", Token::Bool(true)),
            b'f' => self.word("false", Token::Bool(false)),
            b'n' => self.word("null", Token::Null),
            _ => Err(Unusable::Invalid),
        }
    }

    fn open(&mut self, token: Token<'a>) -> Result<Token<'a>, Unusable> {
        if self.depth == MAX_DEPTH {
            return Err(Unusable::TooDeep);
        }
        self.at += 1;
        self.depth += 1;
        self.objects = self.objects << 1 | u128::from(token == Token::OpenObject);
        self.expected = Expected::First;
        Ok(token)
    }

    fn close(&mut self, token: Token<'a>) -> Result<Token<'a>, Unusable> {
        self.at += 1;
        self.depth -= 1;
        self.objects >>= 1;
        self.complete(token)
    }

    /// A value has ended. The outermost one must have nothing behind it.
    fn complete(&mut self, token: Token<'a>) -> Result<Token<'a>, Unusable> {
        self.expected = if self.depth > 0 { Expected::Comma } else { Expected::End };
        if self.depth == 0 && self.peek().is_some() {
            return Err(Unusable::Invalid);
        }
        Ok(token)
    }

    fn word(&mut self, word: &str, token: Token<'a>) -> Result<Token<'a>, Unusable> {
        if !self.rest().starts_with(word.as_bytes()) {
            return Err(Unusable::Invalid);
        }
        self.at += word.len();
        self.complete(token)
    }

    fn number(&mut self) -> Result<Token<'a>, Unusable> {
        let from = self.at;
        self.at += number::length(self.rest()).ok_or(Unusable::Invalid)?;
        self.complete(Token::Number(&self.text[from..self.at]))
    }

    /// A string, whose first quote is next.
    fn quoted(&mut self) -> Result<Quoted<'a>, Unusable> {
        self.at += 1;
        let (from, mut has_escapes) = (self.at, false);
        loop {
            let special = |byte: &u8| matches!(byte, b'"' | b'\\' | ..b' ');
            self.at += self.rest().iter().position(special).ok_or(Unusable::Invalid)?;
            match self.rest().first() {
                Some(b'"') => break,
                Some(b'\\') => self.at += escape_length(self.rest()).ok_or(Unusable::Invalid)?,
                _ => return Err(Unusable::Invalid),
            }
            has_escapes = true;
        }
        let sent = &self.text[from..self.at];
        self.at += 1;
        Ok(Quoted { sent, has_escapes })
    }

    fn rest(&self) -> &'a [u8] {
        &self.text.as_bytes()[self.at..]
    }

    /// The next byte that isn't white space.
    fn peek(&mut self) -> Option<u8> {
        while let Some(byte) = self.text.as_bytes().get(self.at) {
            if !matches!(byte, b' ' | b'\t' | b'\n' | b'\r') {
                return Some(*byte);
            }
            self.at += 1;
        }
        None
    }
}

/// The length of the escape that `bytes` begin with, if there is such a one.
fn escape_length(bytes: &[u8]) -> Option<usize> {
    match bytes.get(1)? {
        b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => Some(2),
        _ => unit(bytes).map(|_| 6),
    }
}

/// The character that the escape at the start of `bytes` stands for, and its length.
fn unescape(bytes: &[u8]) -> (char, usize) {
    match bytes.get(1) {
        Some(b'b') => ('\u{8}', 2),
        Some(b'f') => ('\u{c}', 2),
        Some(b'n') => ('\n', 2),
        Some(b'r') => ('\r', 2),
        Some(b't') => ('\t', 2),
        Some(b'u') => unescape_units(bytes),
        Some(other) => (char::from(*other), 2),
        None => (char::REPLACEMENT_CHARACTER, bytes.len()),
    }
}

fn unescape_units(bytes: &[u8]) -> (char, usize) {
    let units = [unit(bytes), bytes.get(6..).and_then(unit)];
    match char::decode_utf16(units.into_iter().map_while(|unit| unit)).next() {
        Some(Ok(char)) => (char, 6 * char.len_utf16()),
        _ => (char::REPLACEMENT_CHARACTER, bytes.len().min(6)),
    }
}

/// The UTF-16 unit of a `\uXXXX` at the start of `bytes`.
fn unit(bytes: &[u8]) -> Option<u16> {
    let digits = bytes.strip_prefix(b"\\u")?.get(..4)?;
    digits.iter().try_fold(0_u16, |unit, digit| {
        let value = char::from(*digit).to_digit(16)?;
        Some(unit << 4 | u16::try_from(value).ok()?)
    })
}
