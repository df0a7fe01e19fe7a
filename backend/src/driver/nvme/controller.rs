//! A controller that is enabled, and its admin commands (base specification, sections 3.5 and 5).

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mdev_dma::Segment;
use mdev_protocol::nvme::command::{Command, Completion};
use mdev_protocol::nvme::feature;
use mdev_protocol::nvme::identify::{
    IDENTIFY_LEN, IdentifyController, IdentifyNamespace, cns, optional_admin,
};
use mdev_protocol::nvme::opcode::admin;
use mdev_protocol::nvme::register::{ACQ, AQA, ASQ, CAP, CC, CSTS, csts};
use mdev_protocol::vfio_user::Client;
use zerocopy::FromBytes;

use super::doorbell::{Doorbell, DoorbellWay, ShadowPages};
use super::error::NvmeError;
use super::function::Function;
use super::pair::QueuePair;
use crate::driver::{GuestMemory, MemoryOptions, Part};

const PAGE: u64 = 4096;
/// Entries of the admin queues.
const ADMIN_ENTRIES: u32 = 32;
/// Enabled, entries of 64 and of 16 bytes; the rest of [`CC`] is zero: the NVM command set, pages of 4 KiB, round robin.
const ENABLED: u32 = 1 | 6 << 16 | 4 << 20;
/// [`CC`]: a normal shutdown.
const SHUTDOWN: u32 = 1 << 14;
/// Dword 11 of the creation of a queue: it is physically contiguous.
const CONTIGUOUS: u32 = 1;
/// How long an admin command may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a register or a queue is looked at without a pause, and the pause between later looks.
const LOOKS: u32 = 1000;
const PAUSE: Duration = Duration::from_micros(50);

/// A controller. When it and all its queues, which hold the connection too, are dropped, the connection is closed, upon which the
/// device ends what is left.
pub struct NvmeController {
    function: Arc<Function>,
    memory: GuestMemory,
    way: DoorbellWay,
    /// The doorbells, if they are mapped.
    page: Option<Segment>,
    /// The doorbells in memory, if there are any.
    shadow: Option<ShadowPages>,
    admin: QueuePair,
    /// What admin commands read and write.
    data: Part,
    cid: u16,
    /// How long it may take to become ready.
    timeout: Duration,
    /// Entries that a queue has at most.
    greatest: u32,
}

impl NvmeController {
    /// Connects to the device at `path` and enables its controller, which is lent this memory. `timeout` is for each answer of the
    /// device.
    ///
    /// # Errors
    /// [`NvmeError`]: nobody listens, it is no NVMe, it lacks this way of doorbells, or does not become ready.
    pub fn connect(
        path: &Path,
        timeout: Duration,
        memory: GuestMemory,
        way: DoorbellWay,
    ) -> Result<Self, NvmeError> {
        Self::of(Function::connect(path, timeout)?, memory, way)
    }

    /// The same over a client that is connected.
    ///
    /// # Errors
    /// As [`NvmeController::connect`].
    pub fn over(client: Client, memory: GuestMemory, way: DoorbellWay) -> Result<Self, NvmeError> {
        Self::of(Function::over(client)?, memory, way)
    }

    fn of(function: Function, mut memory: GuestMemory, way: DoorbellWay) -> Result<Self, NvmeError> {
        let function = Arc::new(function);
        let page = match way {
            DoorbellWay::Mapped => Some(function.doorbells(memory.windows())?.ok_or(NvmeError::NotMappable)?),
            DoorbellWay::Trapped | DoorbellWay::Shadow => None,
        };
        let shadow = match way {
            DoorbellWay::Shadow => Some(ShadowPages {
                values: memory.allocate(PAGE, PAGE)?,
                events: memory.allocate(PAGE, PAGE)?,
            }),
            DoorbellWay::Mapped | DoorbellWay::Trapped => None,
        };
        let bells = [false, true].map(|is_head| Doorbell::register(function.clone(), 0, is_head));
        let admin = QueuePair::new(&mut memory, 0, ADMIN_ENTRIES, bells)?;
        let data = memory.allocate(PAGE, PAGE)?;
        function.lend(&memory)?;
        let mut controller = NvmeController {
            function,
            memory,
            way,
            page,
            shadow,
            admin,
            data,
            cid: 0,
            timeout: PATIENCE,
            greatest: 0,
        };
        controller.enable()?;
        Ok(controller)
    }

