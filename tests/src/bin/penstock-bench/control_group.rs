//! A share of a processor for a process, so that a machine with few processors can compare many processes.

use std::path::{Path, PathBuf};

use anyhow::Context;

/// Where the kernel takes them (version 1).
const ROOT: &str = "/sys/fs/cgroup/cpu";
/// A short period: a process that has used up its share waits for less than that.
const PERIOD_MICROS: u32 = 10_000;

/// A group of one process. Removed when dropped, which has to be after the process has ended.
#[derive(Debug)]
pub struct ControlGroup(PathBuf);

impl ControlGroup {
    /// Whether this user may make some here.
    pub fn can_be_made() -> bool {
        Self::with_share("penstock-bench-trial", 100).is_ok()
    }

    /// Holds a process to this many percent of one processor.
    pub fn hold(pid: u32, percent: u32) -> anyhow::Result<Self> {
        let group = Self::with_share(&format!("penstock-bench-{pid}"), percent)?;
        group.set("cgroup.procs", pid)?;
        Ok(group)
    }

    fn with_share(name: &str, percent: u32) -> anyhow::Result<Self> {
        let folder = Path::new(ROOT).join(name);
        std::fs::create_dir(&folder).with_context(|| format!("can't make {}", folder.display()))?;
        let group = Self(folder);
        group.set("cpu.cfs_period_us", PERIOD_MICROS)?;
        group.set("cpu.cfs_quota_us", PERIOD_MICROS * percent / 100)?;
        Ok(group)
    }

    fn set(&self, name: &str, value: u32) -> anyhow::Result<()> {
        let file = self.0.join(name);
        std::fs::write(&file, value.to_string()).with_context(|| format!("can't write {}", file.display()))
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}
