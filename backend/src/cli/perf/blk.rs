//! Arguments of `mdevd perf blk`.

use std::path::PathBuf;
use std::time::Duration;

use crate::perf::against::{Against, MOST};
use crate::perf::blk::workload::{BlockSize, Protocol, Rings, Rw, Workload};
use crate::perf::blk::{BlkOptions, Target};
use crate::perf::shape::{BURST, Format};
use crate::store::{StoreKind, parse_size};

use super::{parse_cell_duration, parse_ring_size, turns_fit};

/// What the figures mean; printed below the options.
pub(super) const MEANINGS: &str = "\
What is measured, with --iodepth requests under way in each queue all the time:
  randread   reads of random blocks
  randwrite  writes of random blocks
  read       reads of one block after the other
  write      writes of one block after the other
  mixed      of random blocks, 70 % reads and 30 % writes

  kIOPS   requests a second in thousands: median of five slices of the time,
          the least and the greatest beside it
  GB/s    bytes of their data a second, in thousands of millions
  ns/req  time of the device's core in polls that found work, for each request.
          Much less than the time from one request to the next (a million by
          kIOPS, in ns) means that the front-end, the cache lines between the two
          or the disk is what takes the time
  p50 p99 p99.9 max  latency in microseconds, from publishing a request to
          seeing it used: of every request up to a depth of 4, of one in 16
          beyond. What the front-end does meanwhile is in it
  errors  requests that ended with another status than OK, in the whole cell
  line    round trip of a cache line between the two cores in nanoseconds, the
          mean of before and after; figures with different ones do not compare
  status  FAILED if a request failed or --verify found damage

Without --socket-path each cell starts a device of its own (mdevd blk --mode
busy) in another process on another core, with one --store after the other; with
less than two cores the figures mean little. A store null has no bytes: it shows
what the rings alone cost. Of a store mem each block is written once before the
time, so that its memory is there. With --socket-path the device says how large it is,
and its core's time is unknown. What it holds is only read, unless --rw or
--verify is given: THESE OVERWRITE IT. So they do with --store file=PATH.

--verify makes each sector that is written say where it belongs and which write
it is of (its generation), with a checksum. For read and randread the blocks are
written first. Reads are looked at when they end; after the time all blocks are
read once more. Found and counted are
  LOST       a write that was acknowledged is not there, but an older one or none
  DOUBLED    a request ended twice, or one ended that was not under way
  TORN       a block with parts of two writes, or such a sector
  MISPLACED  a sector that belongs elsewhere
with sector and generations of the first ones. A write that has failed may be
there or not. Figures are lower with it, since making and checking patterns is
front-end time. --span keeps it short on a large device.

--against compares the back-end (A) with others (B, C ...) in one run: A B A B,
then A C A C, as mdevd perf net does; see there.

--html FILE writes figures and all results as one page that needs no network.

The exit status is 1 if something could not be measured or a cell is FAILED.";

/// All that one region of guest memory holds, less some room for rings.
pub(super) const MOST_MEMORY: u64 = (1 << 30) - (8 << 20);

#[derive(Debug, clap::Args)]
pub(super) struct BlkArgs {
    /// Drive the vhost-user-blk back-end that listens at this path instead of starting one
    #[arg(long, value_name = "PATH", conflicts_with = "store")]
    socket_path: Option<PathBuf>,

    /// The store of the devices that are started, as mdevd blk --store has it; several are measured one after the other
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

    /// Formats of the rings
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_enum, default_value = "split")]
    ring: Vec<Format>,

    /// Queues, 1 to 16
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=16))]
    queues: u16,

    /// Descriptors of each ring: a power of two from 64 to 32768 (default: 256, or as many as the requests need)
    #[arg(long, value_name = "N", value_parser = parse_ring_size)]
    ring_size: Option<u16>,

    /// Requests submitted, or taken back, at a time, 1 to 1024
    #[arg(long, value_name = "N", default_value_t = BURST, value_parser = clap::value_parser!(u32).range(1..=1024))]
    burst: u32,

    /// Describe each request by an indirect table of three
    #[arg(long)]
    indirect: bool,

    /// Say by index which kicks and calls are wanted
    #[arg(long)]
    event_idx: bool,

    /// Use only so many bytes of the device, from its beginning: 64M, 10G
    #[arg(long, value_name = "SIZE", value_parser = parse_span)]
    span: Option<u64>,

    /// Check that reads find what was written last; overwrites the device
    #[arg(long)]
    verify: bool,

    /// Compare with the back-ends that listen at these paths, in turns
    #[arg(long, value_name = "PATH", num_args = 1..=MOST)]
    against: Vec<PathBuf>,

    /// Pairs of turns that each comparison has
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000), requires = "against")]
    pairs: u32,

    /// Stop the processes of the back-ends whose turn it is not
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

