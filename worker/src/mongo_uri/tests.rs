use std::collections::BTreeMap;

use mongodb::options::{AuthMechanism, ClientOptions, ConnectionString, HostInfo, ServerAddress, Tls};
use serde::Deserialize;
use serde_json::Value;

use super::*;
use crate::client;

/// Written by `tests/mongo_uris/record.py`.
const URIS: &str = include_str!("../../../tests/mongo_uris/uris.json");

/// What pymongo makes of a URI.
#[derive(Debug, Deserialize)]
struct Verdict {
    uri: String,
    taken: Option<BTreeMap<String, Value>>,
}

/// Taken by pymongo, and by us refused with the option's name.
const BEYOND_THE_DRIVER: [(&str, &str); 2] = [("MONGODB-AWS", "authMechanism"), ("GSSAPI", "authMechanism")];

/// Refused by pymongo, though it can be told what is meant; or the driver has no objection.
const TAKEN_BY_US_ALONE: [&str; 8] = [
    "mongodb://u:p@w@h/d",
    "mongodb://u:p:w@h/d",
    "mongodb://u:p%w@h/d",
    "mongodb://u:p/w@h/d",
    "mongodb://u:p?w@h",
    "mongodb://u@h/d",
    "mongodb://u:@h/d",
    "mongodb://h/?replicaSet=rs0&",
];

fn verdicts() -> Vec<Verdict> {
    serde_json::from_str(URIS).unwrap()
}

/// What the driver makes of a URI of ours, under the names that `record.py` gives it.
fn as_recorded(uri: &MongoUri, options: &ClientOptions) -> BTreeMap<String, Value> {
    let host = |host: &ServerAddress| match host {
        ServerAddress::Tcp { host, port } => format!("{host}:{}", port.unwrap_or(27017)),
        other => format!("{other}:None"),
    };
    let mut hosts: Vec<String> = options.hosts.iter().map(host).collect();
    hosts.sort();
    let credential = options.credential.as_ref();
    let text = |text: Option<&String>| text.cloned().map_or(Value::Null, Value::from);
    BTreeMap::from([
        ("hosts".to_owned(), hosts.into()),
        ("database".to_owned(), text(uri.database.as_ref())),
        ("user".to_owned(), text(credential.and_then(|c| c.username.as_ref()))),
        ("password".to_owned(), text(credential.and_then(|c| c.password.as_ref()))),
        ("source".to_owned(), text(credential.and_then(|c| c.source.as_ref()))),
        ("replica_set".to_owned(), text(options.repl_set_name.as_ref())),
        ("tls".to_owned(), matches!(options.tls, Some(Tls::Enabled(_))).into()),
        ("direct".to_owned(), options.direct_connection.unwrap_or(false).into()),
        ("retry_writes".to_owned(), options.retry_writes.unwrap_or(true).into()),
    ])
}

fn taken(uri: &str) -> Result<(MongoUri, ClientOptions), String> {
    let uri = translate(uri).map_err(|refused| refused.to_string())?;
    let refused = |error: mongodb::error::Error| error.to_string();
    let options = client::parse(&uri.text).map_err(refused)?;
    client::try_open(options.clone()).map_err(refused)?;
    Ok((uri, options))
}

