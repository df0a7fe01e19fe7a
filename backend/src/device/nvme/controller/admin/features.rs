//! Features: set and got (sections 5.15 and 5.27). None can be saved: a reset brings the default values back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::Instant;

use mdev_protocol::nvme::command::{Command, NSID_ALL};
use mdev_protocol::nvme::event::Event;
use mdev_protocol::nvme::feature::{
    ARBITRATION, ASYNC_EVENTS, CDW10_FEATURE, CDW10_SAVE, ERROR_RECOVERY, EVENT_NAMESPACES, EVENT_WARNINGS,
    HOST_ID, HOST_ID_EXTENDED, INTERRUPT_COALESCING, INTERRUPT_VECTOR, NUMBER_OF_QUEUES, POWER_MANAGEMENT,
    Select, TEMPERATURE_THRESHOLD, TIMESTAMP, TIMESTAMP_LEN, VOLATILE_WRITE_CACHE, WRITE_ATOMICITY,
    capability::{CHANGEABLE, NAMESPACE},
};
use mdev_protocol::nvme::log::WARNING_TEMPERATURE;
use mdev_protocol::nvme::status::Status;

use super::memory::Way;
use super::{Answer, DONE, Outcome, memory, refused};
use crate::device::nvme::Shared;
use crate::device::nvme::controller::Controller;

/// Kelvin of the controller.
pub(super) const TEMPERATURE: u16 = 313;
/// Kelvin above which it warns.
pub(super) const WARNING: u16 = 343;

/// Every feature there is, and what can be done with it.
pub(super) const ALL: [(u8, u32); 12] = [
    (ARBITRATION, CHANGEABLE),
    (POWER_MANAGEMENT, CHANGEABLE),
    (TEMPERATURE_THRESHOLD, CHANGEABLE),
    (ERROR_RECOVERY, CHANGEABLE | NAMESPACE),
    (VOLATILE_WRITE_CACHE, CHANGEABLE),
    (NUMBER_OF_QUEUES, CHANGEABLE),
    (INTERRUPT_COALESCING, CHANGEABLE),
    (INTERRUPT_VECTOR, CHANGEABLE),
    (WRITE_ATOMICITY, CHANGEABLE),
    (ASYNC_EVENTS, CHANGEABLE),
    (TIMESTAMP, CHANGEABLE),
    (HOST_ID, CHANGEABLE),
];

/// What the host has set.
#[derive(Clone, Debug)]
pub(in super::super) struct Features {
    arbitration: u32,
    /// Kelvin: above and below which there is a warning.
    thresholds: [u16; 2],
    /// Time-limited recovery, by namespace; those that have none are not in it.
    recovery: BTreeMap<u32, u16>,
    write_back: bool,
    queues: u16,
    coalescing: u32,
    /// Vectors that are not to coalesce.
    prompt: BTreeSet<u16>,
    atomicity: u32,
    events: u32,
    /// Milliseconds, and when that was.
    timestamp: (u64, Instant),
    /// The timestamp came from the host.
    timestamp_set: bool,
    host_id: [u8; 16],
}

/// Bits of [`ASYNC_EVENTS`] that are kept.
const EVENTS: u32 = EVENT_NAMESPACES | EVENT_WARNINGS;
/// The milliseconds of a timestamp.
const MILLISECONDS: u64 = 0xffff_ffff_ffff;

impl Features {
    /// As after a reset, with so many pairs of I/O queues.
    pub(in super::super) fn new(queues: u16) -> Self {
        Self {
            arbitration: 0,
            thresholds: [WARNING, 0],
            recovery: BTreeMap::new(),
            write_back: true,
            queues,
            coalescing: 0,
            prompt: BTreeSet::new(),
            atomicity: 0,
            events: 0,
            timestamp: (0, Instant::now()),
            timestamp_set: false,
            host_id: [0; 16],
        }
    }

    /// Tells engines of those that they heed.
    pub(in super::super) fn apply(&self, shared: &Shared) {
        shared.write_back.store(self.write_back, Ordering::Relaxed);
    }