    /// Bytes of guest memory that it takes for itself.
    pub fn memory_needed() -> u64 {
        QueuePair::memory(ADMIN_ENTRIES) + 4 * PAGE
    }

    /// The guest's memory, all of which is lent to the controller, to allocate from.
    pub fn memory(&mut self) -> &mut GuestMemory {
        &mut self.memory
    }

    /// The guest's memory, to look at.
    pub fn guest(&self) -> &GuestMemory {
        &self.memory
    }

    /// Adds a region to the guest's memory, from which later allocations come, and lends it.
    ///
    /// # Errors
    /// No such memory, or the device refuses it.
    pub fn add_region(&mut self, options: MemoryOptions) -> Result<(), NvmeError> {
        self.memory.add_region(options)?;
        self.memory.regions().last().map_or(Ok(()), |region| self.function.lend_region(region))
    }

    /// The function.
    pub fn function(&self) -> &Arc<Function> {
        &self.function
    }

    /// Entries that a queue has at most.
    pub fn greatest_queue(&self) -> u32 {
        self.greatest
    }

    /// Enables it, after whatever it did before: no queue but the admin queue is there any more.
    ///
    /// # Errors
    /// It does not become ready, or has another layout than this driver.
    pub fn enable(&mut self) -> Result<(), NvmeError> {
        self.function.enable()?;
        let capabilities = self.function.read64(CAP)?;
        self.greatest = (capabilities as u16 as u32) + 1;
        self.timeout = Duration::from_millis(500) * (capabilities >> 24 & 0xff).max(1) as u32;
        let (stride, page) = (4 << (capabilities >> 32 & 0xf), PAGE << (capabilities >> 48 & 0xf));
        if (stride, page) != (4, PAGE) {
            return Err(NvmeError::Layout { stride, page });
        }
        self.disable()?;
        self.admin.begin_anew();
        let entries = self.admin.entries() - 1;
        self.function.write32(AQA, entries | entries << 16)?;
        let [submissions, completions] = self.admin.bases();
        self.function.write64(ASQ, submissions.0)?;
        self.function.write64(ACQ, completions.0)?;
        self.function.write32(CC, ENABLED)?;
        self.await_status("ready", csts::READY, csts::READY)?;
        if let Some(ShadowPages { values, events }) = &self.shadow {
            let dptr = [values.at.0, events.at.0];
            let offered = self.identify_controller()?.optional_admin;
            if offered & optional_admin::DOORBELL_BUFFER == 0 {
                return Err(NvmeError::NoShadow);
            }
            let config = Command { dptr, ..Command::new(admin::DOORBELL_BUFFER_CONFIG, 0, 0) };
            self.carry_out("Doorbell Buffer Config", config)?;
        }
        Ok(())
    }

    /// Disables it: its queues have ended when this returns.
    ///
    /// # Errors
    /// It stays ready.
    pub fn disable(&mut self) -> Result<(), NvmeError> {
        self.function.write32(CC, 0)?;
        self.await_status("disabled", csts::READY, 0)
    }

    /// Shuts it down normally.
    ///
    /// # Errors
    /// It does not say that it has.
    pub fn shut_down(&mut self) -> Result<(), NvmeError> {
        self.function.write32(CC, ENABLED | SHUTDOWN)?;
        self.await_status("shut down", csts::SHUT_DOWN, csts::SHUT_DOWN)
    }

    /// Resets the function, which ends all queues, and enables the controller again.
    ///
    /// # Errors
    /// As [`NvmeController::enable`].
    pub fn reset(&mut self) -> Result<(), NvmeError> {
        self.function.reset()?;
        self.enable()
    }

