use std::mem::offset_of;

use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

use super::command::{Command, Completion, FUSE_NONE, PSDT_SGL};
use super::data::{DatasetRange, SGL_LAST_SEGMENT, SGL_SEGMENT, SglDescriptor};
use super::event::Event;
use super::feature::Select;
use super::identify::{
    IdentifyController, IdentifyNamespace, IndependentNamespace, LbaFormat, NvmController,
};
use super::log::{CommandEffects, ErrorEntry, FirmwareSlots, Health, LogRequest};
use super::opcode::nvm;
use super::register::{self, Capabilities, Configuration, QueueAttributes};
use super::status::{Status, kind};

#[test]
fn queue_entries_are_those_of_the_specification() {
    assert_eq!(
        (offset_of!(Command, nsid), offset_of!(Command, mptr), offset_of!(Command, dptr)),
        (4, 16, 24)
    );
    assert_eq!((offset_of!(Command, cdw10), offset_of!(Command, cdw15)), (40, 60));
    assert_eq!((offset_of!(Completion, sq_head), offset_of!(Completion, sq_id)), (8, 10));
    assert_eq!((Completion::LAST_OFFSET, offset_of!(Completion, status)), (12, 14));
}

#[test]
fn first_dword_of_a_command_is_cut_as_the_specification_says() {
    let command = Command { cdw0: 0x1234_7d02, ..Command::default() };
    assert_eq!((command.opcode(), command.cid()), (nvm::READ, 0x1234));
    assert_eq!((command.fuse(), command.psdt(), command.reserved_flags()), (1, PSDT_SGL, 0x3c));
    assert_eq!(Command::new(nvm::READ, 0x1234, 1).fuse(), FUSE_NONE);
}

#[test]
fn status_lies_where_the_specification_puts_it() {
    let completion = Completion { cid: 7, ..Completion::default() }
        .with_status(Status::COMPARE_FAILURE.do_not_retry().more(), true);
    assert_eq!(completion.status, 0xc50b, "phase, code 85h, type 2, more, do not retry");
    assert_eq!(completion.last(), 0xc50b_0007);
    assert!(completion.phase() && completion.status().is_final() && completion.status().has_more());
    assert_eq!(completion.status().plain(), Status::COMPARE_FAILURE);
    assert_eq!((Status::INVALID_QUEUE_ID.kind(), Status::INVALID_QUEUE_ID.code()), (kind::COMMAND, 1));
    assert!(Status::SUCCESS.more().is_success() && !Status::INVALID_OPCODE.is_success());
}

proptest! {
    #[test]
    fn sgl_descriptors_survive_the_data_pointer(bytes in any::<[u8; 16]>()) {
        let descriptor = SglDescriptor::read_from_bytes(&bytes).unwrap();
        prop_assert_eq!(SglDescriptor::from_pointer(descriptor.pointer()), descriptor);
        let pointer: [u64; 2] = descriptor.pointer();
        prop_assert_eq!(pointer.as_bytes(), &bytes[..]);
        prop_assert_eq!((descriptor.kind(), descriptor.sub_kind()), (bytes[15] >> 4, bytes[15] & 15));
    }
}

#[test]
fn data_layouts_are_those_of_the_specification() {
    assert_eq!((offset_of!(SglDescriptor, len), offset_of!(SglDescriptor, identifier)), (8, 15));
    assert_eq!((offset_of!(DatasetRange, blocks), offset_of!(DatasetRange, first)), (4, 8));
    assert_eq!((SGL_SEGMENT, SGL_LAST_SEGMENT), (2, 3));
}

#[test]
fn identify_controller_is_that_of_the_specification() {
    type C = IdentifyController;
    assert_eq!((offset_of!(C, model), offset_of!(C, firmware), offset_of!(C, oui)), (24, 64, 73));
    assert_eq!(
        (offset_of!(C, max_transfer), offset_of!(C, controller_id), offset_of!(C, version)),
        (77, 78, 80)
    );
    assert_eq!(
        (offset_of!(C, power_off_latency), offset_of!(C, events), offset_of!(C, attributes)),
        (84, 92, 96)
    );
    assert_eq!((offset_of!(C, kind), offset_of!(C, fru_guid), offset_of!(C, retry_delays)), (111, 112, 128));
    assert_eq!(
        (offset_of!(C, optional_admin), offset_of!(C, abort_limit), offset_of!(C, event_limit)),
        (256, 258, 259)
    );
    assert_eq!(
        (offset_of!(C, log_attributes), offset_of!(C, error_entries), offset_of!(C, power_states)),
        (261, 262, 263)
    );
    assert_eq!((offset_of!(C, warning_temperature), offset_of!(C, total_capacity)), (266, 280));
    assert_eq!((offset_of!(C, unallocated_capacity), offset_of!(C, firmware_granularity)), (296, 319));
    assert_eq!(
        (offset_of!(C, keep_alive), offset_of!(C, submission_entry), offset_of!(C, namespaces)),
        (320, 512, 516)
    );
    assert_eq!(
        (offset_of!(C, optional_nvm), offset_of!(C, write_cache), offset_of!(C, atomic_write)),
        (520, 525, 526)
    );
    assert_eq!(
        (offset_of!(C, vendor_io), offset_of!(C, sgl), offset_of!(C, max_namespaces)),
        (530, 536, 540)
    );
    assert_eq!(
        (offset_of!(C, subsystem_name), offset_of!(C, power), offset_of!(C, vendor_specific)),
        (768, 2048, 3072)
    );
}

