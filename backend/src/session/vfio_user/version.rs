//! What the two ends have agreed on.

use std::os::fd::OwnedFd;

use mdev_protocol::frame::MAX_FDS;
use mdev_protocol::vfio_user::{Capabilities, MAX_DATA, TwinSocket, Version};

use super::error::Refusal;
use super::memory::MAX_MAPS;
use super::{Queues, Session};

/// The version that is spoken here.
const MAJOR: u16 = 0;
const MINOR: u16 = 1;

impl Session {
    /// `VERSION`: what both can do is the less of the two. A client that can use a second socket is given its end of one, for the
    /// server's commands.
    pub(super) fn version(
        &mut self,
        queues: &mut dyn Queues,
        version: Version,
    ) -> Result<(Version, Option<OwnedFd>), Refusal> {
        if self.agreed {
            return Err(Refusal::AgreedAlready);
        }
        let Version { major, minor, capabilities } = version;
        if major != MAJOR {
            return Err(Refusal::Version { major, minor });
        }
        self.agreed = true;
        self.function.listen(&self.access, self.conn, queues);
        let Capabilities { write_multiple, max_data_xfer_size, twin_socket, .. } = capabilities;
        self.wire.limit(max_data_xfer_size);
        let wanted = twin_socket.is_some_and(|twin| twin.supported);
        let end = if wanted { self.open_twin() } else { None };
        let twin = TwinSocket { supported: end.is_some(), fd_index: end.as_ref().map(|_| 0) };
        let capabilities = Capabilities {
            max_msg_fds: MAX_FDS as u32,
            max_data_xfer_size: MAX_DATA as u32,
            max_dma_maps: MAX_MAPS as u32,
            write_multiple,
            twin_socket: wanted.then_some(twin),
            ..Capabilities::default()
        };
        Ok((Version { major, minor: minor.min(MINOR), capabilities }, end))
    }
}