    /// The highest identifier of an I/O queue.
    pub(super) fn queues(&self) -> u16 {
        self.queues
    }

    /// [`ASYNC_EVENTS`].
    pub(super) fn events(&self) -> u32 {
        self.events
    }

    /// Whether the temperature is beyond a threshold.
    pub(super) fn is_too_warm_or_cold(&self) -> bool {
        let [over, under] = self.thresholds;
        TEMPERATURE >= over || TEMPERATURE <= under
    }

    /// The place of a threshold: bits 16-19 are the sensor, of which there is one, and 20-21 which one it is.
    fn threshold(cdw11: u32) -> Result<usize, super::Fault> {
        match (cdw11 >> 16 & 0xf, cdw11 >> 20 & 3) {
            (0, which @ (0 | 1)) => Ok(which as usize),
            _ => refused(Status::INVALID_FIELD),
        }
    }

    /// Milliseconds since whatever the host has set, or since the reset.
    fn now(&self) -> u64 {
        let (set, at) = self.timestamp;
        let passed = u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX);
        set.wrapping_add(passed) & MILLISECONDS
    }
}

fn capabilities(feature: u8) -> Option<u32> {
    ALL.iter().find(|(id, _)| *id == feature).map(|(_, can)| *can)
}

impl Controller {
    pub(super) fn get_feature(&mut self, way: &mut Way, command: &Command) -> Outcome {
        let feature = (command.cdw10 & CDW10_FEATURE) as u8;
        let (Some(capabilities), Some(select)) = (capabilities(feature), Select::of(command.cdw10)) else {
            return refused(Status::INVALID_FIELD);
        };
        let defaults;
        let values = match select {
            Select::Capabilities => return Ok(Answer::Now(capabilities)),
            Select::Current => &self.features,
            Select::Default | Select::Saved => {
                defaults = Features::new(self.pairs);
                &defaults
            }
        };
        let cdw11 = command.cdw11;
        let value = match feature {
            ARBITRATION => values.arbitration,
            POWER_MANAGEMENT => 0,
            TEMPERATURE_THRESHOLD => {
                let which = Features::threshold(cdw11)?;
                values.thresholds.get(which).copied().unwrap_or(0).into()
            }
            ERROR_RECOVERY => {
                if self.shared.namespaces.attached().1.get(command.nsid).is_none() {
                    return refused(Status::INVALID_NAMESPACE);
                }
                values.recovery.get(&command.nsid).copied().unwrap_or(0).into()
            }
            VOLATILE_WRITE_CACHE => values.write_back.into(),
            NUMBER_OF_QUEUES => {
                let last = u32::from(values.queues.saturating_sub(1));
                last | last << 16
            }
            INTERRUPT_COALESCING => values.coalescing,
            INTERRUPT_VECTOR => {
                let vector = cdw11 as u16;
                if vector >= self.vectors.count() {
                    return refused(Status::INVALID_FIELD);
                }
                u32::from(vector) | u32::from(values.prompt.contains(&vector)) << 16
            }
            WRITE_ATOMICITY => values.atomicity,
            ASYNC_EVENTS => values.events,
            TIMESTAMP => {
                let origin = u64::from(values.timestamp_set) << 49;
                memory::write(way, command, &(values.now() | origin).to_le_bytes())?;
                0
            }
            _ => {
                let len = if cdw11 & HOST_ID_EXTENDED != 0 { 16 } else { 8 };
                memory::write(way, command, values.host_id.get(..len).unwrap_or_default())?;
                0
            }
        };
        Ok(Answer::Now(value))
    }

