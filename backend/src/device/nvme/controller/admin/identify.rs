//! Identify (section 5.17): who the controller is, and what its namespaces are.

use std::sync::Arc;

use mdev_protocol::nvme::command::{Command, NSID_ALL};
use mdev_protocol::nvme::feature::EVENT_NAMESPACES;
use mdev_protocol::nvme::identify::{
    CSI_NVM, IDENTIFY_LEN, IdentifyController, IdentifyNamespace, IndependentNamespace, LbaFormat,
    NAMESPACE_LIST_LEN, NvmController, attribute, cns, descriptor, optional_admin, optional_nvm,
};
use mdev_protocol::nvme::status::Status;
use zerocopy::IntoBytes;

use super::events::MAX_REQUESTS;
use super::memory::Way;
use super::{DONE, Fault, Outcome, aborts, features, memory, refused};
use crate::device::nvme::controller::Controller;
use crate::device::nvme::controller::config_space::{SUBSYSTEM_VENDOR, VENDOR};
use crate::device::nvme::controller::registers::VERSION;
use crate::device::nvme::{MAX_NAMESPACES, Mishaps, Namespace};
use crate::store::Store;

/// The controller in its subsystem: the only one.
pub(super) const CONTROLLER_ID: u16 = 1;
/// Bytes of a command's data, as an exponent of two in pages of 4 KiB: 1 MiB.
pub(super) const MAX_TRANSFER: u8 = 8;
/// The same of write zeroes: as many blocks as a command can name.
const MAX_ZEROES: u8 = 13;
/// Kelvin above which it would be critical.
const CRITICAL: u16 = 373;
/// Microseconds that a shutdown may take to enter its power state, and to leave it (not told): the end of its commands and a flush,
/// which [`flush::WITHIN`](super::super::flush::WITHIN) bounds.
const POWER_OFF: [u32; 2] = [0, 10_000_000];
/// Bytes of a queue entry, at least and at most, as exponents of two.
const SUBMISSION_ENTRY: u8 = 0x66;
const COMPLETION_ENTRY: u8 = 0x44;
/// The first firmware slot is read-only, and the only one.
const FIRMWARE: u8 = 1 | 1 << 1;
/// Log pages: effects of commands, offsets and lengths of 32 bits, the list of supported pages.
const LOGS: u8 = 1 << 1 | 1 << 2 | 1 << 5;
/// There is a volatile cache, and a flush names one namespace or all of them.
const WRITE_CACHE: u8 = 1 | 0b11 << 1;
/// SGLs without a rule of alignment, and bit buckets in them.
const SGL: u32 = 1 | 1 << 16;
/// Write zeroes may deallocate.
const DEALLOCATION: u8 = 1 << 3;
/// Deallocated blocks read as zeros. Without it, Linux never lets write zeroes deallocate (`nvme_setup_write_zeroes`).
const READ_AS_ZEROS: u8 = 1;
/// What is preferred is told.
const PREFERENCES: u8 = 1 << 4;

/// ASCII filled with spaces.
fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [b' '; N];
    field.iter_mut().zip(text.bytes()).for_each(|(place, byte)| *place = byte);
    field
}

/// The revision of the firmware: the version of this program.
pub(super) fn revision() -> [u8; 8] {
    padded(env!("CARGO_PKG_VERSION"))
}

/// Identifiers greater than one of them, as a list.
fn list(nsids: impl Iterator<Item = u32>, after: u32) -> [u32; NAMESPACE_LIST_LEN] {
    let mut list = [0; NAMESPACE_LIST_LEN];
    list.iter_mut().zip(nsids.filter(|nsid| *nsid > after)).for_each(|(place, nsid)| *place = nsid);
    list
}

/// A list of controllers: the only one, if it is not before the one that is asked for.
fn controllers(first: u16) -> [u16; 2] {
    if CONTROLLER_ID >= first { [1, CONTROLLER_ID] } else { [0, 0] }
}

fn write(way: &mut Way, command: &Command, bytes: &[u8]) -> Outcome {
    let mut page = [0; IDENTIFY_LEN];
    page.iter_mut().zip(bytes).for_each(|(place, byte)| *place = *byte);
    memory::write(way, command, &page)?;
    DONE
}