pub(super) fn parse_span(text: &str) -> Result<u64, String> {
    parse_size(text).map_err(|error| error.to_string())
}

/// The default stores.
pub(super) fn stores(verify: bool) -> Vec<StoreKind> {
    let memory = StoreKind::Memory { size: 256 << 20 };
    if verify { vec![memory] } else { vec![StoreKind::Null { size: 1 << 30 }, memory] }
}

impl BlkArgs {
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
        let options = BlkOptions {
            command,
            target,
            rw,
            sizes: self.bs.clone(),
            depths: self.iodepth.clone(),
            protocols: self.ring.iter().copied().map(Protocol::Virtio).collect(),
            rings: Rings {
                size: self.ring_size,
                burst: self.burst,
                indirect: self.indirect,
                event_idx: self.event_idx,
            },
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

    /// Whether a cell's requests fit into rings and memory.
    fn fits(&self, options: &BlkOptions, workload: Workload) -> Result<(), String> {
        let depth = workload.depth;
        let queue = workload.queue(&options.rings).map_err(|_| match self.ring_size {
            Some(size) => format!(
                "--iodepth {depth} does not fit into rings of {size}: a request takes {}",
                if self.indirect { "one descriptor" } else { "three descriptors, or one with --indirect" }
            ),
            None => format!("no ring has room for --iodepth {depth}"),
        })?;
        match u64::from(self.queues).saturating_mul(queue.memory()) {
            needed if needed <= MOST_MEMORY => Ok(()),
            _ => Err(format!(
                "{} queues of --iodepth {depth} and --bs {} need more than the 1 GiB of guest memory that there is",
                self.queues, workload.size
            )),
        }
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
        let words = ["perf", "blk"].into_iter().chain(text.split_whitespace());
        let cli = Cli::try_parse_from(words).map_err(|error| error.to_string())?;
        match cli.args.device {
            Device::Blk(blk) => blk.options(String::new()),
            Device::Net(_) | Device::Nvme(_) => Err("another device".to_owned()),
        }
    }

    #[test]
    fn defaults_measure_both_stores_at_three_depths_in_about_a_minute() {
        let options = options("").unwrap();
        let Target::Own(stores) = &options.target else { panic!("no stores") };
        let cells = stores.len() * options.workloads().count();
        let total = options.duration * cells as u32;
        assert!((Duration::from_secs(50)..=Duration::from_secs(70)).contains(&total));
        assert_eq!(options.rw, [Rw::RandRead, Rw::RandWrite]);
        assert_eq!((options.queues, options.verify, options.span), (1, false, None));
    }

    #[test]
    fn lists_and_values_are_taken() {
        let options = options(
            "--rw read,mixed --bs 512,64k --iodepth 7 --ring split,packed --queues 2 --ring-size 64 --burst 4 \
             --indirect --event-idx --span 10M --duration 300ms --store mem,size=1M --store null,size=2M",
        )
        .unwrap();
        assert_eq!(options.workloads().count(), 8);
        let last = options.workloads().last().unwrap();
        assert_eq!((last.rw, last.size.bytes(), last.depth), (Rw::Mixed, 65_536, 7));
        assert_eq!(last.protocol, Protocol::Virtio(Format::Packed));
        let rings = Rings { size: Some(64), burst: 4, indirect: true, event_idx: true };
        assert_eq!((options.rings, options.span), (rings, Some(10 << 20)));
    }

    #[test]
    fn nothing_is_written_unasked_where_there_may_be_data() {
        for text in
            ["--socket-path /s", "--store file=/x", "--against /b", "--store mem,size=1M --store file=/x"]
        {
            assert_eq!(options(text).unwrap().rw, [Rw::RandRead], "{text}");
        }
        assert_eq!(options("--socket-path /s --rw write").unwrap().rw, [Rw::Write]);
    }

    #[test]
    fn wrong_values_are_refused_with_what_would_be_right() {
        for (text, hint) in [
            ("--bs 1000", "multiple of 512"),
            ("--bs 2M", "up to 1M"),
            ("--rw randwrote", "randread, randwrite, read, write, mixed"),
            ("--iodepth 0", "1..=1024"),
            ("--ring-size 100", "power of two"),
            ("--store disk", "no store is called"),
            ("--store null,size=1G --verify", "keeps nothing"),
            ("--store null,size=1G --socket-path /s", "cannot be used with"),
            ("--pairs 3", "--against"),
            ("--duration 50ms", "at least 100ms"),
            ("--span x", "not a size"),
            ("--against /b --pairs 100 --duration 1s", "100 turns of at least 100 ms"),
            ("--iodepth 128 --ring-size 256", "three descriptors, or one with --indirect"),
            ("--iodepth 1024 --bs 1M", "1 GiB of guest memory"),
        ] {
            let message = options(text).map(drop).unwrap_err();
            assert!(message.contains(hint), "{text}: {message}");
        }
    }
}
