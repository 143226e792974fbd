//! What processes use, by /proc.

use std::collections::BTreeMap;
use std::fs::read_to_string;
use std::path::Path;

use penstock_tests::stack::{server_env, variable};

use crate::number::float;

/// Ticks per second of the times in /proc/PID/stat, on every platform that we run on.
const TICKS: f64 = 100.0;

/// The processes at work, by the names that people know.
#[derive(Clone, Debug)]
pub struct Watched(Vec<(&'static str, u32)>);

/// CPU seconds by process.
pub type Cpu = BTreeMap<&'static str, f64>;

impl Watched {
    /// The benchmark itself, RabbitMQ and mongod.
    pub fn new() -> Self {
        Self(vec![("bench", std::process::id()), ("RabbitMQ", rabbitmq()), ("mongod", mongod())])
    }

    /// With another one.
    #[must_use]
    pub fn and(mut self, name: &'static str, pid: u32) -> Self {
        self.0.push((name, pid));
        self
    }

    /// CPU seconds used so far. Those of children count, except for the benchmark's, which are watched by
    /// themselves.
    pub fn cpu(&self) -> Cpu {
        let parents = parents();
        let of = |(name, pid): &(&'static str, u32)| -> (&'static str, f64) {
            let family = if *name == "bench" { vec![*pid] } else { family(*pid, &parents) };
            (*name, family.into_iter().map(seconds).sum())
        };
        let mut cpu = Cpu::new();
        for (name, seconds) in self.0.iter().map(of) {
            *cpu.entry(name).or_default() += seconds;
        }
        cpu
    }
}

/// The process of RabbitMQ.
pub fn rabbitmq() -> u32 {
    pid("rabbitmq", "AMQP_PID")
}

/// The process of mongod.
pub fn mongod() -> u32 {
    pid("mongod", "MONGO_PID")
}

fn pid(server: &str, name: &str) -> u32 {
    let env = server_env(&Path::new(&variable("PENSTOCK_STACK")).join(server));
    env[name].parse().expect("a process id")
}

/// What was used between two readings.
pub fn used(before: &Cpu, after: &Cpu) -> Cpu {
    let since = |(name, seconds): (&&'static str, &f64)| {
        (*name, (seconds - before.get(name).copied().unwrap_or_default()).max(0.0))
    };
    after.iter().map(since).collect()
}

/// CPU seconds that a process has used so far; none once it is gone.
pub fn seconds(pid: u32) -> f64 {
    let fields = stat(pid);
    let ticks = |place: usize| fields.get(place).and_then(|field| field.parse().ok()).unwrap_or(0_u64);
    float(ticks(11) + ticks(12)) / TICKS
}

/// Resident memory and its peak, in MiB.
pub fn memory(pid: u32) -> (f64, f64) {
    let status = read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let value = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        let kib: u64 = line.trim_matches([':', ' ', '\t', 'k', 'B']).parse().unwrap_or_default();
        float(kib) / 1024.0
    };
    (value("VmRSS"), value("VmHWM"))
}

/// The fields behind the name, which may have blanks in it: the state comes first, then the parent.
fn stat(pid: u32) -> Vec<String> {
    let text = read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let (_, rest) = text.rsplit_once(") ").unwrap_or_default();
    rest.split_ascii_whitespace().map(str::to_owned).collect()
}

fn parents() -> Vec<(u32, u32)> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| Some((pid, stat(pid).get(1)?.parse().ok()?))).collect()
}

fn family(pid: u32, parents: &[(u32, u32)]) -> Vec<u32> {
    let mut family = vec![pid];
    let mut next = 0;
    while let Some(parent) = family.get(next).copied() {
        family.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(child, _)| *child));
        next += 1;
    }
    family
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_can_be_read() {
        let own = std::process::id();
        let (now, peak) = memory(own);
        assert!(now > 0.0 && peak >= now, "{now} {peak}");
        assert!(parents().iter().any(|(pid, _)| *pid == own));
        let until = std::time::Instant::now() + std::time::Duration::from_millis(50);
        while std::time::Instant::now() < until {}
        assert!(seconds(own) > 0.0);
    }

    #[test]
    fn a_family_has_grandchildren() {
        assert_eq!(family(1, &[(2, 1), (3, 2), (4, 9)]), [1, 2, 3]);
    }

    #[test]
    fn only_the_difference_was_used() {
        let used = used(&Cpu::from([("a", 1.0)]), &Cpu::from([("a", 1.5), ("b", 2.0)]));
        assert_eq!(used, Cpu::from([("a", 0.5), ("b", 2.0)]));
    }
}
