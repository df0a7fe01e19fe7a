//! The file of `mdevd serve`: TOML in, plans out. All that is wrong is said at once, each with its line.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::num::NonZeroUsize;
use std::str::FromStr;
use std::thread::available_parallelism;

use clap::ValueEnum;
use mdev_protocol::vduse::DeviceName;
use rustix::net::SocketAddrUnix;
use rustix::thread::CpuSet;
use toml::Spanned;

use crate::cli::values::parse_mode;
use crate::daemon::{DEFAULT_STATE_DIR, Door, KernelDoor, Kind, Plan};
use crate::device::blk::BlkConfig;
use crate::device::net::{NetConfig, parse_mac};
use crate::device::nvme::{DEFAULT_QUEUES, NamespaceConfig, NvmeConfig};
use crate::link::LinkKind;
use crate::session::SessionOptions;
use crate::store::StoreKind;
use crate::worker::Mode;
use file::{Blk, Common, File, Net, Nvme, OneOrMore, Workers};

mod file;

/// Workers in one process, at most.
const MAX_WORKERS: usize = 256;

/// A file without errors.
#[derive(Debug)]
pub(super) struct Config {
    /// The processor of each worker.
    pub(super) workers: Vec<Option<usize>>,
    /// The same, if the file says it.
    pub(super) asked_workers: Option<Vec<Option<usize>>>,
    pub(super) mode: Mode,
    pub(super) plans: Vec<Plan>,
}

/// Reads the text of the file called `file`. `running`: so many workers run already, whatever the file says.
///
/// # Errors
/// What is wrong, each as `FILE:LINE: what`.
pub(super) fn parse(text: &str, file: &str, running: Option<usize>) -> Result<Config, Vec<String>> {
    let mut problems = Problems { text, file, found: Vec::new() };
    let File { workers, net, blk, nvme } = match toml::from_str(text) {
        Ok(parsed) => parsed,
        Err(error) => {
            problems.at(error.span().map_or(0, |span| span.start), error.message());
            return Err(problems.told());
        }
    };
    let mode =
        workers.mode.as_ref().and_then(|mode| problems.value(mode, |text| Mode::from_str(text, false)));
    let asked = asked_workers(&workers, &mut problems);
    let mut devices = Vec::new();
    for net in &net {
        devices.push((
            net.common(),
            net.link.as_ref().map(Spanned::span),
            Kind::Net(net_kind(net, &mut problems)),
        ));
    }
    for blk in &blk {
        if let Some(config) = blk_kind(blk, &mut problems) {
            devices.push((blk.common(), Some(blk.store.span()), Kind::Blk(config)));
        }
    }
    for nvme in &nvme {
        let config = nvme_kind(nvme, &mut problems);
        devices.push((nvme.common(), Some(nvme.namespaces.span()), Kind::Nvme(config)));
    }
    let groups: usize = devices.iter().map(|(_, _, kind)| usize::from(kind.groups())).sum();
    let processors = available_parallelism().map_or(1, NonZeroUsize::get);
    let there = asked.clone().unwrap_or_else(|| vec![None; groups.clamp(1, processors)]);

    let (mut names, mut paths, mut owned) = (HashMap::new(), HashMap::new(), HashMap::new());
    let mut plans = Vec::new();
    for (common, behind, kind) in devices {
        let (at, name) = (common.name.span().start, common.name.get_ref().clone());
        if let Some(line) = problems.said_before(&mut names, name.clone(), at) {
            problems
                .at(at, &format!("the name {name:?} is taken by the device in line {line}; choose another"));
        }
        if name.is_empty() || name.len() > 64 || name.chars().any(char::is_control) {
            problems.at(at, "a name has 1 to 64 bytes and no control characters");
        }
        let door = door(&common, &mut problems);
        if let Some((at, door)) = &door {
            let path = std::path::absolute(door.path()).unwrap_or_else(|_| door.path());
            if let Some(line) = problems.said_before(&mut paths, path.clone(), *at) {
                problems.at(
                    *at,
                    &format!(
                        "the socket or device {path:?} is that of line {line}; each device needs its own"
                    ),
                );
            }
        }
        let workers = placed(common.worker, running.unwrap_or(there.len()), &mut problems);
        for own in kind.own() {
            let at = behind.as_ref().map_or(at, |span| span.start);
            if let Some(line) = problems.said_before(&mut owned, own.clone(), at) {
                problems.at(at, &format!("the {own} is that of line {line}; each device needs its own"));
            }
        }
        if let Some((_, door)) = door {
            let Common { prefault, ring_reset, .. } = common;
            let sessions = SessionOptions { prefault, ring_reset, ..Default::default() };
            plans.push(Plan { name, door, kind, workers, sessions });
        }
    }
    if problems.found.is_empty() {
        Ok(Config { workers: there, asked_workers: asked, mode: mode.unwrap_or_default(), plans })
    } else {
        Err(problems.told())
    }
}

