//! JSON as senders really write it: half surrogate pairs and a byte order mark are fine, every digit is kept,
//! depth is bounded.
//!
//! [`Tokens`] alone decides what is acceptable. All readers of a body read its tokens, so they agree:
//! [`Scan`] reads a few members, [`compact()`] writes the body as compact JSON, and the worker makes a tree
//! of it.

mod compact;
mod number;
mod scan;
#[cfg(test)]
mod tests;
mod tokens;

pub use compact::compact;
pub use number::{digits, number_id, text_id};
pub use scan::Scan;
pub use tokens::{MAX_DEPTH, Quoted, Token, Tokens};

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
