//! The options about encryption. In pymongo an option that relaxes TLS, such as `tlsInsecure=true`, doesn't
//! switch TLS on; in the driver every option about TLS does.

use super::Refused;
use super::options::{Given, Ignored, MISREAD, Options, boolean, refused};

/// Options for the driver.
pub(super) type Tls = Vec<(String, String)>;

/// Options that relax TLS. Set to `false`, they switch it on. The first one stands for all.
const RELAXING: &[&str] = &[
    "tlsinsecure",
    "tlsallowinvalidcertificates",
    "tlsallowinvalidhostnames",
    "tlsdisableocspendpointcheck",
];
const FILES: [&str; 2] = ["tlscafile", "tlscertificatekeyfile"];

/// The options for the driver, which begin with whether there is TLS, if anything says so.
pub(super) fn translate<'a>(
    given: &'a Options<'a>,
    is_srv: bool,
    ignored: &mut Ignored<'a>,
) -> Result<Tls, Refused> {
    if let Some(insecure) = given.get("tlsinsecure")
        && RELAXING[1..].iter().any(|name| given.contains_key(*name))
    {
        return Err(refused(insecure, "is there together with one that it implies"));
    }
    let mut flag = |name: &str| {
        let given = given.get(name)?;
        let value = boolean(&given.value);
        if value.is_none() {
            ignored.add(MISREAD, given.name);
        }
        value
    };
    let asked = (flag("tls"), flag("ssl"));
    let relaxing: Vec<(&str, bool)> = RELAXING.iter().filter_map(|name| Some((*name, flag(name)?))).collect();
    let asked = match asked {
        (Some(tls), Some(ssl)) if tls != ssl => {
            return Err(Refused::Option("ssl".to_owned(), "says otherwise than the option tls".to_owned()));
        }
        (tls, ssl) => tls.or(ssl),
    };
    let files: Vec<&Given<'_>> = FILES.iter().filter_map(|name| given.get(*name)).collect();
    let needs_tls =
        relaxing.iter().any(|(_, relaxes)| !relaxes) || files.iter().any(|file| !file.value.is_empty());
    if needs_tls && asked == Some(false) {
        return Err(Refused::Option("tls".to_owned(), "is false, but other options need it".to_owned()));
    }
    let is_on = asked.unwrap_or(needs_tls || is_srv);
    let mut tls = vec![("tls".to_owned(), is_on.to_string())];
    for (name, _) in relaxing.into_iter().filter(|(_, relaxes)| *relaxes) {
        match name {
            _ if !is_on => ignored.add("there is no TLS", given[name].name),
            "tlsallowinvalidhostnames" => {
                ignored.add("not supported: names of hosts are checked", given[name].name);
            }
            "tlsdisableocspendpointcheck" => {}
            _ => tls.push((given[name].name.to_owned(), "true".to_owned())),
        }
    }
    if is_on {
        tls.extend(files.into_iter().map(|file| (file.name.to_owned(), file.value.clone())));
    }
    Ok(tls)
}
