//! A body, written anew as compact JSON.

use super::{Quoted, Token, Tokens, Unusable, digits};

/// Small pieces are handed over together, up to this many bytes.
const PIECE_BYTES: usize = 4 << 10;

/// Hands a body to `sink` piece by piece, as JavaScript's `JSON.stringify` would write it: without white
/// space, and with nothing escaped that needn't be. If it fails, the pieces before must not be used.
///
/// It has the same tokens as the body: a member that is there twice stays there twice.
pub fn compact(body: &[u8], sink: impl FnMut(&[u8])) -> Result<(), Unusable> {
    let mut tokens = Tokens::of_members(body)?;
    let mut pieces = Pieces { collected: Vec::with_capacity(PIECE_BYTES), sink };
    pieces.add("{");
    let mut follows_value = false;
    loop {
        let token = tokens.next_token()?;
        let is_close = matches!(token, Token::CloseList | Token::CloseObject | Token::End);
        if follows_value && !is_close {
            pieces.add(",");
        }
        match token {
            Token::Null => pieces.add("null"),
            Token::Bool(true) => pieces.add("true"),
            Token::Bool(false) => pieces.add("false"),
            Token::Number(number) => pieces.add(&digits(number)),
            Token::Text(text) => pieces.add_quoted(text),
            Token::Name(name) => {
                pieces.add_quoted(name);
                pieces.add(":");
            }
            Token::OpenList => pieces.add("["),
            Token::CloseList => pieces.add("]"),
            Token::OpenObject => pieces.add("{"),
            Token::CloseObject => pieces.add("}"),
            Token::End => break,
        }
        follows_value = !matches!(token, Token::Name(_) | Token::OpenList | Token::OpenObject);
    }
    pieces.flush();
    Ok(())
}

struct Pieces<F> {
    collected: Vec<u8>,
    sink: F,
}

impl<F: FnMut(&[u8])> Pieces<F> {
    fn add(&mut self, piece: &str) {
        if self.collected.len() + piece.len() > PIECE_BYTES {
            self.flush();
        }
        if piece.len() > PIECE_BYTES {
            (self.sink)(piece.as_bytes());
        } else {
            self.collected.extend_from_slice(piece.as_bytes());
        }
    }

    fn add_quoted(&mut self, text: Quoted<'_>) {
        self.add("\"");
        for (plain, escaped) in text.pieces() {
            self.add(plain);
            if let Some(char) = escaped {
                self.add_char(char);
            }
        }
        self.add("\"");
    }

    fn add_char(&mut self, char: char) {
        match char {
            '"' => self.add(r#"\""#),
            '\\' => self.add(r"\\"),
            '\u{8}' => self.add(r"\b"),
            '\u{c}' => self.add(r"\f"),
            '\n' => self.add(r"\n"),
            '\r' => self.add(r"\r"),
            '\t' => self.add(r"\t"),
            ..' ' => self.add(&format!(r"\u{:04x}", u32::from(char))),
            _ => self.add(char.encode_utf8(&mut [0; 4])),
        }
    }

    fn flush(&mut self) {
        (self.sink)(&self.collected);
        self.collected.clear();
    }
}
