//! Whether a tenant's MongoDB can do what Penstock needs. The worker tries it, since services that are only
//! similar to MongoDB describe themselves as MongoDB does.

use std::time::Duration;

use mongodb::Database;
use mongodb::bson::oid::ObjectId;
use mongodb::bson::{DateTime, Document, doc};

use crate::store::failure::{Class, Failure, within};
use crate::store::{Names, Store, refused, transaction};

/// The oldest version that has everything that Penstock needs.
const OLDEST: (u32, u32) = (5, 0);
/// What the worker does in its database.
const ACTIONS: [&str; 6] = ["find", "insert", "update", "listIndexes", "createIndex", "createCollection"];
/// How long MongoDB may keep an open transaction, at most, before that deserves a warning.
const LONG_LIFETIME: Duration = Duration::from_secs(10);

/// Fails if the server can't do what Penstock needs.
pub async fn check(store: &Store) -> Result<(), Failure> {
    store.check_replica_set().await?;
    let admin = store.client.database("admin");
    let build = run(store, &admin, doc! {"buildInfo": 1}).await?;
    if let Some(reason) = too_old(build.get_str("version").unwrap_or_default()) {
        return Err(Failure::Unfit(reason));
    }
    let status = doc! {"connectionStatus": 1, "showPrivileges": true};
    if let Some(reason) = lacking_rights(&run(store, &admin, status).await?, store) {
        return Err(Failure::Unfit(reason));
    }
    // This also makes the collection, which some servers can't do within a transaction.
    store.probe().await?;
    let trying = tokio::spawn(try_transactions(store.clone()));
    match within(store.deadline, trying).await? {
        // Another worker may try the same at this moment.
        Err(failure) if failure.class(0) == Class::Conflict => Ok(()),
        tried => tried.map_err(explained),
    }
}

/// Warnings for an operator.
pub async fn warnings(store: &Store) -> Vec<String> {
    let parameter = doc! {"getParameter": 1, "transactionLifetimeLimitSeconds": 1};
    // Not every user may ask this, and a router has no answer.
    let answer = run(store, &store.client.database("admin"), parameter).await.ok();
    let seconds = answer.and_then(|answer| number(&answer, "transactionLifetimeLimitSeconds"));
    seconds.and_then(|seconds| about_lifetime(seconds, store.deadline)).into_iter().collect()
}

async fn run(store: &Store, database: &Database, command: Document) -> Result<Document, Failure> {
    let database = database.clone();
    let running = tokio::spawn(async move { database.run_command(command).await });
    within(store.deadline, running).await?.map_err(|error| explained(error.into()))
}

/// Writes as a batch does: once in a transaction that is aborted, and once in one that is committed.
async fn try_transactions(store: Store) -> Result<(), Failure> {
    let Names { probe, .. } = &store.names;
    let collection = store.database.collection::<Document>(probe);
    let mut session = store.client.start_session().await?;
    for commits in [false, true] {
        transaction::begin(&mut session).await?;
        collection.find_one(doc! {"_id": "transaction"}).session(&mut session).await?;
        if commits {
            let change =
                doc! {"q": {"_id": "transaction"}, "u": {"$set": {"at": DateTime::now()}}, "upsert": true};
            let update = doc! {"update": probe, "updates": [change], "ordered": false};
            refused(probe, &store.database.run_command(update).session(&mut session).await?)?;
            session.commit_transaction().await?;
        } else {
            collection.insert_one(doc! {"_id": ObjectId::new()}).session(&mut session).await?;
            session.abort_transaction().await?;
        }
    }
    Ok(())
}

/// A failure of something that MongoDB itself can do, in plain words.
fn explained(failure: Failure) -> Failure {
    if failure.class(0) == Class::Data || failure.is_unsupported() {
        return Failure::Unfit(format!(
            "MongoDB can't do what is needed ({failure}): transactions on a replica set, in version {}.{} or newer; \
             services that only look like MongoDB, such as Cosmos DB and DocumentDB, can't be used",
            OLDEST.0, OLDEST.1
        ));
    }
    failure
}

fn too_old(version: &str) -> Option<String> {
    let mut numbers = version.split(['.', '-']).map(|number| number.parse::<u32>().ok());
    let version_numbers = (numbers.next()??, numbers.next()??);
    let (major, minor) = OLDEST;
    (version_numbers < OLDEST).then(|| {
        format!("MongoDB {version} is too old: {major}.{minor} is the oldest that Penstock works with")
    })
}

fn lacking_rights(status: &Document, store: &Store) -> Option<String> {
    let database = store.database.name();
    let Names {
        ledger,
        messages,
        conversations,
        contacts,
        notes,
        calls,
        probe,
        backfill: _,
        erased,
        erasure_key,
        fences,
    } = &store.names;
    let collections =
        [ledger, messages, conversations, contacts, notes, calls, probe, erased, erasure_key, fences];
    let lacking = lacking_actions(status, database, &collections)?;
    Some(format!(
        "the user of MongoDB has no right to {} in the database {database}: give it the role readWrite there",
        lacking.join(", ")
    ))
}