impl Controller {
    pub(super) fn identify(&mut self, way: &mut Way, command: &Command) -> Outcome {
        let (nsid, first) = (command.nsid, (command.cdw10 >> 16) as u16);
        let asked = command.cdw10 as u8;
        let names_command_set = matches!(
            asked,
            cns::COMMAND_SET_NAMESPACE
                | cns::COMMAND_SET_CONTROLLER
                | cns::COMMAND_SET_ACTIVE
                | cns::COMMAND_SET_ALLOCATED
                | cns::COMMAND_SET_ALLOCATED_NAMESPACE
        );
        if names_command_set && (command.cdw11 >> 24) as u8 != CSI_NVM {
            return refused(Status::INVALID_FIELD);
        }
        let mut page = |bytes: &[u8]| write(way, command, bytes);
        match asked {
            cns::NAMESPACE if nsid == NSID_ALL => page(any_namespace().as_bytes()),
            cns::NAMESPACE => match self.attached(nsid)? {
                Some(namespace) => page(identify(&namespace).as_bytes()),
                None => page(&[]),
            },
            cns::ALLOCATED_NAMESPACE => match self.allocated(nsid)? {
                Some(namespace) => page(identify(&namespace).as_bytes()),
                None => page(&[]),
            },
            cns::CONTROLLER => page(self.identify_controller().as_bytes()),
            cns::ACTIVE_NAMESPACES | cns::COMMAND_SET_ACTIVE if nsid < NSID_ALL.saturating_sub(1) => {
                let (_, attached) = self.shared.namespaces.attached();
                page(list(attached.iter().map(|one| one.nsid), nsid).as_bytes())
            }
            cns::ALLOCATED_NAMESPACES | cns::COMMAND_SET_ALLOCATED if nsid < NSID_ALL.saturating_sub(1) => {
                let all = self.shared.namespaces.all();
                page(list(all.iter().map(|(one, _)| one.nsid), nsid).as_bytes())
            }
            cns::ACTIVE_NAMESPACES
            | cns::COMMAND_SET_ACTIVE
            | cns::ALLOCATED_NAMESPACES
            | cns::COMMAND_SET_ALLOCATED => refused(Status::INVALID_NAMESPACE),
            cns::DESCRIPTORS => match self.attached(nsid)? {
                Some(namespace) => page(&descriptors(&namespace)),
                None => refused(Status::INVALID_NAMESPACE),
            },
            // Nothing in it has a meaning without protection information.
            cns::COMMAND_SET_NAMESPACE if nsid == NSID_ALL => page(&[]),
            cns::COMMAND_SET_NAMESPACE => self.attached(nsid).and_then(|_| page(&[])),
            cns::COMMAND_SET_ALLOCATED_NAMESPACE => self.allocated(nsid).and_then(|_| page(&[])),
            cns::COMMAND_SET_CONTROLLER => {
                let limits = NvmController { write_zeroes: MAX_ZEROES, ..NvmController::default() };
                page(limits.as_bytes())
            }
            cns::INDEPENDENT_NAMESPACE => match self.attached(nsid)? {
                Some(namespace) => page(independent(&namespace).as_bytes()),
                None => page(&[]),
            },
            cns::ATTACHED_CONTROLLERS => match self.allocated(nsid)? {
                Some(_) if self.attached(nsid)?.is_some() => page(controllers(first).as_bytes()),
                _ => page(&[]),
            },
            cns::CONTROLLERS => page(controllers(first).as_bytes()),
            // It has nothing to give to others.
            cns::PRIMARY_CONTROLLER => page(&CONTROLLER_ID.to_le_bytes()),
            cns::SECONDARY_CONTROLLERS => page(&[]),
            cns::COMMAND_SETS => page(&[1 << CSI_NVM]),
            _ => refused(Status::INVALID_FIELD),
        }
    }

    /// The namespace that a host can use; `None` if there is none of an identifier that could be.
    fn attached(&self, nsid: u32) -> Result<Option<Arc<Namespace>>, Fault> {
        check(nsid)?;
        let (_, attached) = self.shared.namespaces.attached();
        Ok(attached.get(nsid).cloned())
    }

    /// The same, attached or not.
    fn allocated(&self, nsid: u32) -> Result<Option<Arc<Namespace>>, Fault> {
        check(nsid)?;
        Ok(self.shared.namespaces.get(nsid).map(|(namespace, _)| namespace))
    }