#[test]
fn identify_namespace_is_that_of_the_specification() {
    type N = IdentifyNamespace;
    assert_eq!((offset_of!(N, features), offset_of!(N, format), offset_of!(N, deallocation)), (24, 26, 33));
    assert_eq!(
        (offset_of!(N, atomicity), offset_of!(N, optimal_boundary), offset_of!(N, medium)),
        (34, 46, 48)
    );
    assert_eq!(
        (offset_of!(N, write_granularity), offset_of!(N, optimal_write), offset_of!(N, copy)),
        (64, 72, 74)
    );
    assert_eq!(
        (offset_of!(N, group), offset_of!(N, attributes), offset_of!(N, endurance_group)),
        (92, 99, 102)
    );
    assert_eq!((offset_of!(N, nguid), offset_of!(N, eui64), offset_of!(N, lba_formats)), (104, 120, 128));
    assert_eq!((offset_of!(N, vendor_specific), offset_of!(LbaFormat, block)), (384, 2));
    assert_eq!(
        (offset_of!(IndependentNamespace, attributes), offset_of!(IndependentNamespace, status)),
        (8, 14)
    );
    assert_eq!((offset_of!(NvmController, range_blocks), offset_of!(NvmController, blocks)), (4, 8));
}

#[test]
fn log_pages_are_those_of_the_specification() {
    assert_eq!(
        (offset_of!(ErrorEntry, status), offset_of!(ErrorEntry, block), offset_of!(ErrorEntry, nsid)),
        (12, 16, 24)
    );
    assert_eq!((offset_of!(ErrorEntry, transport), offset_of!(ErrorEntry, command)), (29, 32));
    assert_eq!(
        (offset_of!(Health, temperature), offset_of!(Health, used), offset_of!(Health, units_read)),
        (1, 5, 32)
    );
    assert_eq!((offset_of!(Health, power_cycles), offset_of!(Health, error_entries)), (112, 176));
    assert_eq!((offset_of!(Health, warning_minutes), offset_of!(Health, sensors)), (192, 200));
    assert_eq!((offset_of!(FirmwareSlots, revisions), offset_of!(CommandEffects, io)), (8, 1024));
}

#[test]
fn registers_have_the_bits_of_the_specification() {
    let capabilities = Capabilities {
        max_entries: 4095,
        contiguous: true,
        timeout: 20,
        command_sets: 1,
        ready_with_media: true,
        ..Capabilities::default()
    };
    assert_eq!(capabilities.bits(), 0x0800_0020_1401_0fff);
    assert_eq!(register::version(2, 0, 0), 0x2_0000);
    let cc = Configuration(0x0046_c001 | 3 << 4 | 5 << 7 | 2 << 11);
    assert!(cc.enabled() && !Configuration(0x46_0000).enabled());
    assert_eq!((cc.command_set(), cc.page(), cc.arbitration(), cc.shutdown()), (3, 5, 2, 3));
    assert_eq!((cc.submission_entry(), cc.completion_entry()), (6, 4));
    let aqa = QueueAttributes(0x001f_0fff);
    assert_eq!((aqa.submission(), aqa.completion()), (4095, 31));
    assert_eq!(Event::NAMESPACES_CHANGED.result(), 0x0004_0002);
}

#[test]
fn log_requests_are_cut_as_the_specification_says() {
    let request = LogRequest::new(0x00ff_8002, 0x1234_0001, 0x10, 1, 1 << 23);
    assert_eq!((request.page, request.retain, request.by_entry), (2, true, true));
    assert_eq!((request.len, request.offset), (4 * 0x1_0100, 0x1_0000_0010));
    assert_eq!(LogRequest::new(u32::MAX, u32::MAX, 0, 0, 0).len, 1 << 34);
    assert_eq!((Select::of(0x300), Select::of(0x400)), (Some(Select::Capabilities), None));
}
