use mdev_protocol::nvme::command::{Command, NSID_ALL};
use mdev_protocol::nvme::identify::{
    IdentifyController, IdentifyNamespace, IndependentNamespace, NvmController, cns,
};
use mdev_protocol::nvme::opcode::admin;
use mdev_protocol::nvme::status::Status;
use zerocopy::FromBytes;

use super::rig::*;

fn identify(rig: &Rig, cns: u8, nsid: u32) -> Command {
    Command { dptr: [rig.data.at.0, 0], cdw10: cns.into(), ..Command::new(admin::IDENTIFY, 0, nsid) }
}

fn page(rig: &mut Rig, cns: u8, nsid: u32) -> Vec<u8> {
    rig.data.slice().unwrap().fill(0xee);
    rig.done(identify(rig, cns, nsid));
    assert_eq!(rig.bytes(4097)[4096], 0xee, "more than a page was written");
    rig.bytes(4096)
}

fn refusal(rig: &mut Rig, command: Command) -> Status {
    rig.data.slice().unwrap().fill(0xee);
    let (status, _) = rig.run(command);
    assert!(rig.bytes(4096).iter().all(|byte| *byte == 0xee), "a refused command wrote");
    status
}

fn nsids(bytes: &[u8]) -> Vec<u32> {
    let words = bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap()));
    words.take_while(|nsid| *nsid != 0).collect()
}

#[test]
fn controller_is_what_linux_expects() {
    let mut rig = Rig::enabled();
    let page = page(&mut rig, cns::CONTROLLER, 0);
    let id = IdentifyController::read_from_bytes(&page).unwrap();
    assert_eq!((id.vendor, id.subsystem_vendor, id.version, id.kind), (0x1b36, 0x1af4, 0x2_0000, 1));
    assert_eq!(&id.serial, b"S 1                 ");
    assert!(id.model.starts_with(b"mdevd") && id.firmware.iter().all(|byte| byte.is_ascii()));
    assert_eq!((id.max_transfer, id.submission_entry, id.completion_entry), (8, 0x66, 0x44));
    assert_eq!((id.namespaces, id.optional_admin, id.optional_nvm), (128, 0x108, 0xdd));
    assert_eq!((id.power_off_latency, id.abort_limit), ([0, 10_000_000], 3));
    assert_eq!((id.sgl, id.write_cache, id.log_attributes, id.events), (0x1_0001, 7, 0x26, 0x100));
    assert_eq!(u128::from_le_bytes(id.total_capacity), 3 << 20);
    let name = id.subsystem_name.split(|byte| *byte == 0).next().unwrap();
    let name = std::str::from_utf8(name).unwrap();
    let uuid = name.strip_prefix("nqn.2014-08.org.nvmexpress:uuid:").unwrap();
    assert_eq!(uuid.len(), 36);
    assert!(uuid.split('-').map(str::len).eq([8, 4, 4, 4, 12]), "{uuid}");
}

#[test]
fn namespaces_that_are_attached_have_their_size_and_others_zeros() {
    let mut rig = Rig::enabled();
    let id = IdentifyNamespace::read_from_bytes(&page(&mut rig, cns::NAMESPACE, 1)).unwrap();
    assert_eq!((id.size, id.capacity, id.utilization), (2048, 2048, 2048));
    assert_eq!((id.formats, id.format, id.lba_formats[0].block, id.attributes), (0, 0, 9, 0));
    let id = IdentifyNamespace::read_from_bytes(&page(&mut rig, cns::NAMESPACE, 3)).unwrap();
    assert_eq!(id.attributes, 1, "read-only");
    for nsid in [2, 11] {
        assert!(page(&mut rig, cns::NAMESPACE, nsid).iter().all(|byte| *byte == 0), "{nsid}");
    }
    let id = IdentifyNamespace::read_from_bytes(&page(&mut rig, cns::ALLOCATED_NAMESPACE, 11)).unwrap();
    assert_eq!(id.size, 2048);
    let id = IdentifyNamespace::read_from_bytes(&page(&mut rig, cns::NAMESPACE, NSID_ALL)).unwrap();
    assert_eq!((id.size, id.lba_formats[0].block), (0, 9));
    for nsid in [0, 129, NSID_ALL - 1] {
        let command = identify(&rig, cns::NAMESPACE, nsid);
        assert_eq!(refusal(&mut rig, command), Status::INVALID_NAMESPACE);
    }
    let id = IndependentNamespace::read_from_bytes(&page(&mut rig, cns::INDEPENDENT_NAMESPACE, 3)).unwrap();
    assert_eq!((id.status, id.attributes), (1, 1));
}

