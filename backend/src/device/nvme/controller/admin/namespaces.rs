//! Namespaces: attached, detached, and what the host is told when they change (sections 5.21 and 5.22).

use mdev_protocol::nvme::command::Command;
use mdev_protocol::nvme::event::Event;
use mdev_protocol::nvme::feature::EVENT_NAMESPACES;
use mdev_protocol::nvme::identify::{CONTROLLER_LIST_LEN, IDENTIFY_LEN};
use mdev_protocol::nvme::status::Status;

use super::identify::CONTROLLER_ID;
use super::memory::Way;
use super::{DONE, Outcome, memory, refused};
use crate::device::nvme::NamespaceError;
use crate::device::nvme::controller::{Controller, seen};

/// What both commands select in bits 0-3 of dword 10: the creation, or the attachment.
const FIRST: u32 = 0;
/// See [`FIRST`]: the deletion, or the detachment.
const SECOND: u32 = 1;

impl Controller {
    /// Namespaces are made by the operator: the host finds no capacity for more, and may not delete them.
    pub(super) fn manage_namespace(&mut self, command: &Command) -> Outcome {
        match command.cdw10 & 0xf {
            FIRST if command.cdw11 >> 24 != 0 => refused(Status::INVALID_COMMAND_SET),
            FIRST => refused(Status::NAMESPACE_INSUFFICIENT_CAPACITY),
            SECOND => refused(Status::OPERATION_DENIED),
            _ => refused(Status::INVALID_FIELD),
        }
    }

    pub(super) fn attach_namespace(&mut self, way: &mut Way, command: &Command) -> Outcome {
        let select = command.cdw10 & 0xf;
        if select > SECOND {
            return refused(Status::INVALID_FIELD);
        }
        if self.shared.namespaces.get(command.nsid).is_none() {
            return refused(Status::INVALID_NAMESPACE);
        }
        check_controllers(&memory::read::<IDENTIFY_LEN>(way, command)?)?;
        let namespaces = &self.shared.namespaces;
        let turned =
            if select == FIRST { namespaces.attach(command.nsid) } else { namespaces.detach(command.nsid) };
        match turned {
            Ok(()) => {}
            Err(NamespaceError::Attached(_)) => return refused(Status::NAMESPACE_ALREADY_ATTACHED),
            Err(NamespaceError::NotAttached(_)) => return refused(Status::NAMESPACE_NOT_ATTACHED),
            Err(_) => return refused(Status::INVALID_NAMESPACE),
        }
        self.notice_namespaces();
        DONE
    }

    /// Compares what the host knows of namespaces with what there is.
    pub(in super::super) fn notice_namespaces(&mut self) {
        let now = seen(&self.shared);
        let before = std::mem::replace(&mut self.seen, now);
        let of = |nsid: &u32| before.get(nsid) != self.seen.get(nsid);
        let different: Vec<u32> =
            before.keys().chain(self.seen.keys()).copied().filter(|nsid| of(nsid)).collect();
        if different.is_empty() {
            return;
        }
        self.changed.extend(different);
        if self.features.events() & EVENT_NAMESPACES != 0 {
            self.event(Event::NAMESPACES_CHANGED);
        }
    }
}

/// Whether a list of controllers is this one: there is no other.
fn check_controllers(list: &[u8; IDENTIFY_LEN]) -> Result<(), super::Fault> {
    let mut words = list
        .chunks_exact(2)
        .map(|pair| pair.iter().rev().fold(0u16, |word, byte| word << 8 | u16::from(*byte)));
    let count = usize::from(words.next().unwrap_or(0));
    if count == 0 || count > CONTROLLER_LIST_LEN {
        return refused(Status::CONTROLLER_LIST_INVALID);
    }
    let mut before = None;
    for id in words.take(count) {
        if before.is_some_and(|before| before >= id) {
            return refused(Status::CONTROLLER_LIST_INVALID);
        }
        if id != CONTROLLER_ID {
            return refused(Status::CONTROLLER_LIST_INVALID);
        }
        before = Some(id);
    }
    Ok(())
}
