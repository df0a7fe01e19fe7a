//! Arguments of `mdevd perf nvme`.

use std::path::PathBuf;
use std::time::Duration;

use crate::driver::nvme::{DoorbellWay, NvmeController, Pointers};
use crate::perf::against::{Against, MOST};
use crate::perf::blk::workload::{BlockSize, Protocol, Rings, Rw, Workload};
use crate::perf::blk::{BlkOptions, Target};
use crate::perf::shape::BURST;
use crate::store::StoreKind;

use super::blk::{MOST_MEMORY, parse_span, stores};
use super::{parse_cell_duration, turns_fit};

/// What the figures mean; printed below the options.
pub(super) const MEANINGS: &str = "\
What is measured, and what the columns, --verify and --against mean, is as with
mdevd perf blk: see there. What is different:

The driver is one of its own over vfio-user: it enables the controller, creates
--queues pairs of queues and polls them. Requests go to the first namespace.

--doorbells says how the driver tells of new commands and of completions that it
has seen:
  mapped   by a store in the page that the device lets its client map, which it
           does when its workers never sleep (--mode busy)
  trapped  by a message on the socket for each burst, which is not answered: what
           a guest does whose doorbells are not mapped
  shadow   by a store in its own memory (Doorbell Buffer Config), and a message
           where the controller has asked for one
--data says how commands name their data: prp, with a list beyond two pages, or
sgl, with one descriptor.

Latency is from before the doorbell to seeing the completion; a message takes a
good part of it. With --doorbells trapped and several queues, their threads take
turns at the one socket.

Without --socket-path each cell starts a device of its own (mdevd nvme --mode
busy) in another process on another core. With less than two cores it is not
busy, and has no doorbells to be mapped.";

#[derive(Debug, clap::Args)]
pub(super) struct NvmeArgs {
    /// Drive the NVMe controller that listens at this path (vfio-user) instead of starting one
    #[arg(long, value_name = "PATH", conflicts_with = "store")]
    socket_path: Option<PathBuf>,

    /// The namespace of the devices that are started, as mdevd nvme --namespace has it; several are measured one after the other
    /// (default: null,size=1G and mem,size=256M)
    #[arg(long, value_name = "STORE")]
    store: Vec<StoreKind>,

