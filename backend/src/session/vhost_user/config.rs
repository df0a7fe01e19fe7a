//! Messages about the device's configuration, and what the back-end channel says of it.

use std::io;

use mdev_protocol::frame::{Connection, Fds};
use mdev_protocol::vhost_user::{BackendMessage, BackendReply, Config, FrontendReply, ProtocolFeatures};
use rustix::fs::{FileType, fstat};
use rustix::net::SocketType;
use rustix::net::sockopt::socket_type;

use super::Session;
use super::error::Refusal;
use super::reply::Outcome;
use super::vring::Run;

impl Session {
    pub(super) fn get_queue_num(&self) -> Outcome {
        Outcome::Reply(FrontendReply::GetQueueNum(self.device.queue_number()))
    }

    pub(super) fn get_config(&self, mut piece: Config) -> Result<Outcome, Refusal> {
        self.device.config(piece.offset, piece.data_mut()).map_err(Refusal::Device)?;
        Ok(Outcome::Reply(FrontendReply::GetConfig(Some(piece))))
    }

    pub(super) fn set_config(&self, piece: &Config) -> Result<Outcome, Refusal> {
        self.device.set_config(piece.offset, piece.data()).map_err(Refusal::Device)?;
        Ok(Outcome::Done)
    }

    pub(super) fn net_set_mtu(&self, mtu: u64) -> Result<Outcome, Refusal> {
        let mtu = u16::try_from(mtu).map_err(|_| Refusal::Mtu(mtu))?;
        self.device.set_mtu(mtu).map_err(Refusal::Device)?;
        Ok(Outcome::Done)
    }

    /// The address lies in the first six bytes of the payload.
    pub(super) fn send_rarp(&self, payload: u64) -> Outcome {
        let [a, b, c, d, e, f, _, _] = payload.to_le_bytes();
        self.device.rarp([a, b, c, d, e, f]);
        Outcome::Done
    }

    pub(super) fn set_backend_req_fd(&mut self, fds: Fds) -> Result<Outcome, Refusal> {
        let fd = fds.into_iter().next().ok_or(Refusal::NoFd)?;
        let kind = fstat(&fd).map_err(|error| Refusal::Channel(error.into()))?;
        if FileType::from_raw_mode(kind.st_mode) != FileType::Socket
            || socket_type(&fd).map_err(|error| Refusal::Channel(error.into()))? != SocketType::STREAM
        {
            return Err(Refusal::Channel(io::ErrorKind::InvalidInput.into()));
        }
        if let (Some(before), Some(in_band)) = (&self.channel, &self.in_band) {
            in_band.leave(before);
        }
        self.channel = Some(Connection::<BackendReply>::new(fd));
        self.say_rest();
        Ok(Outcome::Done)
    }

    /// The device's configuration has changed: tells the front-end, as soon as a ring runs (a suspended device sends
    /// nothing).
    pub(super) fn configuration_changed(&mut self) {
        self.change_unsaid = true;
        if self.vrings.iter().any(|vring| vring.run == Run::Running) {
            self.announce_change();
        }
    }

    /// Sends what [`Session::configuration_changed`] wanted said. No reply is asked for, and a front-end that does not read
    /// loses the message.
    pub(super) fn announce_change(&mut self) {
        let agreed = ProtocolFeatures::BACKEND_REQ | ProtocolFeatures::CONFIG;
        if !std::mem::take(&mut self.change_unsaid) || !self.negotiated.protocol.contains(agreed) {
            return;
        }
        let Some(channel) = &mut self.channel else { return };
        let sent = match channel.flush() {
            Ok(true) => channel.send(&BackendMessage::ConfigChangeMsg.to_bytes(false), &[]).is_ok(),
            // One message waits already and will be read as this one's.
            Ok(false) => true,
            Err(_) => false,
        };
        if !sent {
            self.channel = None;
        }
    }
}
