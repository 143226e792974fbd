//! Replica sets of MongoDB for one test, to be harmed at will.

use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use mongodb::Client;
use mongodb::bson::{Document, doc};

use crate::certificates::Certificates;
use crate::poll;
use crate::stack::OwnServer;

/// Longest wait for a member to say what it is: one that is frozen never does.
const HELLO_TIMEOUT: Duration = Duration::from_millis(500);

/// A replica set.
#[derive(Debug)]
pub struct ReplicaSet {
    /// Its members.
    pub members: Vec<Member>,
}

/// A mongod of a replica set.
#[derive(Debug)]
pub struct Member {
    /// Its server.
    pub server: OwnServer,
    /// Where it listens.
    pub address: SocketAddr,
}

impl ReplicaSet {
    /// Starts this many members, and waits until one is the primary and the others follow it.
    pub async fn start(members: usize) -> Self {
        let set = Self { members: (0..members).map(|_| Member::start(false)).collect() };
        set.initiate(None).await;
        set.until_settled().await;
        set
    }

    /// Starts two members with data and a third one that only votes.
    pub async fn with_arbiter() -> Self {
        let set = Self { members: (0..3).map(|_| Member::start(false)).collect() };
        set.initiate(Some(2)).await;
        set.until_settled().await;
        set
    }

    /// Waits until every member is the primary or follows it.
    pub async fn until_settled(&self) {
        for member in &self.members {
            let settled = async || {
                member.is_primary().await
                    || member.says("secondary").await
                    || member.says("arbiterOnly").await
            };
            poll::until("the set is complete", true, settled).await;
        }
    }

    /// Starts a single member that also takes TLS connections.
    pub async fn encrypted(certificates: &Certificates) -> Self {
        let server = OwnServer::new("member");
        certificates.copy_to(&server.folder);
        server.start();
        let address = server.env("MONGO_ADDRESS").parse().expect("an address");
        let set = Self { members: vec![Member { server, address }] };
        set.initiate(None).await;
        set
    }

    /// Starts a single member that lets nobody in without a password, and gives a client of its
    /// administrator.
    pub async fn guarded() -> (Self, Client) {
        let set = Self { members: vec![Member::start(true)] };
        set.initiate(None).await;
        let create = doc! {"createUser": "root", "pwd": "root", "roles": ["root"]};
        let address = set.primary().await.address;
        // While there is no user, a client on the same machine may create one.
        direct(address).await.database("admin").run_command(create).await.expect("the first user");
        let uri = format!("mongodb://root:root@{address}/?directConnection=true");
        (set, Client::with_uri_str(uri).await.expect("a URI"))
    }

    /// Starts a single member that lets transactions, and so their locks, stay for as long as a test wants.
    pub async fn patient() -> Self {
        let set = Self::start(1).await;
        let limit = doc! {"setParameter": 1, "transactionLifetimeLimitSeconds": 600};
        set.members[0].run(limit).await.expect("it is set");
        set
    }

    /// The member of this number, if one is named, holds no data.
    async fn initiate(&self, arbiter: Option<i32>) {
        let members: Vec<Document> = (0..)
            .zip(&self.members)
            .map(|(id, member): (i32, _)| {
                doc! {"_id": id, "host": member.address.to_string(), "arbiterOnly": arbiter == Some(id)}
            })
            .collect();
        // Elections as quick as a test wants them; MongoDB waits for ten seconds before it calls one.
        let settings = doc! {"electionTimeoutMillis": 2000, "heartbeatIntervalMillis": 500};
        let initiate = doc! {"replSetInitiate": {"_id": "rs0", "members": members, "settings": settings}};
        let admin = direct(self.members[0].address).await.database("admin");
        let initiated = async || admin.run_command(initiate.clone()).await.is_ok();
        poll::until("the set is initiated", true, initiated).await;
        self.primary().await;
    }

    /// The URI that names all members.
    pub fn uri(&self) -> String {
        let addresses: Vec<_> = self.members.iter().map(|member| member.address.to_string()).collect();
        format!("mongodb://{}/?replicaSet=rs0", addresses.join(","))
    }

    /// The member that is the primary, once one says so.
    pub async fn primary(&self) -> &Member {
        let mut primary = None;
        poll::until("there is a primary", true, async || {
            for member in &self.members {
                if member.is_primary().await {
                    primary = Some(member);
                }
            }
            primary.is_some()
        })
        .await;
        primary.expect("found")
    }
}

impl Member {
    fn start(guarded: bool) -> Self {
        let server = OwnServer::new("member");
        if guarded {
            let mut key = std::fs::OpenOptions::new();
            let key = key.write(true).create_new(true).mode(0o600).open(server.folder.join("key"));
            std::io::Write::write_all(&mut key.expect("a key file"), b"anything").expect("a key");
        }
        server.start();
        Self { address: server.env("MONGO_ADDRESS").parse().expect("an address"), server }
    }

    /// Runs a command of administrators on this very member.
    pub async fn run(&self, command: Document) -> mongodb::error::Result<Document> {
        direct(self.address).await.database("admin").run_command(command).await
    }

    async fn is_primary(&self) -> bool {
        self.says("isWritablePrimary").await
    }

    async fn says(&self, field: &str) -> bool {
        let hello = tokio::time::timeout(HELLO_TIMEOUT, self.run(doc! {"hello": 1})).await;
        matches!(hello, Ok(Ok(hello)) if matches!(hello.get_bool(field), Ok(true)))
    }
}

async fn direct(address: SocketAddr) -> Client {
    Client::with_uri_str(format!("mongodb://{address}/?directConnection=true")).await.expect("a URI")
}