    /// Which requests (default: randread,randwrite; randread only where there may be data: with --socket-path and --store file=)
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_enum)]
    rw: Vec<Rw>,

    /// Bytes of each request: multiples of 512 up to 1M
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "4k")]
    bs: Vec<BlockSize>,

    /// Requests under way in each queue, 1 to 1024
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1,32,128", value_parser = clap::value_parser!(u16).range(1..=1024))]
    iodepth: Vec<u16>,

    /// How doorbells are written
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_enum, default_value = "mapped")]
    doorbells: Vec<DoorbellWay>,

    /// How commands say where their data is
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_enum, default_value = "prp")]
    data: Vec<Pointers>,

    /// Pairs of queues, 1 to 16
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=16))]
    queues: u16,

    /// Entries of each queue, more than requests: 2 to 4096 (default: 256, or as many as the requests need)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(2..=4096))]
    entries: Option<u16>,

    /// Requests submitted, or taken back, at a time, 1 to 1024
    #[arg(long, value_name = "N", default_value_t = BURST, value_parser = clap::value_parser!(u32).range(1..=1024))]
    burst: u32,

    /// Use only so many bytes of the namespace, from its beginning: 64M, 10G
    #[arg(long, value_name = "SIZE", value_parser = parse_span)]
    span: Option<u64>,

    /// Check that reads find what was written last; overwrites the namespace
    #[arg(long)]
    verify: bool,

    /// Compare with the controllers that listen at these paths, in turns
    #[arg(long, value_name = "PATH", num_args = 1..=MOST)]
    against: Vec<PathBuf>,

    /// Pairs of turns that each comparison has
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000), requires = "against")]
    pairs: u32,

    /// Stop the processes of the controllers whose turn it is not
    #[arg(long, requires = "against")]
    pause: bool,

    /// Time of each cell: 5s, 500ms; at least 100ms
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_cell_duration)]
    duration: Duration,

    /// Write the results with figures as a page of HTML to this file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,

    /// Write the results as JSON to this file; - is standard output, instead of the table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl NvmeArgs {
    /// The same for the part that measures.
    pub(super) fn options(&self, command: String) -> Result<BlkOptions, String> {
        turns_fit(self.duration, &self.against, self.pairs)?;
        let target = Target::of(self.socket_path.as_ref(), &self.store, || stores(self.verify));
        target.suits(self.verify)?;
        let rw = match (self.rw.as_slice(), target.has_data() || !self.against.is_empty()) {
            ([], true) => vec![Rw::RandRead],
            ([], false) => vec![Rw::RandRead, Rw::RandWrite],
            (given, _) => given.to_vec(),
        };
        let of_way = |&doorbells| self.data.iter().map(move |&data| Protocol::Nvme { doorbells, data });
        let options = BlkOptions {
            command,
            target,
            rw,
            sizes: self.bs.clone(),
            depths: self.iodepth.clone(),
            protocols: self.doorbells.iter().flat_map(of_way).collect(),
            rings: Rings { size: self.entries, burst: self.burst, indirect: false, event_idx: false },
            queues: self.queues,
            span: self.span,
            verify: self.verify,
            duration: self.duration,
            against: (!self.against.is_empty()).then(|| Against {
                sockets: self.against.clone(),
                pairs: self.pairs,
                pause: self.pause,
            }),
            json: self.json.clone(),
            html: self.html.clone(),
        };
        options.workloads().try_for_each(|workload| self.fits(&options, workload))?;
        Ok(options)
    }

    /// Whether a cell's requests fit into queues and memory.
    fn fits(&self, options: &BlkOptions, workload: Workload) -> Result<(), String> {
        let queue = workload.nvme_queue(&options.rings, Pointers::Prp, 1, 512);
        if u32::from(workload.depth) >= queue.entries {
            let (depth, entries) = (workload.depth, queue.entries);
            return Err(format!(
                "--iodepth {depth} does not fit into queues of {entries}: one entry is never used"
            ));
        }
        let needed = u64::from(self.queues).saturating_mul(queue.memory());
        if needed.saturating_add(NvmeController::memory_needed()) <= MOST_MEMORY {
            return Ok(());
        }
        Err(format!(
            "{} queues of --iodepth {} and --bs {} need more than the 1 GiB of guest memory that there is",
            self.queues, workload.depth, workload.size
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::perf::{Args, Device};
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn options(text: &str) -> Result<BlkOptions, String> {
        let words = ["perf", "nvme"].into_iter().chain(text.split_whitespace());
        let cli = Cli::try_parse_from(words).map_err(|error| error.to_string())?;
        match cli.args.device {
            Device::Nvme(nvme) => nvme.options(String::new()),
            Device::Net(_) | Device::Blk(_) => Err("another device".to_owned()),
        }
    }

    #[test]
    fn defaults_measure_both_stores_by_mapped_doorbells_and_prp() {
        let options = options("").unwrap();
        let Target::Own(stores) = &options.target else { panic!("no stores") };
        assert_eq!((stores.len(), options.workloads().count()), (2, 6));
        let nvme = Protocol::Nvme { doorbells: DoorbellWay::Mapped, data: Pointers::Prp };
        assert!(options.is_nvme() && options.workloads().all(|each| each.protocol == nvme));
        assert_eq!((options.queues, options.verify, options.span), (1, false, None));
    }

    #[test]
    fn every_way_of_doorbells_meets_every_kind_of_pointers() {
        let options =
            options("--doorbells mapped,trapped,shadow --data prp,sgl --rw read --iodepth 8").unwrap();
        let names: Vec<String> = options.workloads().map(|each| each.protocol.to_string()).collect();
        assert_eq!(
            names,
            ["mapped-prp", "mapped-sgl", "trapped-prp", "trapped-sgl", "shadow-prp", "shadow-sgl"]
        );
    }

    #[test]
    fn nothing_is_written_unasked_where_there_may_be_data() {
        for text in ["--socket-path /s", "--store file=/x", "--against /b"] {
            assert_eq!(options(text).unwrap().rw, [Rw::RandRead], "{text}");
        }
        assert_eq!(options("--socket-path /s --rw write").unwrap().rw, [Rw::Write]);
    }

    #[test]
    fn wrong_values_are_refused_with_what_would_be_right() {
        for (text, hint) in [
            ("--bs 1000", "multiple of 512"),
            ("--doorbells rung", "mapped, trapped, shadow"),
            ("--data list", "prp, sgl"),
            ("--iodepth 0", "1..=1024"),
            ("--entries 5000", "2..=4096"),
            ("--iodepth 64 --entries 64", "one entry is never used"),
            ("--store null,size=1G --verify", "keeps nothing"),
            ("--store null,size=1G --socket-path /s", "cannot be used with"),
            ("--iodepth 1024 --bs 1M", "1 GiB of guest memory"),
        ] {
            let message = options(text).map(drop).unwrap_err();
            assert!(message.contains(hint), "{text}: {message}");
        }
    }
}
