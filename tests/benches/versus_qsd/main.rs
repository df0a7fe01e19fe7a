//! `mdevd blk --vduse` beside the `vduse-blk` of QEMU's storage daemon, in turns, as disks of one Linux host in QEMU: fio reads 4 KiB
//! at random places, one request at a time and 32. Both have a store without bytes, so that what is compared is the way to it. A
//! third disk is that of an `mdevd` with `--own-bounce`. What that option brings is asked again of two disks with bytes in memory, which
//! fio reads 128 KiB at a time.
//!
//! `cargo bench -p mdev-tests --bench versus_qsd [-- --pairs N] [--seconds N]`
//!
//! The host is emulated, and its processors with it: a rate says something beside the others of its table only. The defaults take about
//! six minutes. Needs the lab: see `tests/lab/README.md`.
use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use mdev_tests::lab::{Lab, QemuGuest, Skip, setup};
use mdevd::perf::pairs::{Comparison, Pairing};
use mdevd::perf::table::{aligned, value};
use mdevd::report::Measurement;

/// Compares disks of VDUSE by mdevd and by QEMU's storage daemon, pair by pair
#[derive(Debug, Parser)]
struct Args {
    /// Turns of each disk at each depth
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pairs: u16,
    /// Seconds of each turn
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=600))]
    seconds: u16,
    /// Cargo says this
    #[arg(long, hide = true)]
    bench: bool,
}

/// What is compared: the bytes of a request, requests at a time, a disk, and another that its rate is divided by.
const COMPARED: [(&str, u16, [&str; 2]); 5] = [
    ("4k", 1, ["mdevd", "qsd"]),
    ("4k", 1, ["bounce", "mdevd"]),
    ("4k", 32, ["mdevd", "qsd"]),
    ("4k", 32, ["bounce", "mdevd"]),
    ("128k", 4, ["bounce_mem", "mem"]),
];

/// Turns of each pair: three disks at two depths, and two disks at one.
const TURNS: usize = 3 * 2 + 2;

/// What a turn takes beside what counts.
const AROUND: Duration = Duration::from_secs(20);

/// The host's script, behind its parameters. Each round turns the order round.
const SCRIPT: &str = r#"
mdevd blk --vduse mdevd --store null,size=1G > /tmp/mdevd.log 2>&1 &
mdevd blk --vduse bounce --own-bounce --store null,size=1G > /tmp/bounce.log 2>&1 &
mdevd blk --vduse mem --store mem,size=128M > /tmp/mem.log 2>&1 &
mdevd blk --vduse bounce_mem --own-bounce --store mem,size=128M > /tmp/bounce_mem.log 2>&1 &
qemu-storage-daemon --blockdev null-co,node-name=disk,size=1073741824,read-zeroes=off \
    --export type=vduse-blk,id=export,node-name=disk,name=qsd,num-queues=1,queue-size=256,writable=on > /tmp/qsd.log 2>&1 &
for name in mdevd bounce qsd mem bounce_mem; do
    tries=0
    until [ -e /dev/vduse/$name ] && vdpa dev add name $name mgmtdev vduse; do
        tries=$((tries + 1))
        if [ $tries = 100 ]; then cat /tmp/$name.log; exit 1; fi
        sleep 0.1
    done
    until [ -e /sys/bus/vdpa/devices/$name/virtio*/block/* ]; do sleep 0.1; done
    eval $name=/dev/$(ls /sys/bus/vdpa/devices/$name/virtio*/block)
done
for disk in $mem $bounce_mem; do dd if=/dev/urandom of=$disk bs=1M count=128; done
turns() {
    bytes=$1
    depth=$2
    shift 2
    for name in "$@"; do
        eval disk=\$$name
        rate=$(fio --name=r --filename=$disk --readonly --rw=randread --bs=$bytes --direct=1 --ioengine=libaio --iodepth=$depth \
            --time_based --ramp_time=1 --runtime=$seconds --output-format=terse --terse-version=3 | cut -d ';' -f 8)
        echo "rate: $bytes $depth $name $rate"
    done
}
pair=0
while [ $pair -lt $pairs ]; do
    empty="mdevd qsd bounce"
    full="mem bounce_mem"
    if [ $((pair % 2)) = 1 ]; then
        empty="bounce qsd mdevd"
        full="bounce_mem mem"
    fi
    turns 4k 1 $empty
    turns 4k 32 $empty
    turns 128k 4 $full
    pair=$((pair + 1))
done
"#;

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("versus_qsd: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let failed = |Skip(reason)| reason;
    let lock = setup::lock().map_err(failed)?;
    let root = setup::root(&lock).map_err(failed)?;
    let work = tempfile::Builder::new().prefix("mdevd-versus-").tempdir()?;
    let lab = Lab::with_peers(root, work.path());
    let script = format!("pairs={} seconds={}\n{SCRIPT}", args.pairs, args.seconds);
    let mut host = QemuGuest::with_script(&lab, "host", &script)
        .product()
        .vduse()
        .lab_programs(&["/usr/bin/fio", "/usr/bin/qemu-storage-daemon"])
        .cores(2)
        .start();
    host.booted();
    let mut said = String::new();
    let turn = AROUND + Duration::from_secs(args.seconds.into());
    for _ in 0..usize::from(args.pairs) * TURNS {
        let more = host.expect("rate: ", turn);
        eprint!("{}", more.lines().last().map(|line| format!("{line}\n")).unwrap_or_default());
        said.push_str(&more);
    }
    host.powered_off();
    println!("random reads, IOPS in an emulated host; medians and ranges\n\n{}", table(&said));
    Ok(())
}

/// The rates of one disk at one size and depth, in the order of the rounds.
fn rates(said: &str, bytes: &str, depth: u16, name: &str) -> Vec<f64> {
    let title = format!("rate: {bytes} {depth} {name} ");
    said.lines().filter_map(|line| line.trim().strip_prefix(&title)?.parse().ok()).collect()
}

fn table(said: &str) -> String {
    let heading = ["bytes", "depth", "A", "B", "A", "range", "B", "range", "A/B", "range", "pairs"];
    let mut rows = vec![heading.map(String::from).to_vec()];
    for (bytes, depth, names) in COMPARED {
        let [first, second] = names.map(|name| rates(said, bytes, depth, name));
        let pairs: Vec<Pairing> = first
            .into_iter()
            .zip(second)
            .map(|(first, second)| Pairing { first, second, lines: Vec::new() })
            .collect();
        let compared = Comparison::in_unit("IOPS", &depth.to_string(), names, &pairs);
        let mut row = [bytes.into(), depth.to_string(), names[0].into(), names[1].into()].to_vec();
        for (result, digits) in [(&compared.first, 0), (&compared.second, 0), (&compared.ratio, 2)] {
            row.extend([value(result, digits), range(result, digits)]);
        }
        row.push(compared.kept.to_string());
        rows.push(row);
    }
    aligned(&rows)
}

fn range(result: &Measurement, digits: usize) -> String {
    match result.samples.is_empty() {
        true => "-".into(),
        false => format!("{:.digits$}-{:.digits$}", result.min, result.max),
    }
}
