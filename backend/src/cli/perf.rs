//! `mdevd perf`: what a device does under load.

mod blk;
mod nvme;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};

use crate::perf::against::{Against, MOST};
use crate::perf::blk::run as measure_blk;
use crate::perf::delays::{Load, parse_rate};
use crate::perf::drive::Direction;
use crate::perf::search::SearchOptions;
use crate::perf::shape::{BURST, Format, Shape};
use crate::perf::size::PacketSize;
use crate::perf::{Mode, Options, run as measure};

use super::values::parse_duration;

/// What the figures mean; printed below the options. In lines that need no wrapping, since it is a table.
const MEANINGS: &str = "\
What is measured, at the greatest rate that both sides reach together:
  to    the front-end sends, the device reads the packets and drops them
  from  the device makes packets, the front-end receives them
  loop  the device sends every packet back

  Mpps    packets a second in millions: median of five slices of the time,
          the least and the greatest beside it
  Gbit/s  bits of the frames, from destination address to payload; without
          preamble, gap, check sequence and virtio header
  ns/pkt  time of the device's core in polls that found packets, for each packet
  drops   packets lost under load
  p50 p99 p99.9  latency in microseconds, of one packet in each 64th burst of
          32. to: from publishing it to seeing it used; from: from offering its
          buffer to seeing it filled; loop: from publishing it to seeing it
          back. All rings are full: it is the time to work through a ring, not
          that of a packet in an idle system
  line    round trip of a cache line between the two cores in nanoseconds, the
          mean of before and after; figures with different ones do not compare
  status  FAILED if packets are lost, changed or out of order: 10^5 are compared
          byte by byte before time is measured (from, loop), and running
          numbers are checked while it is

Sizes are those of the frame without check sequence. imix is seven packets of 64
bytes, four of 594 and one of 1518 in every twelve.

Without --socket-path each measurement starts a device of its own (mdevd net
--mode busy) in another process on another core; with less than two cores the
figures mean little. With it the back-end must suit the direction: \"to\" needs
one that takes packets, \"from\" one that sends by itself (what it sends is
counted, not checked), \"loop\" one that returns what it gets. Device time is
then unknown.

--against compares the back-end (A) with others (B, C ...) in one run: A B A B,
then A C A C. A turn is a connection of its own and takes --duration by --pairs.
The cache line's round trip is taken before, between and after the two turns of
a pair; where the greatest exceeds the least by more than 25 % the machine was
not the same for both, and the pair is dropped. The ratio is that of the two
rates of each pair. Run the others on the first of the processors that perf may
use, and the front-end runs on one of its own. Back-ends that poll without a
client take each other's processor: --pause stops (SIGSTOP) the processes that
listen at the sockets while it is not their turn. They go on at the end, unless
perf itself is killed with SIGKILL; then continue them with kill -CONT.

--zero-loss searches as RFC 2544 does: frames are offered at a rate for the time
of --duration, and the interval between the highest rate without a loss and the
lowest with one is halved until it is small. A frame is lost if it finds no room
in the ring when its time has come (refused), or if the back-end takes it and
does not deliver it (dropped: by the device's counters in direction \"to\", where a
back-end at --socket-path does not tell; by what comes back within a second in a
\"loop\"). Where the front-end itself does not keep up with a rate, it was not
offered, and does not count as passed.

--latency takes the time of every frame instead of a sample, with one frame under
way (one) or at a rate below the greatest: --latency one,100k,1M. Percentiles are
those of all frames of a cell. Both leave out the direction \"from\".

--html FILE writes figures and all results as one page that needs no network.

The exit status is 1 if something could not be measured or a check failed.";

/// The shortest measurement.
const SHORTEST: Duration = Duration::from_millis(100);

/// Arguments of `mdevd perf`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    device: Device,
}

#[derive(Debug, clap::Subcommand)]
enum Device {
    /// Measure a virtio network device: packets/s, bits/s, core time, drops, latency
    #[command(after_long_help = MEANINGS, after_help = "--help explains the figures")]
    Net(NetArgs),
    /// Measure a virtio block device: requests/s, bytes/s, core time, latency; find damage
    #[command(after_long_help = blk::MEANINGS, after_help = "--help explains the figures")]
    Blk(blk::BlkArgs),
    /// Measure an NVMe controller: requests/s, bytes/s, core time, latency; find damage
    #[command(after_long_help = nvme::MEANINGS, after_help = "--help explains the figures")]
    Nvme(nvme::NvmeArgs),
}

#[derive(Debug, clap::Args)]
struct NetArgs {
    /// Drive the vhost-user-net back-end that listens at this path instead of starting one
    #[arg(long, value_name = "PATH")]
    socket_path: Option<PathBuf>,