/// What the user may not do in all of these collections; none if nothing is missing, or nobody has to log in.
fn lacking_actions(status: &Document, database: &str, collections: &[&String]) -> Option<Vec<&'static str>> {
    let info = status.get_document("authInfo").ok()?;
    if info.get_array("authenticatedUsers").ok()?.is_empty() {
        return None;
    }
    let granted = info.get_array("authenticatedUserPrivileges").ok()?;
    let privileges: Vec<&Document> = granted.iter().filter_map(|privilege| privilege.as_document()).collect();
    let may = |action: &str, collection: &str| {
        privileges.iter().any(|privilege| allows(privilege, action, database, collection).unwrap_or(false))
    };
    let is_lacking = |action: &&str| collections.iter().any(|collection| !may(action, collection));
    let lacking: Vec<&str> = ACTIONS.into_iter().filter(is_lacking).collect();
    (!lacking.is_empty()).then_some(lacking)
}

/// Whether a privilege allows to do this in a collection. Empty names stand for all.
fn allows(privilege: &Document, action: &str, database: &str, collection: &str) -> Option<bool> {
    let actions = privilege.get_array("actions").ok()?;
    let has_action =
        actions.iter().any(|granted| [Some(action), Some("anyAction")].contains(&granted.as_str()));
    let resource = privilege.get_document("resource").ok()?;
    let covers = |name: &str, wanted: &str| {
        resource.get_str(name).is_ok_and(|covered| covered.is_empty() || covered == wanted)
    };
    let is_any = resource.get_bool("anyResource").unwrap_or(false);
    Some(has_action && (is_any || covers("db", database) && covers("collection", collection)))
}

fn about_lifetime(seconds: i64, deadline: Duration) -> Option<String> {
    let lifetime = Duration::from_secs(seconds.try_into().ok()?);
    let of = format!("transactionLifetimeLimitSeconds of MongoDB is {seconds}");
    if lifetime < deadline {
        Some(format!(
            "{of}, below MONGO_TIMEOUT ({deadline:?}): MongoDB ends transactions that a worker still waits for"
        ))
    } else if lifetime > LONG_LIFETIME.max(2 * deadline) {
        Some(format!(
            "{of}: for so long a worker that is killed may hold others up; {} are enough",
            LONG_LIFETIME.as_secs()
        ))
    } else {
        None
    }
}

fn number(document: &Document, name: &str) -> Option<i64> {
    document.get_i64(name).ok().or_else(|| document.get_i32(name).ok().map(Into::into))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_older_than_5_0_is_too_old() {
        for version in ["5.0.0", "6.0.5", "8.1.0-rc0", "10.0.0", "", "unknown"] {
            assert_eq!(too_old(version), None);
        }
        for version in ["4.4.29", "3.6.0", "4.9"] {
            assert!(too_old(version).unwrap().contains(version));
        }
    }

    #[test]
    fn rights_are_read_from_all_privileges_together() {
        let names = ["messages".to_owned(), "calls".to_owned()];
        let collections: Vec<&String> = names.iter().collect();
        let privilege = |database: &str, collection: &str, actions: &[&str]| {
            doc! {"resource": {"db": database, "collection": collection}, "actions": actions}
        };
        let lacking = |privileges: Vec<Document>| {
            let info =
                doc! {"authenticatedUsers": [{"user": "u"}], "authenticatedUserPrivileges": privileges};
            lacking_actions(&doc! {"authInfo": info}, "d", &collections).unwrap_or_default()
        };
        let all = ACTIONS;
        assert_eq!(lacking(vec![privilege("d", "", &all)]), [""; 0]);
        assert_eq!(lacking(vec![privilege("", "", &all)]), [""; 0]);
        assert_eq!(
            lacking(vec![doc! {"resource": {"anyResource": true}, "actions": ["anyAction"]}]),
            [""; 0]
        );
        assert_eq!(lacking(vec![privilege("d", "messages", &all), privilege("d", "calls", &all)]), [""; 0]);
        assert_eq!(lacking(vec![privilege("d", "messages", &all)]), all);
        assert_eq!(lacking(vec![privilege("other", "", &all)]), all);
        assert_eq!(lacking(vec![privilege("d", "", &all[..1])]), all[1..]);
        let nobody = doc! {"authInfo": {"authenticatedUsers": [], "authenticatedUserPrivileges": []}};
        assert_eq!(lacking_actions(&nobody, "d", &collections), None);
    }

    #[test]
    fn a_transaction_should_live_a_little_longer_than_ours_take() {
        let told = |seconds, deadline| about_lifetime(seconds, Duration::from_secs(deadline));
        assert!(told(3, 5).unwrap().contains("below MONGO_TIMEOUT (5s)"));
        assert!(told(60, 5).unwrap().contains("is 60"));
        assert_eq!((told(5, 5), told(10, 5), told(60, 30)), (None, None, None));
    }

    #[test]
    fn what_mongodb_itself_could_do_is_explained_and_other_failures_stay() {
        let failure = |code| Failure::Refused { collection: String::new(), code, words: String::new() };
        for code in [303, 115, 59, 2] {
            assert!(explained(failure(code)).to_string().contains("DocumentDB"), "{code}");
        }
        for code in [13, 112, 91] {
            assert_eq!(explained(failure(code)).code(), Some(code));
        }
    }
}
