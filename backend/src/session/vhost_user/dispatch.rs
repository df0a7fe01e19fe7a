//! Which message does what.

use mdev_protocol::frame::Frame;
use mdev_protocol::vhost_user::{FrontendMessage as M, FrontendReply};

use super::error::Refusal;
use super::features::offered;
use super::reply::{Asker, Outcome};
use super::{Queues, Session};

impl Session {
    /// Serves one message, up to its reply or its barrier.
    pub(super) fn serve(&mut self, queues: &mut dyn Queues, frame: Frame<M>) {
        let Frame { header, message, fds } = frame;
        let ring = ring_of(&message).and_then(|index| self.ring_index(index).ok());
        let asker = Asker::new(header, ring);
        let outcome = match self.permit(message.request()) {
            Ok(()) => self.obey(queues, asker, message, fds),
            Err(refusal) => Err(refusal),
        };
        self.conclude(asker, outcome);
        self.advance(queues);
    }

    fn obey(
        &mut self,
        queues: &mut dyn Queues,
        asker: Asker,
        message: M,
        fds: mdev_protocol::frame::Fds,
    ) -> Result<Outcome, Refusal> {
        match message {
            M::GetFeatures => Ok(self.get_features()),
            M::SetFeatures(features) => self.set_features(queues, asker, features),
            M::GetProtocolFeatures => {
                let offered = offered(self.device.as_ref(), &self.options);
                Ok(Outcome::Reply(FrontendReply::GetProtocolFeatures(offered)))
            }
            M::SetProtocolFeatures(features) => self.set_protocol_features(features),
            M::SetOwner => Ok(self.set_owner(queues, asker)),
            M::ResetOwner => Ok(self.reset_owner(queues)),
            M::ResetDevice => Ok(self.reset_device(queues, asker)),
            M::GetStatus => Ok(self.get_status()),
            M::SetStatus(status) => self.set_status(queues, asker, status),

            M::GetMaxMemSlots => Ok(self.get_max_mem_slots()),
            M::SetMemTable(table) => self.set_mem_table(asker, &table, fds),
            M::AddMemReg(region) => self.add_mem_reg(asker, &region, fds),
            M::RemMemReg(region) => self.rem_mem_reg(asker, &region),
            M::IotlbMsg(message) => self.iotlb_msg(asker, message),

            M::GetQueueNum => Ok(self.get_queue_num()),
            M::SetVringNum(state) => self.set_vring_num(state),
            M::SetVringAddr(addr) => self.set_vring_addr(&addr),
            M::SetVringBase(state) => self.set_vring_base(state),
            M::SetVringKick(of) => self.set_vring_kick(queues, of, fds),
            M::SetVringCall(of) => self.set_vring_call(queues, of, fds),
            M::SetVringErr(of) => self.set_vring_err(queues, of, fds),
            M::SetVringEnable(state) => self.set_vring_enable(queues, state),
            M::GetVringBase(state) => self.get_vring_base(queues, asker, state),
            M::VringKick(state) => self.vring_kick(queues, state),

            M::GetInflightFd(inflight) => self.get_inflight_fd(inflight),
            M::SetInflightFd(inflight) => self.set_inflight_fd(inflight, fds),

            M::GetConfig(piece) => self.get_config(piece),
            M::SetConfig(piece) => self.set_config(&piece),
            M::NetSetMtu(mtu) => self.net_set_mtu(mtu),
            M::SendRarp(mac) => Ok(self.send_rarp(mac)),
            M::SetBackendReqFd => self.set_backend_req_fd(fds),

            M::SetLogBase(_)
            | M::SetLogFd
            | M::SetVringEndian(_)
            | M::CreateCryptoSession(_)
            | M::CloseCryptoSession(_)
            | M::PostcopyAdvise
            | M::PostcopyListen
            | M::PostcopyEnd
            | M::GpuSetSocket
            | M::GetSharedObject(_)
            | M::SetDeviceStateFd(_)
            | M::CheckDeviceState
            | M::GetShmemConfig => Err(Refusal::Unsupported),
        }
    }
}

/// The ring a message is about, as far as it describes one.
fn ring_of(message: &M) -> Option<u32> {
    match message {
        M::SetVringNum(state)
        | M::SetVringBase(state)
        | M::SetVringEnable(state)
        | M::GetVringBase(state)
        | M::VringKick(state) => Some(state.index),
        M::SetVringAddr(addr) => Some(addr.index),
        M::SetVringKick(of) | M::SetVringCall(of) | M::SetVringErr(of) => Some(u32::from(of.index)),
        _ => None,
    }
}
