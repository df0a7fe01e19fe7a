//! The lab: peers nobody here wrote, set up on the machine that runs the tests.
//!
//! - [`setup`] makes the lab's root once and caches it; [`Lab`] runs programs inside it.
//! - [`Running`] is a program under way: its output can be waited for, and it never outlives the test.
//! - [`Testpmd`], [`QemuGuest`] and [`Mdevd`] know how to start and question one program each; [`HugePages`] lends huge pages.
//! - [`Stream`] is a transfer through a guest that goes on while something else is tried.
//! - [`move_into_own_network`] gives a test interfaces that nobody else sees.
//! - [`runner`] is the tests' main function: one test at a time, each in a process of its own, skipped with a reason where there is no lab.
//!
//! A test is a function from a [`Lab`] to `Result<(), Skip>`; it fails by panicking. Every wait has a limit, and a wait that reaches it
//! panics with the end of the program's output. Nothing in here is clever about errors for the same reason: a broken lab is a failed test.
//!
//! What it does not do: measure. Rates are parsed so that a test can say "packets flow"; whoever compares them does so in turns, as
//! [`versus`](super::versus) does.

use std::path::{Path, PathBuf};
use std::process::Command;

mod hugepages;
mod initramfs;
mod live_update;
mod mdevd;
mod network;
mod process;
mod qemu;
mod qmp;
pub mod runner;
pub mod setup;
mod stream;
mod testpmd;

pub use hugepages::HugePages;
pub use initramfs::{FileKind, Initramfs, shared_libraries};
pub use live_update::Successor;
pub use mdevd::{Counters, Mdevd};
pub use network::{ip, move_into_own_network};
pub use process::{Ended, Running, dying_with_us};
pub use qemu::{Guest, QemuGuest, vfio_user_function};
pub use qmp::Qmp;
pub use runner::{Skip, Trial, rounds};
pub use stream::Stream;
pub use testpmd::{Forward, Layout, Pages, Rate, RunningTestpmd, Testpmd, Totals};

/// A lab that is ready: the root with the peers, the product's binary, and a working folder of the test's own.
///
/// Programs run with the working folder as their current directory, on both sides of the root, so sockets are named by their bare names.
#[derive(Debug)]
pub struct Lab {
    root: PathBuf,
    product: PathBuf,
    work: PathBuf,
}

impl Lab {
    /// A lab of these: the root that [`setup::root`] returned, the `mdevd` binary, and an empty folder below the machine's `/tmp`.
    pub fn new(root: PathBuf, product: PathBuf, work: PathBuf) -> Lab {
        Lab { root, product, work }
    }

    /// The product and nobody else: it is built, and runs in this folder.
    ///
    /// # Panics
    /// When it cannot be built.
    pub fn without_peers(work: &Path) -> Lab {
        let product = mdevd::build().unwrap_or_else(|error| panic!("{error}"));
        Lab::new(PathBuf::new(), product, work.into())
    }

    /// The product, as it is built with this program's profile, beside the peers in `root`.
    ///
    /// # Panics
    /// When it cannot be built.
    pub fn with_peers(root: PathBuf, work: &Path) -> Lab {
        Lab { root, ..Lab::without_peers(work) }
    }

    /// The test's own folder; the runner removes it when the test is over, however it ended.
    pub fn work(&self) -> &Path {
        &self.work
    }

    /// The lab's root folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A command that runs `program` of the lab's root inside it.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(setup::script("enter.sh"));
        command.arg(&self.root).arg(program).current_dir(self.work()).env_remove("LAB_HUGE");
        command
    }

    /// A command that runs the product outside the root, as a user would.
    pub fn product(&self) -> Command {
        let mut command = dying_with_us(&self.product);
        command.current_dir(self.work());
        command
    }
}
