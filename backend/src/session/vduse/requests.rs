//! Which request does what, and who is answered.

use mdev_protocol::vduse::{Answer, ReadError, Request, RequestError, RequestKind, Response, WriteError};
use mdev_protocol::vduse::{read_request, write_response};
use mdev_protocol::virtio::status::{DRIVER_OK, FEATURES_OK};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::barrier::{Then, Wait};
use super::error::Refusal;
use super::{Queues, Session};
use crate::session::SessionError;

/// What becomes of a request that is not refused.
pub(super) enum Outcome {
    /// It is answered.
    Answer(Answer),
    /// It waits.
    Later,
}

impl Session {
    /// The next request, if there is one.
    pub(super) fn take(&mut self) -> Result<Option<Request>, SessionError> {
        loop {
            return match read_request(self.kernel.as_ref()) {
                Ok(Some(request)) => Ok(Some(request)),
                Ok(None) if self.is_broken() => Err(SessionError::Broken),
                Ok(None) => Ok(None),
                Err(ReadError::Malformed(error)) => {
                    self.reject(&error);
                    continue;
                }
                // A device's file never ends. What stands for one does when its device is given up.
                Err(ReadError::Closed) => Err(SessionError::Broken),
                Err(ReadError::Failed(errno)) => Err(SessionError::Socket(errno.into())),
            };
        }
    }

    /// Whether the kernel has given the device up.
    pub(super) fn is_broken(&self) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(self.kernel.as_fd(), PollFlags::empty())];
        let ready = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        ready.is_ok() && fds.iter().any(|fd| fd.revents().intersects(PollFlags::ERR | PollFlags::HUP))
    }

    pub(super) fn serve(&mut self, queues: &mut dyn Queues, request: Request) {
        let Request { id, kind } = request;
        log::debug!("{}: {}: {kind:?}", self.name, kind.name());
        let outcome = match kind {
            RequestKind::SetStatus(status) => self.set_status(queues, id, status),
            RequestKind::UpdateIotlb { .. } => self.update_iotlb(queues, id),
            RequestKind::GetVqState { index } => self.get_vq_state(queues, id, index),
            RequestKind::SetVqReady { index, ready } => self.set_vq_ready(queues, id, index, ready),
            RequestKind::Suspend => self.suspend(queues, id),
            RequestKind::SetVqGroupAsid { group: 0, asid: 0 } => Ok(Outcome::Answer(Answer::Done)),
            RequestKind::SetVqGroupAsid { group, asid } => Err(Refusal::NoSuchGroup { group, asid }),
        };
        self.conclude(Some(id), outcome);
    }

    /// A request that nobody here understands fails.
    fn reject(&mut self, error: &RequestError) {
        if let Some(left_out) = self.log_limit.permit() {
            log::warn!("{}: {error}{left_out}", self.name);
        }
        if let Some(response) = error.response() {
            self.answer(&response);
        }
    }

    /// Answers a request, unless it waits.
    pub(super) fn conclude(&mut self, id: Option<u32>, outcome: Result<Outcome, Refusal>) {
        let answer = match outcome {
            Ok(Outcome::Answer(answer)) => answer,
            Ok(Outcome::Later) => return,
            Err(refusal) => {
                if let Some(left_out) = self.log_limit.permit() {
                    log::warn!("{}: a request of the kernel is refused: {refusal}{left_out}", self.name);
                }
                Answer::Failed
            }
        };
        if let Some(id) = id {
            self.answer(&Response { id, answer });
        }
    }

    fn answer(&mut self, response: &Response) {
        match write_response(self.kernel.as_ref(), response) {
            Ok(()) => {}
            // Whoever asked was killed, or has waited too long.
            Err(error @ WriteError::NobodyWaits { .. }) => log::debug!("{}: {error}", self.name),
            Err(WriteError::Failed(_)) if self.is_broken() => self.fault = Some(SessionError::Broken),
            Err(WriteError::Failed(errno)) => self.fault = Some(SessionError::Socket(errno.into())),
        }
    }

    /// 0 is a reset. The features are final when the driver says that they are, and rings run from `DRIVER_OK` on. The device
    /// hears of the features with `FEATURES_OK`: virtio-net says `DRIVER_OK` with the kernel's lock of all interfaces (RTNL) held,
    /// which a tap needs to obey.
    fn set_status(&mut self, queues: &mut dyn Queues, id: u32, status: u8) -> Result<Outcome, Refusal> {
        let new = status & !self.driver.status;
        if status == 0 {
            self.driver.status = 0;
            self.stop_rings(queues);
            self.hold(Some(id), Wait::Rings, Then::Reset);
            return Ok(Outcome::Later);
        }
        if new & (FEATURES_OK | DRIVER_OK) != 0 {
            let features = self.kernel.driver_features()?;
            let features = self.acceptable(features)?;
            self.driver.features = Some(features);
            self.device.agreed(features);
        }
        self.driver.status = status;
        if new & DRIVER_OK == 0 {
            return Ok(Outcome::Answer(Answer::Done));
        }
        self.begin(Some(id)).inspect_err(|_| self.driver.status &= !DRIVER_OK)?;
        Ok(Outcome::Later)
    }

    /// Nothing runs any more until a reset, and what was taken is finished.
    fn suspend(&mut self, queues: &mut dyn Queues, id: u32) -> Result<Outcome, Refusal> {
        self.driver.suspended = true;
        self.stop_rings(queues);
        self.hold(Some(id), Wait::Rings, Then::Suspend);
        Ok(Outcome::Later)
    }
}
