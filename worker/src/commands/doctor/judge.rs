//! What follows from what was found. Pure.

use std::time::Duration;

use serde::Serialize;

use super::facts::{Facts, Hello, Known, Management, Public, Queue, RabbitMq, Syncs, Tenant};

/// Clocks that differ by more make stamps and ages wrong.
const MOST_SKEW_MS: i64 = 1000;
/// A disk that takes longer for a write delays webhooks while RabbitMQ is down.
const LONGEST_SYNC: Duration = Duration::from_millis(100);
/// A majority that takes longer for a small write leaves little time for a batch.
const LONGEST_WRITE: Duration = Duration::from_secs(1);
/// An answer that takes longer is near respond.io's deadline of five seconds.
const LONGEST_ANSWER: Duration = Duration::from_secs(2);

/// How something was judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It is as it should be.
    Fine,
    /// Somebody should act.
    Act,
    /// Nobody knows.
    Unknown,
}

impl Verdict {
    /// A word for the table.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Fine => "fine",
            Self::Act => "ACT",
            Self::Unknown => "unknown",
        }
    }
}

/// A line of the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How it was judged.
    pub verdict: Verdict,
    /// What was looked at.
    pub subject: String,
    /// What was found.
    pub found: String,
    /// What to do.
    pub advice: Option<String>,
}

fn fine(subject: impl Into<String>, found: impl Into<String>) -> Finding {
    Finding { verdict: Verdict::Fine, subject: subject.into(), found: found.into(), advice: None }
}

fn act(subject: impl Into<String>, found: impl Into<String>, advice: &str) -> Finding {
    let advice = Some(advice.to_owned()).filter(|advice| !advice.is_empty());
    Finding { verdict: Verdict::Act, subject: subject.into(), found: found.into(), advice }
}

fn unknown(subject: impl Into<String>, found: impl Into<String>, advice: &str) -> Finding {
    Finding { verdict: Verdict::Unknown, ..act(subject, found, advice) }
}

/// All findings, in the order in which an event passes.
#[must_use]
pub fn all(facts: &Facts) -> Vec<Finding> {
    let mut findings: Vec<Finding> = facts.url.iter().map(url).collect();
    findings.push(spool(facts.spool.as_ref()));
    findings.extend(rabbitmq(&facts.rabbitmq));
    findings.extend(management(facts.management.as_ref()));
    findings.extend(facts.tenants.iter().flat_map(tenant));
    findings
}

fn url(answer: &Known<Public>) -> Finding {
    let subject = "public URL";
    match answer {
        Err(error) => act(subject, error, "check the name, the certificate and the load balancer"),
        Ok(Public { status, is_ingest: false, .. }) => act(
            subject,
            format!("answers {status}, but not as ingest does"),
            "check where the load balancer leads",
        ),
        Ok(Public { is_encrypted: false, .. }) => {
            act(subject, "ingest answers, unencrypted", "webhooks hold personal data: use https://")
        }
        Ok(Public { took, .. }) if *took > LONGEST_ANSWER => {
            act(subject, format!("ingest answers after {}", ms(*took)), "respond.io waits for 5 s at most")
        }
        Ok(Public { took, .. }) => fine(subject, format!("ingest answers after {}", ms(*took))),
    }
}

fn spool(syncs: Option<&Known<Syncs>>) -> Finding {
    let subject = "disk of SPOOL_DIR";
    match syncs {
        None => unknown(subject, "there is no such folder here", "run this where ingest runs"),
        Some(Err(error)) => act(subject, error, "ingest keeps webhooks there while RabbitMQ can't take them"),
        Some(Ok(Syncs { median, longest })) => {
            let found = format!("a synced write takes {}, at most {}", ms(*median), ms(*longest));
            if *median <= LONGEST_SYNC {
                return fine(subject, found);
            }
            act(subject, found, "while RabbitMQ is down each webhook waits for one: use a faster disk")
        }
    }
}

