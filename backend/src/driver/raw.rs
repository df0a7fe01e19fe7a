//! A ring's memory without any rule: for drivers that misbehave.
use super::memory::Part;
use mdev_protocol::virtio::packed::{self, EventSuppress, desc_len};
use mdev_protocol::virtio::split::{Desc, FLAGS_OFFSET, IDX_OFFSET, UsedElem, avail_entry, used_entry};
use std::sync::atomic::Ordering;

/// A ring's memory. Slots and descriptors beyond the ring are ignored when written and zero when read.
pub struct RawRing<'q> {
    desc: &'q Part,
    avail: &'q Part,
    used: &'q Part,
    size: u16,
}

impl<'q> RawRing<'q> {
    pub(super) fn new(desc: &'q Part, avail: &'q Part, used: &'q Part, size: u16) -> Self {
        RawRing { desc, avail, used, size }
    }

    /// Reads a descriptor.
    pub fn desc(&self, place: u16) -> Desc {
        let at = usize::from(place) * size_of::<Desc>();
        self.desc.slice().and_then(|table| table.read(at)).unwrap_or_default()
    }

    /// Writes a descriptor.
    pub fn set_desc(&self, place: u16, desc: Desc) {
        let at = usize::from(place) * size_of::<Desc>();
        let _ = self.desc.slice().and_then(|table| table.write(at, desc));
    }

    /// Writes an entry of the available ring; the slot is taken modulo the ring's size.
    pub fn set_avail_entry(&self, slot: u16, head: u16) {
        let at = avail_entry(slot & (self.size - 1));
        let _ = self.avail.slice().and_then(|avail| avail.store_u16(at, head, Ordering::Relaxed));
    }

    /// The available index.
    pub fn avail_index(&self) -> u16 {
        self.avail.slice().and_then(|avail| avail.load_u16(IDX_OFFSET, Ordering::Acquire)).unwrap_or(0)
    }

    /// Writes the available index, after everything else that was written.
    pub fn set_avail_index(&self, index: u16) {
        let _ = self.avail.slice().and_then(|avail| avail.store_u16(IDX_OFFSET, index, Ordering::Release));
    }

    /// Writes the available ring's flags.
    pub fn set_avail_flags(&self, flags: u16) {
        let _ = self.avail.slice().and_then(|avail| avail.store_u16(FLAGS_OFFSET, flags, Ordering::Release));
    }

    /// The used index.
    pub fn used_index(&self) -> u16 {
        self.used.slice().and_then(|used| used.load_u16(IDX_OFFSET, Ordering::Acquire)).unwrap_or(0)
    }

    /// The used ring's flags.
    pub fn used_flags(&self) -> u16 {
        self.used.slice().and_then(|used| used.load_u16(FLAGS_OFFSET, Ordering::Acquire)).unwrap_or(0)
    }

    /// An entry of the used ring; the slot is taken modulo the ring's size.
    pub fn used_entry(&self, slot: u16) -> UsedElem {
        let at = used_entry(slot & (self.size - 1));
        self.used.slice().and_then(|used| used.read(at)).unwrap_or_default()
    }

    /// Writes an entry of the used ring, as a device does.
    pub fn set_used_entry(&self, slot: u16, entry: UsedElem) {
        let at = used_entry(slot & (self.size - 1));
        let _ = self.used.slice().and_then(|used| used.write(at, entry));
    }

    /// Writes the used index, after everything else that was written.
    pub fn set_used_index(&self, index: u16) {
        let _ = self.used.slice().and_then(|used| used.store_u16(IDX_OFFSET, index, Ordering::Release));
    }

    /// Writes the used ring's flags.
    pub fn set_used_flags(&self, flags: u16) {
        let _ = self.used.slice().and_then(|used| used.store_u16(FLAGS_OFFSET, flags, Ordering::Release));
    }

    /// An entry of the available ring; the slot is taken modulo the ring's size.
    pub fn avail_entry(&self, slot: u16) -> u16 {
        let at = avail_entry(slot & (self.size - 1));
        self.avail.slice().and_then(|avail| avail.load_u16(at, Ordering::Relaxed)).unwrap_or(0)
    }

    /// The index whose passing the device wants a kick for (with event index).
    pub fn avail_event(&self) -> u16 {
        let at = used_entry(self.size);
        self.used.slice().and_then(|used| used.load_u16(at, Ordering::Acquire)).unwrap_or(0)
    }
}

/// A packed ring's memory. Slots beyond the ring are ignored when written and zero when read.
pub struct RawPacked<'q> {
    ring: &'q Part,
    driver_event: &'q Part,
    device_event: &'q Part,
    size: u16,
}

impl<'q> RawPacked<'q> {
    pub(super) fn new(ring: &'q Part, driver_event: &'q Part, device_event: &'q Part, size: u16) -> Self {
        RawPacked { ring, driver_event, device_event, size }
    }

    /// Descriptors of the ring.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Reads a descriptor; its flags first.
    pub fn desc(&self, slot: u16) -> packed::Desc {
        let at = desc_len(slot);
        let Some(ring) = self.ring.slice() else { return packed::Desc::default() };
        let flags = ring.load_u16(at + packed::FLAGS_OFFSET, Ordering::Acquire).map_or(0, u16::from_le);
        let desc: packed::Desc = ring.read(at).unwrap_or_default();
        packed::Desc { flags, ..desc }
    }

    /// Writes a descriptor; its flags last.
    pub fn set_desc(&self, slot: u16, desc: packed::Desc) {
        let at = desc_len(slot);
        let Some(ring) = self.ring.slice() else { return };
        let _ = ring.store_u64(at, desc.addr.to_le(), Ordering::Relaxed);
        self.set_used(slot, desc);
    }

    /// Writes what a device writes of a used descriptor, all but the address; its flags last.
    pub fn set_used(&self, slot: u16, desc: packed::Desc) {
        let at = desc_len(slot);
        let Some(ring) = self.ring.slice() else { return };
        let _ = ring.store_u32(at + packed::LEN_OFFSET, desc.len.to_le(), Ordering::Relaxed);
        let _ = ring.store_u16(at + packed::ID_OFFSET, desc.id.to_le(), Ordering::Relaxed);
        let _ = ring.store_u16(at + packed::FLAGS_OFFSET, desc.flags.to_le(), Ordering::Release);
    }

    /// What the driver wants to hear of.
    pub fn driver_event(&self) -> EventSuppress {
        self.driver_event.slice().and_then(|event| event.read(0)).unwrap_or_default()
    }

    /// Writes what the driver wants to hear of.
    pub fn set_driver_event(&self, event: EventSuppress) {
        let _ = self.driver_event.slice().and_then(|place| place.write(0, event));
    }

    /// What the device wants to hear of.
    pub fn device_event(&self) -> EventSuppress {
        self.device_event.slice().and_then(|event| event.read(0)).unwrap_or_default()
    }

    /// Writes what the device wants to hear of.
    pub fn set_device_event(&self, event: EventSuppress) {
        let _ = self.device_event.slice().and_then(|place| place.write(0, event));
    }
}
