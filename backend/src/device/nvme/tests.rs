mod commands;
mod completions;
mod files;
mod held;
mod holes;
mod pointers;
mod random;
mod rig;
mod shadow;

use proptest::prelude::*;

use super::*;
use crate::store::StoreKind;
use mdev_protocol::nvme::status::Status;

fn config(nsids: &[u32]) -> NvmeConfig {
    let namespaces = nsids.iter().map(|&nsid| NamespaceConfig::new(nsid, StoreKind::Null { size: 1 << 20 }));
    NvmeConfig { name: "disk".into(), namespaces: namespaces.collect(), queues: 2, serial: None }
}

fn namespace(nsid: u32) -> Namespace {
    let config = NamespaceConfig::new(nsid, StoreKind::Null { size: 1 << 20 });
    Namespace::open("disk", &config).unwrap()
}

#[test]
fn configurations_that_cannot_be_are_refused_with_their_reason() {
    let error = |config: NvmeConfig| NvmeDevice::new(config).err().map(|error| error.to_string()).unwrap();
    assert!(error(NvmeConfig { queues: 0, ..config(&[1]) }).contains("1 to 128"));
    assert!(error(NvmeConfig { queues: 129, ..config(&[1]) }).contains("1 to 128"));
    assert!(error(NvmeConfig { serial: Some("x".repeat(21)), ..config(&[1]) }).contains("serial number"));
    assert!(error(NvmeConfig { serial: Some(String::new()), ..config(&[1]) }).contains("serial number"));
    assert!(error(config(&[1, 2, 1])).contains("namespace 1 already"));
    assert!(error(config(&[0])).contains("identifier"));
    assert!(error(config(&[MAX_NAMESPACES + 1])).contains("identifier"));
    let mut zero = config(&[1]);
    zero.namespaces[0].eui64 = Some([0; 8]);
    assert!(error(zero).contains("all zeros"));
}

#[test]
fn device_without_a_serial_number_has_the_beginning_of_its_name() {
    let device = NvmeDevice::new(NvmeConfig { name: "büchse of a long name".into(), ..config(&[]) }).unwrap();
    assert_eq!(device.shared().serial, "bchse of a long name");
    assert!(device.submission_stats(0).is_none() && device.submission_stats(2).is_some());
    assert!(device.bell(3).is_none() && device.shared().usage(2).is_some());
}

#[test]
fn derived_identifiers_are_uuids_that_depend_on_every_name() {
    let id = derived_id(&[b"disk", b"1"]);
    assert_eq!((id[6] >> 4, id[8] >> 6), (8, 0b10));
    assert_eq!(id, derived_id(&[b"disk", b"1"]));
    assert_ne!(id, derived_id(&[b"disk", b"2"]));
    assert_ne!(id, derived_id(&[b"disk1", b""]));
}

#[test]
fn generation_changes_with_what_is_attached_only_when_it_does() {
    let namespaces = Namespaces::new(vec![(namespace(3), true), (namespace(1), false)]).unwrap();
    let (generation, attached) = namespaces.attached();
    assert_eq!((attached.get(3).map(|one| one.nsid), attached.get(1).is_some()), (Some(3), false));
    assert_eq!(namespaces.attach(3), Err(NamespaceError::Attached(3)));
    assert_eq!(namespaces.detach(1), Err(NamespaceError::NotAttached(1)));
    assert_eq!(namespaces.detach(2), Err(NamespaceError::Unknown(2)));
    assert_eq!(namespaces.generation(), generation);
    namespaces.attach(1).unwrap();
    assert_ne!(namespaces.generation(), generation);
    let nsids: Vec<u32> = namespaces.attached().1.iter().map(|one| one.nsid).collect();
    assert_eq!(nsids, [1, 3]);
    assert!(attached.get(1).is_none(), "a copy has changed");
}

#[test]
fn mishaps_are_kept_up_to_their_limit_and_counted_beyond() {
    let mishaps = Mishaps::default();
    for cid in 0..100 {
        let status = Status::INVALID_FIELD;
        mishaps.record(Mishap { qid: 1, cid, status, location: 0xffff, block: 0, nsid: 1 });
    }
    let last = mishaps.last();
    assert_eq!((mishaps.count(), last.len()), (100, Mishaps::KEPT));
    assert_eq!((last[0].0, last[0].1.cid, last[63].0), (100, 99, 37));
    mishaps.forget();
    assert_eq!((mishaps.count(), mishaps.last().len()), (100, 0));
}

proptest! {
    #[test]
    fn attached_namespaces_are_those_of_a_naive_set(
        steps in proptest::collection::vec((0u32..4, 1u32..6), 0..40),
    ) {
        let namespaces = Namespaces::new(Vec::new()).unwrap();
        let mut model = std::collections::BTreeMap::new();
        for (what, nsid) in steps {
            let known = model.get(&nsid).copied();
            match what {
                0 => prop_assert_eq!(namespaces.add(namespace(nsid), true).is_ok(), known.is_none()),
                1 => prop_assert_eq!(namespaces.remove(nsid).is_ok(), known.is_some()),
                2 => prop_assert_eq!(namespaces.attach(nsid).is_ok(), known == Some(false)),
                _ => prop_assert_eq!(namespaces.detach(nsid).is_ok(), known == Some(true)),
            }
            match (what, known) {
                (0, None) => drop(model.insert(nsid, true)),
                (1, _) => drop(model.remove(&nsid)),
                (2, Some(_)) => drop(model.insert(nsid, true)),
                (3, Some(_)) => drop(model.insert(nsid, false)),
                _ => {}
            }
            let expected: Vec<u32> = model.iter().filter(|(_, on)| **on).map(|(nsid, _)| *nsid).collect();
            let (generation, attached) = namespaces.attached();
            prop_assert_eq!(generation, namespaces.generation());
            prop_assert_eq!(attached.iter().map(|one| one.nsid).collect::<Vec<_>>(), expected);
            prop_assert_eq!(namespaces.all().len(), model.len());
        }
    }
}
