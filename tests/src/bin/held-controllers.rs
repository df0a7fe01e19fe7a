//! `held-controllers FOLDER MODE`: a daemon with one worker and two NVMe controllers on it, whose sockets are `neighbour` and `target` in the
//! folder. Namespace 3 of the target keeps every command until somebody ends it: `finish` on standard input ends all, `fail` ends all
//! with an error, `pending` counts them. Each is answered with a number on standard output.

use std::io::{BufRead, Write};
use std::path::PathBuf;

use mdevd::daemon::{Daemon, Door, Kind, Model, Plan, Plans, Shared};
use mdevd::device::nvme::{Namespace, NamespaceConfig, NvmeConfig, NvmeDevice};
use mdevd::store::held::Held;
use mdevd::store::{FileOptions, Store, StoreKind};
use mdevd::worker::Mode;
use rustix::io::Errno;

const SIZE: u64 = 8 << 20;

struct Controllers {
    folder: PathBuf,
    held: Held,
}

impl Plans for Controllers {
    fn read(&mut self) -> Result<Vec<Plan>, Vec<String>> {
        let memory = |size| NamespaceConfig::new(1, StoreKind::Memory { size });
        let file = StoreKind::File(FileOptions::new(self.folder.join("disk.img")));
        let target = vec![memory(SIZE), NamespaceConfig::new(2, file)];
        let plan = |name: &str, namespaces, queues| Plan {
            name: name.to_owned(),
            door: Door::Listen { path: self.folder.join(name), mode: None },
            kind: Kind::Nvme(NvmeConfig { name: name.to_owned(), namespaces, queues, serial: None }),
            workers: Vec::new(),
            sessions: Default::default(),
        };
        Ok(vec![plan("neighbour", vec![memory(SIZE / 2)], 1), plan("target", target, 16)])
    }

    fn make(&mut self, plan: &Plan) -> Result<Model, String> {
        let Kind::Nvme(config) = &plan.kind else { return Err("an NVMe controller is wanted".to_owned()) };
        let open = |one| Namespace::open(&config.name, one).map(|namespace| (namespace, true));
        let namespaces = config.namespaces.iter().map(open).collect::<Result<Vec<_>, _>>();
        let mut namespaces = namespaces.map_err(|error| error.to_string())?;
        if plan.name == "target" {
            let shape = NamespaceConfig::new(3, StoreKind::Null { size: SIZE });
            let held = Namespace::on(&config.name, &shape, Store::Held(self.held.clone()));
            namespaces.push((held, true));
        }
        let device = NvmeDevice::with_namespaces(config.clone(), namespaces);
        device.map(|device| Model::Nvme(device.into())).map_err(|error| error.to_string())
    }
}

fn obey(held: &Held) {
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let count = match line.as_str() {
            "pending" => held.pending().len(),
            "finish" => held.finish_all(),
            "fail" => held.pending().iter().filter(|pending| held.fail(pending.id, Errno::IO)).count(),
            _ => 0,
        };
        let mut out = std::io::stdout().lock();
        if writeln!(out, "{count}").and_then(|()| out.flush()).is_err() {
            return;
        }
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, mode] = arguments.as_slice() else { panic!("FOLDER MODE") };
    let mode = <Mode as clap::ValueEnum>::from_str(mode, false).expect("a mode of workers");
    let held = Held::new(vec![0; SIZE as usize]);
    let controllers = Controllers { folder: folder.into(), held: held.clone() };
    let shared = Shared { mode, workers: vec![None], stats: None };
    let daemon = Daemon::of_plans(Box::new(controllers), &shared).expect("a daemon");
    std::thread::spawn(move || obey(&held));
    daemon.run().expect("it ends in order");
}
