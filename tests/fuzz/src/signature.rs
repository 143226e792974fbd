//! Any key, any signature, any body: only what was made with a key is good.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use shared::verify::{Keys, Untrusted};

use crate::{body, lines};

/// A tenant's other key.
const OTHER_KEY: &str = "c2VjcmV0IGtleSBmb3IgdGVzdHM=";

/// A byte that chooses the bit to be flipped, and a key, a header and a body, a line each.
#[must_use]
pub fn target(input: &[u8]) -> bool {
    let Some((bit, input)) = input.split_first() else { return false };
    let mut lines = lines(input, 3);
    let (Some(key), Some(header), Some(body)) = (lines.next(), lines.next(), lines.next()) else {
        return false;
    };
    let Ok(key) = str::from_utf8(key) else { return false };
    let keys: Keys = [key, OTHER_KEY].into_iter().collect();
    let verify = |signature: &[u8]| keys.verify(Some(signature), body);

    let compact = body::compact(body);
    let signed = [Some(body), compact.as_deref()];
    let decoded = [key, OTHER_KEY].map(|key| STANDARD.decode(key).ok());
    let bytes = [Some(key.as_bytes()), Some(OTHER_KEY.as_bytes())].into_iter();
    let bytes = bytes.chain(decoded.iter().map(Option::as_deref)).flatten();
    let good: Vec<[u8; 32]> =
        bytes.flat_map(|key| signed.iter().flatten().map(move |signed| mac(key, signed))).collect();

    for mac in &good {
        assert!(verify(format!(" {}\t", STANDARD.encode(mac)).as_bytes()).is_ok());
        let mut forged = *mac;
        forged[usize::from(bit / 8)] ^= 1 << (bit % 8);
        assert_eq!(verify(STANDARD.encode(forged).as_bytes()).err(), Some(Untrusted::Invalid));
    }

    let is_missing = header.trim_ascii().is_empty();
    let is_good =
        STANDARD.decode(header.trim_ascii()).is_ok_and(|sent| good.iter().any(|mac| *mac == sent[..]));
    let expected = match (is_missing, is_good) {
        (true, _) => Some(Untrusted::Missing),
        (_, true) => None,
        _ => Some(Untrusted::Invalid),
    };
    assert_eq!(verify(header).err(), expected);
    assert_eq!(keys.verify(None, body).err(), Some(Untrusted::Missing));
    true
}

/// The text that signs a body.
#[must_use]
pub fn sign(key: &[u8], body: &[u8]) -> String {
    STANDARD.encode(mac(key, body))
}

fn mac(key: &[u8], signed: &[u8]) -> [u8; 32] {
    // Keys of any length will do.
    let mac = Hmac::<Sha256>::new_from_slice(key).map(|mac| mac.chain_update(signed).finalize().into_bytes());
    mac.map(Into::into).unwrap_or_default()
}
