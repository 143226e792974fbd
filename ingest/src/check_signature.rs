//! `ingest verify`: does a signature fit the keys that are set?

use std::io::{self, Read};

use shared::env::{Env, Problems};
use shared::json;
use shared::verify::{Keys, Match, Untrusted};

/// What to check.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The tenant whose keys are tried
    #[arg(long, value_name = "TENANT")]
    tenant: String,
    /// What the header `X-Webhook-Signature` held
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
    /// None made it.
    #[error("no key of tenant {0:?} makes this signature of this body, in any form")]
    Invalid(String),
    /// The signature is blank.
    #[error("the signature is blank")]
    Blank,
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
    let parsed = json::parse(&body).ok();
    match keys.verify(Some(arguments.signature.as_bytes()), &body, parsed.as_ref()) {
        Ok(Match { key, form }) if arguments.json => {
            Ok(serde_json::json!({"tenant": tenant, "key": key + 1, "form": form.name()}).to_string())
        }
        Ok(Match { key, form }) => Ok(format!("good: key {} of {tenant}, form {}", key + 1, form.name())),
        Err(Untrusted::Missing) => Err(VerifyError::Blank),
        Err(Untrusted::Invalid) => Err(VerifyError::Invalid(tenant)),
    }
}
