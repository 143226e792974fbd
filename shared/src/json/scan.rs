//! What ingest has to know of a body, found in one pass.

use std::borrow::Cow;

use super::{Token, Tokens, Unusable};
use crate::partition;

/// The members that decide what an event is called and where it goes. Of those that are there twice the last
/// one counts, as in the worker's tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scan<'a> {
    event_id: Option<Token<'a>>,
    event_type: Option<Token<'a>>,
    phone: Option<Token<'a>>,
    contact_id: Option<Token<'a>>,
    message_contact_id: Option<Token<'a>>,
}

impl<'a> Scan<'a> {
    /// Reads a body, which has to be an object that Penstock can keep.
    pub fn of(body: &'a [u8]) -> Result<Self, Unusable> {
        let mut tokens = Tokens::of_members(body)?;
        let mut scan = Self::default();
        while let Some(name) = tokens.next_name()? {
            match &*name.text() {
                "event_id" => scan.event_id = Some(tokens.next_value()?),
                "event_type" => scan.event_type = Some(tokens.next_value()?),
                "contact" => [scan.phone, scan.contact_id] = members(&mut tokens, ["phone", "id"])?,
                "message" => [scan.message_contact_id] = members(&mut tokens, ["contactId"])?,
                _ => drop(tokens.next_value()?),
            }
        }
        Ok(scan)
    }

    /// The `event_id`, if it is a text.
    #[must_use]
    pub fn event_id(&self) -> Option<Cow<'a, str>> {
        text(self.event_id)
    }

    /// The event type as sent, if it is a text.
    #[must_use]
    pub fn event_type(&self) -> Option<Cow<'a, str>> {
        text(self.event_type)
    }

    /// The conversation that the event belongs to, if it names one.
    #[must_use]
    pub fn chat_id(&self) -> Option<String> {
        let id = |value: Option<Token<'_>>| value.and_then(Token::id);
        partition::chat_id(id(self.phone), id(self.contact_id), id(self.message_contact_id))
    }
}

fn text(value: Option<Token<'_>>) -> Option<Cow<'_, str>> {
    match value {
        Some(Token::Text(text)) => Some(text.text()),
        _ => None,
    }
}

/// Reads a value, and if it is an object, these members of it.
fn members<'a, const N: usize>(
    tokens: &mut Tokens<'a>,
    names: [&str; N],
) -> Result<[Option<Token<'a>>; N], Unusable> {
    let (level, mut found) = (tokens.depth(), [None; N]);
    if tokens.next_token()? == Token::OpenObject {
        while let Some(name) = tokens.next_name()? {
            let value = tokens.next_value()?;
            if let Some(place) = names.iter().position(|wanted| *wanted == name.text()) {
                found[place] = Some(value);
            }
        }
    }
    tokens.skip_to(level)?;
    Ok(found)
}
