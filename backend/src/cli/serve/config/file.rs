//! The tables and keys of the file.

use std::path::PathBuf;

use serde::Deserialize;
use toml::Spanned;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct File {
    #[serde(default)]
    pub(super) workers: Workers,
    #[serde(default)]
    pub(super) net: Vec<Net>,
    #[serde(default)]
    pub(super) blk: Vec<Blk>,
    #[serde(default)]
    pub(super) nvme: Vec<Nvme>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct Workers {
    pub(super) cpus: Option<Spanned<Vec<usize>>>,
    pub(super) count: Option<Spanned<usize>>,
    pub(super) mode: Option<Spanned<String>>,
}

/// A network device.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct Net {
    pub(super) name: Spanned<String>,
    socket_path: Option<Spanned<PathBuf>>,
    socket_mode: Option<Spanned<String>>,
    connect: Option<Spanned<PathBuf>>,
    vduse: Option<Spanned<String>>,
    #[serde(default)]
    keep: bool,
    state_dir: Option<PathBuf>,
    #[serde(default)]
    own_bounce: bool,
    pub(super) link: Option<Spanned<String>>,
    pub(super) queue_pairs: Option<Spanned<u16>>,
    pub(super) mac: Option<Spanned<String>>,
    pub(super) mtu: Option<Spanned<u16>>,
    worker: Option<Spanned<OneOrMore>>,
    #[serde(default)]
    prefault: bool,
    #[serde(default)]
    ring_reset: bool,
}

/// A block device.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct Blk {
    pub(super) name: Spanned<String>,
    socket_path: Option<Spanned<PathBuf>>,
    socket_mode: Option<Spanned<String>>,
    connect: Option<Spanned<PathBuf>>,
    vduse: Option<Spanned<String>>,
    #[serde(default)]
    keep: bool,
    state_dir: Option<PathBuf>,
    #[serde(default)]
    own_bounce: bool,
    pub(super) store: Spanned<String>,
    pub(super) queues: Option<Spanned<u16>>,
    #[serde(default)]
    pub(super) read_only: bool,
    pub(super) serial: Option<Spanned<String>>,
    worker: Option<Spanned<OneOrMore>>,
    #[serde(default)]
    prefault: bool,
    #[serde(default)]
    ring_reset: bool,
}

/// An NVMe controller.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct Nvme {
    pub(super) name: Spanned<String>,
    socket_path: Option<Spanned<PathBuf>>,
    socket_mode: Option<Spanned<String>>,
    pub(super) namespaces: Spanned<Vec<Spanned<String>>>,
    pub(super) queues: Option<Spanned<u16>>,
    pub(super) serial: Option<Spanned<String>>,
    worker: Option<Spanned<OneOrMore>>,
}

/// `worker = 0` or `worker = [0, 1]`.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMore {
    One(usize),
    More(Vec<usize>),
}

/// What can be said of every device. The reader of TOML cannot refuse unknown keys of a table that is put together from two, so
/// each kind of device has these for itself.
pub(super) struct Common<'f> {
    pub(super) name: &'f Spanned<String>,
    pub(super) socket_path: Option<&'f Spanned<PathBuf>>,
    pub(super) socket_mode: Option<&'f Spanned<String>>,
    pub(super) connect: Option<&'f Spanned<PathBuf>>,
    pub(super) vduse: Option<&'f Spanned<String>>,
    pub(super) keep: bool,
    pub(super) state_dir: Option<&'f PathBuf>,
    pub(super) own_bounce: bool,
    pub(super) worker: Option<&'f Spanned<OneOrMore>>,
    pub(super) prefault: bool,
    pub(super) ring_reset: bool,
}

macro_rules! common {
    ($device:ty) => {
        impl $device {
            /// What it has in common with other devices.
            pub(super) fn common(&self) -> Common<'_> {
                Common {
                    name: &self.name,
                    socket_path: self.socket_path.as_ref(),
                    socket_mode: self.socket_mode.as_ref(),
                    connect: self.connect.as_ref(),
                    vduse: self.vduse.as_ref(),
                    keep: self.keep,
                    state_dir: self.state_dir.as_ref(),
                    own_bounce: self.own_bounce,
                    worker: self.worker.as_ref(),
                    prefault: self.prefault,
                    ring_reset: self.ring_reset,
                }
            }
        }
    };
}

common!(Net);
common!(Blk);

impl Nvme {
    /// What it has in common with other devices. Its clients come to it, and lend memory that they have populated themselves.
    pub(super) fn common(&self) -> Common<'_> {
        Common {
            name: &self.name,
            socket_path: self.socket_path.as_ref(),
            socket_mode: self.socket_mode.as_ref(),
            connect: None,
            vduse: None,
            keep: false,
            state_dir: None,
            own_bounce: false,
            worker: self.worker.as_ref(),
            prefault: false,
            ring_reset: false,
        }
    }
}
