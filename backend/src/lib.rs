//! Software mediated devices served from userspace.
//!
//! # What it is
//!
//! What the device does: everything between a front-end's socket and the frames that a guest sends and receives, or the blocks
//! that it reads and writes. Devices are virtio-net and virtio-blk over vhost-user, and an NVMe controller over vfio-user. Where
//! guest memory is, and who may touch it for how long, is decided below, in `mdev-dma` and `mdev-pin`; what the bytes of
//! a message mean, in `mdev-protocol`.
//!
//! # Objects
//!
//! ```text
//! cli              the command line
//! perf, regress    what a device does under load, and when its memory is taken away
//! daemon           the process around devices: their endpoints, their connections, one control thread
//! session          one connection of a front-end, by vhost-user or vfio-user: memory, rings or registers, replies that wait
//! worker           a thread that runs queues
//! device           what the guest sees; its engines move data between its queues and links or stores
//! ring   link      a virtqueue in guest memory; what is behind a network device
//! store            what is behind a storage device
//! driver, report   the other side of the socket, for perf and tests; what a command has measured
//! sys, limit       what is asked of the operating system; log lines at a bounded rate
//! ```
//!
//! Each module imports from those below it only, `perf`, `regress` and `driver` apart, which stand on the other side
//! of a socket. `regress` has a daemon beside it in the same process.
//!
//! # Locks
//!
//! The data path has none, but for what the engines of an NVMe controller share: a completion queue, which is tried once a burst and never
//! waited for, and where an interrupt goes, which is locked for the moment of its signal. The control thread and the workers share
//! channels and eventfds.
//!
//! # What may block
//!
//! The control thread in `epoll_wait`, a worker in `epoll_wait` when its queues are idle, and the front-end of
//! [`driver`] while it waits for an answer. Nobody waits for another thread of the daemon, but for the join at its end.
//!
//! # What never fails
//!
//! A queue that breaks the rules, a front-end that dies and memory that is taken away end what they concern, and no
//! more: other queues, connections and guests go on.
//!
//! # What it does not implement
//!
//! Other devices and other transports; migration of what devices hold. Each module says more.

pub mod cli;
pub mod daemon;
pub mod device;
pub mod driver;
pub mod limit;
pub mod link;
pub mod perf;
pub mod regress;
pub mod report;
pub mod ring;
pub mod session;
pub mod store;
pub mod sys;
pub mod worker;
