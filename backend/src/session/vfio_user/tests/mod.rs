//! Sessions in a daemon of their own, under clients over real sockets.

mod host;
mod leaving;
mod memory;
mod messages;
mod remote;
mod remote_breaks;
mod remote_queues;
mod twins;

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use mdev_protocol::vfio_user::{Capabilities, Client, ClientError, DmaFlags, DmaMap, DmaUnmap};
use rustix::io::Errno;
use tempfile::TempDir;

use crate::daemon::{CounterSocket, Daemon, DaemonError, Endpoint, Options};
use crate::device::nvme::{Namespace, NamespaceConfig, NvmeConfig, NvmeDevice, QUEUE_NAMES};
use crate::driver::Region;
use crate::session::SessionOptions;
use crate::store::Store;
use crate::store::held::Held;
use crate::worker::Mode;

/// How long a client waits before a test has failed.
const ANSWER: Duration = Duration::from_secs(10);
/// Bytes of the store.
const SIZE: usize = 1 << 20;
/// How long the device may hold on to memory.
const WITHIN: Duration = Duration::from_millis(300);

/// A controller with one namespace whose requests end when a test says so.
struct Server {
    device: Arc<NvmeDevice>,
    held: Held,
    folder: TempDir,
    /// The daemon ends when this is gone.
    counters: Option<UnixStream>,
    daemon: Option<JoinHandle<Result<(), DaemonError>>>,
}

impl Server {
    fn start(mode: Mode) -> Server {
        let held = Held::new(vec![0; SIZE]);
        Server::on(mode, held.clone(), Store::Held(held))
    }

    /// The same on another store.
    fn on(mode: Mode, held: Held, store: Store) -> Server {
        let config = NvmeConfig { name: "nvme".to_owned(), namespaces: Vec::new(), queues: 2, serial: None };
        let namespace = NamespaceConfig::new(1, "null,size=512".parse().unwrap());
        let namespace = Namespace::on("nvme", &namespace, store);
        let device = Arc::new(NvmeDevice::with_namespaces(config, vec![(namespace, true)]).unwrap());
        let folder = TempDir::new().unwrap();
        let endpoint = Endpoint::bind(&folder.path().join("socket"), None).unwrap();
        let (counters, theirs) = UnixStream::pair().unwrap();
        let options = Options {
            mode,
            cpus: Vec::new(),
            stats: None,
            queue_names: QUEUE_NAMES,
            sessions: SessionOptions { barrier: WITHIN, ..Default::default() },
            counters: Some(CounterSocket::new(theirs.into()).unwrap()),
        };
        let served = device.clone();
        let (ready, is_ready) = std::sync::mpsc::sync_channel(1);
        let daemon = std::thread::spawn(move || {
            let daemon = Daemon::new(served, endpoint, options)?;
            let _ = ready.send(());
            daemon.run()
        });
        is_ready.recv().unwrap();
        Server { device, held, folder, counters: Some(counters), daemon: Some(daemon) }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// A client that has said nothing yet.
    fn stranger(&self) -> Client {
        Client::connect(self.path(), ANSWER).unwrap()
    }

    /// A client that has agreed on a version.
    fn client(&self) -> Client {
        let mut client = self.stranger();
        client.negotiate(Capabilities::default()).unwrap();
        client
    }

    /// Whether this request of the store is waited for, after a while.
    fn awaits(&self, count: usize) -> bool {
        soon(|| self.held.pending().len() == count)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.held.finish_all();
        self.counters = None;
        let ended = self.daemon.take().unwrap().join().unwrap();
        if !std::thread::panicking() {
            ended.unwrap();
        }
    }
}

/// Whether something becomes true within a few seconds.
fn soon(mut holds: impl FnMut() -> bool) -> bool {
    (0..5000).any(|_| {
        let there = holds();
        if !there {
            std::thread::sleep(Duration::from_millis(1));
        }
        there
    })
}

fn map_of(region: &Region) -> DmaMap {
    DmaMap {
        flags: DmaFlags::READ | DmaFlags::WRITE,
        offset: region.extent.offset,
        address: region.range.first().0,
        size: region.size(),
    }
}

fn unmap_of(region: &Region) -> DmaUnmap {
    DmaUnmap::Range { address: region.range.first().0, size: region.size() }
}

fn lend(client: &mut Client, region: &Region) {
    client.dma_map(map_of(region), Some(region.extent.file.as_fd())).unwrap();
}

/// What a command was refused with.
#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, ClientError>) -> Errno {
    match result {
        Err(ClientError::Refused { errno, .. }) => Errno::from_raw_os_error(errno as i32),
        other => panic!("not refused: {other:?}"),
    }
}
