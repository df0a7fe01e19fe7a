//! The commands of a client as calls.

use std::os::fd::{BorrowedFd, OwnedFd};

use super::{Client, ClientError};
use crate::frame::{Connection, DoesNotFit, Fds, MAX_FDS};
use crate::vfio_user::{
    Capabilities, Command, Data, DeviceInfo, DmaMap, DmaUnmap, IrqAction, IrqData, IrqInfo, MAX_DATA,
    QueryInfo, QueryIoFds, QueryIrq, QueryRegion, RegionCaps, RegionInfo, RegionIoFds, RegionRead,
    RegionWrite, RegionWriteMulti, Reply, Request, SetIrqs, SubRegions, Version,
};

/// The sizes of replies that hold no lists, in bytes.
const SMALL_INFO: u32 = 16;
const REGION_INFO: u32 = 32;

/// The payload of the reply that is expected.
macro_rules! expect {
    ($reply:expr, $name:ident) => {
        match $reply {
            (Reply::$name(payload), fds) => Ok((payload, fds)),
            (reply, _) => {
                Err(ClientError::Unexpected { name: Command::$name.name(), reply: Box::new(reply) })
            }
        }
    };
}

impl Client {
    /// Proposes version 0.0 with these capabilities, and returns what the server settled. If that is a second socket, the server's
    /// commands are served there.
    pub fn negotiate(&mut self, capabilities: Capabilities) -> Result<Version, ClientError> {
        let proposed = capabilities.twin_socket.is_some_and(|twin| twin.supported);
        let request = Request::Version(Version { major: 0, minor: 0, capabilities });
        let (version, fds) = expect!(self.call(&request, &[])?, Version)?;
        let twin = version.capabilities.twin_socket.filter(|twin| twin.supported);
        let index = twin.and_then(|twin| twin.fd_index).and_then(|index| usize::try_from(index).ok());
        let end = index.and_then(|index| fds.into_iter().nth(index));
        if version.major != 0 || version.minor != 0 || twin.is_some() && (!proposed || end.is_none()) {
            let reply = Box::new(Reply::Version(version));
            return Err(ClientError::Unexpected { name: Command::Version.name(), reply });
        }
        self.twin = end.filter(|_| twin.is_some()).map(Connection::new);
        self.server = version.capabilities.clone();
        Ok(version)
    }

    /// Lends memory, in a file or to be reached by messages ([`Client::lend`]).
    pub fn dma_map(&mut self, map: DmaMap, file: Option<BorrowedFd<'_>>) -> Result<(), ClientError> {
        self.call(&Request::DmaMap(map), file.as_slice()).map(drop)
    }

    /// Takes memory back. When it returns, the device does not reach it any more.
    pub fn dma_unmap(&mut self, unmap: DmaUnmap) -> Result<(), ClientError> {
        let (echo, _) = expect!(self.call(&Request::DmaUnmap(unmap), &[])?, DmaUnmap)?;
        if echo == unmap {
            return Ok(());
        }
        let reply = Box::new(Reply::DmaUnmap(echo));
        Err(ClientError::Unexpected { name: Command::DmaUnmap.name(), reply })
    }

    /// What the device is.
    pub fn device_info(&mut self) -> Result<DeviceInfo, ClientError> {
        let request = Request::DeviceGetInfo(QueryInfo { argsz: SMALL_INFO });
        Ok(expect!(self.call(&request, &[])?, DeviceGetInfo)?.0)
    }

    /// What a region is, and the file to map it from. It is asked for twice where there is more to say than usual.
    pub fn region_info(&mut self, index: u32) -> Result<(RegionInfo, Option<OwnedFd>), ClientError> {
        let mut argsz = REGION_INFO;
        loop {
            let request = Request::DeviceGetRegionInfo(QueryRegion { argsz, index });
            let (info, fds) = expect!(self.call(&request, &[])?, DeviceGetRegionInfo)?;
            match info.caps() {
                RegionCaps::Omitted { argsz: whole } if argsz == REGION_INFO => argsz = *whole,
                _ => return Ok((info, fds.into_iter().next())),
            }
        }
    }