fn rabbitmq(facts: &RabbitMq) -> Vec<Finding> {
    let version = match &facts.version {
        Ok(version) if is_broken(version) => act(
            "RabbitMQ",
            format!("version {version}"),
            "a queue can stay dead after its consumers have timed out (rabbitmq-server #17317): use 4.3.6 or newer",
        ),
        Ok(version) => fine("RabbitMQ", format!("version {version}")),
        Err(error) => act("RabbitMQ", error, "check AMQP_URL, and that the server runs"),
    };
    let queues = match &facts.queues {
        // It follows from an earlier finding.
        Err(_) if facts.version.is_err() => Vec::new(),
        Err(error) => vec![act("queues", error, "check the user's rights: configure, write and read")],
        Ok(queues) => judged_queues(queues),
    };
    [version].into_iter().chain(queues).collect()
}

/// Of 4.3, the first releases.
fn is_broken(version: &str) -> bool {
    version.strip_prefix("4.3.").and_then(|patch| patch.parse::<u32>().ok()).is_some_and(|patch| patch < 6)
}

fn judged_queues(queues: &[(String, Queue)]) -> Vec<Finding> {
    let wrong = queues.iter().filter_map(|(name, queue)| match queue {
        Queue::Fits => None,
        Queue::Missing => Some(act(name, "there is no such queue", "it is made when a worker or an ingest starts")),
        Queue::Refused(why) => Some(act(
            name,
            why,
            "with other arguments: run `worker queues migrate`; without rights: give the user configure, write and read",
        )),
    });
    let wrong: Vec<Finding> = wrong.collect();
    if wrong.is_empty() {
        vec![fine("queues", format!("{} are as they should be", queues.len()))]
    } else {
        wrong
    }
}

fn management(facts: Option<&Management>) -> Vec<Finding> {
    let Some(facts) = facts else {
        let advice = "set AMQP_MANAGEMENT_URL, such as http://user:password@host:15672";
        return vec![unknown("policies, alarms, members", "only the management API tells", advice)];
    };
    let is_unreachable = |subject: &str, error: &String| {
        vec![act(subject, error, "check AMQP_MANAGEMENT_URL; its user needs the tag monitoring")]
    };
    let queues = match &facts.queues {
        Err(error) => is_unreachable("policies", error),
        Ok(queues) => {
            let lossy = queues.iter().filter_map(|queue| Some(act("policies", queue.loss()?, LOSSY)));
            let mut findings: Vec<Finding> = lossy.collect();
            if findings.is_empty() {
                findings.push(fine("policies", "none lets messages vanish"));
            }
            let nodes = facts.nodes.as_ref().map_or(1, Vec::len);
            findings.push(members(queues, nodes));
            findings
        }
    };
    let nodes = match &facts.nodes {
        Err(error) => is_unreachable("alarms", error),
        Ok(nodes) => {
            let alarmed = nodes.iter().filter_map(|node| {
                let what = match (node.running, node.mem_alarm, node.disk_free_alarm) {
                    (false, ..) => "is down",
                    (true, true, _) => "has too little memory: nothing can be published",
                    (true, _, true) => "has too little disk: nothing can be published",
                    _ => return None,
                };
                Some(act("nodes of RabbitMQ", format!("{} {what}", node.name), ""))
            });
            let alarmed: Vec<Finding> = alarmed.collect();
            let well = || vec![fine("nodes of RabbitMQ", format!("{}, without an alarm", nodes.len()))];
            if alarmed.is_empty() { well() } else { alarmed }
        }
    };
    queues.into_iter().chain(nodes).collect()
}

const LOSSY: &str = "answered webhooks vanish: clear the policy, or let its pattern not fit these queues";

