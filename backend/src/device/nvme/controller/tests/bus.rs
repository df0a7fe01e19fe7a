//! A host that takes back what lets the function reach memory.

use mdev_dma::Iova;
use mdev_protocol::nvme::command::Command;
use mdev_protocol::nvme::opcode::{admin, nvm};
use mdev_protocol::nvme::register::CC;
use mdev_protocol::nvme::status::Status;

use super::rig::{ENABLED, PAGE};
use super::served::{Machine, transfer};

/// Writes the PCI command register.
fn command_register(machine: &mut Machine, value: u16) {
    machine.controller.write_config(4, &value.to_le_bytes(), &mut machine.host);
}

#[test]
fn function_that_may_not_reach_memory_is_paused() {
    let mut machine = Machine::new();
    let mut admin = machine.enable();
    let mut pair = machine.create(&mut admin, 1);
    let at = machine.data();
    command_register(&mut machine, 2);
    assert_eq!(
        machine.run(&mut pair, transfer(nvm::READ, 1, 0, at)),
        Status::SUCCESS,
        "it never was permitted"
    );
    command_register(&mut machine, 6);
    let flying = machine.submit(&mut pair, transfer(nvm::READ, 2, 0, at));
    assert_eq!(machine.ended(&mut pair), []);
    command_register(&mut machine, 2);
    machine.memory.slice(Iova(at + PAGE), PAGE).unwrap().fill(0x5a);
    let read = machine.submit(&mut pair, transfer(nvm::READ, 1, 0, at + PAGE));
    let identify = Command { dptr: [at + PAGE, 0], cdw10: 1, ..Command::new(admin::IDENTIFY, 0, 0) };
    let identify = machine.submit(&mut admin, identify);
    machine.held.finish_all();
    assert_eq!((machine.ended(&mut pair), machine.ended(&mut admin)), (vec![], vec![]));
    assert_eq!(machine.controller.next_deadline(), None);
    let engine = machine.host.engines.get_mut(&1).unwrap();
    assert!(!engine.arm(), "its worker may sleep");
    engine.disarm();
    let mut bytes = [0; 4096];
    machine.memory.slice(Iova(at + PAGE), PAGE).unwrap().copy_to(&mut bytes);
    assert_eq!(bytes, [0x5a; 4096]);
    command_register(&mut machine, 6);
    assert_eq!(machine.ended(&mut admin), [(identify, Status::SUCCESS)]);
    assert_eq!(machine.ended(&mut pair), [(flying, Status::SUCCESS), (read, Status::SUCCESS)]);
    // It can be disabled, and be used when it is permitted again or was reset.
    command_register(&mut machine, 2);
    machine.submit(&mut pair, transfer(nvm::READ, 2, 0, at));
    machine.write(CC, ENABLED & !1);
    machine.work();
    assert_eq!((machine.status(), machine.host.engines.len()), (0, 0));
    machine.controller.reset(&mut machine.host);
    let mut admin = machine.enable();
    let mut pair = machine.create(&mut admin, 1);
    assert_eq!(machine.run(&mut pair, transfer(nvm::READ, 1, 0, at)), Status::SUCCESS);
}
