//! `ingest verify`: does a signature fit the keys that are set?

use std::io::{self, Read};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use shared::env::{Env, Problems};
use shared::verify::{Keys, Match, Untrusted};

/// What to check.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: ingest verify --tenant faster --signature 'qZk…=' < body.json")]
pub struct Arguments {
    /// The tenant whose keys to try
    #[arg(long, value_name = "TENANT")]
    tenant: String,
    /// The value of the header `X-Webhook-Signature`
    #[arg(long, value_name = "SIGNATURE")]
    signature: String,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// Why a signature couldn't be found good.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The settings are wrong.
    #[error("{0}")]
    Settings(#[from] Problems),
    /// The body can't be read.
    #[error("can't read the body from standard input")]
    Read(#[from] io::Error),
    /// There is nothing to check it with.
    #[error("tenant {0:?} has no signing keys")]
    NoKeys(String),
    /// No key made the signature.
    #[error("no key of tenant {0:?} makes this signature of this body, in any form")]
    Invalid(String),
    /// The signature is blank.
    #[error("the signature is blank")]
    Blank,
    /// The signature has the right value, in a spelling that ingest doesn't accept.
    #[error(
        "the right value in another spelling ({spelling}), made by key {key} of {tenant}, form {form}: ingest refuses it; \
         the header must hold the base64 of the 32 bytes with its padding, and nothing else"
    )]
    Respelled {
        /// The tenant.
        tenant: String,
        /// How it is written.
        spelling: String,
        /// The number of the key.
        key: usize,
        /// What was signed, and how.
        form: &'static str,
    },
}

/// Reads a body from standard input, and tells which key made the signature, and how.
pub fn run(arguments: &Arguments, mut env: Env) -> Result<String, VerifyError> {
    let keys = Keys::read(&mut env, &arguments.tenant);
    let keys = env.finish(keys)?;
    let tenant = arguments.tenant.clone();
    if keys.is_empty() {
        return Err(VerifyError::NoKeys(tenant));
    }
    let mut body = Vec::new();
    io::stdin().lock().read_to_end(&mut body)?;
    let verify = |signature: &str| keys.verify(Some(signature.as_bytes()), &body);
    match verify(&arguments.signature) {
        Ok(Match { key, form }) if arguments.json => {
            Ok(serde_json::json!({"tenant": tenant, "key": key + 1, "form": form.name()}).to_string())
        }
        Ok(Match { key, form }) => Ok(format!("good: key {} of {tenant}, form {}", key + 1, form.name())),
        Err(Untrusted::Missing) => Err(VerifyError::Blank),
        Err(Untrusted::Invalid) => Err(match as_expected(&arguments.signature) {
            Some((signature, spelling)) if let Ok(Match { key, form }) = verify(&signature) => {
                VerifyError::Respelled { tenant, spelling, key: key + 1, form: form.name() }
            }
            _ => VerifyError::Invalid(tenant),
        }),
    }
}

/// What some senders write before a signature.
const PREFIX: &str = "sha256=";

/// A signature in the spelling that ingest accepts, and what is different about the given one. Pure.
fn as_expected(text: &str) -> Option<(String, String)> {
    let text = text.trim();
    let mut differences = Vec::new();
    let bare = match text.get(..PREFIX.len()) {
        Some(prefix) if prefix.eq_ignore_ascii_case(PREFIX) => {
            differences.push("sha256= in front");
            &text[PREFIX.len()..]
        }
        _ => text,
    };
    let bytes = if let Ok(bytes) = hex::decode(bare) {
        differences.push("hexadecimal");
        bytes
    } else {
        let standard = bare.replace('-', "+").replace('_', "/");
        if standard != bare {
            differences.push("base64 for URLs");
        }
        if !standard.ends_with('=') {
            differences.push("without padding");
        }
        STANDARD_NO_PAD.decode(standard.trim_end_matches('=')).ok()?
    };
    Some((STANDARD.encode(bytes), differences.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_spellings_are_recognised() {
        let bytes = [0xfb_u8; 32];
        let (hex, base64) = (hex::encode(bytes), STANDARD.encode(bytes));
        let bare = base64.trim_end_matches('=');
        let for_urls = bare.replace('+', "-").replace('/', "_");
        for (text, spelling) in [
            (hex.clone(), "hexadecimal"),
            (hex.to_uppercase(), "hexadecimal"),
            (format!("sha256={hex}"), "sha256= in front, hexadecimal"),
            (format!(" SHA256={base64} "), "sha256= in front"),
            (bare.to_owned(), "without padding"),
            (format!("{for_urls}="), "base64 for URLs"),
            (for_urls, "base64 for URLs, without padding"),
        ] {
            assert_eq!(as_expected(&text), Some((base64.clone(), spelling.to_owned())), "{text}");
        }
        for text in ["", "sha256=%", "\u{e9}\u{e9}\u{e9}\u{e9}"] {
            assert_eq!(
                as_expected(text).map(|(signature, _)| signature).filter(|text| !text.is_empty()),
                None
            );
        }
    }
}
