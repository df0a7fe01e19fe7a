//! What the two ends have agreed on.

use mdev_protocol::frame::MAX_FDS;
use mdev_protocol::vfio_user::{Capabilities, MAX_DATA, Version};

use super::error::Refusal;
use super::memory::MAX_MAPS;
use super::{Queues, Session};

/// The version that is spoken here.
const MAJOR: u16 = 0;
const MINOR: u16 = 1;

impl Session {
    /// `VERSION`: what both can do is the less of the two.
    pub(super) fn version(&mut self, queues: &mut dyn Queues, version: Version) -> Result<Version, Refusal> {
        if self.agreed {
            return Err(Refusal::AgreedAlready);
        }
        let Version { major, minor, capabilities } = version;
        if major != MAJOR {
            return Err(Refusal::Version { major, minor });
        }
        self.agreed = true;
        self.function.listen(&self.access, self.conn, queues);
        let Capabilities { write_multiple, .. } = capabilities;
        let capabilities = Capabilities {
            max_msg_fds: MAX_FDS as u32,
            max_data_xfer_size: MAX_DATA as u32,
            max_dma_maps: MAX_MAPS as u32,
            write_multiple,
            ..Capabilities::default()
        };
        Ok(Version { major, minor: minor.min(MINOR), capabilities })
    }
}
