//! A queue of requests on real guest memory: what is served, what is refused and how, and what a store that takes its time
//! does to it.

mod held;
mod refused;
mod rig;
mod served;

use mdev_protocol::virtio::blk::BlkConfig as Space;
use mdev_protocol::virtio::feature::VIRTIO_F_IN_ORDER;
use zerocopy::FromBytes;

use super::*;

fn config(store: &str) -> BlkConfig {
    let store = store.parse().unwrap();
    BlkConfig { name: "blk".into(), store, queues: 1, read_only: false, serial: None }
}

fn space(device: &BlkDevice) -> Space {
    let mut bytes = [0xff; Space::LEN];
    device.config(0, &mut bytes).unwrap();
    Space::read_from_bytes(&bytes).unwrap()
}

#[test]
fn features_follow_the_configuration() {
    let plain = BlkDevice::new(config("null,size=1M")).unwrap();
    assert_eq!(plain.features() & (VIRTIO_BLK_F_MQ | VIRTIO_BLK_F_RO | VIRTIO_F_IN_ORDER), 0);
    assert_ne!(plain.features() & VIRTIO_BLK_F_DISCARD, 0);
    let full = BlkConfig { queues: 4, read_only: true, ..config("null,size=1M") };
    let full = BlkDevice::new(full).unwrap();
    assert_eq!(full.features() & (VIRTIO_BLK_F_MQ | VIRTIO_BLK_F_RO), VIRTIO_BLK_F_MQ | VIRTIO_BLK_F_RO);
    assert_eq!(full.features() & (VIRTIO_BLK_F_DISCARD | VIRTIO_BLK_F_WRITE_ZEROES), 0);
    assert_eq!((full.queue_count(), full.queue_number(), full.group(3)), (4, 4, 3));
    assert!(full.queue_stats(3).is_some() && full.queue_stats(4).is_none());
    assert!(full.check_features(0).unwrap_err().contains("VIRTIO_F_VERSION_1"));
}

#[test]
fn configurations_that_cannot_be_are_refused() {
    let error =
        |config: BlkConfig| BlkDevice::new(config).err().map(|error| error.to_string()).unwrap_or_default();
    assert!(error(BlkConfig { queues: 0, ..config("null,size=1M") }).contains("1 to 256"));
    assert!(error(BlkConfig { queues: 257, ..config("null,size=1M") }).contains("1 to 256"));
    let serial = |text: &str| error(BlkConfig { serial: Some(text.into()), ..config("null,size=1M") });
    assert!(serial("123456789012345678901").contains("20 bytes"));
    assert!(serial("a\nb").contains("printable"));
    assert_eq!(serial("12345678901234567890"), "");
    assert!(error(config("file=/nowhere/at/all")).contains("/nowhere/at/all"));
}

#[test]
fn configuration_space_says_size_limits_and_queues() {
    let device = BlkDevice::new(BlkConfig { queues: 3, ..config("mem,size=1M") }).unwrap();
    let space = space(&device);
    assert_eq!(u64::from_le_bytes(space.capacity), 2048);
    assert_eq!((u32::from_le_bytes(space.blk_size), space.physical_block_exp), (512, 3));
    assert_eq!(u16::from_le_bytes(space.num_queues), 3);
    assert_eq!(u32::from_le_bytes(space.seg_max), 126);
    assert_eq!((space.writeback, space.write_zeroes_may_unmap), (1, 1));
    let limit = device.store().limits().max_discard / 512;
    assert_eq!(u64::from(u32::from_le_bytes(space.max_discard_sectors)), limit);
}

#[test]
fn what_lies_behind_the_space_reads_as_zeros_up_to_a_limit() {
    let device = BlkDevice::new(config("null,size=1M")).unwrap();
    let mut bytes = [0xff; 256];
    device.config(0, &mut bytes).unwrap();
    assert!(bytes[Space::LEN..].iter().all(|&byte| byte == 0));
    assert!(device.config(1, &mut bytes).is_err());
    assert!(device.config(u32::MAX, &mut bytes[..1]).is_err());
}

#[test]
fn driver_may_write_the_cache_mode_and_nothing_else() {
    let device = BlkDevice::new(config("null,size=1M")).unwrap();
    let at = Space::WRITEBACK_OFFSET as u32;
    device.set_config(at, &[0]).unwrap();
    assert_eq!(space(&device).writeback, 0);
    for (offset, data) in [(at, vec![2]), (0, vec![1]), (at, vec![0, 0]), (at, vec![]), (u32::MAX, vec![1])] {
        assert!(device.set_config(offset, &data).is_err(), "{offset} {data:?}");
    }
    device.reset();
    assert_eq!(space(&device).writeback, 1);
}
