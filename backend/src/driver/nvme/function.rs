//! The PCI function at the other end of a vfio-user socket.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mdev_dma::{Area, BackingFile, FileExtent, FilePolicy, Iova, IovaRange, Perm, Segment, Windows};
use mdev_protocol::nvme::register::DOORBELLS;
use mdev_protocol::vfio_user::{
    Capabilities, Client, ClientError, DeviceFlags, DmaFlags, DmaMap, DmaUnmap, RegionCaps, RegionFlags,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::error::NvmeError;
use crate::driver::{GuestMemory, Region};

/// The region of the registers, and that of the configuration space (`VFIO_PCI_CONFIG_REGION_INDEX`).
const BAR0: u32 = 0;
const CONFIG: u32 = 7;
/// The command register of the configuration space, and its bits: it answers in its memory space, it reaches memory.
const COMMAND: u64 = 4;
const ANSWERS_AND_REACHES: u16 = 0b110;
/// Bytes of the page of doorbells.
const PAGE: u64 = 4096;
/// A device that was just started may take so long from making its socket to listening on it.
const PATIENCE: Duration = Duration::from_secs(1);

/// A PCI function with NVMe registers.
pub struct Function {
    client: Mutex<Client>,
}

impl Function {
    /// Connects to the device at `path`, trying for a moment if nobody listens there yet, and takes its function into use.
    /// `timeout` is for each answer.
    ///
    /// # Errors
    /// Nobody listens, no answer, or no NVMe.
    pub fn connect(path: &Path, timeout: Duration) -> Result<Self, NvmeError> {
        let deadline = Instant::now() + PATIENCE;
        let not_yet = |error: &io::Error| {
            matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
        };
        loop {
            match Client::connect(path, timeout) {
                Err(ClientError::Connect { error, .. }) if Instant::now() < deadline && not_yet(&error) => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                client => return Self::over(client?),
            }
        }
    }

    /// The same over a client that is connected.
    ///
    /// # Errors
    /// As [`Function::connect`].
    pub fn over(mut client: Client) -> Result<Self, NvmeError> {
        client.negotiate(Capabilities::default())?;
        let info = client.device_info()?;
        if !info.flags.contains(DeviceFlags::PCI) || info.num_regions <= CONFIG {
            return Err(NvmeError::NotNvme);
        }
        let (registers, _) = client.region_info(BAR0)?;
        if registers.size < u64::from(DOORBELLS) + PAGE {
            return Err(NvmeError::NotNvme);
        }
        Ok(Function { client: Mutex::new(client) })
    }

    /// The conversation, for whatever goes beyond the methods here. Nobody else says anything while this is held.
    pub fn client(&self) -> MutexGuard<'_, Client> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets it decode its memory space and reach the guest's.
    ///
    /// # Errors
    /// No answer.
    pub fn enable(&self) -> Result<(), NvmeError> {
        Ok(self.client().region_write(CONFIG, COMMAND, &ANSWERS_AND_REACHES.to_le_bytes())?)
    }

    /// Lends it all regions of a guest's memory.
    ///
    /// # Errors
    /// The device refuses.
    pub fn lend(&self, memory: &GuestMemory) -> Result<(), NvmeError> {
        memory.regions().iter().try_for_each(|region| self.lend_region(region))
    }

    /// Lends it one region.
    ///
    /// # Errors
    /// The device refuses.
    pub fn lend_region(&self, region: &Region) -> Result<(), NvmeError> {
        let map = DmaMap {
            flags: DmaFlags::READ | DmaFlags::WRITE,
            offset: region.extent.offset,
            address: region.range.first().0,
            size: region.size(),
        };
        Ok(self.client().dma_map(map, Some(region.extent.file.as_fd()))?)
    }

    /// Takes all regions of a guest's memory back, one after the other. The device does not reach them any more when this returns.
    ///
    /// # Errors
    /// They were not lent, or the device does not let go of them.
    pub fn take_back(&self, memory: &GuestMemory) -> Result<(), NvmeError> {
        memory.regions().iter().try_for_each(|region| self.take_back_region(region))
    }

    /// Takes one region back.
    ///
    /// # Errors
    /// As [`Function::take_back`].
    pub fn take_back_region(&self, region: &Region) -> Result<(), NvmeError> {
        let unmap = DmaUnmap::Range { address: region.range.first().0, size: region.size() };
        Ok(self.client().dma_unmap(unmap)?)
    }

    /// A register of four bytes.
    ///
    /// # Errors
    /// No answer.
    pub fn read32(&self, offset: u32) -> Result<u32, NvmeError> {
        let mut bytes = [0; 4];
        self.client().region_read(BAR0, offset.into(), &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// A register of eight bytes.
    ///
    /// # Errors
    /// No answer.
    pub fn read64(&self, offset: u32) -> Result<u64, NvmeError> {
        let mut bytes = [0; 8];
        self.client().region_read(BAR0, offset.into(), &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Writes a register of four bytes.
    ///
    /// # Errors
    /// No answer.
    pub fn write32(&self, offset: u32, value: u32) -> Result<(), NvmeError> {
        Ok(self.client().region_write(BAR0, offset.into(), &value.to_le_bytes())?)
    }

    /// Writes a register of eight bytes.
    ///
    /// # Errors
    /// No answer.
    pub fn write64(&self, offset: u32, value: u64) -> Result<(), NvmeError> {
        Ok(self.client().region_write(BAR0, offset.into(), &value.to_le_bytes())?)
    }

    /// Writes a register of four bytes and does not wait, as QEMU does for writes of its guest.
    ///
    /// # Errors
    /// The connection is over.
    pub fn post32(&self, offset: u32, value: u32) -> Result<(), ClientError> {
        self.client().region_write_posted(BAR0, offset.into(), &value.to_le_bytes())
    }

    /// Resets the function. All queues have ended when this returns.
    ///
    /// # Errors
    /// The device does not let go of its queues.
    pub fn reset(&self) -> Result<(), NvmeError> {
        Ok(self.client().reset()?)
    }

    /// The page of doorbells, mapped through these windows; `None` if the device keeps it to itself.
    ///
    /// # Errors
    /// It cannot be mapped.
    pub fn doorbells(&self, windows: &Arc<Windows>) -> Result<Option<Segment>, NvmeError> {
        let (info, file) = self.client().region_info(BAR0)?;
        let Some(file) = file.filter(|_| info.flags.contains(RegionFlags::MMAP)) else { return Ok(None) };
        let first = u64::from(DOORBELLS);
        let mappable = match info.caps() {
            RegionCaps::Sparse(areas) => areas
                .iter()
                .any(|area| area.offset <= first && area.offset.saturating_add(area.size) >= first + PAGE),
            _ => true,
        };
        if !mappable {
            return Ok(None);
        }
        map(windows, file, info.offset.saturating_add(first)).map(Some)
    }

    /// Whether the device has closed the connection or died. Does not wait.
    pub fn is_gone(&self) -> bool {
        let client = self.client();
        let mut ends = [PollFd::new(&*client, PollFlags::RDHUP)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut ends, Some(&now)).is_ok_and(|ready| ready > 0)
    }
}

/// A page of a file.
fn map(windows: &Arc<Windows>, file: OwnedFd, offset: u64) -> Result<Segment, NvmeError> {
    let file = BackingFile::new(file, &FilePolicy::default())?;
    let range = IovaRange::with_len(Iova(0), PAGE)?;
    let extent = FileExtent { file, offset };
    let area = Area { range, extent: extent.into(), perm: Perm::READ | Perm::WRITE, log: None };
    windows.segments(&area)?.pop().ok_or(NvmeError::NotMappable)
}
