//! The vhost-user front-end: hands memory and rings to a back-end and takes them back.
use super::memory::GuestMemory;
use super::virtqueue::Virtqueue;
use crate::sys::EventFd;
use mdev_dma::Iova;
use mdev_protocol::vhost_user::{
    Client, ClientError, FrontendMessage, Inflight, MemoryRegion, ProtocolFeatures, VringAddr, VringState,
};
use mdev_protocol::virtio::feature::VHOST_USER_F_PROTOCOL_FEATURES;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

/// Why a conversation with a back-end failed.
#[derive(Debug, thiserror::Error)]
pub enum FrontEndError {
    /// A request failed.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The device lacks features without which it cannot be driven.
    #[error("the device lacks virtio features that are needed: bits {missing:#x} of {offered:#x}")]
    Features {
        /// The masks that are missing.
        missing: u64,
        /// What the device offers.
        offered: u64,
    },
    /// The device has too few queues.
    #[error("the device has {offered} queue pairs, {wanted} are needed; ask for fewer (--queue-pairs)")]
    Queues {
        /// Queues of the device.
        offered: u64,
        /// Queues that are needed.
        wanted: u64,
    },
    /// A ring lies outside the memory that was shared.
    #[error("a ring at {0} is not in the guest's memory")]
    Ring(Iova),
    /// No event counters left.
    #[error("no event counter: {0}")]
    EventFd(#[source] io::Error),
}

/// The event counters of one ring.
#[derive(Debug)]
pub struct RingFds {
    /// The driver signals it when it has offered chains to a sleeping device.
    pub kick: EventFd,
    /// The device signals it when it has used chains and the driver wants to hear of it.
    pub call: EventFd,
    /// The device signals it when it has given up on the ring.
    pub err: EventFd,
}

impl RingFds {
    /// Three fresh counters.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn new() -> io::Result<Self> {
        Ok(RingFds { kick: EventFd::new()?, call: EventFd::new()?, err: EventFd::new()? })
    }
}

/// A back-end that was just started may take so long from making its socket to listening on it.
const PATIENCE: Duration = Duration::from_secs(1);

/// Connects to the back-end at `path`, trying for a moment if nobody listens there yet.
fn connect(path: &Path, timeout: Duration) -> Result<Client, ClientError> {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        match Client::connect(path, timeout) {
            Err(ClientError::Connect { error, .. })
                if std::time::Instant::now() < deadline && not_yet_listening(error.kind()) =>
            {
                std::thread::sleep(Duration::from_millis(2));
            }
            result => return result,
        }
    }
}