    /// Packet sizes: bytes from 60 to 9018, or imix
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "64,512,1518,imix")]
    size: Vec<PacketSize>,

    /// Directions, as the guest sees them
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_enum, default_value = "to,from,loop")]
    direction: Vec<Direction>,

    /// Pairs of a receive and a transmit queue, 1 to 16
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=16))]
    queue_pairs: u16,

    /// Descriptors of each ring: a power of two from 64 to 32768
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = parse_ring_size)]
    ring_size: u16,

    /// Format of the rings
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Format::Split)]
    ring: Format,

    /// Have the device use buffers in the order in which they were made available
    #[arg(long)]
    in_order: bool,

    /// Packets offered before they are published to the device, 1 to 1024
    #[arg(long, value_name = "N", default_value_t = BURST, value_parser = clap::value_parser!(u32).range(1..=1024))]
    burst: u32,

    /// Let a received packet span several buffers (on) or not (off); without it: if the back-end can
    #[arg(long, value_name = "SWITCH", value_parser = parse_switch)]
    mergeable: Option<bool>,

    /// Describe header and frame of each packet by an indirect table of two
    #[arg(long)]
    indirect: bool,

    /// Compare with the back-ends that listen at these paths, in turns
    #[arg(long, value_name = "PATH", num_args = 1..=MOST)]
    against: Vec<PathBuf>,

    /// Pairs of turns that each comparison has
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000), requires = "against")]
    pairs: u32,

    /// Stop the processes of the back-ends whose turn it is not
    #[arg(long, requires = "against")]
    pause: bool,

    /// Time of each measurement, of which there is one for each size and direction: 5s, 500ms; at least 100ms
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_cell_duration)]
    duration: Duration,

    /// Find the highest rate at which no frame is lost, by halving; each trial takes --duration
    #[arg(long, conflicts_with_all = ["against", "latency"])]
    zero_loss: bool,

    /// How close the search comes to that rate, in percent of it: 0.01 to 50
    #[arg(long, value_name = "PERCENT", default_value = "1", value_parser = parse_resolution, requires = "zero_loss")]
    resolution: f64,

    /// Begin the search at this rate in frames a second, such as 5M; without it a little above the greatest
    #[arg(long, value_name = "RATE", value_parser = parse_max_rate, requires = "zero_loss")]
    max_rate: Option<f64>,

    /// Take every frame's latency, one frame at a time (one) or at rates in frames a second, such as 50k or 1.5M
    #[arg(long, value_name = "LOADS", num_args = 0..=1, value_delimiter = ',', default_missing_value = "one", conflicts_with = "against")]
    latency: Option<Vec<Load>>,

    /// Write the results with figures as a page of HTML to this file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,

    /// Write the results as JSON to this file; - is standard output, instead of the table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn parse_ring_size(text: &str) -> Result<u16, String> {
    match text.parse::<u16>() {
        Ok(size) if size.is_power_of_two() && size >= 64 => Ok(size),
        _ => Err("give a power of two from 64 to 32768".to_owned()),
    }
}

fn parse_resolution(text: &str) -> Result<f64, String> {
    match text.trim_end_matches('%').parse::<f64>() {
        Ok(percent) if (0.01..=50.0).contains(&percent) => Ok(percent / 100.0),
        _ => Err("give percent from 0.01 to 50".to_owned()),
    }
}

fn parse_max_rate(text: &str) -> Result<f64, String> {
    parse_rate(text).ok_or_else(|| "give frames a second from 1000 to 1G, such as 50k or 1.5M".to_owned())
}

fn parse_switch(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("say on or off".to_owned()),
    }
}

fn parse_cell_duration(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        short if short < SHORTEST => Err(format!("{text:?} is too short: at least 100ms")),
        long => Ok(long),
    }
}

/// Whether the turns of a comparison are long enough.
fn turns_fit(duration: Duration, against: &[PathBuf], pairs: u32) -> Result<(), String> {
    let turns = if against.is_empty() { 1 } else { pairs };
    if duration / turns >= SHORTEST {
        return Ok(());
    }
    Err(format!(
        "{turns} turns of at least {} ms do not fit into a --duration of {} ms",
        SHORTEST.as_millis(),
        duration.as_millis()
    ))
}

impl NetArgs {
    /// The same for the part that measures.
    fn options(&self, command: String) -> Result<Options, String> {
        let mode = match &self.latency {
            Some(loads) => Mode::Latency(loads.clone()),
            None if self.zero_loss => Mode::ZeroLoss(SearchOptions {
                trial: self.duration,
                resolution: self.resolution,
                highest: self.max_rate,
            }),
            None if self.against.is_empty() => Mode::Greatest,
            None => {
                Mode::Against(Against { sockets: self.against.clone(), pairs: self.pairs, pause: self.pause })
            }
        };
        let mut directions = self.direction.clone();
        if matches!(mode, Mode::ZeroLoss(_) | Mode::Latency(_)) {
            // A device that sends by itself is offered nothing.
            directions.retain(|&direction| direction != Direction::From);
            if directions.is_empty() {
                return Err("the device decides how fast it sends \"from\" itself: \
                            --zero-loss and --latency are for the directions to and loop"
                    .to_owned());
            }
        }
        turns_fit(self.duration, &self.against, self.pairs)?;
        if self.burst > self.ring_size.into() {
            return Err(format!("a --burst of {} does not fit into rings of {}", self.burst, self.ring_size));
        }
        Ok(Options {
            command,
            socket: self.socket_path.clone(),
            sizes: self.size.clone(),
            directions,
            queue_pairs: self.queue_pairs,
            shape: Shape {
                ring_size: self.ring_size,
                format: self.ring,
                in_order: self.in_order,
                burst: self.burst,
                mergeable: self.mergeable,
                indirect: self.indirect,
            },
            duration: self.duration,
            mode,
            json: self.json.clone(),
            html: self.html.clone(),
        })
    }
}

/// Measures, prints, and says whether the results may be believed.
pub(super) fn run(args: &Args) -> Result<(), String> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, stop.clone())
            .map_err(|error| format!("cannot catch signals: {error}"))?;
    }
    let mut out = io::stdout().lock();
    let measured = match &args.device {
        Device::Net(net) => measure(&net.options(command())?, &stop, &mut out),
        Device::Blk(blk) => measure_blk(&blk.options(command())?, &stop, &mut out),
        Device::Nvme(nvme) => measure_blk(&nvme.options(command())?, &stop, &mut out),
    };
    measured.map_err(|error| error.to_string())
}

/// The command as it was typed, without the program's path.
pub(super) fn command() -> String {
    let arguments = std::env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned());
    std::iter::once("mdevd".to_owned()).chain(arguments).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
#[path = "perf_tests.rs"]
mod tests;
