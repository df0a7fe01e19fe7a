//! One vring as its front-end has described it, and whether it runs.
//!
//! Each message fills in one field. A ring is *started* from `SET_VRING_KICK` to `GET_VRING_BASE`, and *enabled* or
//! not independently of that. It *runs* on a worker once it is started, has a size and addresses, and there is
//! memory; it runs although it is disabled, because its engine must then still discard what the driver sends. What the driver
//! sends before the ring is enabled for the first time waits.

use std::sync::Arc;

use mdev_dma::{FileExtent, Iova};
use mdev_pin::Stretch;
use mdev_protocol::vhost_user::VringAddr;
use mdev_protocol::virtio::feature::{
    VIRTIO_F_IN_ORDER, VIRTIO_F_RING_PACKED, VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};
use mdev_protocol::virtio::packed;
use thiserror::Error;

use super::features::Negotiated;
use super::memory::{Keys, Regions};
use crate::device::{Enabled, Switch};
use crate::ring::{QueueState, RingAddr, RingSetup};
use crate::sys::EventFd;

/// Why a ring cannot be started as it was described.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Error)]
pub enum VringError {
    /// A part does not lie in guest memory with its whole length.
    #[error("the {part} at {address:#x} with {len} bytes is not in guest memory: SET_VRING_ADDR is wrong")]
    Outside {
        /// Which part.
        part: &'static str,
        /// Where it is said to be: an address of the front-end, or an offset in its file.
        address: u64,
        /// Its length, in bytes.
        len: u64,
    },
    /// Two parts share bytes.
    #[error("the {0} and the {1} overlap: SET_VRING_ADDR is wrong")]
    Overlap(&'static str, &'static str),
    /// The features cannot be served.
    #[error("SET_FEATURES was refused, so the device cannot tell how to read the ring")]
    Features,
    /// What came to announce buffers by is no eventfd.
    #[error("the descriptor of SET_VRING_KICK is no eventfd")]
    Kick,
    /// The file of the buffer that came with `SET_INFLIGHT_FD` has shrunk.
    #[error("the buffer of SET_INFLIGHT_FD is lost: its file shrank")]
    Log,
    /// A message that describes the ring was refused and its sender did not ask to be told.
    #[error("a message that describes the ring was refused before")]
    Refused,
}

/// How the driver announces buffers.
#[derive(Clone)]
pub enum Kick {
    /// Not at all: the worker looks.
    Polled,
    /// By an eventfd.
    Event(Arc<EventFd>),
}

/// Where the ring is with its worker.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Run {
    /// It has none.
    Stopped,
    /// It would have one if the device's rings did not run on another connection.
    Waiting,
    /// It runs.
    Running,
    /// It was told to stop and has requests in flight.
    Stopping {
        /// What the answer will carry.
        token: u64,
    },
}

/// Where a part of the ring lies.
#[derive(Clone)]
struct Place {
    /// As the message said.
    told: u64,
    /// In a file, once there is memory there: the front-end may move its own mapping as it likes. Not behind an IOMMU.
    file: Option<FileExtent>,
}

/// What addresses of rings mean.
#[derive(Copy, Clone)]
pub struct Memory<'r> {
    regions: &'r Regions,
    keys: Keys,
    /// They are the guest's, and translated when the ring is opened.
    translated: bool,
}

impl<'r> Memory<'r> {
    /// As the features say.
    pub(super) fn of(regions: &'r Regions, negotiated: &Negotiated) -> Self {
        Memory { regions, keys: negotiated.keys(), translated: negotiated.is_translated() }
    }

    fn extent(&self, address: u64) -> Option<FileExtent> {
        if self.translated { None } else { self.regions.extent(address, self.keys) }
    }
}

