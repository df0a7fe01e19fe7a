//! Which machine a figure comes from.
use serde::{Deserialize, Serialize};
use std::fs;

/// The machine, as far as it matters to a reader of figures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// The processor's name.
    pub cpu: String,
    /// The kernel's release.
    pub kernel: String,
    /// Processors that this process may run on.
    pub cores: usize,
    /// The time a cache line takes from one core to the other and back, which bounds every figure that crosses cores
    /// and drifts on shared machines; `null` where it was not measured (a single core, a command that stays on one).
    pub cacheline_round_trip_ns: Option<f64>,
}

impl Machine {
    /// This machine; the round trip is for whoever knows the two cores to fill in.
    pub fn this() -> Self {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Machine {
            cpu: cpu_name(&info).unwrap_or(std::env::consts::ARCH).to_owned(),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            cores: online_cpus().len(),
            cacheline_round_trip_ns: None,
        }
    }
}

/// The processor's name in the text of `/proc/cpuinfo`; other architectures than x86 have none.
pub(super) fn cpu_name(info: &str) -> Option<&str> {
    let line = info.lines().find(|line| line.starts_with("model name"))?;
    line.split_once(':').map(|(_, name)| name.trim()).filter(|name| !name.is_empty())
}

/// The processors that this process may run on, ascending: those of its affinity mask, not those of the machine.
/// Never empty.
pub fn online_cpus() -> Vec<usize> {
    let allowed = rustix::thread::sched_getaffinity(None);
    let mut cpus: Vec<usize> = allowed
        .map(|set| (0..rustix::thread::CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect())
        .unwrap_or_default();
    if cpus.is_empty() {
        cpus.push(0);
    }
    cpus
}