    fn identify_controller(&self) -> IdentifyController {
        let total = self
            .shared
            .namespaces
            .all()
            .iter()
            .fold(0u128, |sum, (namespace, _)| sum.saturating_add(namespace.store.size().into()));
        let mut identity = IdentifyController {
            vendor: VENDOR,
            subsystem_vendor: SUBSYSTEM_VENDOR,
            serial: padded(&self.shared.serial),
            model: padded("mdevd NVMe controller"),
            firmware: revision(),
            arbitration_burst: 6,
            max_transfer: MAX_TRANSFER,
            controller_id: CONTROLLER_ID,
            version: VERSION,
            power_off_latency: POWER_OFF,
            events: EVENT_NAMESPACES,
            attributes: attribute::LONG_HOST_ID,
            kind: 1,
            optional_admin: optional_admin::NAMESPACES | optional_admin::DOORBELL_BUFFER,
            abort_limit: aborts::MAX.saturating_sub(1) as u8,
            event_limit: MAX_REQUESTS.saturating_sub(1) as u8,
            firmware_updates: FIRMWARE,
            log_attributes: LOGS,
            error_entries: Mishaps::KEPT.saturating_sub(1) as u8,
            warning_temperature: features::WARNING,
            critical_temperature: CRITICAL,
            total_capacity: total.to_le_bytes(),
            submission_entry: SUBMISSION_ENTRY,
            completion_entry: COMPLETION_ENTRY,
            namespaces: MAX_NAMESPACES,
            max_namespaces: MAX_NAMESPACES,
            optional_nvm: optional_nvm::COMPARE
                | optional_nvm::DATASET_MANAGEMENT
                | optional_nvm::WRITE_ZEROES
                | optional_nvm::SELECT
                | optional_nvm::TIMESTAMP
                | optional_nvm::VERIFY,
            write_cache: WRITE_CACHE,
            sgl: SGL,
            ..IdentifyController::default()
        };
        identity
            .subsystem_name
            .iter_mut()
            .zip(self.subsystem_name().bytes())
            .for_each(|(place, byte)| *place = byte);
        if let Some(state) = identity.power.first_mut() {
            state.max_power = 2500;
        }
        identity
    }

    fn subsystem_name(&self) -> String {
        let mut name = String::from("nqn.2014-08.org.nvmexpress:uuid:");
        for (at, byte) in self.shared.uuid.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                name.push('-');
            }
            name.extend(
                [byte >> 4, byte & 0xf].map(|digit| char::from_digit(digit.into(), 16).unwrap_or('0')),
            );
        }
        name
    }
}

/// Whether there could be a namespace of this identifier.
fn check(nsid: u32) -> Result<(), Fault> {
    if (1..=MAX_NAMESPACES).contains(&nsid) { Ok(()) } else { refused(Status::INVALID_NAMESPACE) }
}

/// What all namespaces have in common.
fn any_namespace() -> IdentifyNamespace {
    let mut identity = IdentifyNamespace { deallocation: DEALLOCATION, ..IdentifyNamespace::default() };
    if let Some(format) = identity.lba_formats.first_mut() {
        *format = LbaFormat { block: Namespace::BLOCK.ilog2() as u8, ..LbaFormat::default() };
    }
    identity
}

fn identify(namespace: &Namespace) -> IdentifyNamespace {
    let blocks = namespace.blocks();
    let limits = namespace.store.limits();
    let unit = u64::from(limits.physical_block).checked_div(Namespace::BLOCK).unwrap_or(1);
    let unit = u16::try_from(unit.saturating_sub(1)).unwrap_or(u16::MAX);
    // Files and memory get holes, which read as zeros; what cannot get them deallocates nothing.
    let reads = if matches!(namespace.store, Store::Null(_)) { 0 } else { READ_AS_ZEROS };
    IdentifyNamespace {
        size: blocks,
        capacity: blocks,
        utilization: blocks,
        features: PREFERENCES,
        write_granularity: unit,
        write_alignment: unit,
        deallocate_granularity: unit,
        deallocate_alignment: unit,
        optimal_write: unit,
        medium: u128::from(namespace.store.size()).to_le_bytes(),
        attributes: namespace.read_only.into(),
        deallocation: DEALLOCATION | reads,
        nguid: namespace.nguid.unwrap_or_default(),
        eui64: namespace.eui64.unwrap_or_default(),
        ..any_namespace()
    }
}

fn independent(namespace: &Namespace) -> IndependentNamespace {
    IndependentNamespace {
        features: PREFERENCES,
        attributes: namespace.read_only.into(),
        status: 1,
        ..IndependentNamespace::default()
    }
}

/// The names of a namespace, one behind the other; zeros are the end.
fn descriptors(namespace: &Namespace) -> Vec<u8> {
    let Namespace { uuid, nguid, eui64, .. } = namespace;
    let mut names: Vec<(u8, &[u8])> = Vec::new();
    names.extend(eui64.as_ref().map(|name| (descriptor::EUI64, &name[..])));
    names.extend(nguid.as_ref().map(|name| (descriptor::NGUID, &name[..])));
    names.extend([(descriptor::UUID, &uuid[..]), (descriptor::CSI, &[CSI_NVM][..])]);
    let mut bytes = Vec::new();
    for (kind, name) in names {
        bytes.extend(descriptor::head(kind, name.len() as u8));
        bytes.extend(name);
    }
    bytes
}