fn asked_workers(workers: &Workers, problems: &mut Problems<'_>) -> Option<Vec<Option<usize>>> {
    match (&workers.cpus, &workers.count) {
        (Some(_), Some(count)) => {
            problems.at(
                count.span().start,
                "cpus and count exclude each other: there is one worker for each of cpus",
            );
            None
        }
        (Some(cpus), None) => {
            let list = cpus.get_ref();
            let twice =
                list.iter().enumerate().any(|(at, cpu)| list.iter().take(at).any(|other| other == cpu));
            if list.is_empty() || twice || list.iter().any(|&cpu| cpu >= CpuSet::MAX_CPU) {
                problems.at(cpus.span().start, "cpus names processors, each once and at least one: [0, 1]");
            }
            Some(list.iter().copied().map(Some).collect())
        }
        (None, Some(count)) => {
            if !(1..=MAX_WORKERS).contains(count.get_ref()) {
                problems.at(count.span().start, &format!("there may be 1 to {MAX_WORKERS} workers"));
            }
            Some(vec![None; (*count.get_ref()).clamp(1, MAX_WORKERS)])
        }
        (None, None) => None,
    }
}

/// Where the device's front-ends come from, and where that is said.
fn door(device: &Common<'_>, problems: &mut Problems<'_>) -> Option<(usize, Door)> {
    let mode = device.socket_mode;
    if let Some(vduse) = device.vduse {
        return kernel_door(device, vduse, problems);
    }
    if device.keep || device.own_bounce || device.state_dir.is_some() {
        problems.at(device.name.span().start, "keep, own-bounce and state-dir go with vduse");
    }
    let (path, door) = match (device.socket_path, device.connect) {
        (Some(path), None) => {
            let mode = mode.and_then(|mode| problems.value(mode, parse_mode));
            (path, Door::Listen { path: path.get_ref().clone(), mode })
        }
        (None, Some(path)) => {
            if let Some(mode) = mode {
                problems.at(
                    mode.span().start,
                    "socket-mode goes with socket-path; with connect the socket is the front-end's",
                );
            }
            (path, Door::Dial { path: path.get_ref().clone() })
        }
        (Some(_), Some(path)) => {
            problems.at(
                path.span().start,
                "socket-path and connect exclude each other: either we listen or the front-end",
            );
            return None;
        }
        (None, None) => {
            problems.at(
                device.name.span().start,
                "a device needs a socket: give socket-path (we listen) or connect (the front-end does); or vduse (the host's \
                 kernel)",
            );
            return None;
        }
    };
    if SocketAddrUnix::new(path.get_ref()).is_err() || path.get_ref().as_os_str().is_empty() {
        problems.at(path.span().start, "a socket's path has 1 to 107 bytes");
    }
    Some((path.span().start, door))
}

/// A device of the host's kernel.
fn kernel_door(
    device: &Common<'_>,
    vduse: &Spanned<String>,
    problems: &mut Problems<'_>,
) -> Option<(usize, Door)> {
    let at = vduse.span().start;
    if device.socket_path.is_some() || device.connect.is_some() || device.socket_mode.is_some() {
        problems
            .at(at, "vduse excludes socket-path, socket-mode and connect: the host's kernel needs no socket");
    }
    let name = problems.value(vduse, DeviceName::from_str)?;
    let state_dir = device.state_dir.cloned().unwrap_or_else(|| DEFAULT_STATE_DIR.into());
    let (keep, own_bounce) = (device.keep, device.own_bounce);
    Some((at, Door::Kernel(KernelDoor { name, keep, state_dir, own_bounce })))
}

