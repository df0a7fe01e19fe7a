//! Features, ownership, status and reset: the messages about the device as a whole.

use mdev_protocol::vhost_user::{FrontendReply, FrontendRequest, Header, ProtocolFeatures};
use mdev_protocol::virtio::feature::{
    VHOST_USER_F_PROTOCOL_FEATURES, VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_IN_ORDER, VIRTIO_F_RING_PACKED,
    VIRTIO_F_RING_RESET,
};
use mdev_protocol::virtio::status::{DEVICE_NEEDS_RESET, FEATURES_OK};

use super::barrier::{Then, Wait};
use super::error::Refusal;
use super::memory::Keys;
use super::reply::{Asker, Outcome};
use super::vring::Vring;
use super::{Queues, Session, SessionOptions};
use crate::device::{Enabled, VirtioDevice};

/// What is offered whatever the device: what works.
pub const OFFERED: ProtocolFeatures = ProtocolFeatures::MQ
    .union(ProtocolFeatures::RARP)
    .union(ProtocolFeatures::REPLY_ACK)
    .union(ProtocolFeatures::MTU)
    .union(ProtocolFeatures::BACKEND_REQ)
    .union(ProtocolFeatures::CONFIG)
    .union(ProtocolFeatures::BACKEND_SEND_FD)
    .union(ProtocolFeatures::RESET_DEVICE)
    .union(ProtocolFeatures::INBAND_NOTIFICATIONS)
    .union(ProtocolFeatures::CONFIGURE_MEM_SLOTS)
    .union(ProtocolFeatures::STATUS)
    .union(ProtocolFeatures::GPA_ADDRESSES);

/// What is offered for this device. A record of requests in flight says where a ring stands, and must not do so for one that was reset
/// by itself: either is offered.
pub fn offered(device: &dyn VirtioDevice, options: &SessionOptions) -> ProtocolFeatures {
    match device.tracks_in_flight() && !options.ring_reset {
        true => OFFERED | ProtocolFeatures::INFLIGHT_SHMFD | ProtocolFeatures::GET_VRING_BASE_INFLIGHT,
        false => OFFERED,
    }
}

/// What both ends have agreed to.
#[derive(Copy, Clone, Debug, Default)]
pub(super) struct Negotiated {
    /// The virtio features, with vhost-user's own bit.
    virtio: Virtio,
    /// The protocol features.
    pub(super) protocol: ProtocolFeatures,
}

/// How far `SET_FEATURES` has come.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
enum Virtio {
    #[default]
    Unknown,
    Accepted(u64),
    Refused,
}

impl Negotiated {
    /// Whether the sender of this header gets an acknowledgement for a request that has no other reply.
    pub(super) fn acknowledges(&self, header: &Header) -> bool {
        header.needs_reply() && self.protocol.contains(ProtocolFeatures::REPLY_ACK)
    }

    /// How the front-end names addresses.
    pub(super) fn keys(&self) -> Keys {
        if self.protocol.contains(ProtocolFeatures::GPA_ADDRESSES) { Keys::Guest } else { Keys::User }
    }

    /// The features between driver and device, once they are settled.
    pub(super) fn features(&self) -> Option<u64> {
        match self.virtio {
            Virtio::Accepted(features) => Some(features & !VHOST_USER_F_PROTOCOL_FEATURES),
            Virtio::Unknown | Virtio::Refused => None,
        }
    }

    /// Whether rings are packed ones.
    pub(super) fn is_packed(&self) -> bool {
        self.features().is_some_and(|features| features & VIRTIO_F_RING_PACKED != 0)
    }

    /// Whether the front-end has no message to enable rings with.
    fn has_no_enable(&self) -> bool {
        matches!(self.virtio, Virtio::Accepted(features) if features & VHOST_USER_F_PROTOCOL_FEATURES == 0)
    }

    /// Whether rings and descriptors name memory by addresses that the front-end translates.
    pub(super) fn is_translated(&self) -> bool {
        self.features().is_some_and(|features| features & VIRTIO_F_ACCESS_PLATFORM != 0)
    }

    /// Whether the features were refused.
    pub(super) fn is_refused(&self) -> bool {
        self.virtio == Virtio::Refused
    }
}

impl Session {
    /// Whether the protocol features that make a request legal were negotiated.
    pub(super) fn permit(&self, request: FrontendRequest) -> Result<(), Refusal> {
        let missing = request.row().needs.difference(self.negotiated.protocol);
        if missing.is_empty() { Ok(()) } else { Err(Refusal::NotNegotiated(missing)) }
    }

    pub(super) fn get_features(&self) -> Outcome {
        Outcome::Reply(FrontendReply::GetFeatures(self.offered_features()))
    }

