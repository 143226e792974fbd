//! What was found. Plain values, so that a test can build any state.

use std::time::Duration;

use crate::management::{Node, QueueState};

/// A fact, or why it isn't known.
pub type Known<T> = Result<T, String>;

/// All that was found.
#[derive(Debug)]
pub struct Facts {
    /// What AMQP tells.
    pub rabbitmq: RabbitMq,
    /// What the management API tells; nothing, if nobody knows where it is.
    pub management: Option<Management>,
    /// The MongoDB of each tenant.
    pub tenants: Vec<Tenant>,
    /// How long writing to the spool's disk takes; nothing, if there is no such folder here.
    pub spool: Option<Known<Syncs>>,
    /// What the public URL answers, if one was named.
    pub url: Option<Known<Public>>,
}

/// What AMQP tells.
#[derive(Debug)]
pub struct RabbitMq {
    /// Its version.
    pub version: Known<String>,
    /// Each of our queues.
    pub queues: Known<Vec<(String, Queue)>>,
}

/// A queue, as far as AMQP tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Queue {
    /// It is as it should be.
    Fits,
    /// There is none.
    Missing,
    /// RabbitMQ refuses it to us.
    Refused(String),
}

/// What the management API tells.
#[derive(Debug)]
pub struct Management {
    /// The nodes.
    pub nodes: Known<Vec<Node>>,
    /// The queues of our virtual host.
    pub queues: Known<Vec<QueueState>>,
}

/// A tenant's MongoDB.
#[derive(Debug)]
pub struct Tenant {
    /// The tenant.
    pub name: String,
    /// Whether it can do what Penstock needs: version, rights, replica set, transactions, a majority that
    /// confirms.
    pub fitness: Known<()>,
    /// Warnings.
    pub warnings: Known<Vec<String>>,
    /// What it says of itself.
    pub hello: Known<Hello>,
    /// How long a small write takes until a majority has it.
    pub write: Known<Duration>,
}

/// What MongoDB says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// Its version.
    pub version: String,
    /// The replica set's name; empty with a router.
    pub replica_set: String,
    /// Members that hold data.
    pub members: usize,
    /// By how much its clock is ahead of ours, in milliseconds.
    pub ahead_ms: i64,
    /// Within what that is known, in milliseconds.
    pub margin_ms: i64,
}

/// Times of some writes, each of which was on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Syncs {
    /// Half of them took no longer.
    pub median: Duration,
    /// The longest.
    pub longest: Duration,
}

/// What a public URL answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Public {
    /// Whether the way there is encrypted.
    pub is_encrypted: bool,
    /// The HTTP status.
    pub status: u16,
    /// Whether it is an ingest that answers.
    pub is_ingest: bool,
    /// How long that took.
    pub took: Duration,
}
