//! Queue pairs on real guest memory: frames, drops, and what a hostile driver can and cannot do.

mod drivers;
mod frames;
mod hostile;
mod pair;
mod peers;
mod running;

use pair::config;

use super::*;
use crate::device::Device;

#[test]
fn features_follow_the_configuration() {
    let plain = NetDevice::new(config(LinkKind::Null)).unwrap();
    assert_eq!(plain.features() & (F_MQ | F_MAC | F_MTU), 0);
    assert_eq!((plain.queue_count(), plain.queue_number()), (2, 1));
    let full = NetConfig { queue_pairs: 4, mac: Some([2; 6]), mtu: Some(9000), ..config(LinkKind::Null) };
    let full = NetDevice::new(full).unwrap();
    assert_eq!(full.features() & (F_MQ | F_MAC | F_MTU), F_MQ | F_MAC | F_MTU);
    assert_eq!((full.queue_count(), full.queue_number()), (8, 4));
    assert_eq!((full.group(6), full.group(7)), (3, 3));
    assert!(full.queue_stats(7).is_some() && full.queue_stats(8).is_none());
}

#[test]
fn legacy_driver_is_refused_in_clear_words() {
    let device = NetDevice::new(config(LinkKind::Null)).unwrap();
    assert!(device.check_features(F_VERSION_1).is_ok());
    let text = device.check_features(F_MRG_RXBUF).unwrap_err();
    assert!(text.contains("VIRTIO_F_VERSION_1"), "{text}");
}

#[test]
fn configurations_that_cannot_be_are_refused() {
    let with = |change: fn(&mut NetConfig)| {
        let mut config = config(LinkKind::Null);
        change(&mut config);
        NetDevice::new(config).err()
    };
    assert_eq!(with(|config| config.queue_pairs = 0), Some(NetConfigError::QueuePairs(0)));
    assert_eq!(with(|config| config.queue_pairs = 17), Some(NetConfigError::QueuePairs(17)));
    assert_eq!(with(|config| config.mtu = Some(67)), Some(NetConfigError::Mtu(67)));
    assert_eq!(with(|config| config.mac = Some([1, 0, 0, 0, 0, 0])), Some(NetConfigError::GroupAddress));
    assert_eq!(with(|config| config.queue_pairs = 16), None);
}

#[test]
fn mtu_of_the_front_end_must_fit() {
    let device = NetDevice::new(NetConfig { mtu: Some(1500), ..config(LinkKind::Null) }).unwrap();
    assert!(device.set_mtu(1500).is_ok());
    assert!(device.set_mtu(1501).is_err());
    assert!(device.set_mtu(67).is_err());
}