    pub(super) fn set_feature(&mut self, way: &mut Way, command: &Command) -> Outcome {
        let feature = (command.cdw10 & CDW10_FEATURE) as u8;
        let Some(capabilities) = capabilities(feature) else { return refused(Status::INVALID_FIELD) };
        if command.cdw10 & CDW10_SAVE != 0 {
            return refused(Status::FEATURE_NOT_SAVEABLE);
        }
        if capabilities & NAMESPACE == 0 && !matches!(command.nsid, 0 | NSID_ALL) {
            let known = self.shared.namespaces.get(command.nsid).is_some();
            return refused(if known {
                Status::FEATURE_NOT_NAMESPACE_SPECIFIC
            } else {
                Status::INVALID_NAMESPACE
            });
        }
        let value = command.cdw11;
        match feature {
            ARBITRATION => self.features.arbitration = value & 0xffff_ff07,
            // There is one power state, and nothing to do in it.
            POWER_MANAGEMENT if value & 0x1f == 0 => {}
            POWER_MANAGEMENT => return refused(Status::INVALID_FIELD),
            TEMPERATURE_THRESHOLD => self.set_threshold(value)?,
            ERROR_RECOVERY => self.set_recovery(command.nsid, value)?,
            VOLATILE_WRITE_CACHE => {
                self.features.write_back = value & 1 != 0;
                self.features.apply(&self.shared);
            }
            NUMBER_OF_QUEUES => return self.set_queues(value),
            INTERRUPT_COALESCING => self.features.coalescing = value & 0xffff,
            INTERRUPT_VECTOR => {
                let vector = value as u16;
                if vector >= self.vectors.count() {
                    return refused(Status::INVALID_FIELD);
                }
                if value & 1 << 16 != 0 {
                    self.features.prompt.insert(vector);
                } else {
                    self.features.prompt.remove(&vector);
                }
            }
            WRITE_ATOMICITY => self.features.atomicity = value & 1,
            ASYNC_EVENTS => {
                self.features.events = value & EVENTS;
                self.check_temperature();
            }
            TIMESTAMP => {
                let bytes = memory::read::<TIMESTAMP_LEN>(way, command)?;
                self.features.timestamp = (u64::from_le_bytes(bytes) & MILLISECONDS, Instant::now());
                self.features.timestamp_set = true;
            }
            _ => {
                self.features.host_id = if value & HOST_ID_EXTENDED != 0 {
                    memory::read::<16>(way, command)?
                } else {
                    u128::from(u64::from_le_bytes(memory::read::<8>(way, command)?)).to_le_bytes()
                };
            }
        }
        DONE
    }

    fn set_threshold(&mut self, value: u32) -> Result<(), super::Fault> {
        // Sensor 15 is all of them.
        let which = Features::threshold(if value >> 16 & 0xf == 0xf { value & !0xf_0000 } else { value })?;
        if let Some(threshold) = self.features.thresholds.get_mut(which) {
            *threshold = value as u16;
        }
        self.check_temperature();
        Ok(())
    }

    fn check_temperature(&mut self) {
        if self.features.is_too_warm_or_cold() && self.features.events & u32::from(WARNING_TEMPERATURE) != 0 {
            self.event(Event::TEMPERATURE);
        }
    }

    fn set_recovery(&mut self, nsid: u32, value: u32) -> Result<(), super::Fault> {
        // Errors of deallocated blocks (bit 16) are for namespaces that know which those are.
        if value & 1 << 16 != 0 {
            return refused(Status::INVALID_FIELD);
        }
        let (_, attached) = self.shared.namespaces.attached();
        if nsid != NSID_ALL && attached.get(nsid).is_none() {
            return refused(Status::INVALID_NAMESPACE);
        }
        for one in attached.iter().filter(|one| nsid == NSID_ALL || one.nsid == nsid) {
            self.features.recovery.insert(one.nsid, value as u16);
        }
        Ok(())
    }

    /// As many queues of each kind as the host wants, and the controller has. Both kinds have as many.
    fn set_queues(&mut self, value: u32) -> Outcome {
        let (submissions, completions) = (value as u16, (value >> 16) as u16);
        if submissions == u16::MAX || completions == u16::MAX {
            return refused(Status::INVALID_FIELD);
        }
        if !self.submissions.is_empty() || !self.completions.is_empty() {
            return refused(Status::COMMAND_SEQUENCE_ERROR);
        }
        let wanted = submissions.max(completions).saturating_add(1);
        self.features.queues = wanted.min(self.pairs);
        let last = u32::from(self.features.queues.saturating_sub(1));
        Ok(Answer::Now(last | last << 16))
    }
}