/// A vring.
pub struct Vring {
    /// Descriptors (`SET_VRING_NUM`).
    pub size: Option<u16>,
    /// Descriptor table, available ring, used ring, or what a packed ring has there (`SET_VRING_ADDR`).
    places: Option<[Place; 3]>,
    /// Where it starts (`SET_VRING_BASE`), or where it stopped, see [`base_of`]. Nothing if nobody has said.
    pub base: Option<u32>,
    /// Started, and how it is kicked (`SET_VRING_KICK`).
    pub kick: Option<Kick>,
    /// What to signal when buffers were used (`SET_VRING_CALL`).
    pub call: Option<Arc<EventFd>>,
    /// The front-end has said how it wants to be called; otherwise `call` is ours, where calls are messages.
    pub call_told: bool,
    /// What to signal when the ring has failed (`SET_VRING_ERR`).
    pub err: Option<Arc<EventFd>>,
    /// The front-end has said how it wants to hear of failures.
    pub err_told: bool,
    /// Whether it may have side effects (`SET_VRING_ENABLE`).
    pub switch: Switch,
    /// It has failed, and stays so until it is started anew.
    pub failed: bool,
    /// A message that describes it was refused without its sender being told: it must not start with what was there
    /// before.
    pub distrusted: bool,
    /// What the address space keeps whole for it, while it does not stand still.
    pub whole: Vec<Stretch>,
    /// Its chains in flight are recorded, in this run.
    pub keeps_log: bool,
    /// Where it is with its worker.
    pub run: Run,
}

/// Whether a ring can be handed to a worker.
pub enum Plan {
    /// Something is yet to be told.
    Incomplete,
    /// Like this.
    Ready(RingSetup),
}

/// How the parts are called, split and packed.
const PARTS: [&str; 3] = ["descriptor table", "available ring", "used ring"];
const PACKED_PARTS: [&str; 3] =
    ["descriptor ring", "driver's event suppression", "device's event suppression"];

impl Default for Vring {
    fn default() -> Self {
        Self {
            size: None,
            places: None,
            base: None,
            kick: None,
            call: None,
            call_told: false,
            err: None,
            err_told: false,
            switch: Switch::new(Enabled::NotYet),
            failed: false,
            distrusted: false,
            whole: Vec::new(),
            keeps_log: false,
            run: Run::Stopped,
        }
    }
}

impl Vring {
    /// Whether its description may be changed.
    pub fn is_idle(&self) -> bool {
        matches!(self.run, Run::Stopped | Run::Waiting)
    }

    /// Whether it was told to stop and has requests in flight.
    pub fn is_stopping(&self) -> bool {
        matches!(self.run, Run::Stopping { .. })
    }

    /// Takes the addresses of a message, translated as far as there is memory.
    pub fn place(&mut self, addr: &VringAddr, memory: Memory<'_>) {
        self.places = Some(told(addr).map(|told| Place { told, file: memory.extent(told) }));
    }

    /// Whether a message names the places that are known already.
    pub fn is_placed_at(&self, addr: &VringAddr, memory: Memory<'_>) -> bool {
        let Some(places) = &self.places else { return false };
        places.iter().zip(told(addr)).all(|(place, address)| match &place.file {
            Some(known) if !memory.translated => {
                memory.extent(address).is_some_and(|extent| extent.same_place(known))
            }
            _ => place.told == address,
        })
    }

