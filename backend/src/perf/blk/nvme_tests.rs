//! Cells measured at controllers of this process.
use super::*;
use crate::daemon::{CounterSocket, Daemon, DaemonError, Endpoint, Options};
use crate::device::nvme::{NamespaceConfig, NvmeConfig, NvmeDevice, QUEUE_NAMES};
use crate::driver::nvme::NvmeError;
use crate::perf::blk::cell::{BlkCellResult, measure};
use crate::perf::blk::workload::{Protocol, Rings, Rw, Workload};
use crate::session::SessionOptions;
use crate::worker::Mode;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;

/// A device of two queue pairs at a socket. It ends when nobody is there to ask for its counters.
struct Served {
    path: PathBuf,
    counters: UnixStream,
    daemon: JoinHandle<Result<(), DaemonError>>,
}

impl Served {
    fn new(mode: Mode, read_only: bool) -> Served {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("mdevd-nvme-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        // Namespace 1 is not there: the first is another.
        let store = NamespaceConfig::new(3, "mem,size=1M".parse().unwrap());
        let namespaces = vec![NamespaceConfig { read_only, ..store }];
        let config = NvmeConfig { name: "nvme".into(), namespaces, queues: 2, serial: None };
        let (counters, theirs) = UnixStream::pair().unwrap();
        let options = Options {
            mode,
            cpus: Vec::new(),
            stats: None,
            queue_names: QUEUE_NAMES,
            sessions: SessionOptions::default(),
            counters: Some(CounterSocket::new(theirs.into()).unwrap()),
        };
        let device = NvmeDevice::new(config).unwrap();
        let daemon = Daemon::new(device, Endpoint::bind(&path, None).unwrap(), options).unwrap();
        let daemon = std::thread::spawn(move || daemon.run());
        Served { path, counters, daemon }
    }

    fn end(self) {
        drop(self.counters);
        self.daemon.join().unwrap().unwrap();
    }

    fn measure(&self, options: &BlkCellOptions) -> Result<BlkCellResult, CellError> {
        measure(&self.path, options, &AtomicBool::new(false), || None, || ())
    }
}

fn options(rw: Rw, doorbells: DoorbellWay, data: Pointers) -> BlkCellOptions {
    BlkCellOptions {
        workload: Workload {
            rw,
            size: "4k".parse().unwrap(),
            depth: 8,
            protocol: Protocol::Nvme { doorbells, data },
        },
        rings: Rings { size: Some(16), burst: 5, indirect: false, event_idx: false },
        queues: 2,
        span: None,
        prefill: false,
        verify: true,
        seed: 9,
        duration: Duration::from_millis(150),
        cpus: Vec::new(),
    }
}

#[test]
fn controller_passes_every_workload_by_every_way_of_doorbells() {
    for (mode, doorbells, data) in [
        (Mode::Adaptive, DoorbellWay::Trapped, Pointers::Sgl),
        (Mode::Adaptive, DoorbellWay::Shadow, Pointers::Prp),
        (Mode::Busy, DoorbellWay::Mapped, Pointers::Prp),
    ] {
        let served = Served::new(mode, false);
        for (rw, size) in [(Rw::Mixed, "4k"), (Rw::RandRead, "512"), (Rw::Write, "12k")] {
            let mut options = options(rw, doorbells, data);
            options.workload.size = size.parse().unwrap();
            let result = served.measure(&options).unwrap();
            let requests: u64 = result.slices.iter().map(|slice| slice.counts.requests).sum();
            assert!(requests > 50, "{doorbells:?} {rw}: {requests}");
            let faults = &result.faults;
            assert_eq!((faults.failed, faults.findings.total()), (0, 0), "{doorbells:?} {rw}: {faults:?}");
        }
        served.end();
    }
}

#[test]
fn namespace_that_is_read_only_is_read_and_nothing_else() {
    let served = Served::new(Mode::Adaptive, true);
    let unverified =
        BlkCellOptions { verify: false, ..options(Rw::RandRead, DoorbellWay::Trapped, Pointers::Prp) };
    let result = served.measure(&unverified).unwrap();
    assert!(result.faults.failed == 0 && result.faults.status.is_none());
    for (rw, verify) in [(Rw::Write, false), (Rw::RandRead, true)] {
        let error =
            served.measure(&BlkCellOptions { verify, ..options(rw, DoorbellWay::Trapped, Pointers::Prp) });
        assert!(matches!(error, Err(CellError::Blk(BlkError::ReadOnly))), "{rw}: {error:?}");
    }
    served.end();
}

#[test]
fn what_the_controller_lacks_is_told() {
    let served = Served::new(Mode::Event, false);
    let usual = options(Rw::RandRead, DoorbellWay::Trapped, Pointers::Prp);
    let error = served.measure(&BlkCellOptions { queues: 3, ..usual.clone() }).unwrap_err();
    assert!(matches!(error, CellError::Blk(BlkError::Queues { offered: 2, wanted: 3 })), "{error}");
    let error = served.measure(&BlkCellOptions { span: Some(4096), ..usual }).unwrap_err();
    assert!(matches!(error, CellError::Blk(BlkError::TooSmall { .. })), "{error}");
    let mapped = options(Rw::RandRead, DoorbellWay::Mapped, Pointers::Prp);
    let error = served.measure(&mapped).unwrap_err();
    assert!(matches!(error, CellError::Nvme(NvmeError::NotMappable)), "{error}");
    served.end();
}
