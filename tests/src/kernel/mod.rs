//! Devices of the product served to a model of the host's kernel, and what a driver says to that.
//!
//! [`Serving`] is what the daemon is for a device of the kernel: one worker and one session on threads of their own. It can be killed
//! at any moment: what it was about to do is not done, what it has open is closed, and the model and the files in its
//! folder stay. [`start`] and its neighbours are a driver's part.

mod serving;

use std::sync::Arc;
use std::time::Duration;

use mdev_dma::{Iova, IovaRange};
use mdev_protocol::vduse::VqState;
use mdev_protocol::vhost_user::IotlbPerm;
use mdev_protocol::virtio::packed::Position;
use mdev_protocol::virtio::status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK};
use mdevd::driver::{GuestMemory, Virtqueue};
use mdevd::session::vduse::model::{Action, Entry, Model, Outcome, Place};

pub use serving::Serving;

/// No answer takes longer, whatever the device does; a busy machine may need the rest.
pub const BOUND: Duration = Duration::from_secs(5);

/// Memory as the kernel maps it: an entry for each region.
///
/// # Panics
/// No descriptors left.
pub fn entries(memory: &GuestMemory) -> Vec<Entry> {
    let entry = |region: &mdevd::driver::Region| Entry {
        range: region.range,
        perm: IotlbPerm::READ | IotlbPerm::WRITE,
        file: Arc::new(region.extent.file.as_fd().try_clone_to_owned().expect("a descriptor")),
        offset: region.extent.offset,
    };
    memory.regions().iter().map(entry).collect()
}

/// The same memory in two entries that meet so many bytes behind its beginning.
///
/// # Panics
/// When one of them had no bytes.
pub fn cut(entry: &Entry, at: u64) -> [Entry; 2] {
    let (first, last) = (entry.range.first().0, entry.range.last().0);
    let range = |first, last| IovaRange::new(Iova(first), Iova(last)).expect("some bytes");
    let lower = Entry { range: range(first, first + at - 1), ..entry.clone() };
    let upper = Entry { range: range(first + at, last), offset: entry.offset + at, ..entry.clone() };
    [lower, upper]
}

/// Where a queue is, as its driver says it before it uses it.
pub fn place(queue: &impl Virtqueue, packed: bool) -> Place {
    let addresses = queue.addresses();
    let beginning = VqState::Packed { avail: Position::START, used: Position::START };
    Place {
        size: queue.options().size.into(),
        parts: [addresses.desc.0, addresses.avail.0, addresses.used.0],
        state: packed.then_some(beginning),
    }
}

/// What a driver does with a device before it uses it.
///
/// # Panics
/// The device refuses something.
pub fn start(model: &Model, features: u64, entries: Vec<Entry>, places: &[Place]) {
    let done = |action: Action| {
        let what = format!("{action:?}");
        assert_eq!(model.carry_out(action), Outcome::Done, "{what}");
    };
    done(Action::Reset);
    done(Action::SetStatus(ACKNOWLEDGE | DRIVER));
    model.set_features(features);
    done(Action::SetStatus(ACKNOWLEDGE | DRIVER | FEATURES_OK));
    done(Action::SetMap(entries));
    for (index, place) in (0..).zip(places) {
        model.place(index, *place);
        done(Action::SetReady { index, ready: true });
    }
    done(Action::SetStatus(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK));
}
