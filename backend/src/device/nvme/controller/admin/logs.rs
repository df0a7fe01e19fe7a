//! Get log page (section 5.16).

use mdev_protocol::nvme::command::{Command, NSID_ALL};
use mdev_protocol::nvme::feature::capability::NAMESPACE;
use mdev_protocol::nvme::log::{
    CHANGED_LEN, CHANGED_NAMESPACES, COMMAND_EFFECTS, CommandEffects, EFFECT_DATA, EFFECT_INVENTORY,
    EFFECT_SUPPORTED, ERRORS, ErrorEntry, FEATURE_EFFECTS, FIRMWARE_SLOTS, FirmwareSlots, HEALTH, Health,
    LogRequest, PAGE_SUPPORTED, SCOPE_CONTROLLER, SCOPE_NAMESPACE, SUPPORTED, WARNING_TEMPERATURE,
};
use mdev_protocol::nvme::opcode::{admin, nvm};
use mdev_protocol::nvme::status::Status;
use zerocopy::IntoBytes;

use super::memory::Way;
use super::{DONE, Outcome, features, identify, memory, refused};
use crate::device::nvme::Mishaps;
use crate::device::nvme::controller::Controller;

/// The pages there are.
const PAGES: [u8; 7] =
    [SUPPORTED, ERRORS, HEALTH, FIRMWARE_SLOTS, CHANGED_NAMESPACES, COMMAND_EFFECTS, FEATURE_EFFECTS];
/// Bytes of one command's data at most.
const MAX_LEN: u64 = 4096 << identify::MAX_TRANSFER;

/// The admin commands there are, and what they change.
const ADMIN: [(u8, u32); 13] = [
    (admin::DELETE_SQ, 0),
    (admin::CREATE_SQ, 0),
    (admin::GET_LOG_PAGE, 0),
    (admin::DELETE_CQ, 0),
    (admin::CREATE_CQ, 0),
    (admin::IDENTIFY, 0),
    (admin::ABORT, 0),
    (admin::SET_FEATURES, 0),
    (admin::GET_FEATURES, 0),
    (admin::ASYNC_EVENT, 0),
    (admin::NAMESPACE_MANAGEMENT, 0),
    (admin::NAMESPACE_ATTACHMENT, EFFECT_INVENTORY),
    (admin::DOORBELL_BUFFER_CONFIG, 0),
];

/// The I/O commands there are, and what they change.
const IO: [(u8, u32); 7] = [
    (nvm::FLUSH, 0),
    (nvm::WRITE, EFFECT_DATA),
    (nvm::READ, 0),
    (nvm::COMPARE, 0),
    (nvm::WRITE_ZEROES, EFFECT_DATA),
    (nvm::DATASET_MANAGEMENT, EFFECT_DATA),
    (nvm::VERIFY, 0),
];

fn table(entries: impl Iterator<Item = (u8, u32)>) -> [u32; 256] {
    let mut table = [0; 256];
    for (at, value) in entries {
        if let Some(place) = table.get_mut(usize::from(at)) {
            *place = value;
        }
    }
    table
}

fn effects(commands: &[(u8, u32)]) -> [u32; 256] {
    table(commands.iter().map(|(opcode, effect)| (*opcode, effect | EFFECT_SUPPORTED)))
}

impl Controller {
    pub(super) fn get_log(&mut self, way: &mut Way, command: &Command) -> Outcome {
        let Command { cdw10, cdw11, cdw12, cdw13, cdw14, .. } = *command;
        let request = LogRequest::new(cdw10, cdw11, cdw12, cdw13, cdw14);
        if !PAGES.contains(&request.page) {
            return refused(Status::INVALID_LOG_PAGE);
        }
        if request.by_entry || !request.offset.is_multiple_of(4) || request.len > MAX_LEN {
            return refused(Status::INVALID_FIELD);
        }
        // The health of single namespaces is not known.
        if request.page == HEALTH && !matches!(command.nsid, 0 | NSID_ALL) {
            return refused(Status::INVALID_FIELD);
        }
        let page = self.log(request.page);
        let Some(rest) = usize::try_from(request.offset).ok().and_then(|offset| page.get(offset..)) else {
            return refused(Status::INVALID_FIELD);
        };
        // What is beyond the end of the page is left as it is.
        let len = usize::try_from(request.len).unwrap_or(usize::MAX).min(rest.len());
        memory::write(way, command, rest.get(..len).unwrap_or_default())?;
        if !request.retain {
            self.events.read(request.page);
            if request.page == CHANGED_NAMESPACES {
                self.changed.clear();
            }
        }
        DONE
    }

    fn log(&self, page: u8) -> Vec<u8> {
        match page {
            SUPPORTED => table(PAGES.into_iter().map(|page| (page, PAGE_SUPPORTED))).as_bytes().to_vec(),
            ERRORS => self.errors().as_bytes().to_vec(),
            HEALTH => self.health().as_bytes().to_vec(),
            FIRMWARE_SLOTS => {
                let mut slots = FirmwareSlots { active: 1, ..FirmwareSlots::default() };
                slots.revisions.iter_mut().take(1).for_each(|slot| *slot = identify::revision());
                slots.as_bytes().to_vec()
            }
            CHANGED_NAMESPACES => {
                let mut list = [0u32; CHANGED_LEN];
                list.iter_mut().zip(&self.changed).for_each(|(place, nsid)| *place = *nsid);
                list.as_bytes().to_vec()
            }
            COMMAND_EFFECTS => {
                let effects =
                    CommandEffects { admin: effects(&ADMIN), io: effects(&IO), ..CommandEffects::default() };
                effects.as_bytes().to_vec()
            }
            _ => table(features::ALL.into_iter().map(|(feature, can)| {
                let scope = if can & NAMESPACE != 0 { SCOPE_NAMESPACE } else { SCOPE_CONTROLLER };
                (feature, EFFECT_SUPPORTED | scope)
            }))
            .as_bytes()
            .to_vec(),
        }
    }

    fn errors(&self) -> [ErrorEntry; Mishaps::KEPT] {
        let mut entries = [ErrorEntry::default(); Mishaps::KEPT];
        for (entry, (count, mishap)) in entries.iter_mut().zip(self.shared.mishaps.last()) {
            *entry = ErrorEntry {
                count,
                sq_id: mishap.qid,
                cid: mishap.cid,
                status: mishap.status.0 << 1,
                location: mishap.location,
                block: mishap.block,
                nsid: mishap.nsid,
                ..ErrorEntry::default()
            };
        }
        entries
    }

    fn health(&self) -> Health {
        let used = self.shared.used();
        let number = |value: u64| u128::from(value).to_le_bytes();
        // Thousands of 512 bytes, rounded up.
        let units = |bytes: u64| number(bytes.div_ceil(512_000));
        let hours = self.created.elapsed().as_secs() / 3600;
        Health {
            warning: if self.features.is_too_warm_or_cold() { WARNING_TEMPERATURE } else { 0 },
            temperature: features::TEMPERATURE.to_le_bytes(),
            spare: 100,
            spare_threshold: 10,
            units_read: units(used.read_bytes),
            units_written: units(used.written_bytes),
            reads: number(used.reads),
            writes: number(used.writes),
            power_cycles: number(1),
            power_on_hours: number(hours),
            error_entries: number(self.shared.mishaps.count()),
            ..Health::default()
        }
    }
}
