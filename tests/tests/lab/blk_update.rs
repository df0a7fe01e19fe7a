//! Live update of QEMU while its guest writes and verifies: by another QEMU, and by another program in the same process.

use std::time::Duration;

use mdev_tests::lab::{Guest, Lab, Mdevd, QemuGuest, Skip, Trial, rounds};

use super::disk::{SIZE, begin, clean, goes_on, guest, image, off, proceeds, rest};
use super::scenarios::plug;
use super::traffic::spread;

/// The module that [`plug`] has plugged, for a QEMU that starts with it.
const MODULE: &[&str] = &[
    "-object",
    "memory-backend-memfd,id=more,size=128M,share=on",
    "-device",
    "pc-dimm,id=dimm0,memdev=more",
];

pub fn trials() -> Vec<Trial> {
    const LOG: &str = ",inflight-migration=on";
    vec![
        Trial::new("blk_update_by_another_qemu_under_io_loses_nothing", |lab| {
            updates(lab, Update::Transfer, "", &[])
        })
        .in_rounds(),
        Trial::new(
            "blk_update_by_another_qemu_with_the_log_of_requests_and_a_plugged_module_loses_nothing",
            |lab| updates(lab, Update::Transfer, LOG, MODULE),
        )
        .in_rounds(),
        Trial::new("blk_update_in_the_same_process_under_io_loses_nothing", |lab| {
            updates(lab, Update::Execute, "", &[])
        })
        .in_rounds(),
        Trial::new(
            "blk_update_in_the_same_process_with_the_log_of_requests_and_packed_rings_loses_nothing",
            |lab| updates(lab, Update::Execute, ",inflight-migration=on,packed=on", &[]),
        )
        .in_rounds(),
    ]
}

#[derive(Copy, Clone)]
enum Update {
    /// By another QEMU (`cpr-transfer`).
    Transfer,
    /// By another program in the same process (`cpr-exec`).
    Execute,
}

/// Updates one after another. The first QEMU maps the guest's memory, and nobody after it.
fn updates(lab: &Lab, how: Update, options: &str, module: &[&str]) -> Result<(), Skip> {
    let (_, store) = image(lab, "disk.img", SIZE, ",direct=on");
    let mut mdevd = Mdevd::blk(lab, "blk.sock", 2, &store, &[]);
    let make = |name: &str| guest(lab, name, 2, options).movable();
    let mut guest = make("qemu0").start();
    guest.booted();
    if !module.is_empty() {
        plug(&mut guest);
    }
    begin(&mut guest, 4);
    let memory = mdevd.mapped_files();
    let mut gaps = Vec::new();
    for round in 1..=rounds() {
        let gap;
        (guest, gap) = match how {
            Update::Transfer => transfer(guest, make(&format!("qemu{round}")).arguments(module))?,
            Update::Execute => execute(guest, make("qemu0").arguments(module))?,
        };
        println!("round {round}: {gap:.1?} without a request that ended");
        gaps.push(gap);
        assert_eq!(mdevd.mapped_files(), memory, "windows of memory that stayed");
        clean(&mut mdevd);
    }
    rest(&mut guest);
    println!("{} updates: {} without a request that ended", gaps.len(), spread(gaps));
    off(guest, mdevd);
    Ok(())
}

/// Hand a guest that writes and verifies over to another QEMU. The longest time without a request that ended comes back, too.
pub fn transfer(mut old: QemuGuest, successor: Guest<'_>) -> Result<(QemuGuest, Duration), Skip> {
    let successor = successor.successor();
    goes_on(&mut old);
    old.hand_over(successor.name())?;
    let mut new = successor.runs();
    let gap = proceeds(&mut new);
    old.quit();
    Ok((new, gap))
}

fn execute(mut qemu: QemuGuest, successor: Guest<'_>) -> Result<(QemuGuest, Duration), Skip> {
    goes_on(&mut qemu);
    qemu.execute_successor(successor)?;
    let gap = proceeds(&mut qemu);
    Ok((qemu, gap))
}
