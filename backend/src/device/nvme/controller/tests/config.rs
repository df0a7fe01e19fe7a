use mdev_protocol::pci::{Express, Header, Msix, Power};
use zerocopy::FromBytes;

use super::rig::*;

fn space(rig: &Rig) -> Vec<u8> {
    let mut bytes = vec![0xee; 4096];
    rig.controller.read_config(0, &mut bytes);
    bytes
}

fn write(rig: &mut Rig, offset: u64, data: &[u8]) {
    rig.controller.write_config(offset, data, &mut rig.host);
}

#[test]
fn function_is_an_nvme_controller_with_its_capabilities() {
    let rig = Rig::new();
    let bytes = space(&rig);
    let (header, _) = Header::read_from_prefix(&bytes).unwrap();
    assert_eq!((header.vendor, header.device, header.class), (0x1b36, 0x0010, [2, 8, 1]));
    assert_eq!((header.bars, header.interrupt_pin, header.status), ([4, 0, 0, 0, 4, 0], 1, 0x10));
    let mut next = header.capabilities;
    let mut seen = Vec::new();
    while next != 0 {
        let [id, after] = [bytes[usize::from(next)], bytes[usize::from(next) + 1]];
        seen.push((id, usize::from(next)));
        next = after;
    }
    assert_eq!(seen, [(1, 0x40), (0x11, 0x50), (0x10, 0x60)]);
    let (power, _) = Power::read_from_prefix(&bytes[0x40..]).unwrap();
    assert_eq!((power.capabilities & 7, power.control), (3, 8));
    let (msix, _) = Msix::read_from_prefix(&bytes[0x50..]).unwrap();
    assert_eq!((msix.control, msix.table, msix.pending), (PAIRS, 4, 0x1004));
    let (express, _) = Express::read_from_prefix(&bytes[0x60..]).unwrap();
    assert_eq!((express.capabilities, express.device_capabilities >> 28 & 1), (2, 1));
    assert!(bytes[0x9c..].iter().all(|byte| *byte == 0));
}

#[test]
fn bars_tell_their_size_and_keep_addresses() {
    let mut rig = Rig::new();
    write(&mut rig, 0x10, &[0xff; 24]);
    let (header, _) = Header::read_from_prefix(&space(&rig)).unwrap();
    assert_eq!(header.bars, [0xffff_e004, u32::MAX, 0, 0, 0xffff_e004, u32::MAX]);
    write(&mut rig, 0x10, &0xfe40_0000u32.to_le_bytes());
    write(&mut rig, 0x30, &[0xff; 4]);
    let (header, _) = Header::read_from_prefix(&space(&rig)).unwrap();
    assert_eq!((header.bars[0], header.rom), (0xfe40_0004, 0));
}

#[test]
fn read_only_bits_stay_and_accesses_beyond_the_end_do_nothing() {
    let mut rig = Rig::new();
    let before = space(&rig);
    for at in [0, 2, 6, 8, 0x2c, 0x34, 0x3d, 0x40, 0x42, 0x50, 0x54, 0x58, 0x60, 0x64] {
        write(&mut rig, at, &[0xff]);
        assert_eq!(space(&rig)[at as usize], before[at as usize], "{at:#x}");
    }
    write(&mut rig, 4, &[0xff, 0xff]);
    assert_eq!(space(&rig)[4..6], [0x46, 0x05]);
    write(&mut rig, 0x44, &[0xff, 0xff]);
    assert_eq!(space(&rig)[0x44..0x46], [0x0b, 0]);
    for at in [4090, 4096, 1 << 40, u64::MAX] {
        write(&mut rig, at, &[0xff; 16]);
        let mut out = [0xee; 16];
        rig.controller.read_config(at, &mut out);
        assert_eq!(out, [0; 16], "{at:#x}");
    }
}

#[test]
fn reset_bit_resets_and_reads_as_zero() {
    let mut rig = Rig::enabled();
    write(&mut rig, 4, &[6, 4]);
    write(&mut rig, 0x52, &[4, 0x80]);
    write(&mut rig, 0x68, &[0x10, 0xa8]);
    assert_eq!(rig.read(0x1c), 0);
    let bytes = space(&rig);
    assert_eq!((bytes[4], bytes[0x53], bytes[0x69]), (0, 0, 0x28));
    rig.enable();
    write(&mut rig, 0x68, &[0x10, 0x28]);
    assert_eq!(rig.read(0x1c), 1);
}

