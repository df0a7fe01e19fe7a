//! Software mediated devices served from userspace.
//!
//! # What it is
//!
//! What the device does: everything between a front-end's socket and the frames that a guest sends and receives. Where
//! guest memory is, and who may touch it for how long, is decided below, in `mdev-dma` and `mdev-pin`; what the bytes of
//! a message mean, in `mdev-protocol`.
//!
//! # Objects
//!
//! ```text
//! cli              the command line
//! perf, regress    what a device does under load, and when its memory is taken away
//! daemon           the process around a device: its endpoint, its connections, one control thread
//! session          one connection of a front-end: memory, rings, replies that wait
//! worker           a thread that runs queues
//! device           what the guest sees; its engines move data between rings and links
//! ring   link      a queue in guest memory; what is behind a network device
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
//! The data path has none. The control thread and the workers share channels and eventfds.
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
//! Devices other than network devices, transports other than vhost-user. Each module says more.

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
