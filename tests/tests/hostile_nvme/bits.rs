//! Commands with one bit more than they need, and opcodes that are none.

use mdev_protocol::nvme::command::Command;
use mdev_protocol::nvme::opcode::{admin, nvm};
use mdev_protocol::nvme::status::Status;
use zerocopy::{FromBytes, IntoBytes};

use super::intruder::Intruder;
use super::trial::Trial;

/// Bits of a command that mean something else than "reserved" whatever the opcode: the opcode, its identifier, and where its data are.
fn has_meaning(bit: usize) -> bool {
    // Dword 0 but for its reserved bits, the namespace, PRP entry 1.
    matches!(bit, 0..=7 | 16..=63 | 192..=255)
}

/// Bits of dwords that a command needs.
type Needed<'n> = &'n [(usize, u32)];

/// Each bit that a command does not need, turned in turns.
fn turned(command: Command, needed: Needed<'_>) -> impl Iterator<Item = (usize, Command)> {
    let needs = move |bit: usize| {
        let (dword, mask) = (bit / 32, 1u32 << (bit % 32));
        needed.iter().any(|(at, bits)| *at == dword && bits & mask != 0)
    };
    let bits: Vec<usize> = (0..512).filter(|bit| !has_meaning(*bit) && !needs(*bit)).collect();
    bits.into_iter().map(move |bit| {
        let mut bytes = [0; Command::LEN];
        bytes.copy_from_slice(command.as_bytes());
        bytes[bit / 8] ^= 1 << (bit % 8);
        (bit, Command::read_from_bytes(&bytes).expect("as long as before"))
    })
}

/// The specification lets a controller look at reserved bits, or not: it says that a field is invalid, or does what it was asked for.
/// Some of these bits have a meaning for controllers that offer it, and say so with a status of their own.
fn is_fine(status: Status) -> bool {
    let fine = [
        Status::SUCCESS,
        Status::INVALID_FIELD,
        Status::INVALID_PROTECTION_INFORMATION,
        Status::SGL_TYPE_INVALID,
        Status::SGL_DATA_LENGTH_INVALID,
        Status::INVALID_SGL_SEGMENT,
        Status::INVALID_NAMESPACE,
        Status::INVALID_LOG_PAGE,
        Status::FEATURE_NOT_SAVEABLE,
        Status::FEATURE_NOT_NAMESPACE_SPECIFIC,
        Status::INVALID_CONTROLLER_ID,
    ];
    fine.contains(&status.plain())
}