    /// Everything a worker has to know of the ring, if it is complete.
    ///
    /// # Errors
    /// When the parts do not lie in guest memory, or in each other.
    pub fn plan(&mut self, memory: Memory<'_>, features: u64) -> Result<Plan, VringError> {
        let (Some(size), Some(places)) = (self.size, &mut self.places) else { return Ok(Plan::Incomplete) };
        if self.kick.is_none() || memory.regions.is_empty() {
            return Ok(Plan::Incomplete);
        }
        let event_idx = features & VIRTIO_RING_F_EVENT_IDX != 0;
        let packed = features & VIRTIO_F_RING_PACKED != 0;
        let in_order = features & VIRTIO_F_IN_ORDER != 0;
        let indirect = features & VIRTIO_RING_F_INDIRECT_DESC != 0;
        let state = state_of(self.base, packed);
        let ready = |[desc, avail, used]: [RingAddr; 3]| {
            let log = None;
            Plan::Ready(RingSetup {
                size,
                desc,
                avail,
                used,
                packed,
                in_order,
                event_idx,
                indirect,
                state,
                log,
            })
        };
        if memory.translated {
            // Whether there is memory is found out when the ring is opened, and what is missing is asked for.
            return Ok(ready(places.each_ref().map(|place| RingAddr::Iova(Iova(place.told)))));
        }
        let (parts, lengths) = match packed {
            true => (PACKED_PARTS, packed_lengths(size)),
            false => (PARTS, lengths(size, event_idx)),
        };

        let mut found = Vec::with_capacity(parts.len());
        for ((place, part), len) in places.iter_mut().zip(parts).zip(lengths) {
            if place.file.is_none() {
                place.file = memory.extent(place.told);
            }
            let Some(extent) = place.file.clone() else {
                return Err(VringError::Outside { part, address: place.told, len });
            };
            if !memory.regions.maps(&extent, len) {
                return Err(VringError::Outside { part, address: extent.offset, len });
            }
            found.push(Found { part, extent, len });
        }
        let Ok([desc, avail, used]) = <[Found; 3]>::try_from(found) else { return Ok(Plan::Incomplete) };
        for (a, b) in [(&desc, &avail), (&desc, &used), (&avail, &used)] {
            if a.overlaps(b) {
                return Err(VringError::Overlap(a.part, b.part));
            }
        }
        Ok(ready([desc, avail, used].map(|found| RingAddr::Extent(found.extent))))
    }
}

/// A part and where it lies.
struct Found {
    part: &'static str,
    extent: FileExtent,
    len: u64,
}

impl Found {
    fn overlaps(&self, other: &Found) -> bool {
        let end = |found: &Found| found.extent.offset.saturating_add(found.len);
        self.extent.file.id() == other.extent.file.id()
            && self.extent.offset < end(other)
            && other.extent.offset < end(self)
    }
}

fn told(addr: &VringAddr) -> [u64; 3] {
    [addr.desc, addr.avail, addr.used]
}

/// Bytes of the parts (virtio 1.3, section 2.7): 16 a descriptor, 2 and 8 an entry behind 4 bytes of flags and
/// index, and 2 behind the entries where the other side's event index lives.
fn lengths(size: u16, event_idx: bool) -> [u64; 3] {
    let entries = u64::from(size);
    let frame = if event_idx { 6 } else { 4 };
    let [desc, avail, used] = [16, 2, 8].map(|entry| entries.saturating_mul(entry));
    [desc, avail.saturating_add(frame), used.saturating_add(frame)]
}

/// Bytes of the parts of a packed ring (section 2.8).
fn packed_lengths(size: u16) -> [u64; 3] {
    [packed::desc_len(size), packed::EVENT_LEN, packed::EVENT_LEN].map(|len| len as u64)
}

/// Where a ring stands, as `GET_VRING_BASE` says it: the available index of a split ring; of a packed ring in bits 0 to 14 the
/// next available slot, in bit 15 its wrap counter, and in bits 16 to 31 the same of the next used slot.
pub fn base_of(state: QueueState) -> u32 {
    u32::from(state.next_avail) | u32::from(state.next_used.unwrap_or(0)) << 16
}

/// The opposite of [`base_of`]. Front-ends and back-ends of DPDK know only one position of a packed ring and leave the upper
/// half zero; nothing is in flight between two runs then, so that both positions are the same.
pub fn state_of(base: Option<u32>, packed: bool) -> QueueState {
    let Some(base) = base else { return QueueState::fresh(packed) };
    let (avail, used) = (base as u16, (base >> 16) as u16);
    match packed {
        false => QueueState::split(avail),
        true => QueueState { next_avail: avail, next_used: Some(if used == 0 { avail } else { used }) },
    }
}

#[cfg(test)]
mod tests;
