//! Is a webhook signed by respond.io?
//!
//! The header has the base64 text of an HMAC-SHA256. Existing receivers use the key in two ways and sign two
//! texts, so all four forms are tried, the raw bytes first. If only the compact JSON is well signed, the
//! event key is made of it, too, see [`crate::event::body_digest`].

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::env::Env;
use crate::json;
use crate::tenant;

/// The header that holds the signature.
pub const HEADER: &str = "X-Webhook-Signature";

/// How a signature was found good, or that there was none to check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Over the bytes as sent, with the key as text.
    Raw,
    /// Over the bytes as sent, with the key decoded from base64.
    RawDecodedKey,
    /// Over the body written as compact JSON, with the key as text.
    Reserialised,
    /// Over the body written as compact JSON, with the key decoded from base64.
    ReserialisedDecodedKey,
    /// No signature came, and none was asked for.
    Unsigned,
    /// A signature came, and nobody looked at it.
    Unchecked,
}

impl Form {
    /// Every form.
    pub const ALL: [Self; 6] = [
        Self::Raw,
        Self::RawDecodedKey,
        Self::Reserialised,
        Self::ReserialisedDecodedKey,
        Self::Unsigned,
        Self::Unchecked,
    ];

    /// The value of the message header `signature`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::RawDecodedKey => "raw_decoded_key",
            Self::Reserialised => "reserialised",
            Self::ReserialisedDecodedKey => "reserialised_decoded_key",
            Self::Unsigned => "unsigned",
            Self::Unchecked => "unchecked",
        }
    }

    /// Whether this is the name of a form in which not the bytes as sent were signed.
    #[must_use]
    pub fn is_reserialised(name: &str) -> bool {
        [Self::Reserialised, Self::ReserialisedDecodedKey].into_iter().any(|form| form.name() == name)
    }
}

/// Why a webhook isn't trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Untrusted {
    /// There is no signature.
    Missing,
    /// No key and form make this signature.
    Invalid,
}

/// Length of an HMAC-SHA256.
const SIGNATURE_BYTES: usize = 32;
/// Most keys of a tenant: each may be tried four times for each webhook.
const MAX_KEYS: usize = 16;

/// A signature that is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Match {
    /// Which key made it, counted from 0.
    pub key: usize,
    /// What it was made of, and how.
    pub form: Form,
}

/// The signing keys of a tenant, one per webhook, and more while they are being changed.
#[derive(Clone, Debug, Default)]
pub struct Keys(Vec<Key>);

#[derive(Clone, Debug)]
struct Key {
    text: Hmac<Sha256>,
    decoded: Option<Hmac<Sha256>>,
}

impl<'a> FromIterator<&'a str> for Keys {
    fn from_iter<I: IntoIterator<Item = &'a str>>(keys: I) -> Self {
        // HMAC takes keys of any length, so neither of these fails.
        let mac = |key: &[u8]| Hmac::<Sha256>::new_from_slice(key).ok();
        let key = |text: &str| {
            let decoded = STANDARD.decode(text).ok().and_then(|key| mac(&key));
            Some(Key { text: mac(text.as_bytes())?, decoded })
        };
        Self(keys.into_iter().filter_map(key).collect())
    }
}

impl Keys {
    /// Reads `SIGNING_KEYS` of a tenant.
    pub fn read(env: &mut Env, name: &str) -> Self {
        let text = tenant::setting(env, name, "SIGNING_KEYS").unwrap_or_default();
        let keys: Self = text.split(',').map(str::trim).filter(|key| !key.is_empty()).collect();
        if keys.0.len() > MAX_KEYS {
            let name = tenant::setting_names(name, "SIGNING_KEYS").join(" or ");
            env.problem(format!("{name}: has more than {MAX_KEYS} keys"));
        }
        keys
    }

    /// Whether there is no key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The signature of a body as respond.io makes it, by the first key; none if there is no key.
    #[must_use]
    pub fn sign(&self, body: &[u8]) -> Option<String> {
        let mac = self.0.first()?.text.clone().chain_update(body);
        Some(STANDARD.encode(mac.finalize().into_bytes()))
    }