#[test]
fn what_pymongo_takes_is_taken_and_means_the_same() {
    let verdicts = verdicts();
    assert!(verdicts.len() >= 40);
    let wrong: Vec<String> = verdicts.into_iter().filter_map(difference).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What we make of a URI, if it is something else than pymongo makes of it.
fn difference(Verdict { uri, taken: by_pymongo }: Verdict) -> Option<String> {
    let beyond = BEYOND_THE_DRIVER.iter().find(|(part, _)| uri.contains(part));
    let is_right = match (&by_pymongo, &taken(&uri)) {
        (Some(expected), Ok((translated, options))) => {
            let mut found = as_recorded(translated, options);
            if uri.contains("+srv") {
                // They are looked up at start.
                found.insert("hosts".to_owned(), expected["hosts"].clone());
            }
            found == *expected
        }
        (Some(_), Err(refused)) => beyond.is_some_and(|(_, name)| refused.contains(name)),
        (None, by_us) => by_us.is_ok() == TAKEN_BY_US_ALONE.contains(&uri.as_str()),
    };
    (!is_right).then(|| format!("{uri}: {:?}, by pymongo {by_pymongo:?}", taken(&uri).map(|(uri, _)| uri)))
}

#[test]
fn passwords_whose_reserved_characters_can_be_told_are_read() {
    for password in ["p@w", "p:w", "p%w", "p/w", "p?w", "p#w", "p[w]", "a/b@c:d?e"] {
        for rest in ["h", "h/d", "h:27018/d?replicaSet=rs0", "h/?appName=@n@"] {
            let (uri, options) = taken(&format!("mongodb://u:{password}@{rest}")).unwrap();
            let credential = options.credential.unwrap();
            assert_eq!(credential.password.as_deref(), Some(password), "{rest}");
            assert!(uri.remarks.iter().any(|remark| remark.contains("percent-encoded")), "{:?}", uri.remarks);
        }
    }
}

#[test]
fn what_is_ignored_is_named() {
    for (options, named) in [
        ("uuidRepresentation=standard", "uuidRepresentation"),
        ("socketTimeoutMS=20000", "socketTimeoutMS"),
        ("compressors=zlib", "compressors"),
        ("tz_aware=true", "tz_aware"),
        ("wtimeout=5", "wtimeout"),
        ("ssl_cert_reqs=CERT_NONE", "ssl_cert_reqs"),
        ("tlsAllowInvalidHostnames=true&tls=true", "tlsAllowInvalidHostnames"),
        ("tlsInsecure=true", "tlsInsecure"),
        ("retryWrites=True", "retryWrites"),
        ("retryWrites=True;w=majority", "retryWrites"),
        ("tls=True", "tls"),
        ("retryWrites=true&retryWrites=false", "retryWrites"),
        ("w=1", "w"),
        ("readPreference=secondary", "readPreference"),
        ("maxPoolSize=7&replicaSte=x", "replicaSte"),
    ] {
        let uri = translate(&format!("mongodb://u:secret@h/?{options}")).unwrap();
        assert!(uri.remarks.iter().any(|remark| remark.contains(named)), "{options}: {:?}", uri.remarks);
        assert!(!uri.remarks.iter().any(|remark| remark.contains("secret")));
    }
    for options in
        ["", "replicaSet=rs0&w=majority&retryWrites=true&tls=true&readPreference=primary", "ssl=false"]
    {
        assert_eq!(translate(&format!("mongodb://h/?{options}")).unwrap().remarks, [""; 0], "{options}");
    }
}

#[test]
fn what_is_refused_is_named_and_the_password_is_not() {
    for (uri, named) in [
        ("mongo://u:secret@h", "is not a URI"),
        ("mongodb://u:secret@h:secret/d", "hosts"),
        ("mongodb://u:secret", "hosts"),
        ("mongodb://u:12?secret@h", "has no value"),
        ("mongodb://u:secret@h/a b", "database"),
        ("mongodb://:secret@h", "user name"),
        ("mongodb://u:secret@h/?a=b&c=d;e=f", "separated"),
        ("mongodb://u:secret@h/?tlsCRLFile=/x", "tlsCRLFile"),
        ("mongodb://u:secret@h/?tlsCertificateKeyFilePassword=secret", "tlsCertificateKeyFilePassword"),
        ("mongodb://u:secret@h/?authMechanism=GSSAPI", "authMechanism"),
        ("mongodb://u:secret@h/?heartbeatFrequencyMS=100", "heartbeatFrequencyMS"),
        ("mongodb://u:secret@h/?tls=true&ssl=false", "ssl"),
        ("mongodb://u:secret@h/?retryWrites", "retryWrites"),
        ("mongodb://u:secret@a,b/?directConnection=true", "directConnection"),
        ("mongodb://u:secret@h/?maxConnecting=99999999999", "maxconnecting"),
    ] {
        let refused = taken(uri).unwrap_err();
        assert!(refused.contains(named), "{uri}: {refused}");
        assert!(!refused.contains("secret"), "{uri}: {refused}");
    }
}

#[test]
fn a_name_for_dns_stays_one() {
    let uri = translate("mongodb+srv://u:p@cluster.example/d?srvServiceName=custom").unwrap();
    let parsed = ConnectionString::parse(&uri.text).unwrap();
    assert!(matches!(parsed.host_info, HostInfo::DnsRecord(name) if name == "cluster.example"));
    assert!(matches!(parsed.tls, Some(Tls::Enabled(_))));
}

#[test]
fn the_way_to_log_in_is_kept() {
    let (_, options) = taken("mongodb://u:p@h/?authMechanism=SCRAM-SHA-256").unwrap();
    assert_eq!(options.credential.unwrap().mechanism, Some(AuthMechanism::ScramSha256));
}