/// Quorum queues have a majority with three members; with two, the loss of either stops them.
fn members(queues: &[crate::management::QueueState], nodes: usize) -> Finding {
    let subject = "members of queues";
    let ours = || {
        queues.iter().filter(|queue| queue.name.starts_with("webhooks.") || queue.name.starts_with("dead."))
    };
    if let Some(queue) = ours().find(|queue| queue.online.len() < queue.members.len()) {
        let found = format!("{}: {} of {} are up", queue.name, queue.online.len(), queue.members.len());
        return act(subject, found, "start the missing nodes, or give the queue other members");
    }
    let wanted = nodes.min(3);
    match ours().find(|queue| !queue.members.is_empty() && queue.members.len() < wanted) {
        Some(queue) => act(
            subject,
            format!("{}: {}, with {nodes} nodes", queue.name, queue.members.len()),
            "rabbitmq-queues grow NODE all",
        ),
        None if nodes == 1 => fine(subject, "one each: if this node's disk is lost, their events are lost"),
        None => fine(subject, format!("{wanted} each or more")),
    }
}

fn tenant(facts: &Tenant) -> Vec<Finding> {
    let name = &facts.name;
    let subject = |what: &str| format!("{name}: {what}");
    let mut findings = vec![match (&facts.fitness, &facts.hello) {
        (Err(error), _) => act(subject("MongoDB"), error, "until then, events of this tenant wait"),
        (Ok(()), Ok(Hello { version, replica_set, members, .. })) => {
            let set = if replica_set.is_empty() {
                "a router".to_owned()
            } else {
                format!("replica set {replica_set}")
            };
            let members = if *members == 1 { ", one member: all is on one disk" } else { "" };
            fine(subject("MongoDB"), format!("version {version}, {set}{members}"))
        }
        (Ok(()), Err(error)) => unknown(subject("MongoDB"), error, ""),
    }];
    if facts.fitness.is_err() {
        // The other findings follow from this one.
        return findings;
    }
    match &facts.warnings {
        Err(error) => findings.push(unknown(subject("indexes"), error, "")),
        Ok(warnings) if warnings.is_empty() => {
            findings.push(fine(subject("indexes"), "none makes writes fail"));
        }
        Ok(warnings) => findings.extend(warnings.iter().map(|warning| act(subject("MongoDB"), warning, ""))),
    }
    findings.extend(facts.hello.as_ref().ok().map(|hello| clock(&subject("clock"), hello)));
    findings.push(match &facts.write {
        Err(error) => act(subject("write concern"), error, "a majority has to confirm each batch"),
        Ok(took) if *took > LONGEST_WRITE => act(
            subject("write concern"),
            format!("a majority confirms after {}", ms(*took)),
            "a member is slow, or far behind",
        ),
        Ok(took) => fine(subject("write concern"), format!("a majority confirms after {}", ms(*took))),
    });
    findings
}

fn clock(subject: &str, hello: &Hello) -> Finding {
    let Hello { ahead_ms, margin_ms, .. } = hello;
    if ahead_ms.abs() - margin_ms > MOST_SKEW_MS {
        let found = format!("MongoDB's is {ahead_ms} ms ahead of this machine's");
        return act(subject, found, "let both follow a time server: ages and the ledger's end depend on it");
    }
    fine(subject, format!("as this machine's, within {} ms", ahead_ms.abs() + margin_ms))
}