    /// Checks a signature of a body. Comparisons take constant time.
    pub fn verify(&self, signature: Option<&[u8]>, body: &[u8]) -> Result<Match, Untrusted> {
        let signature = signature.map(<[u8]>::trim_ascii).filter(|text| !text.is_empty());
        let signature =
            STANDARD.decode(signature.ok_or(Untrusted::Missing)?).map_err(|_| Untrusted::Invalid)?;
        if signature.len() != SIGNATURE_BYTES {
            return Err(Untrusted::Invalid);
        }
        self.matching_raw(body, &signature)
            .or_else(|| self.matching_reserialised(body, &signature))
            .ok_or(Untrusted::Invalid)
    }

    fn matching_raw(&self, body: &[u8], signature: &[u8]) -> Option<Match> {
        let mut macs = self.macs(Form::Raw, Form::RawDecodedKey);
        let good = macs.find(|(_, mac)| mac.clone().chain_update(body).verify_slice(signature).is_ok());
        good.map(|(matching, _)| matching)
    }

    fn matching_reserialised(&self, body: &[u8], signature: &[u8]) -> Option<Match> {
        let mut macs: Vec<_> = self.macs(Form::Reserialised, Form::ReserialisedDecodedKey).collect();
        json::compact(body, |piece| macs.iter_mut().for_each(|(_, mac)| mac.update(piece))).ok()?;
        let good = macs.into_iter().find(|(_, mac)| mac.clone().verify_slice(signature).is_ok());
        good.map(|(matching, _)| matching)
    }

    /// A signature to begin with for each key and each way to use it.
    fn macs(&self, text: Form, decoded: Form) -> impl Iterator<Item = (Match, Hmac<Sha256>)> {
        self.0.iter().enumerate().flat_map(move |(key, macs)| {
            let with_text = (Match { key, form: text }, macs.text.clone());
            let with_decoded = macs.decoded.clone().map(|mac| (Match { key, form: decoded }, mac));
            [Some(with_text), with_decoded].into_iter().flatten()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: [&str; 2] = ["not base64! only for tests", "c2VjcmV0IGtleSBmb3IgdGVzdHM="];
    const BODY: &[u8] = b"{ \"a\" : \"\\u00e9\" }";

    fn sign(key: &[u8], signed: &[u8]) -> String {
        let mac = Hmac::<Sha256>::new_from_slice(key).unwrap().chain_update(signed);
        STANDARD.encode(mac.finalize().into_bytes())
    }

    fn check(signature: &str) -> Result<(usize, Form), Untrusted> {
        let keys: Keys = KEYS.into_iter().collect();
        keys.verify(Some(signature.as_bytes()), BODY).map(|Match { key, form }| (key, form))
    }

    #[test]
    fn each_form_is_recognised_with_any_key() {
        let compact = "{\"a\":\"é\"}".as_bytes();
        let decoded = b"secret key for tests";
        assert_eq!(check(&sign(KEYS[0].as_bytes(), BODY)), Ok((0, Form::Raw)));
        assert_eq!(check(&sign(KEYS[1].as_bytes(), BODY)), Ok((1, Form::Raw)));
        let keys: Keys = KEYS.into_iter().collect();
        assert_eq!(keys.sign(BODY), Some(sign(KEYS[0].as_bytes(), BODY)));
        assert_eq!(check(&sign(decoded, BODY)), Ok((1, Form::RawDecodedKey)));
        assert_eq!(check(&sign(KEYS[1].as_bytes(), compact)), Ok((1, Form::Reserialised)));
        assert_eq!(check(&sign(decoded, compact)), Ok((1, Form::ReserialisedDecodedKey)));
    }

    #[test]
    fn anything_else_is_not_trusted() {
        assert_eq!(check(&sign(b"another key", BODY)), Err(Untrusted::Invalid));
        assert_eq!(check("AAAA"), Err(Untrusted::Invalid));
        assert_eq!(check("%%%"), Err(Untrusted::Invalid));
        assert_eq!(check(""), Err(Untrusted::Missing));
        let keys: Keys = KEYS.into_iter().collect();
        assert_eq!(keys.verify(None, BODY), Err(Untrusted::Missing));
        assert_eq!(Keys::default().verify(Some(sign(b"", BODY).as_bytes()), BODY), Err(Untrusted::Invalid));
        let no_json = sign(KEYS[0].as_bytes(), b"{}");
        assert_eq!(keys.verify(Some(no_json.as_bytes()), b"{} x"), Err(Untrusted::Invalid));
    }
}
