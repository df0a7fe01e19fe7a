//! A controller and a host of somebody's choice, as a plain function of bytes: for libFuzzer and for `cargo test`.

use std::sync::Arc;

use mdev_dma::IovaRange;
use mdev_pin::Access;
use mdev_protocol::nvme::register::{ACQ, AQA, ASQ, CC, CSTS};

use super::{Controller, Host};
use crate::device::fuzzing::Guest;
use crate::device::nvme::{
    Doorbells, Namespace, NamespaceConfig, NvmeConfig, NvmeDevice, SubmissionSetup, Vectors,
};
use crate::store::StoreKind;

/// Bytes of a step.
const STEP: usize = 12;
/// CC: enabled, entries of 64 and 16 bytes.
const ENABLED: u32 = 0x46_0001;
/// Where the admin completion queue is.
const COMPLETIONS: u64 = 0x1000;

/// Workers that end queues when they are told to.
struct Workers {
    access: Access,
    stopping: Vec<u16>,
}

impl Host for Workers {
    fn access(&self) -> &Access {
        &self.access
    }

    fn start(&mut self, setup: SubmissionSetup) {
        assert!((2..=4096).contains(&setup.entries), "a queue of {} entries", setup.entries);
    }

    fn stop(&mut self, qid: u16) {
        self.stopping.push(qid);
    }

    fn keep_whole(&mut self, _memory: Vec<IovaRange>) {}

    fn abort(&mut self, _qid: u16, _cid: u16, _number: u64) {}

    fn kick(&mut self, _qid: u16) {}
}

/// Does to an enabled controller what `script` says: `[count, steps of 12 bytes ..., memory ...]`. The memory begins with the admin
/// submission queue of 64 entries; the completion queue is at 4096, and device addresses are offsets. A step is
/// `[kind, offset (16 bits), length, data (8 bytes)]`: it writes (0) or reads (1) registers, writes the configuration space (2) or
/// the table of vectors (3), ends queues that are to end (4), or detaches and attaches a namespace (5); all modulo 6.
///
/// Whatever the bytes are, the controller can be disabled behind them, all its queues end, and it can be enabled again.
pub fn fuzz_controller(script: &[u8]) {
    let [count, rest @ ..] = script else { return };
    let (steps, memory) = rest.split_at(usize::from(*count).saturating_mul(STEP).min(rest.len()));
    // Out of descriptors or memory is nothing that was to be tried.
    let _ = run(steps, memory);
}

fn run(steps: &[u8], memory: &[u8]) -> Option<()> {
    let guest = Guest::new(memory)?;
    let kind = StoreKind::Null { size: 1 << 20 };
    let config = NvmeConfig { name: "fuzz".to_owned(), namespaces: Vec::new(), queues: 2, serial: None };
    let namespace = Namespace::open("fuzz", &NamespaceConfig::new(1, kind)).ok()?;
    let device = NvmeDevice::with_namespaces(config, vec![(namespace, true)]).ok()?;
    let doorbells = Arc::new(Doorbells::new().ok()?);
    let mut controller = Controller::new(&device, doorbells, Arc::new(Vectors::new(3)));
    let mut workers = Workers { access: guest.access().clone(), stopping: Vec::new() };
    enable(&mut controller, &mut workers);
    for step in steps.chunks_exact(STEP) {
        let [kind, low, high, len, data @ ..] = step else { break };
        let offset = u64::from(u16::from_le_bytes([*low, *high]));
        let data = data.get(..usize::from(len % 9)).unwrap_or_default();
        match kind % 6 {
            0 => controller.write_bar0(offset, data, &mut workers),
            1 => controller.read_bar0(offset, &mut [0; 8]),
            2 => controller.write_config(offset, data, &mut workers),
            3 => controller.write_bar4(offset, data),
            4 => end(&mut controller, &mut workers),
            _ => {
                let namespaces = &device.shared().namespaces;
                let _ = namespaces.detach(1).or_else(|_| namespaces.attach(1));
                controller.namespaces_changed(&mut workers);
            }
        }
    }
    write(&mut controller, &mut workers, CC, 0);
    end(&mut controller, &mut workers);
    assert!(controller.is_quiet(), "queues that were to end have not");
    assert_eq!(status(&mut controller), 0, "a controller cannot be disabled");
    enable(&mut controller, &mut workers);
    assert_eq!(status(&mut controller) & 1, 1, "a controller cannot be enabled");
    Some(())
}

fn write(controller: &mut Controller, workers: &mut Workers, register: u32, value: u32) {
    controller.write_bar0(register.into(), &value.to_le_bytes(), workers);
}

fn status(controller: &mut Controller) -> u32 {
    let mut bytes = [0; 4];
    controller.read_bar0(CSTS.into(), &mut bytes);
    u32::from_le_bytes(bytes)
}

fn enable(controller: &mut Controller, workers: &mut Workers) {
    write(controller, workers, AQA, 63 << 16 | 63);
    controller.write_bar0(ASQ.into(), &0u64.to_le_bytes(), workers);
    controller.write_bar0(ACQ.into(), &COMPLETIONS.to_le_bytes(), workers);
    write(controller, workers, CC, ENABLED);
}

fn end(controller: &mut Controller, workers: &mut Workers) {
    for qid in std::mem::take(&mut workers.stopping) {
        controller.stopped(qid, workers);
    }
}
