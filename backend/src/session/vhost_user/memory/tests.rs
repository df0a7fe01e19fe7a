//! Regions against a model that knows every byte by itself.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use mdev_dma::FilePolicy;
use mdev_protocol::vhost_user::MemoryRegion;
use proptest::prelude::*;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::{Added, Keys, MemoryError, Regions};

const FILE_LEN: u64 = 64;

fn files() -> Vec<OwnedFd> {
    let file = |_| {
        let fd = memfd_create("model", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, FILE_LEN).unwrap();
        fd
    };
    (0..3).map(file).collect()
}

#[derive(Clone, Debug)]
enum Step {
    Add(MemoryRegion, usize),
    Remove(usize),
    RemoveUnknown(MemoryRegion),
    Replace(Vec<(MemoryRegion, usize)>),
}

fn region() -> impl Strategy<Value = MemoryRegion> {
    (0..40u64, 0..12u64, 0..40u64, 0..60u64).prop_map(|(guest_addr, size, user_addr, mmap_offset)| {
        MemoryRegion { guest_addr, size, user_addr, mmap_offset }
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (region(), 0..3usize).prop_map(|(region, file)| Step::Add(region, file)),
        2 => (0..8usize).prop_map(Step::Remove),
        1 => region().prop_map(Step::RemoveUnknown),
        1 => prop::collection::vec((region(), 0..3usize), 0..4).prop_map(Step::Replace),
    ]
}

/// What the model knows: the regions that were accepted.
type Model = Vec<(MemoryRegion, usize)>;

fn bytes(first: u64, size: u64) -> impl Iterator<Item = u64> {
    first..first + size
}

fn fits(model: &Model, wire: &MemoryRegion, keys: Keys) -> bool {
    let guest = |r: &MemoryRegion| bytes(r.guest_addr, r.size).collect::<Vec<_>>();
    let user = |r: &MemoryRegion| bytes(r.user_addr, r.size).collect::<Vec<_>>();
    let shares = |a: Vec<u64>, b: Vec<u64>| a.iter().any(|byte| b.contains(byte));
    wire.size > 0
        && wire.mmap_offset + wire.size <= FILE_LEN
        && !model.iter().any(|(there, _)| {
            shares(guest(there), guest(wire)) || keys == Keys::User && shares(user(there), user(wire))
        })
}

fn is_named(there: &MemoryRegion, wire: &MemoryRegion, keys: Keys) -> bool {
    there.guest_addr == wire.guest_addr
        && there.size == wire.size
        && (keys == Keys::Guest || there.user_addr == wire.user_addr)
}

proptest! {
    #[test]
    fn regions_agree_with_a_model_of_single_bytes(
        steps in prop::collection::vec(step(), 1..30),
        guest_keys in any::<bool>(),
    ) {
        let keys = if guest_keys { Keys::Guest } else { Keys::User };
        let files = files();
        let fd = |file: usize| files[file].try_clone().unwrap();
        let policy = FilePolicy::default();
        let mut regions = Regions::default();
        let mut model: Model = Vec::new();
        for step in steps {
            match step {
                Step::Add(wire, file) => {
                    let there = model.iter().any(|(known, of)| {
                        is_named(known, &wire, keys) && known.mmap_offset == wire.mmap_offset && *of == file
                    });
                    match regions.with(&wire, fd(file), keys, &policy) {
                        Ok(Added::AlreadyThere) => prop_assert!(there),
                        Ok(Added::Table(next)) => {
                            prop_assert!(fits(&model, &wire, keys));
                            regions = next;
                            model.push((wire, file));
                        }
                        Err(_) => prop_assert!(!there && !fits(&model, &wire, keys)),
                    }
                }
                Step::Remove(at) => {
                    let Some((wire, _)) = model.get(at).copied() else { continue };
                    regions = regions.without(&wire, keys).unwrap();
                    model.remove(at);
                }
                Step::RemoveUnknown(wire) => {
                    let there = model.iter().any(|(known, _)| is_named(known, &wire, keys));
                    match regions.without(&wire, keys) {
                        Ok(_) => prop_assert!(there),
                        Err(error) => {
                            let not_found = matches!(error, MemoryError::NotFound { .. });
                            prop_assert!(!there && not_found);
                        }
                    }
                }
                Step::Replace(table) => {
                    let mut wanted: Model = Vec::new();
                    let good = table.iter().all(|(wire, file)| {
                        let good = fits(&wanted, wire, keys);
                        wanted.push((*wire, *file));
                        good
                    });
                    let wires: Vec<_> = table.iter().map(|(wire, _)| *wire).collect();
                    let fds = table.iter().map(|(_, file)| fd(*file));
                    match regions.replaced(&wires, fds, keys, &policy) {
                        Ok(next) => {
                            prop_assert!(good);
                            regions = next;
                            model = wanted;
                        }
                        Err(_) => prop_assert!(!good),
                    }
                }
            }
            check(&regions, &model, keys, &files)?;
        }
    }
}

fn check(regions: &Regions, model: &Model, keys: Keys, files: &[OwnedFd]) -> Result<(), TestCaseError> {
    let inode = |file: usize| rustix::fs::fstat(&files[file]).unwrap().st_ino;
    let mut places = BTreeMap::new();
    for (wire, file) in model {
        let first = if keys == Keys::User { wire.user_addr } else { wire.guest_addr };
        for (into, address) in bytes(first, wire.size).enumerate() {
            places.insert(address, (inode(*file), wire.mmap_offset + into as u64));
        }
    }
    for address in 0..64 {
        let found = regions.extent(address, keys).map(|extent| (extent.file.id().ino, extent.offset));
        prop_assert_eq!(found, places.get(&address).copied());
        if let Some(extent) = regions.extent(address, keys) {
            prop_assert!(regions.maps(&extent, 1));
            prop_assert!(!regions.maps(&extent, FILE_LEN));
        }
    }
    let areas = regions.areas();
    prop_assert_eq!(areas.len(), model.len());
    let different: std::collections::BTreeSet<_> = model.iter().map(|(_, file)| file).collect();
    let held: std::collections::BTreeSet<_> = areas
        .iter()
        .filter_map(|area| area.extent.file())
        .map(|extent| std::sync::Arc::as_ptr(&extent.file))
        .collect();
    prop_assert_eq!(held.len(), different.len(), "one descriptor a file");
    Ok(())
}
