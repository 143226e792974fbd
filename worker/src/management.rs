//! RabbitMQ's management API. It tells what AMQP doesn't: policies, alarms, the members of queues.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::Method;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde::Deserialize;
use serde_json::Value;
use shared::address::Address;
use shared::env::Env;

use crate::commands::address::HttpAddress;
use crate::commands::http::{self, Http, HttpError};

/// The address of the API, and the user.
#[derive(Clone)]
pub struct ManagementAddress {
    server: HttpAddress,
    authorization: String,
    vhost: String,
}

impl std::fmt::Debug for ManagementAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ManagementAddress").field("server", &self.server).finish_non_exhaustive()
    }
}

impl ManagementAddress {
    /// Reads `AMQP_MANAGEMENT_URL`, if it is set. The user is that of `AMQP_URL`, unless it names one.
    pub fn read(env: &mut Env, rabbitmq: &Address) -> Option<Self> {
        let text = env.text("AMQP_MANAGEMENT_URL")?;
        let read = Self::parse(&text, rabbitmq);
        if read.is_none() {
            env.problem("AMQP_MANAGEMENT_URL: is not a URL like http://user:password@host:15672");
        }
        read
    }

    fn parse(text: &str, rabbitmq: &Address) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let (user, rest) = rest.rsplit_once('@').map_or((None, rest), |(user, rest)| (Some(user), rest));
        let server = HttpAddress::argument(&format!("{scheme}://{rest}")).ok()?;
        let decoded = |text: &str| percent_decode_str(text).decode_utf8().ok().map(String::from);
        let (user, password) = match user {
            Some(user) => {
                let (user, password) = user.split_once(':')?;
                (decoded(user)?, decoded(password)?)
            }
            None => rabbitmq.credentials(),
        };
        let authorization = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
        Some(Self { server, authorization, vhost: rabbitmq.vhost().to_owned() })
    }
}

/// Why the API gives no answer.
#[derive(Debug, thiserror::Error)]
pub enum ManagementError {
    /// It doesn't answer.
    #[error("RabbitMQ's management API doesn't answer")]
    Http(#[from] HttpError),
    /// It refuses.
    #[error("RabbitMQ's management API answers {0}: does the user have the tag monitoring?")]
    Refused(u16),
    /// It answers something else.
    #[error("RabbitMQ's management API can't be understood")]
    Unreadable(#[from] serde_json::Error),
}

/// A node of RabbitMQ.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Whether it is up.
    pub running: bool,
    /// Whether it has too little memory.
    pub mem_alarm: bool,
    /// Whether it has too little disk.
    pub disk_free_alarm: bool,
}

/// A queue as RabbitMQ treats it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct QueueState {
    /// Its name.
    pub name: String,
    /// The policy that applies to it.
    pub policy: Option<String>,
    /// What policies say, an object.
    pub effective_policy_definition: Value,
    /// The nodes that have it.
    pub members: Vec<String>,
    /// Those of them that are up.
    pub online: Vec<String>,
}

impl QueueState {
    /// How a policy deletes messages of this queue, if one does. Arguments of the queue can't forbid it.
    /// Pure.
    #[must_use]
    pub fn loss(&self) -> Option<String> {
        let is_work = self.name.starts_with("webhooks.");
        // The quarantine is evidence, and bounded by design.
        if !is_work && !self.name.starts_with("dead.") && self.name != "unroutable" {
            return None;
        }
        let rule = |name: &str| self.effective_policy_definition.get(name).filter(|value| !value.is_null());
        let how = if let Some(ttl) = rule("message-ttl") {
            let where_to = if is_work { "become dead letters" } else { "are deleted" };
            format!("messages {where_to} after {ttl} ms (message-ttl)")
        } else if let Some(expires) = rule("expires") {
            format!("the queue is deleted with all that is in it after {expires} ms without use (expires)")
        } else if rule("overflow").is_some_and(|overflow| overflow == "drop-head") {
            "the oldest messages are dropped when it is full (overflow: drop-head)".to_owned()
        } else {
            return None;
        };
        Some(format!("{}: by the policy {}, {how}", self.name, self.policy.as_deref().unwrap_or("?")))
    }
}

/// The API.
pub struct Management {
    http: Http,
    vhost: String,
}

impl Management {
    /// A client that connects when it is first asked.
    pub fn new(address: &ManagementAddress) -> Result<Self, HttpError> {
        let http = Http::new(address.server.clone(), http::authorization(&address.authorization)?)?;
        let vhost = utf8_percent_encode(&address.vhost, NON_ALPHANUMERIC).to_string();
        Ok(Self { http, vhost })
    }

    /// All nodes.
    pub async fn nodes(&self) -> Result<Vec<Node>, ManagementError> {
        self.get("/api/nodes?columns=name,running,mem_alarm,disk_free_alarm").await
    }

    /// The queues of our virtual host.
    pub async fn queues(&self) -> Result<Vec<QueueState>, ManagementError> {
        let columns = "name,policy,effective_policy_definition,members,online";
        self.get(&format!("/api/queues/{}?columns={columns}", self.vhost)).await
    }

    async fn get<T: for<'a> Deserialize<'a>>(&self, path: &str) -> Result<T, ManagementError> {
        let answer = self.http.request(Method::GET, path, String::new()).await?;
        if !answer.status.is_success() {
            return Err(ManagementError::Refused(answer.status.as_u16()));
        }
        Ok(serde_json::from_slice(&answer.body)?)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn policies_that_let_messages_vanish_are_told_from_others() {
        let loss = |name: &str, rules: Value| {
            let (name, policy) = (name.to_owned(), Some("p".to_owned()));
            QueueState { name, policy, effective_policy_definition: rules, ..QueueState::default() }.loss()
        };
        let ttl = json!({"message-ttl": 60_000});
        assert!(loss("webhooks.vip.0", ttl.clone()).unwrap().contains("become dead letters after 60000 ms"));
        assert!(loss("dead.vip", ttl.clone()).unwrap().contains("are deleted after 60000 ms"));
        assert!(loss("dead.vip", json!({"expires": 1})).unwrap().contains("by the policy p"));
        assert!(loss("webhooks.vip.0", json!({"max-length": 9, "overflow": "drop-head"})).is_some());
        for harmless in [json!({"max-length": 9}), json!([]), json!({"overflow": "reject-publish"})] {
            assert_eq!(loss("webhooks.vip.0", harmless), None);
        }
        assert_eq!((loss("quarantine.vip", ttl.clone()), loss("somebody's", ttl)), (None, None));
    }

    #[test]
    fn the_address_may_name_a_user() {
        let mut env = Env::of(&[("AMQP_URL", "amqp://u:p%2f@h/v")]);
        let rabbitmq = Address::read(&mut env);
        let authorization =
            |text: &str| ManagementAddress::parse(text, &rabbitmq).map(|address| address.authorization);
        let basic = |text: &str| Some(format!("Basic {}", STANDARD.encode(text)));
        assert_eq!(authorization("http://h:15672"), basic("u:p/"));
        assert_eq!(authorization("https://a%40b:c@h/"), basic("a@b:c"));
        assert_eq!((authorization("h:15672"), authorization("http://a@h")), (None, None));
    }
}