#[test]
fn commands_with_any_reserved_bit_set_end_once() {
    let mut trial = Trial::begin("adaptive");
    let block = [(10, u32::MAX), (11, u32::MAX), (12, 0xffff)];
    let opcodes: [(u8, Needed<'_>); 7] = [
        (nvm::FLUSH, &[]),
        (nvm::READ, &block),
        (nvm::WRITE, &block),
        (nvm::COMPARE, &block),
        (nvm::WRITE_ZEROES, &block),
        (nvm::VERIFY, &block),
        (nvm::DATASET_MANAGEMENT, &[(10, 0xff), (11, 7)]),
    ];
    for (opcode, needed) in opcodes {
        trial.case(&format!("bits of I/O command {opcode:#x}"), |intruder, _| {
            intruder.data.slice().expect("a part").fill(0);
            let command = Command { dptr: [intruder.data.at.0, 0], ..Command::new(opcode, 0, 1) };
            for (bit, command) in turned(command, needed) {
                let status = intruder.io(0, command).status();
                let compares = opcode == nvm::COMPARE && status.plain() == Status::COMPARE_FAILURE;
                assert!(is_fine(status) || compares, "bit {bit}: {status:?}");
            }
            assert!(!intruder.is_fatal());
        });
    }
    trial.end();
}

#[test]
fn admin_commands_with_any_reserved_bit_set_end_once() {
    let mut trial = Trial::begin("adaptive");
    let with = |opcode, cdw10, cdw11| Command { cdw10, cdw11, ..Command::new(opcode, 0, 0) };
    let commands: [(&str, Command, Needed<'_>); 6] = [
        ("identify", with(admin::IDENTIFY, 1, 0), &[(10, 0xff)]),
        (
            "get log page",
            with(admin::GET_LOG_PAGE, 2 | 127 << 16, 0),
            &[(10, u32::MAX), (11, 0xffff), (12, u32::MAX), (13, u32::MAX)],
        ),
        ("get features", with(admin::GET_FEATURES, 6, 0), &[(10, 0x7ff)]),
        ("set features", with(admin::SET_FEATURES, 6, 1), &[(10, 0xff)]),
        ("abort", with(admin::ABORT, 0x1234_0000, 0), &[(10, u32::MAX)]),
        ("delete a queue", with(admin::DELETE_SQ, 9, 0), &[(10, 0xffff)]),
    ];
    for (what, command, needed) in commands {
        trial.case(&format!("bits of {what}"), |intruder, _| {
            let command = Command { dptr: [intruder.data.at.0, 0], ..command };
            for (bit, command) in turned(command, needed) {
                let status = intruder.admin(command).status();
                let deletes = status.plain() == Status::INVALID_QUEUE_ID;
                assert!(is_fine(status) || deletes, "bit {bit}: {status:?}");
            }
            intruder.must_work("after those bits");
        });
    }
    trial.end();
}

/// Those that are carried out.
const IO: [u8; 7] = [
    nvm::FLUSH,
    nvm::WRITE,
    nvm::READ,
    nvm::COMPARE,
    nvm::WRITE_ZEROES,
    nvm::DATASET_MANAGEMENT,
    nvm::VERIFY,
];
const ADMIN: [u8; 13] = [
    admin::DELETE_SQ,
    admin::CREATE_SQ,
    admin::GET_LOG_PAGE,
    admin::DELETE_CQ,
    admin::CREATE_CQ,
    admin::IDENTIFY,
    admin::ABORT,
    admin::SET_FEATURES,
    admin::GET_FEATURES,
    admin::ASYNC_EVENT,
    admin::NAMESPACE_MANAGEMENT,
    admin::NAMESPACE_ATTACHMENT,
    admin::DOORBELL_BUFFER_CONFIG,
];

#[test]
fn opcodes_that_are_none_are_refused() {
    let mut trial = Trial::begin("adaptive");
    trial.case("all opcodes", |intruder: &mut Intruder, _| {
        let at = intruder.data.at.0;
        let with = |opcode: u8| Command { dptr: [at, at], ..Command::new(opcode, 0, 1) };
        for opcode in (0..=255).filter(|opcode| !IO.contains(opcode)) {
            let status = intruder.io(0, with(opcode)).status().plain();
            assert_eq!(status, Status::INVALID_OPCODE, "I/O opcode {opcode:#x}");
        }
        for opcode in (0..=255).filter(|opcode| !ADMIN.contains(opcode)) {
            let status = intruder.admin(with(opcode)).status().plain();
            assert_eq!(status, Status::INVALID_OPCODE, "admin opcode {opcode:#x}");
        }
        for nsid in [0, 4, 128, 129, u32::MAX - 1, u32::MAX] {
            for opcode in IO {
                let command = Command { nsid, ..with(opcode) };
                let status = intruder.io(0, command).status().plain();
                // A flush of all namespaces is one.
                let flush = opcode == nvm::FLUSH && nsid == u32::MAX && status.is_success();
                assert!(status == Status::INVALID_NAMESPACE || flush, "{opcode:#x} of {nsid:#x}: {status:?}");
            }
        }
    });
    trial.case("blocks that are not there", |intruder, _| {
        let at = intruder.data.at.0;
        let blocks = super::house::SIZE / 512;
        for (first, count) in [
            (blocks, 1),
            (blocks - 1, 2),
            (blocks - 2047, 2048),
            (u64::MAX, 1),
            (u64::MAX - 7, 8),
            (1 << 55, 1),
            (1 << 63, 65536),
        ] {
            for opcode in [nvm::READ, nvm::WRITE, nvm::COMPARE, nvm::WRITE_ZEROES, nvm::VERIFY] {
                let command = Command {
                    dptr: [at, 0],
                    cdw10: first as u32,
                    cdw11: (first >> 32) as u32,
                    cdw12: count - 1,
                    ..Command::new(opcode, 0, 1)
                };
                let status = intruder.io(0, command).status().plain();
                let fine = [Status::LBA_OUT_OF_RANGE, Status::INVALID_FIELD].contains(&status);
                assert!(fine, "{count} blocks from {first:#x} on, {opcode:#x}: {status:?}");
            }
        }
    });
    trial.end();
}