    /// By which descriptors a region is reached, and the descriptors. It is asked for twice where there are any.
    pub fn region_io_fds(&mut self, index: u32) -> Result<(RegionIoFds, Fds), ClientError> {
        let mut argsz = SMALL_INFO;
        loop {
            let request = Request::DeviceGetRegionIoFds(QueryIoFds { argsz, index });
            let (info, fds) = expect!(self.call(&request, &[])?, DeviceGetRegionIoFds)?;
            match info.sub_regions() {
                SubRegions::Omitted { argsz: whole, .. } if argsz == SMALL_INFO => argsz = *whole,
                _ => return Ok((info, fds)),
            }
        }
    }

    /// What a kind of interrupt is.
    pub fn irq_info(&mut self, index: u32) -> Result<IrqInfo, ClientError> {
        let request = Request::DeviceGetIrqInfo(QueryIrq { argsz: SMALL_INFO, index });
        Ok(expect!(self.call(&request, &[])?, DeviceGetIrqInfo)?.0)
    }

    /// Wires, masks or triggers interrupts.
    pub fn set_irqs(&mut self, set: SetIrqs, eventfds: &[BorrowedFd<'_>]) -> Result<(), ClientError> {
        self.call(&Request::DeviceSetIrqs(set), eventfds).map(drop)
    }

    /// Has the interrupts of a kind from `start` on signal these eventfds, in as many messages as the server's limit
    /// of descriptors asks for.
    pub fn wire_irqs(
        &mut self,
        index: u32,
        mut start: u32,
        eventfds: &[BorrowedFd<'_>],
    ) -> Result<(), ClientError> {
        let most = (self.server.max_msg_fds as usize).clamp(1, MAX_FDS);
        for some in eventfds.chunks(most) {
            let count = some.len() as u32;
            let set = SetIrqs::new(index, start, IrqAction::Trigger, IrqData::Eventfd { count })?;
            self.set_irqs(set, some)?;
            start = start.saturating_add(count);
        }
        Ok(())
    }

    /// Disables all interrupts of a kind.
    pub fn disable_irqs(&mut self, index: u32) -> Result<(), ClientError> {
        self.set_irqs(SetIrqs::new(index, 0, IrqAction::Trigger, IrqData::None { count: 0 })?, &[])
    }

    /// Reads a region, from `offset` on, in one message.
    pub fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), ClientError> {
        check_len(data.len())?;
        let request = Request::RegionRead(RegionRead { offset, region, count: data.len() as u32 });
        let (done, _) = expect!(self.call(&request, &[])?, RegionRead)?;
        if (done.offset, done.region, done.data.len()) != (offset, region, data.len()) {
            let reply = Box::new(Reply::RegionRead(done));
            return Err(ClientError::Unexpected { name: Command::RegionRead.name(), reply });
        }
        for (to, from) in data.iter_mut().zip(done.data.iter()) {
            *to = *from;
        }
        Ok(())
    }

    /// Writes a region, from `offset` on, in one message, and waits until it is done.
    pub fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), ClientError> {
        let request = Request::RegionWrite(RegionWrite { offset, region, data: Data::new(data)? });
        let (done, _) = expect!(self.call(&request, &[])?, RegionWrite)?;
        if (done.offset, done.region, done.count as usize) != (offset, region, data.len()) {
            let reply = Box::new(Reply::RegionWrite(done));
            return Err(ClientError::Unexpected { name: Command::RegionWrite.name(), reply });
        }
        Ok(())
    }

    /// Writes a region and does not wait. What is sent later is done later.
    pub fn region_write_posted(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), ClientError> {
        let data = Data::new(data)?;
        self.post(&Request::RegionWrite(RegionWrite { offset, region, data }), &[])
    }

    /// Writes regions several times and returns how many of the writes were done.
    pub fn region_write_multi(&mut self, writes: Vec<RegionWrite>) -> Result<u64, ClientError> {
        let request = Request::RegionWriteMulti(RegionWriteMulti::new(writes)?);
        Ok(expect!(self.call(&request, &[])?, RegionWriteMulti)?.0)
    }

    /// Resets the device.
    pub fn reset(&mut self) -> Result<(), ClientError> {
        self.call(&Request::DeviceReset, &[]).map(drop)
    }
}

fn check_len(len: usize) -> Result<(), DoesNotFit> {
    DoesNotFit::check("bytes of data", len, MAX_DATA)
}
