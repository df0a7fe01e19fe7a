//! Frames of a network device through the kernel.

use std::sync::Arc;
use std::time::Duration;

use mdev_protocol::virtio::feature::{VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1, VIRTIO_RING_F_EVENT_IDX};
use mdev_protocol::virtio::net::{VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MRG_RXBUF};
use mdev_protocol::virtio::status::{ACKNOWLEDGE, DRIVER, FEATURES_OK};
use mdev_tests::kernel::{self, Serving};
use mdev_tests::stage::{Port, await_that};
use mdevd::device::VirtioDevice;
use mdevd::device::net::{NetConfig, NetDevice};
use mdevd::driver::{GuestMemory, MemoryOptions, RingOptions};
use mdevd::link::LinkKind;
use mdevd::session::vduse::model::{Action, Model, Outcome};

use super::model;

const FEATURES: u64 = VIRTIO_F_VERSION_1 | VIRTIO_NET_F_MRG_RXBUF | VIRTIO_RING_F_EVENT_IDX;

fn card() -> Arc<dyn VirtioDevice> {
    let link = LinkKind::Loopback;
    let config = NetConfig { name: "net".into(), queue_pairs: 1, mac: None, mtu: None, link };
    Arc::new(NetDevice::new(config).expect("a network device"))
}

struct Guest {
    model: Model,
    port: Port,
    _memory: GuestMemory,
}

impl Guest {
    fn start(model: &Model) -> Guest {
        let mut memory =
            GuestMemory::new(MemoryOptions { size: 64 << 20, ..Default::default() }).expect("memory");
        let ring = RingOptions { event_idx: true, ..RingOptions::plain(128) };
        let port = Port::apart(&mut memory, ring, |_| ()).expect("room");
        let places = [&port.rx, &port.tx].map(|queue| kernel::place(queue, false));
        kernel::start(model, FEATURES, kernel::entries(&memory), &places);
        model.kick(0);
        Guest { model: model.clone(), port, _memory: memory }
    }

    /// Sends frames and takes them back, in order and whole.
    fn exchange(&mut self, frames: u64) {
        let end = self.port.frames().0 + frames;
        await_that("frames come back", || {
            if self.port.send(end).expect("a device that keeps to the rules") {
                self.model.kick(1);
            }
            if self.port.receive().expect("a device that keeps to the rules") {
                self.model.kick(0);
            }
            self.port.frames().1 >= end
        });
    }

    /// Sends frames and takes what comes.
    fn keep_busy(&mut self, frames: u64) {
        self.port.forgive();
        if self.port.send(self.port.frames().0 + frames).expect("a device that keeps to the rules") {
            self.model.kick(1);
        }
        if self.port.receive_anything().expect("a device that keeps to the rules") {
            self.model.kick(0);
        }
    }

    /// Waits until all that was sent has gone, wherever.
    fn settle(&mut self) {
        await_that("every frame that was sent is used", || {
            if self.port.receive_anything().expect("a device that keeps to the rules") {
                self.model.kick(0);
            }
            self.port.tx.ready().expect("a device that keeps to the rules") == self.port.tx.outstanding()
        });
        self.port.receive_anything().expect("a device that keeps to the rules");
        self.port.forgive();
    }
}

#[test]
fn frames_come_back_whole_and_in_order() {
    let device = card();
    let model = model(&device);
    let serving = Serving::start(&model, device, None);
    let mut guest = Guest::start(&model);
    guest.exchange(2000);
    for index in [0, 1] {
        assert!(matches!(model.carry_out(Action::State(index)), Outcome::State(_)));
        guest.exchange(200);
    }
    drop(guest);
    Guest::start(&model).exchange(200);
    assert!(serving.end().is_none());
}

#[test]
fn what_the_kernel_cannot_have_is_not_offered() {
    let device = card();
    let model = model(&device);
    let serving = Serving::start(&model, device, None);
    for unwanted in [VIRTIO_NET_F_CTRL_VQ, VIRTIO_F_RING_PACKED] {
        assert_eq!(model.carry_out(Action::Reset), Outcome::Done);
        model.set_features(FEATURES | unwanted);
        let status = Action::SetStatus(ACKNOWLEDGE | DRIVER | FEATURES_OK);
        assert_eq!(model.carry_out(status), Outcome::Failed);
    }
    assert!(serving.end().is_none());
}

#[test]
fn scenario_26_daemon_restart_goes_on_with_frames() {
    let first = card();
    let model = model(&first);
    let mut serving = Serving::start(&model, first, None);
    let mut guest = Guest::start(&model);
    for round in 0..40 {
        for _ in 0..round {
            guest.keep_busy(7);
            std::thread::sleep(Duration::from_micros(50));
        }
        serving.kill();
        guest.keep_busy(7);
        serving = Serving::start(&model, card(), None);
        guest.settle();
        guest.exchange(50);
    }
    assert!(serving.end().is_none());
}