#[test]
fn interrupt_status_and_pending_bits_follow_the_vectors() {
    let mut rig = Rig::enabled();
    rig.vectors.raise(0);
    assert_eq!(space(&rig)[6], 0x18);
    rig.ring(0, true, 0);
    assert_eq!(space(&rig)[6], 0x10, "all completions are consumed");
    rig.submit(mdev_protocol::nvme::command::Command::new(0xff, 0, 0));
    assert_eq!(space(&rig)[6], 0x18);
    rig.ended();
    assert_eq!(space(&rig)[6], 0x10);
    rig.vectors.raise(0);
    rig.controller.pin_unmasked();
    assert_eq!(space(&rig)[6], 0x10, "unmasked when there was nothing left");
    write(&mut rig, 0x52, &[4, 0x80]);
    rig.vectors.raise(2);
    let mut pending = [0xee; 8];
    rig.controller.read_bar4(0x1000, &mut pending);
    assert_eq!(pending, [4, 0, 0, 0, 0, 0, 0, 0]);
}

fn pending(rig: &Rig) -> u8 {
    let mut bytes = [0xee; 8];
    rig.controller.read_bar4(0x1000, &mut bytes);
    bytes[0]
}

#[test]
fn masked_vectors_are_pending_until_they_are_unmasked() {
    let mut rig = Rig::enabled();
    let events: Vec<_> = (0..3).map(|_| std::sync::Arc::new(crate::sys::EventFd::new().unwrap())).collect();
    let told = || events.iter().map(|event| event.drain() != crate::sys::Kicks::None).collect::<Vec<_>>();
    for (vector, event) in events.iter().enumerate() {
        rig.vectors.set(vector as u16, Some(event.clone()));
    }
    let mask =
        |rig: &mut Rig, vector: u64, byte| rig.controller.write_bar4(vector * 16 + 12, &[byte, 0, 0, 0]);
    write(&mut rig, 0x52, &[4, 0x80]);
    // A table that nobody has written masks nothing: its client keeps it to itself.
    (0..3).for_each(|vector| rig.vectors.raise(vector));
    assert_eq!((told(), pending(&rig)), (vec![true, true, true], 0));
    mask(&mut rig, 1, 1);
    (0..3).for_each(|vector| rig.vectors.raise(vector));
    assert_eq!((told(), pending(&rig)), (vec![true, false, true], 0b10));
    // A write elsewhere in the entry is none of the mask.
    rig.controller.write_bar4(16, &[0xff; 8]);
    assert_eq!((told(), pending(&rig)), (vec![false; 3], 0b10));
    // The function is masked: all of them wait, and one that is masked waits on.
    write(&mut rig, 0x53, &[0xc0]);
    rig.vectors.raise(2);
    mask(&mut rig, 0, 1);
    mask(&mut rig, 0, 0);
    rig.vectors.raise(0);
    assert_eq!((told(), pending(&rig)), (vec![false; 3], 0b111));
    write(&mut rig, 0x53, &[0x80]);
    assert_eq!((told(), pending(&rig)), (vec![true, false, true], 0b10));
    mask(&mut rig, 1, 0);
    assert_eq!((told(), pending(&rig)), (vec![false, true, false], 0));
    mask(&mut rig, 1, 0);
    assert_eq!(told(), [false; 3], "told once");
    // A reset forgets masks and what is pending.
    mask(&mut rig, 2, 1);
    rig.vectors.raise(2);
    rig.controller.reset(&mut rig.host);
    assert_eq!(pending(&rig), 0);
    write(&mut rig, 0x52, &[4, 0x80]);
    rig.vectors.raise(2);
    assert_eq!(told(), [false, false, true]);
}

#[test]
fn disabled_pin_is_asserted_and_told_when_it_is_enabled() {
    let mut rig = Rig::enabled();
    let event = std::sync::Arc::new(crate::sys::EventFd::new().unwrap());
    rig.vectors.set_pin(Some(event.clone()));
    write(&mut rig, 5, &[4]);
    rig.vectors.raise(0);
    assert_eq!((event.drain(), space(&rig)[6]), (crate::sys::Kicks::None, 0x18));
    write(&mut rig, 5, &[0]);
    assert_eq!(event.drain(), crate::sys::Kicks::Some(1));
}

#[test]
fn vector_table_keeps_what_can_be_written() {
    let mut rig = Rig::new();
    rig.controller.write_bar4(16, &[0xff; 16]);
    let mut entries = [0xee; 48];
    rig.controller.read_bar4(0, &mut entries);
    assert_eq!(entries[..16], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
    assert_eq!((entries[16], entries[17], entries[28], entries[29]), (0xfc, 0xff, 1, 0));
    rig.controller.write_bar4(u64::MAX - 1, &[1; 8]);
    rig.controller.write_bar4(16 * u64::from(PAIRS + 1) - 2, &[0xff; 8]);
    let mut out = [0xee; 8];
    rig.controller.read_bar4(u64::MAX - 3, &mut out);
    rig.controller.read_bar4(16 * u64::from(PAIRS + 1), &mut out);
    assert_eq!(out, [0; 8]);
    rig.controller.reset(&mut rig.host);
    rig.controller.read_bar4(16, &mut out);
    assert_eq!(out, [0; 8]);
}