    /// The same features again are no change: QEMU sends them once for each pair of queues, while the first pair runs.
    pub(super) fn set_features(
        &mut self,
        queues: &mut dyn Queues,
        asker: Asker,
        features: u64,
    ) -> Result<Outcome, Refusal> {
        let wanted = Virtio::Accepted(features);
        if wanted != self.negotiated.virtio {
            if let Some(running) = self.vrings.iter().position(|vring| !vring.is_idle()) {
                return Err(Refusal::RingRuns(running as u32));
            }
            self.negotiated.virtio = Virtio::Refused;
            let unknown = features & !self.offered_features();
            if unknown != 0 {
                return Err(Refusal::NotOffered(unknown));
            }
            let translated = features & VIRTIO_F_ACCESS_PLATFORM != 0;
            if translated && !self.negotiated.protocol.contains(ProtocolFeatures::BACKEND_REQ) {
                return Err(Refusal::NoChannel);
            }
            let for_the_session =
                VHOST_USER_F_PROTOCOL_FEATURES | VIRTIO_F_ACCESS_PLATFORM | VIRTIO_F_RING_RESET;
            let for_the_device = features & !for_the_session;
            self.device.check_features(for_the_device).map_err(Refusal::Device)?;
            self.negotiated.virtio = wanted;
            if translated != self.iommu.is_some() {
                let switched = self.switch_iommu(asker);
                if switched.is_err() {
                    self.negotiated.virtio = Virtio::Refused;
                }
                return switched;
            }
        }
        Ok(self.go_on_with_features(queues))
    }

    /// The features are settled, and the memory is as they say.
    pub(super) fn go_on_with_features(&mut self, queues: &mut dyn Queues) -> Outcome {
        if self.negotiated.has_no_enable() {
            self.enable_rings(queues, true);
        }
        self.start_rings(queues);
        Outcome::Done
    }

    pub(super) fn set_protocol_features(&mut self, features: ProtocolFeatures) -> Result<Outcome, Refusal> {
        let unknown = features.difference(offered(self.device.as_ref(), &self.options));
        if !unknown.is_empty() {
            return Err(Refusal::ProtocolNotOffered(unknown));
        }
        self.negotiated.protocol = features;
        Ok(Outcome::Done)
    }

    /// A new session begins on this connection: QEMU says so when the device is plugged again while the socket
    /// stayed open. What belongs to the one before goes, through the barriers that protect its memory.
    pub(super) fn set_owner(&mut self, queues: &mut dyn Queues, asker: Asker) -> Outcome {
        self.stop_rings(queues);
        self.hold(asker, Wait::Rings, Then::StartOver);
        Outcome::Later
    }

    /// Second half of [`Session::set_owner`]: the rings have stopped. The protocol features and the back-end channel
    /// are the new session's already, QEMU sets them first.
    pub(super) fn start_over(&mut self, asker: Asker) -> Result<Outcome, Refusal> {
        self.vrings.iter_mut().for_each(|vring| *vring = Vring::default());
        self.negotiated.virtio = Virtio::Unknown;
        self.status = 0;
        self.needs_reset = false;
        self.iommu = None;
        self.logs = None;
        if self.regions.is_empty() { Ok(Outcome::Done) } else { self.change_table(asker, Default::default()) }
    }

    /// Deprecated; the specification leaves it to us to ignore it or to disable the rings.
    pub(super) fn reset_owner(&mut self, queues: &mut dyn Queues) -> Outcome {
        self.enable_rings(queues, false);
        Outcome::Done
    }

    pub(super) fn reset_device(&mut self, queues: &mut dyn Queues, asker: Asker) -> Outcome {
        self.stop_rings(queues);
        self.hold(asker, Wait::Rings, Then::Reset { device: true });
        Outcome::Later
    }

    pub(super) fn set_status(
        &mut self,
        queues: &mut dyn Queues,
        asker: Asker,
        status: u64,
    ) -> Result<Outcome, Refusal> {
        self.status = u8::try_from(status).map_err(|_| Refusal::Status(status))?;
        if self.status != 0 {
            return Ok(Outcome::Done);
        }
        // QEMU sends it at every stop of the machine, and expects memory and descriptors to be there afterwards.
        self.stop_rings(queues);
        self.hold(asker, Wait::Rings, Then::Reset { device: false });
        Ok(Outcome::Later)
    }

    /// The rings have stopped: what went wrong is forgotten. Memory regions stay, front-ends do not send them again;
    /// so do the descriptors for calls and errors.
    pub(super) fn reset(&mut self, queues: &mut dyn Queues, device: bool) {
        self.needs_reset = false;
        self.status = 0;
        for vring in &mut self.vrings {
            vring.failed = false;
            vring.distrusted = false;
            if device {
                vring.switch.set(Enabled::NotYet);
                vring.base = None;
            }
        }
        if device {
            self.forget_logs();
        }
        if device && !queues.busy_elsewhere(self.conn) {
            self.device.reset();
        }
    }

    pub(super) fn get_status(&self) -> Outcome {
        let mut status = self.status;
        if self.needs_reset || self.vrings.iter().any(|vring| vring.failed) {
            status |= DEVICE_NEEDS_RESET;
        }
        if self.negotiated.is_refused() {
            status &= !FEATURES_OK;
        }
        Outcome::Reply(FrontendReply::GetStatus(u64::from(status)))
    }

    fn offered_features(&self) -> u64 {
        // The order is a promise that only the device can keep.
        let order = if self.device.uses_in_order() { 0 } else { VIRTIO_F_IN_ORDER };
        // A ring that is reset is stopped and started like any other, if the front-end says so.
        let reset = if self.options.ring_reset { VIRTIO_F_RING_RESET } else { 0 };
        (self.device.features() & !order) | VHOST_USER_F_PROTOCOL_FEATURES | VIRTIO_F_ACCESS_PLATFORM | reset
    }
}
