//! The product against peers nobody here wrote. `tests/lab/README.md` says what these tests need and change.

mod blk_client;
mod blk_guest;
mod blk_image;
mod blk_lifecycle;
mod blk_restart;
mod blk_update;
mod controller;
mod disk;
mod net_bridge;
mod net_client;
mod net_connections;
mod net_guest;
mod net_iommu;
mod net_lifecycle;
mod net_memory;
mod net_restart;
mod net_serve;
mod net_tap;
mod net_testpmd;
mod net_update;
mod nvme_guest;
mod nvme_host;
mod nvme_image;
mod nvme_lifecycle;
mod peers;
mod scenarios;
mod tap;
mod tap_pair;
mod traffic;
mod vduse;
mod vduse_blk;
mod vduse_lifecycle;
mod vduse_net;
mod vduse_restart;
mod vduse_serve;
mod vduse_vhost;

use mdev_tests::lab::{Trial, runner};
use mdev_tests::steady::Counting;

/// For the trial that wants to see a burst ask for no memory.
#[global_allocator]
static HEAP: Counting = Counting;

fn main() -> std::process::ExitCode {
    let mut trials: Vec<Trial> = Vec::new();
    trials.extend(peers::trials());
    trials.extend(net_testpmd::trials());
    trials.extend(net_connections::trials());
    trials.extend(net_guest::trials());
    trials.extend(net_iommu::trials());
    trials.extend(net_restart::trials());
    trials.extend(net_client::trials());
    trials.extend(net_serve::trials());
    trials.extend(tap::trials());
    trials.extend(net_tap::trials());
    trials.extend(net_bridge::trials());
    trials.extend(net_memory::trials());
    trials.extend(net_lifecycle::trials());
    trials.extend(net_update::trials());
    trials.extend(scenarios::trials());
    trials.extend(blk_client::trials());
    trials.extend(blk_guest::trials());
    trials.extend(blk_image::trials());
    trials.extend(blk_lifecycle::trials());
    trials.extend(blk_restart::trials());
    trials.extend(blk_update::trials());
    trials.extend(nvme_guest::trials());
    trials.extend(nvme_host::trials());
    trials.extend(nvme_image::trials());
    trials.extend(nvme_lifecycle::trials());
    trials.extend(vduse_blk::trials());
    trials.extend(vduse_lifecycle::trials());
    trials.extend(vduse_restart::trials());
    trials.extend(vduse_net::trials());
    trials.extend(vduse_serve::trials());
    trials.extend(vduse_vhost::trials());
    runner::main(&trials)
}