    /// What the controller is.
    ///
    /// # Errors
    /// It refuses, or does not answer.
    pub fn identify_controller(&mut self) -> Result<IdentifyController, NvmeError> {
        self.identify(cns::CONTROLLER, 0)
    }

    /// What a namespace is; all zeros if it is not active.
    ///
    /// # Errors
    /// As [`NvmeController::identify_controller`].
    pub fn identify_namespace(&mut self, nsid: u32) -> Result<IdentifyNamespace, NvmeError> {
        self.identify(cns::NAMESPACE, nsid)
    }

    /// One of the structures of identify: `T` must have at most [`IDENTIFY_LEN`] bytes.
    ///
    /// # Errors
    /// As [`NvmeController::identify_controller`].
    pub fn identify<T: FromBytes>(&mut self, cns: u8, nsid: u32) -> Result<T, NvmeError> {
        let dptr = [self.data.at.0, 0];
        let identify = Command { dptr, cdw10: cns.into(), ..Command::new(admin::IDENTIFY, 0, nsid) };
        self.carry_out("Identify", identify)?;
        const { assert!(size_of::<T>() <= IDENTIFY_LEN) };
        self.data.slice().and_then(|page| page.read(0)).ok_or(NvmeError::NotNvme)
    }

    /// The value of a feature that is one dword.
    ///
    /// # Errors
    /// It refuses, or does not answer.
    pub fn feature(&mut self, feature: u8) -> Result<u32, NvmeError> {
        let get = Command { cdw10: feature.into(), ..Command::new(admin::GET_FEATURES, 0, 0) };
        self.carry_out("Get Features", get)
    }

    /// Sets such a feature. What the controller says to it, which depends on the feature.
    ///
    /// # Errors
    /// As [`NvmeController::feature`].
    pub fn set_feature(&mut self, feature: u8, value: u32) -> Result<u32, NvmeError> {
        let set = Command { cdw10: feature.into(), cdw11: value, ..Command::new(admin::SET_FEATURES, 0, 0) };
        self.carry_out("Set Features", set)
    }

    /// Asks for so many pairs of I/O queues; how many there may be, which is less or more. Before any is created.
    ///
    /// # Errors
    /// As [`NvmeController::feature`].
    pub fn ask_for_queues(&mut self, pairs: u16) -> Result<u16, NvmeError> {
        let wanted = u32::from(pairs.max(1)) - 1;
        let given = self.set_feature(feature::NUMBER_OF_QUEUES, wanted | wanted << 16)?;
        Ok((given as u16).min((given >> 16) as u16).saturating_add(1))
    }

    /// Creates completion queue and submission queue `qid`, without an interrupt.
    ///
    /// # Errors
    /// No memory; it refuses, or does not answer.
    pub fn create_pair(&mut self, qid: u16, entries: u32) -> Result<QueuePair, NvmeError> {
        if qid == 0 || !(2..=self.greatest).contains(&entries) {
            return Err(NvmeError::Entries { qid, entries, greatest: self.greatest });
        }
        let bells = [false, true].map(|is_head| self.doorbell(qid, is_head));
        let pair = QueuePair::new(&mut self.memory, qid, entries, bells)?;
        let [submissions, completions] = pair.bases();
        let cdw10 = u32::from(qid) | (entries - 1) << 16;
        let create = |opcode, base: mdev_dma::Iova, cdw11| Command {
            dptr: [base.0, 0],
            cdw10,
            cdw11,
            ..Command::new(opcode, 0, 0)
        };
        self.carry_out("Create I/O Completion Queue", create(admin::CREATE_CQ, completions, CONTIGUOUS))?;
        let submission = create(admin::CREATE_SQ, submissions, CONTIGUOUS | u32::from(qid) << 16);
        self.carry_out("Create I/O Submission Queue", submission)?;
        Ok(pair)
    }

    fn doorbell(&self, qid: u16, is_head: bool) -> Doorbell {
        let bell = Doorbell::register(self.function.clone(), qid, is_head);
        match (self.way, &self.page, &self.shadow) {
            (DoorbellWay::Mapped, Some(page), _) => bell.in_page(page.clone()),
            (DoorbellWay::Shadow, _, Some(pages)) => bell.in_memory(pages.clone()),
            _ => bell,
        }
    }

