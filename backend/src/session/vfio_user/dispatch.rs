//! Which message does what, and what a refusal looks like.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use mdev_protocol::frame::{Fds, Frame};
use mdev_protocol::vfio_user::{
    Command, Data, DeviceFlags, DeviceInfo, Header, MessageError, RegionReadDone, RegionWrite,
    RegionWriteDone, Reply, Request as R, ToServer,
};

use super::commands::Socket;
use super::error::Refusal;
use super::function::{BAR0, REGIONS};
use super::interrupts::KINDS;
use super::{Queues, Reset, Session};

/// What became of a message.
enum Outcome {
    /// It has its reply.
    Reply(Reply),
    /// The same, with the file of the doorbells.
    WithDoorbells(Reply),
    /// The same, with the client's end of a second socket.
    WithSocket(Reply, OwnedFd),
    /// The reply follows.
    Later,
}

impl Session {
    /// Serves one message, up to its reply or to what it waits for.
    pub(super) fn serve(&mut self, queues: &mut dyn Queues, frame: Frame<ToServer>) {
        let Frame { header, message, fds } = frame;
        let request = match message {
            ToServer::Request(request) => request,
            ToServer::Reply(reply) => return self.hear(queues, &header, reply, Socket::Main),
        };
        let paused = self.device.shared().is_paused();
        let outcome = self.obey(queues, &header, request, fds);
        if paused {
            // What was kept back goes out, if it may.
            self.send_commands();
        }
        match outcome {
            Ok(Outcome::Reply(reply)) => self.answer(&header, &reply),
            Ok(Outcome::WithDoorbells(reply)) => self.answer_with_doorbells(&header, &reply),
            Ok(Outcome::WithSocket(reply, end)) => {
                if header.wants_reply() {
                    self.send(&reply.to_bytes(&header), &[end.as_fd()]);
                }
            }
            Ok(Outcome::Later) => {}
            Err(refusal) => self.refuse(&header, &refusal),
        }
        self.advance(queues, Instant::now());
    }

    fn obey(
        &mut self,
        queues: &mut dyn Queues,
        header: &Header,
        request: R,
        fds: Fds,
    ) -> Result<Outcome, Refusal> {
        if !self.agreed && !matches!(request, R::Version(_)) {
            return Err(Refusal::NotAgreed);
        }
        let reply = match request {
            R::Version(version) => {
                let (version, end) = self.version(queues, version)?;
                let reply = Reply::Version(version);
                return Ok(match end {
                    Some(end) => Outcome::WithSocket(reply, end),
                    None => Outcome::Reply(reply),
                });
            }
            R::DmaMap(map) => {
                self.dma_map(header, &map, fds)?;
                return Ok(Outcome::Later);
            }
            R::DmaUnmap(unmap) => {
                self.dma_unmap(header, unmap)?;
                return Ok(Outcome::Later);
            }
            R::DeviceGetInfo(_) => Reply::DeviceGetInfo(DeviceInfo {
                flags: DeviceFlags::RESET | DeviceFlags::PCI,
                num_regions: REGIONS,
                num_irqs: KINDS,
            }),
            R::DeviceGetRegionInfo(query) => {
                let (info, mappable) = self.function.region(query.index)?;
                let reply = Reply::DeviceGetRegionInfo(info.fit(query.argsz));
                if mappable && query.index == BAR0 {
                    return Ok(Outcome::WithDoorbells(reply));
                }
                reply
            }
            R::DeviceGetRegionIoFds(query) => {
                Reply::DeviceGetRegionIoFds(self.function.io_fds(query.index)?.fit(query.argsz))
            }
            R::DeviceGetIrqInfo(query) => Reply::DeviceGetIrqInfo(self.function.irq(query.index)?),
            R::DeviceSetIrqs(set) => {
                self.function.set_irqs(&set, fds)?;
                Reply::DeviceSetIrqs
            }
            R::RegionRead(read) => {
                let mut data = Data::zeroed(read.count as usize).map_err(|_| Refusal::Unsupported)?;
                self.function.read(read.region, read.offset, &mut data)?;
                Reply::RegionRead(RegionReadDone { offset: read.offset, region: read.region, data })
            }
            R::RegionWrite(write) => Reply::RegionWrite(self.write(queues, &write)?),
            R::RegionWriteMulti(multi) => {
                for write in multi.writes() {
                    self.write(queues, write)?;
                }
                Reply::RegionWriteMulti(multi.writes().len() as u64)
            }
            R::DeviceReset => {
                self.function.reset(&self.access, self.conn, queues);
                let deadline = Instant::now().checked_add(self.within()).unwrap_or_else(Instant::now);
                if let Some(before) = self.reset.take() {
                    self.conclude_reset(&before.header, false);
                }
                self.reset = Some(Reset { header: *header, deadline, last_chance: false });
                return Ok(Outcome::Later);
            }
            R::DeviceFeature(_) | R::MigDataRead(_) | R::MigDataWrite(_) => return Err(Refusal::Unsupported),
        };
        Ok(Outcome::Reply(reply))
    }

    fn write(&mut self, queues: &mut dyn Queues, write: &RegionWrite) -> Result<RegionWriteDone, Refusal> {
        let RegionWrite { offset, region, data } = write;
        self.function.write(*region, *offset, data, &self.access, self.conn, queues)?;
        Ok(RegionWriteDone { offset: *offset, region: *region, count: data.len() as u32 })
    }

    /// What came is no message that can be obeyed.
    pub(super) fn reject(&mut self, queues: &mut dyn Queues, header: &Header, error: MessageError) {
        self.complain(header, &error);
        if header.is_reply() {
            self.hear_garbled(queues, header, Socket::Main);
        } else {
            self.answer(header, &Reply::Failed(error.errno()));
        }
    }

    /// Answers a command that was not obeyed.
    pub(super) fn refuse(&mut self, header: &Header, refusal: &Refusal) {
        self.complain(header, refusal);
        self.answer(header, &Reply::Failed(refusal.errno()));
    }

    /// Answers a command, if its sender wants that.
    pub(super) fn answer(&mut self, header: &Header, reply: &Reply) {
        if header.wants_reply() {
            self.send(&reply.to_bytes(header), &[]);
        }
    }

    fn answer_with_doorbells(&mut self, header: &Header, reply: &Reply) {
        let doorbells = self.function.doorbells().clone();
        self.send(&reply.to_bytes(header), &[doorbells.fd()]);
    }

    /// A reset is over.
    pub(super) fn conclude_reset(&mut self, header: &Header, quiet: bool) {
        if quiet {
            self.answer(header, &Reply::DeviceReset);
        } else {
            self.refuse(header, &Refusal::StillRunning);
        }
    }

    pub(super) fn complain(&self, header: &Header, what: &dyn std::fmt::Display) {
        let Some(left_out) = self.log_limit.permit() else { return };
        let (device, conn, id) = (&self.name, self.conn, header.command);
        let name = Command::from_id(id).map_or("message", Command::name);
        log::warn!("{device}: connection {conn}: {name} ({id}): {what}{left_out}");
    }
}