#[test]
fn lists_of_namespaces_go_on_behind_the_one_that_is_named() {
    let mut rig = Rig::enabled();
    for (cns, after, expected) in [
        (cns::ACTIVE_NAMESPACES, 0, vec![1, 3]),
        (cns::ACTIVE_NAMESPACES, 1, vec![3]),
        (cns::ACTIVE_NAMESPACES, 3, vec![]),
        (cns::COMMAND_SET_ACTIVE, 2, vec![3]),
        (cns::ALLOCATED_NAMESPACES, 0, vec![1, 3, 11]),
        (cns::COMMAND_SET_ALLOCATED, 3, vec![11]),
        (cns::ALLOCATED_NAMESPACES, NSID_ALL - 2, vec![]),
    ] {
        assert_eq!(nsids(&page(&mut rig, cns, after)), expected, "{cns:#x} after {after}");
    }
    for nsid in [NSID_ALL - 1, NSID_ALL] {
        let command = identify(&rig, cns::ACTIVE_NAMESPACES, nsid);
        assert_eq!(refusal(&mut rig, command), Status::INVALID_NAMESPACE);
    }
}

#[test]
fn descriptors_name_a_namespace() {
    let mut rig = Rig::enabled();
    let bytes = page(&mut rig, cns::DESCRIPTORS, 1);
    let uuid = rig.device.shared().namespaces.get(1).unwrap().0.uuid;
    assert_eq!(bytes[..4], [3, 16, 0, 0]);
    assert_eq!(bytes[4..20], uuid);
    assert_eq!(bytes[20..26], [4, 1, 0, 0, 0, 0]);
    let command = identify(&rig, cns::DESCRIPTORS, 2);
    assert_eq!(refusal(&mut rig, command), Status::INVALID_NAMESPACE);
}

#[test]
fn command_sets_and_controllers_are_the_only_ones() {
    let mut rig = Rig::enabled();
    let limits = NvmController::read_from_bytes(&page(&mut rig, cns::COMMAND_SET_CONTROLLER, 0)).unwrap();
    assert_eq!((limits.write_zeroes, limits.ranges, limits.range_blocks), (13, 0, 0));
    assert!(page(&mut rig, cns::COMMAND_SET_NAMESPACE, 1).iter().all(|byte| *byte == 0));
    for cns in [cns::COMMAND_SET_NAMESPACE, cns::COMMAND_SET_CONTROLLER, cns::COMMAND_SET_ACTIVE] {
        let command = Command { cdw11: 2 << 24, ..identify(&rig, cns, 1) };
        assert_eq!(refusal(&mut rig, command), Status::INVALID_FIELD);
    }
    assert_eq!(page(&mut rig, cns::COMMAND_SETS, 0)[..9], [1, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(page(&mut rig, cns::CONTROLLERS, 0)[..6], [1, 0, 1, 0, 0, 0]);
    assert_eq!(page(&mut rig, cns::ATTACHED_CONTROLLERS, 1)[..6], [1, 0, 1, 0, 0, 0]);
    assert_eq!(page(&mut rig, cns::ATTACHED_CONTROLLERS, 11)[..6], [0; 6]);
    let command = Command { cdw10: u32::from(cns::CONTROLLERS) | 2 << 16, ..identify(&rig, 0, 0) };
    rig.done(command);
    assert_eq!(rig.bytes(4), [0; 4]);
    assert_eq!(page(&mut rig, cns::PRIMARY_CONTROLLER, 0)[..2], [1, 0]);
    assert_eq!(page(&mut rig, cns::SECONDARY_CONTROLLERS, 0)[0], 0);
    for cns in [0x04, 0x09, 0x16, 0x1d, 0xff] {
        let command = identify(&rig, cns, 1);
        assert_eq!(refusal(&mut rig, command), Status::INVALID_FIELD, "{cns:#x}");
    }
}

#[test]
fn pointers_that_make_no_sense_are_refused_and_pages_may_be_split() {
    let mut rig = Rig::enabled();
    let at = rig.data.at.0;
    let split = Command { dptr: [at + 1024, at + 3 * PAGE], ..identify(&rig, cns::CONTROLLER, 0) };
    rig.data.slice().unwrap().fill(0xee);
    rig.done(split);
    let bytes = rig.bytes(4 * 4096);
    assert_eq!((bytes[1023], bytes[1024], bytes[1025], bytes[4096]), (0xee, 0x36, 0x1b, 0xee));
    assert_eq!((bytes[3 * 4096 + 1023], bytes[3 * 4096 + 1024]), (0, 0xee));
    let crooked = Command { dptr: [at + 1024, at + 3 * PAGE + 8], ..identify(&rig, cns::CONTROLLER, 0) };
    assert_eq!(refusal(&mut rig, crooked), Status::PRP_OFFSET_INVALID);
    for flags in [1 << 6, 2 << 6, 3 << 6, 1, 2] {
        let mut command = identify(&rig, cns::CONTROLLER, 0);
        command.cdw0 |= flags << 8;
        assert_eq!(refusal(&mut rig, command), Status::INVALID_FIELD, "flags {flags:#x}");
    }
}
