//! What a device is, as far as its front-ends see it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use mdev_dma::Windows;

use crate::device::nvme::NvmeDevice;
use crate::device::{Device, VirtioDevice};
use crate::session::{IotlbCounters, Session, SessionOptions, vfio_user, vhost_user};

/// A device and the protocol that it is served by.
#[derive(Clone)]
pub enum Model {
    /// A virtio device, over vhost-user.
    Virtio(Arc<dyn VirtioDevice>),
    /// An NVMe controller, over vfio-user.
    Nvme(Arc<NvmeDevice>),
}

impl Model {
    /// The device.
    pub fn device(&self) -> Arc<dyn Device> {
        match self {
            Model::Virtio(device) => device.clone(),
            Model::Nvme(device) => device.clone(),
        }
    }

    /// The device, if its queues are virtqueues.
    pub(super) fn virtio(&self) -> Option<&Arc<dyn VirtioDevice>> {
        match self {
            Model::Virtio(device) => Some(device),
            Model::Nvme(_) => None,
        }
    }

    /// Begins a session on a connection that was just made.
    pub(super) fn session(
        &self,
        conn: u64,
        socket: OwnedFd,
        windows: Arc<Windows>,
        options: SessionOptions,
        translations: Arc<IotlbCounters>,
        busy_workers: bool,
    ) -> io::Result<Box<dyn Session>> {
        Ok(match self {
            Model::Virtio(device) => {
                let session =
                    vhost_user::Session::with_options(conn, socket, device.clone(), windows, options)?;
                Box::new(session.counted_in(translations))
            }
            Model::Nvme(device) => Box::new(vfio_user::Session::new(
                conn,
                socket,
                device.clone(),
                windows,
                options,
                busy_workers,
            )?),
        })
    }
}

impl<D: VirtioDevice + 'static> From<D> for Model {
    fn from(device: D) -> Self {
        Model::Virtio(Arc::new(device))
    }
}

impl<D: VirtioDevice + 'static> From<Arc<D>> for Model {
    fn from(device: Arc<D>) -> Self {
        Model::Virtio(device)
    }
}

impl From<Arc<dyn VirtioDevice>> for Model {
    fn from(device: Arc<dyn VirtioDevice>) -> Self {
        Model::Virtio(device)
    }
}

impl From<Arc<NvmeDevice>> for Model {
    fn from(device: Arc<NvmeDevice>) -> Self {
        Model::Nvme(device)
    }
}

impl From<NvmeDevice> for Model {
    fn from(device: NvmeDevice) -> Self {
        Model::Nvme(Arc::new(device))
    }
}