fn placed(worker: Option<&Spanned<OneOrMore>>, there: usize, problems: &mut Problems<'_>) -> Vec<usize> {
    let Some(worker) = worker else { return Vec::new() };
    let list = match worker.get_ref() {
        OneOrMore::One(one) => vec![*one],
        OneOrMore::More(more) => more.clone(),
    };
    if list.is_empty() || list.iter().any(|&worker| worker >= there) {
        let last = there.saturating_sub(1);
        let what = format!("worker names one or more of the workers 0 to {last}, which [workers] says");
        problems.at(worker.span().start, &what);
    }
    list
}

fn net_kind(net: &Net, problems: &mut Problems<'_>) -> NetConfig {
    let link = net.link.as_ref().and_then(|link| problems.value(link, LinkKind::from_str));
    let config = NetConfig {
        name: net.name.get_ref().clone(),
        queue_pairs: net.queue_pairs.as_ref().map_or(1, |pairs| *pairs.get_ref()),
        mac: net.mac.as_ref().and_then(|mac| problems.value(mac, parse_mac)),
        mtu: net.mtu.as_ref().map(|mtu| *mtu.get_ref()),
        link: link.unwrap_or(LinkKind::Loopback),
    };
    if let Err(error) = config.check() {
        problems.at(net.name.span().start, &error.to_string());
    }
    config
}

fn blk_kind(blk: &Blk, problems: &mut Problems<'_>) -> Option<BlkConfig> {
    let config = BlkConfig {
        name: blk.name.get_ref().clone(),
        store: problems.value(&blk.store, StoreKind::from_str)?,
        queues: blk.queues.as_ref().map_or(1, |queues| *queues.get_ref()),
        read_only: blk.read_only,
        serial: blk.serial.as_ref().map(|serial| serial.get_ref().clone()),
    };
    if let Err(error) = config.check() {
        problems.at(blk.name.span().start, &error.to_string());
    }
    Some(config)
}

fn nvme_kind(nvme: &Nvme, problems: &mut Problems<'_>) -> NvmeConfig {
    let stores = nvme.namespaces.get_ref().iter().filter_map(|one| problems.value(one, StoreKind::from_str));
    let config = NvmeConfig {
        name: nvme.name.get_ref().clone(),
        namespaces: (1..).zip(stores).map(|(nsid, store)| NamespaceConfig::new(nsid, store)).collect(),
        queues: nvme.queues.as_ref().map_or(DEFAULT_QUEUES, |queues| *queues.get_ref()),
        serial: nvme.serial.as_ref().map(|serial| serial.get_ref().clone()),
    };
    if let Err(error) = config.check() {
        problems.at(nvme.name.span().start, &error.to_string());
    }
    config
}

/// What is wrong with a file so far.
struct Problems<'t> {
    text: &'t str,
    file: &'t str,
    /// Each with its line.
    found: Vec<(usize, String)>,
}

impl Problems<'_> {
    fn line(&self, at: usize) -> usize {
        self.text.bytes().take(at).filter(|&byte| byte == b'\n').count() + 1
    }

    /// All of it, from the first line to the last.
    fn told(mut self) -> Vec<String> {
        self.found.sort_by_key(|(line, _)| *line);
        self.found.into_iter().map(|(_, what)| what).collect()
    }

    fn at(&mut self, at: usize, what: &str) {
        let (file, line) = (self.file, self.line(at));
        self.found.push((line, format!("{file}:{line}: {what}")));
    }

    /// The line where a key that each device has to itself was said before, if it was.
    fn said_before<K: Eq + Hash>(&self, seen: &mut HashMap<K, usize>, key: K, at: usize) -> Option<usize> {
        match seen.entry(key) {
            Entry::Occupied(before) => Some(self.line(*before.get())),
            Entry::Vacant(place) => {
                place.insert(at);
                None
            }
        }
    }

    /// The meaning of a text, or `None` and why it has none.
    fn value<T, E: ToString>(
        &mut self,
        text: &Spanned<String>,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        parse(text.get_ref()).map_err(|error| self.at(text.span().start, &error.to_string())).ok()
    }
}

#[cfg(test)]
mod tests;
