//! Drivers on devices that are served to a model of the host's kernel: requests and frames through sessions and workers of the
//! product, tables that change under load, stores that do not answer, and servers that are killed.

mod blk;
mod late;
mod net;
mod restart;
mod tables;

use std::sync::Arc;

use mdevd::device::VirtioDevice;
use mdevd::device::blk::{BlkConfig, BlkDevice};
use mdevd::session::vduse::model::Model;
use mdevd::store::Store;
use mdevd::store::held::Held;

/// Blocks of a disk.
const BLOCKS: u64 = 64;

fn disk(store: Store) -> Arc<dyn VirtioDevice> {
    let store_kind = "null,size=512".parse().expect("a kind of store");
    let config =
        BlkConfig { name: "disk".into(), store: store_kind, queues: 2, read_only: false, serial: None };
    Arc::new(BlkDevice::on(config, store).expect("a disk"))
}

fn model(device: &Arc<dyn VirtioDevice>) -> Model {
    Model::new(device.queue_count(), vec![0; device.config_len()]).expect("a model")
}

fn held() -> Held {
    Held::new(vec![0; (BLOCKS * 4096) as usize])
}