fn ms(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::management::{Node, QueueState};

    fn queue(name: &str, members: usize, online: usize, rules: serde_json::Value) -> QueueState {
        let nodes = |count: usize| (0..count).map(|n| format!("n{n}")).collect();
        let policy = Some("p".to_owned());
        let (members, online) = (nodes(members), nodes(online));
        QueueState { name: name.to_owned(), policy, effective_policy_definition: rules, members, online }
    }

    fn well() -> Facts {
        let node = Node { name: "n0".into(), running: true, ..Node::default() };
        let hello = Hello {
            version: "6.0.5".into(),
            replica_set: "rs".into(),
            members: 3,
            ahead_ms: 3,
            margin_ms: 1,
        };
        let soon = Duration::from_millis(3);
        Facts {
            rabbitmq: RabbitMq {
                version: Ok("4.0.5".into()),
                queues: Ok(vec![("webhooks.vip.0".into(), Queue::Fits)]),
            },
            management: Some(Management {
                nodes: Ok(vec![node]),
                queues: Ok(vec![queue("webhooks.vip.0", 1, 1, json!([]))]),
            }),
            tenants: vec![Tenant {
                name: "vip".into(),
                fitness: Ok(()),
                warnings: Ok(Vec::new()),
                hello: Ok(hello),
                write: Ok(soon),
            }],
            spool: Some(Ok(Syncs { median: soon, longest: soon })),
            url: Some(Ok(Public { is_encrypted: true, status: 200, is_ingest: true, took: soon })),
        }
    }

    /// What to do about this state.
    fn to_do(worsen: impl FnOnce(&mut Facts)) -> Vec<String> {
        let mut facts = well();
        worsen(&mut facts);
        let findings = all(&facts).into_iter().filter(|finding| finding.verdict == Verdict::Act);
        findings.map(|finding| format!("{}: {}", finding.subject, finding.found)).collect()
    }

    #[test]
    fn what_is_well_needs_nothing() {
        assert_eq!(to_do(|_| {}), [""; 0]);
        let findings = all(&well());
        assert!(findings.iter().all(|finding| finding.verdict == Verdict::Fine), "{findings:?}");
    }

    type Change<'a> = &'a dyn Fn(&mut Facts);

    #[test]
    fn each_thing_that_is_wrong_is_named_alone() {
        let slow = Duration::from_secs(9);
        let cases: [(&str, Change<'_>); 15] = [
            ("version 4.3.5", &|facts| facts.rabbitmq.version = Ok("4.3.5".into())),
            ("no such host", &|facts| facts.rabbitmq.version = Err("no such host".into())),
            ("no such queue", &|facts| facts.rabbitmq.queues = Ok(vec![("dead.vip".into(), Queue::Missing)])),
            ("PRECONDITION", &|facts| {
                facts.rabbitmq.queues =
                    Ok(vec![("dead.vip".into(), Queue::Refused("PRECONDITION_FAILED".into()))]);
            }),
            ("after 5 ms", &|facts| {
                let queues = vec![queue("dead.vip", 1, 1, json!({"message-ttl": 5}))];
                facts.management.as_mut().unwrap().queues = Ok(queues);
            }),
            ("1 of 3 are up", &|facts| {
                facts.management.as_mut().unwrap().queues = Ok(vec![queue("dead.vip", 3, 1, json!([]))]);
            }),
            ("1, with 3 nodes", &|facts| {
                let nodes = vec![Node { running: true, ..Node::default() }; 3];
                facts.management.as_mut().unwrap().nodes = Ok(nodes);
            }),
            ("too little disk", &|facts| {
                let node = Node { running: true, disk_free_alarm: true, ..Node::default() };
                facts.management.as_mut().unwrap().nodes = Ok(vec![node]);
            }),
            ("too old", &|facts| facts.tenants[0].fitness = Err("too old".into())),
            ("an index", &|facts| facts.tenants[0].warnings = Ok(vec!["an index".into()])),
            ("ahead", &|facts| facts.tenants[0].hello.as_mut().unwrap().ahead_ms = -5000),
            ("majority", &|facts| facts.tenants[0].write = Ok(slow)),
            ("synced write", &|facts| facts.spool = Some(Ok(Syncs { median: slow, longest: slow }))),
            ("unencrypted", &|facts| facts.url.as_mut().unwrap().as_mut().unwrap().is_encrypted = false),
            ("not as ingest", &|facts| facts.url.as_mut().unwrap().as_mut().unwrap().is_ingest = false),
        ];
        for (named, worsen) in cases {
            let found = to_do(worsen);
            assert!(found.len() == 1 && found[0].contains(named), "{named}: {found:?}");
        }
    }

    #[test]
    fn what_isnt_known_is_neither_fine_nor_needs_doing() {
        let mut facts = well();
        (facts.management, facts.spool, facts.url) = (None, None, None);
        let verdicts = all(&facts).into_iter().map(|finding| finding.verdict);
        let unknown = verdicts.filter(|verdict| *verdict == Verdict::Unknown).count();
        assert_eq!((unknown, to_do(|facts| facts.management = None).len()), (2, 0));
    }
}