    /// Deletes submission queue and completion queue `qid`. What was under way has ended by then, and its completions can be
    /// reaped.
    ///
    /// # Errors
    /// It refuses, or does not answer.
    pub fn delete_pair(&mut self, qid: u16) -> Result<(), NvmeError> {
        let delete = |opcode| Command { cdw10: qid.into(), ..Command::new(opcode, 0, 0) };
        self.carry_out("Delete I/O Submission Queue", delete(admin::DELETE_SQ))?;
        self.carry_out("Delete I/O Completion Queue", delete(admin::DELETE_CQ))?;
        Ok(())
    }

    /// Carries out an admin command of this name; dword 0 of its completion.
    ///
    /// # Errors
    /// It refuses, or does not answer.
    pub fn carry_out(&mut self, name: &'static str, command: Command) -> Result<u32, NvmeError> {
        let completion = self.admin(name, command)?;
        match completion.status() {
            status if status.is_success() => Ok(completion.dw0),
            status => Err(NvmeError::Refused { command: name, status }),
        }
    }

    /// The same, where a refusal is no error. The command identifier is chosen here.
    ///
    /// # Errors
    /// It does not answer.
    pub fn admin(&mut self, name: &'static str, command: Command) -> Result<Completion, NvmeError> {
        let cid = self.begin(name, command)?;
        self.end(name, cid)
    }

    /// Begins an admin command and does not wait; the identifier that was chosen for it.
    ///
    /// # Errors
    /// The admin queue is full of commands that are not answered; the connection is over.
    pub fn begin(&mut self, name: &'static str, command: Command) -> Result<u16, NvmeError> {
        self.cid = self.cid.wrapping_add(1);
        let cid = self.cid;
        let command = Command { cdw0: command.cdw0 & 0xffff | u32::from(cid) << 16, ..command };
        if !self.admin.push(&command) {
            return Err(NvmeError::Silent { command: name, waited: PATIENCE });
        }
        self.admin.ring()?;
        Ok(cid)
    }

    /// Waits for the end of a command that was begun. Those that ended before it are given up: of several, wait for the oldest
    /// first.
    ///
    /// # Errors
    /// It does not answer.
    pub fn end(&mut self, name: &'static str, cid: u16) -> Result<Completion, NvmeError> {
        let mut answer = None;
        let found = wait(PATIENCE, || {
            // A completion of another command is that of one that was given up.
            self.admin.reap(1, |completion| {
                if completion.cid == cid {
                    answer = Some(completion);
                }
            })?;
            Ok::<_, NvmeError>(answer.is_some())
        })?;
        match answer {
            Some(answer) if found => Ok(answer),
            _ if self.function.read32(CSTS)? & csts::FATAL != 0 => Err(NvmeError::Fatal),
            _ => Err(NvmeError::Silent { command: name, waited: PATIENCE }),
        }
    }

    fn await_status(&self, what: &'static str, mask: u32, wanted: u32) -> Result<(), NvmeError> {
        let mut seen = 0;
        let there = wait(self.timeout, || {
            seen = self.function.read32(CSTS)?;
            // One that is disabled may have been fatal before.
            let fatal = seen & csts::FATAL != 0 && wanted != 0;
            if fatal { Err(NvmeError::Fatal) } else { Ok(seen & mask == wanted) }
        })?;
        match there {
            true => Ok(()),
            false => Err(NvmeError::NotReady { what, waited: self.timeout, csts: seen }),
        }
    }
}

/// Looks until there is what is looked for, or so much time is over.
fn wait<E>(timeout: Duration, mut look: impl FnMut() -> Result<bool, E>) -> Result<bool, E> {
    let deadline = Instant::now() + timeout;
    for count in 0u32.. {
        if look()? {
            return Ok(true);
        }
        if count >= LOOKS {
            std::thread::sleep(PAUSE);
        }
        if Instant::now() >= deadline {
            break;
        }
    }
    Ok(false)
}
