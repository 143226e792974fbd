//! What processes use, by /proc.

use std::collections::BTreeMap;
use std::fs::read_to_string;
use std::path::Path;

use penstock_tests::stack::{server_env, variable};

/// Ticks per second of the times in /proc/PID/stat, on every platform that we run on.
const TICKS: f64 = 100.0;

/// CPU seconds by process, under names that people know.
pub type Cpu = BTreeMap<&'static str, f64>;

/// Measures what processes use from now on.
#[derive(Debug)]
pub struct Meter {
    others: Vec<(&'static str, u32)>,
    before: Cpu,
}

impl Meter {
    /// Of RabbitMQ, mongod, the benchmark itself, and these.
    pub fn start(others: Vec<(&'static str, u32)>) -> Self {
        Self { before: read(&others), others }
    }

    /// What was used until now.
    pub fn used(&self) -> Cpu {
        let now = read(&self.others).into_iter();
        now.map(|(name, seconds)| (name, (seconds - self.before[name]).max(0.0))).collect()
    }
}

fn read(others: &[(&'static str, u32)]) -> Cpu {
    let rabbitmq = family_seconds(server("rabbitmq", "AMQP_PID"));
    let own = cpu_seconds(std::process::id());
    let mut cpu = Cpu::from([("bench", own), ("RabbitMQ", rabbitmq), ("mongod", cpu_seconds(mongod()))]);
    for (name, pid) in others {
        *cpu.entry(name).or_default() += cpu_seconds(*pid);
    }
    cpu
}

/// The process of mongod.
pub fn mongod() -> u32 {
    server("mongod", "MONGO_PID")
}

fn server(name: &str, pid: &str) -> u32 {
    let env = server_env(&Path::new(&variable("PENSTOCK_STACK")).join(name));
    env[pid].parse().unwrap_or_default()
}

/// CPU seconds that a process has used so far; none once it is gone.
pub fn cpu_seconds(pid: u32) -> f64 {
    let stat = read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name before may have blanks in it.
    let (_, fields) = stat.rsplit_once(") ").unwrap_or_default();
    let ticks = fields.split(' ').skip(11).take(2).filter_map(|field| field.parse::<f64>().ok());
    ticks.sum::<f64>() / TICKS
}

/// Those of its children too: what was started may be a script around the server.
fn family_seconds(pid: u32) -> f64 {
    let children = read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children = children.split_ascii_whitespace().filter_map(|child| child.parse().ok());
    cpu_seconds(pid) + children.map(family_seconds).sum::<f64>()
}

/// Peak of the resident memory, in MiB.
pub fn peak_memory(pid: u32) -> f64 {
    let status = read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.strip_suffix("kB"));
    peak.and_then(|kib| kib.trim().parse::<f64>().ok()).unwrap_or_default() / 1024.0
}