fn not_yet_listening(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// The buffer in which a back-end records what it has in flight.
#[derive(Debug)]
pub struct InFlightRecord {
    wire: Inflight,
    file: OwnedFd,
}

/// One connection to a back-end. Dropping it closes the connection, upon which the back-end stops the rings.
#[derive(Debug)]
pub struct FrontEnd {
    client: Client,
    features: u64,
}

impl FrontEnd {
    /// Connects, agrees on features and becomes the owner of the session: the device's features that are in `required` or
    /// `optional` are set, and the back-end's protocol features that are in `protocol`.
    ///
    /// # Errors
    /// Nobody listens within a second, no answer within `timeout`, or a required feature is missing.
    pub fn connect(
        path: &Path,
        timeout: Duration,
        required: u64,
        optional: u64,
        protocol: ProtocolFeatures,
    ) -> Result<Self, FrontEndError> {
        Self::over(connect(path, timeout)?, required, optional, protocol)
    }

    /// The same over a client that is connected.
    ///
    /// # Errors
    /// As [`FrontEnd::connect`].
    pub fn over(
        mut client: Client,
        required: u64,
        optional: u64,
        protocol: ProtocolFeatures,
    ) -> Result<Self, FrontEndError> {
        client.set_owner()?;
        let offered = client.features()?;
        let missing = required & !offered;
        if missing != 0 {
            return Err(FrontEndError::Features { missing, offered });
        }
        let features = offered & (required | optional | VHOST_USER_F_PROTOCOL_FEATURES);
        if features & VHOST_USER_F_PROTOCOL_FEATURES != 0 {
            let common = client.protocol_features()? & protocol;
            client.set_protocol_features(common)?;
        }
        client.set_features(features)?;
        Ok(FrontEnd { client, features })
    }

    /// The protocol features that an ordinary front-end asks for: several queues, acknowledgements, configuration, and
    /// memory by the region.
    pub fn usual_protocol() -> ProtocolFeatures {
        ProtocolFeatures::MQ
            | ProtocolFeatures::REPLY_ACK
            | ProtocolFeatures::CONFIG
            | ProtocolFeatures::CONFIGURE_MEM_SLOTS
    }

    /// The virtio features that were agreed on.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// The protocol features that were agreed on.
    pub fn protocol(&self) -> ProtocolFeatures {
        self.client.negotiated()
    }

    /// The client, for requests that are not covered here.
    pub fn client(&mut self) -> &mut Client {
        &mut self.client
    }

    /// Makes sure that the device has `wanted` queues, counted as it counts them (network devices: pairs).
    ///
    /// # Errors
    /// [`FrontEndError::Queues`]; without the protocol feature MQ a device has one.
    pub fn need_queues(&mut self, wanted: u64) -> Result<(), FrontEndError> {
        let offered =
            if self.protocol().contains(ProtocolFeatures::MQ) { self.client.queue_num()? } else { 1 };
        if offered < wanted { Err(FrontEndError::Queues { offered, wanted }) } else { Ok(()) }
    }

    /// Shares all of the guest's memory: region by region where the back-end can, else as a table.
    ///
    /// # Errors
    /// The back-end refuses.
    pub fn share(&mut self, memory: &GuestMemory) -> Result<(), FrontEndError> {
        let described = |region: &super::Region| MemoryRegion {
            guest_addr: region.range.first().0,
            size: region.size(),
            user_addr: region.user.0,
            mmap_offset: region.extent.offset,
        };
        if self.protocol().contains(ProtocolFeatures::CONFIGURE_MEM_SLOTS) {
            for region in memory.regions() {
                self.client.add_mem_region(described(region), region.extent.file.as_fd())?;
            }
        } else {
            let regions: Vec<_> = memory
                .regions()
                .iter()
                .map(|region| (described(region), region.extent.file.as_fd()))
                .collect();
            self.client.set_mem_table(&regions)?;
        }
        Ok(())
    }

    /// Starts a ring at its own base and enables it, with one kick so that a back-end that waits for it starts too.
    ///
    /// # Errors
    /// The ring is not in `memory`, or the back-end refuses.
    pub fn start(
        &mut self,
        index: u8,
        queue: &impl Virtqueue,
        fds: &RingFds,
        memory: &GuestMemory,
    ) -> Result<(), FrontEndError> {
        self.describe(index, queue, memory)?;
        self.client.set_vring_call(index, Some(fds.call.as_fd()))?;
        self.client.set_vring_err(index, Some(fds.err.as_fd()))?;
        self.client.set_vring_kick(index, Some(fds.kick.as_fd()))?;
        // Without protocol features SET_FEATURES enabled all rings at once.
        if self.features & VHOST_USER_F_PROTOCOL_FEATURES != 0 {
            self.client.set_vring_enable(u32::from(index), true)?;
        }
        fds.kick.signal();
        Ok(())
    }

    /// Starts a ring that is kicked by messages (`VRING_KICK`), and about which the back-end sends messages on the channel
    /// of `SET_BACKEND_REQ_FD`, and enables it.
    ///
    /// # Errors
    /// As [`FrontEnd::start`]; without `INBAND_NOTIFICATIONS` the back-end refuses.
    pub fn start_in_band(
        &mut self,
        index: u8,
        queue: &impl Virtqueue,
        memory: &GuestMemory,
    ) -> Result<(), FrontEndError> {
        self.describe(index, queue, memory)?;
        self.kick_in_band(index)?;
        self.client.set_vring_enable(u32::from(index), true)?;
        Ok(())
    }

    /// Kicks a ring by a message.
    ///
    /// # Errors
    /// The back-end refuses.
    pub fn kick_in_band(&mut self, index: u8) -> Result<(), FrontEndError> {
        let state = VringState { index: index.into(), num: 0 };
        self.client.call(&FrontendMessage::VringKick(state), &[])?;
        Ok(())
    }

    fn describe(
        &mut self,
        index: u8,
        queue: &impl Virtqueue,
        memory: &GuestMemory,
    ) -> Result<(), FrontEndError> {
        let by_guest_address = self.protocol().contains(ProtocolFeatures::GPA_ADDRESSES);
        let wire = |at: Iova| {
            let known = memory.user(at).ok_or(FrontEndError::Ring(at))?;
            Ok::<_, FrontEndError>(if by_guest_address { at.0 } else { known.0 })
        };
        let addresses = queue.addresses();
        let number = u32::from(index);
        self.client.set_vring_num(number, queue.options().size.into())?;
        self.client.set_vring_base(number, queue.base())?;
        self.client.set_vring_addr(VringAddr {
            index: number,
            flags: 0,
            desc: wire(addresses.desc)?,
            used: wire(addresses.used)?,
            avail: wire(addresses.avail)?,
            log: 0,
        })?;
        Ok(())
    }

    /// Has the back-end make a buffer for the requests in flight of so many rings of this size. It outlives the
    /// connection: whoever serves the rings next gets it from [`FrontEnd::record_in`].
    ///
    /// # Errors
    /// The back-end refuses; without `INFLIGHT_SHMFD` it always does.
    pub fn make_record(&mut self, rings: u16, size: u16) -> Result<InFlightRecord, FrontEndError> {
        let (wire, file) = self.client.inflight_fd(rings, size)?;
        Ok(InFlightRecord { wire, file })
    }

    /// Has the back-end record what is in flight in this buffer, and begin with what is recorded there. Before rings are started.
    ///
    /// # Errors
    /// The back-end refuses.
    pub fn record_in(&mut self, record: &InFlightRecord) -> Result<(), FrontEndError> {
        Ok(self.client.set_inflight_fd(record.wire, record.file.as_fd())?)
    }

    /// Stops a ring; the back-end's reply says from which available index it would go on.
    ///
    /// # Errors
    /// No answer.
    pub fn stop(&mut self, index: u8) -> Result<u16, FrontEndError> {
        Ok(self.client.vring_base(index.into())?.num as u16)
    }

    /// Whether the back-end has closed the connection or died. Does not wait.
    pub fn peer_is_gone(&self) -> bool {
        let mut ends = [PollFd::new(&self.client, PollFlags::RDHUP)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut ends, Some(&now)).is_ok_and(|ready| ready > 0)
    }
}
