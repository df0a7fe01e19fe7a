//! DPDK's testpmd: the virtio-user front-end, and the vhost back-end it can be compared with.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::{HugePages, Lab, Running, Skip};

/// How long testpmd may take to start, and to stop.
const START: Duration = Duration::from_secs(40);
const STOP: Duration = Duration::from_secs(20);
/// How long packets may take to flow, or to stop flowing.
const FLOW: Duration = Duration::from_secs(30);

/// Memory of one testpmd: enough for 32,768 buffers and what the library takes for itself.
const MEMORY: u64 = 256 << 20;

/// What testpmd does with packets.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Forward {
    /// Sends as fast as it can.
    TxOnly,
    /// Receives and drops.
    RxOnly,
    /// Sends numbered flows and receives whatever comes.
    FlowGen,
    /// Sends back what it receives, as it is.
    Io,
}

impl Forward {
    fn name(self) -> &'static str {
        match self {
            Forward::TxOnly => "txonly",
            Forward::RxOnly => "rxonly",
            Forward::FlowGen => "flowgen",
            Forward::Io => "io",
        }
    }
}

/// What testpmd's memory, the guest memory of the connection, is made of.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Pages {
    /// A memfd of 4 KiB pages.
    Small,
    /// A file on hugetlbfs.
    Huge,
}

/// How the rings of a front-end are laid out and used.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Split rings.
    Split,
    /// Split rings that are used in order.
    SplitInOrder,
    /// Packed rings.
    Packed,
    /// Packed rings that are used in order.
    PackedInOrder,
}

/// How testpmd is to be started.
#[derive(Clone, Debug)]
pub struct Testpmd {
    front_end: bool,
    listening: bool,
    name: String,
    socket: String,
    queue_pairs: u16,
    ring_size: u16,
    mergeable: bool,
    layout: Layout,
    pages: Pages,
    forward: Forward,
    packet_size: u16,
}

impl Testpmd {
    /// A virtio-user front-end that connects to `socket`: one queue pair, split rings of 256, mergeable receive buffers, small pages, 64-byte
    /// packets.
    pub fn front_end(socket: &str, forward: Forward) -> Testpmd {
        Testpmd {
            front_end: true,
            listening: false,
            name: "front".into(),
            socket: socket.into(),
            queue_pairs: 1,
            ring_size: 256,
            mergeable: true,
            layout: Layout::Split,
            pages: Pages::Small,
            forward,
            packet_size: 64,
        }
    }

    /// DPDK's own vhost back-end, which listens on `socket`.
    pub fn back_end(socket: &str, forward: Forward) -> Testpmd {
        Testpmd { front_end: false, name: "back".into(), ..Testpmd::front_end(socket, forward) }
    }

    /// The front-end listens on its socket, and the back-end comes.
    pub fn listening(mut self) -> Testpmd {
        self.listening = true;
        self
    }

    /// What this one is called among others that run beside it.
    pub fn name(mut self, name: &str) -> Testpmd {
        self.name = name.into();
        self
    }

    /// Queue pairs.
    pub fn queue_pairs(mut self, pairs: u16) -> Testpmd {
        self.queue_pairs = pairs;
        self
    }

    /// Descriptors of each ring.
    pub fn ring_size(mut self, size: u16) -> Testpmd {
        self.ring_size = size;
        self
    }

    /// Whether the front-end negotiates mergeable receive buffers.
    pub fn mergeable(mut self, on: bool) -> Testpmd {
        self.mergeable = on;
        self
    }

    /// What the front-end asks for where rings are concerned.
    pub fn layout(mut self, layout: Layout) -> Testpmd {
        self.layout = layout;
        self
    }

    /// What the guest memory is made of.
    pub fn pages(mut self, pages: Pages) -> Testpmd {
        self.pages = pages;
        self
    }

    /// Bytes of each packet sent.
    pub fn packet_size(mut self, bytes: u16) -> Testpmd {
        self.packet_size = bytes;
        self
    }

    /// Start it and wait until it forwards. Skips where huge pages are wanted and cannot be had.
    pub fn start(&self, lab: &Lab) -> Result<RunningTestpmd, Skip> {
        let huge = match self.pages {
            Pages::Small => None,
            Pages::Huge => Some(HugePages::reserve(MEMORY)?),
        };
        let mut command = lab.command("dpdk-testpmd");
        if let Some(huge) = &huge {
            command.env("LAB_HUGE", huge.page_size().to_string());
        }
        command.args(self.arguments());
        let mut run = Running::spawn(&format!("testpmd {}", self.name), command);
        run.expect("Tx-pps:", START); // the first report comes at once and knows no rate yet
        Ok(RunningTestpmd { run, _huge: huge })
    }

    fn arguments(&self) -> Vec<String> {
        let far = std::thread::available_parallelism().map_or(0, |cores| cores.get().min(2) - 1);
        let (forwarding_core, device) = if self.front_end {
            let (mergeable, server) = (u8::from(self.mergeable), u8::from(self.listening));
            let packed = u8::from(matches!(self.layout, Layout::Packed | Layout::PackedInOrder));
            let in_order = u8::from(matches!(self.layout, Layout::SplitInOrder | Layout::PackedInOrder));
            let shape = format!(
                "queues={},queue_size={},mrg_rxbuf={mergeable},packed_vq={packed},in_order={in_order}",
                self.queue_pairs, self.ring_size
            );
            (far, format!("net_virtio_user0,path={},server={server},{shape}", self.socket))
        } else {
            (0, format!("net_vhost0,iface={},queues={}", self.socket, self.queue_pairs))
        };
        let memory = match self.pages {
            Pages::Small => "--no-huge",
            Pages::Huge => "--huge-dir=/hugepages",
        };
        let mut arguments: Vec<String> = vec![
            format!("--lcores=0@{},1@{forwarding_core}", far - forwarding_core.min(far)),
            "--main-lcore=0".into(),
            format!("--file-prefix={}", self.name),
            memory.into(),
            "-m".into(),
            (MEMORY >> 20).to_string(),
            "--single-file-segments".into(),
            "--no-pci".into(),
            "--no-telemetry".into(),
            "--vdev".into(),
            device,
            "--".into(),
            "--total-num-mbufs=32768".into(),
            "--nb-cores=1".into(),
            format!("--rxq={}", self.queue_pairs),
            format!("--txq={}", self.queue_pairs),
            format!("--forward-mode={}", self.forward.name()),
            format!("--txpkts={}", self.packet_size),
            "--port-topology=loop".into(),
            "--stats-period=1".into(),
            "--no-flush-rx".into(), // the first packets count as well
            "--auto-start".into(),
        ];
        if self.front_end {
            arguments.push(format!("--rxd={}", self.ring_size));
            arguments.push(format!("--txd={}", self.ring_size));
        }
        arguments
    }
}

/// A testpmd that forwards.
#[derive(Debug)]
pub struct RunningTestpmd {
    run: Running, // before the pages: it must be gone when they are given back
    _huge: Option<HugePages>,
}

/// Packets per second in one reporting period of a second.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// Received.
    pub rx: u64,
    /// Sent.
    pub tx: u64,
}

/// What testpmd counted from its start to its end.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Packets received.
    pub rx: u64,
    /// Packets put on a ring for sending.
    pub tx: u64,
    /// Packets it could not send because the ring was full.
    pub tx_dropped: u64,
}

impl RunningTestpmd {
    /// Wait for the next report, about a second.
    pub fn next_rate(&mut self) -> Rate {
        let text = self.run.expect("Tx-pps:", START);
        rate(&text).expect("a report has both rates")
    }

    /// Keep it off the processors until [`RunningTestpmd::go_on`].
    pub fn hold(&self) {
        self.run.hold();
    }

    /// Let one that was held run again. Its next report counts the time in which it did not run, those after it do not.
    pub fn go_on(&mut self) {
        self.run.forget_output();
        self.run.go_on();
    }

    /// Wait until packets come back to this front-end.
    ///
    /// # Panics
    /// When none do.
    pub fn flows(&mut self) {
        let give_up = Instant::now() + FLOW;
        while self.next_rate().rx == 0 {
            assert!(Instant::now() < give_up, "no packet comes back");
        }
    }

    /// Wait until no packet comes back any more.
    ///
    /// # Panics
    /// When they go on.
    pub fn stands_still(&mut self) {
        let give_up = Instant::now() + FLOW;
        while self.next_rate().rx != 0 {
            assert!(Instant::now() < give_up, "packets come from nowhere");
        }
    }

    /// Whether the program is still there.
    pub fn alive(&mut self) -> bool {
        self.run.wait(Duration::ZERO).is_none()
    }

    /// Stop forwarding, close the port, and return the final counts.
    ///
    /// # Panics
    /// Where testpmd does not end in time or not with success.
    pub fn stop(self) -> Totals {
        let ended = self.run.end(Signal::TERM, STOP);
        totals(&ended.output)
            .unwrap_or_else(|| panic!("no final statistics in testpmd's output:\n{}", ended.output))
    }

    /// Kill it without a word to its peer.
    pub fn kill(self) {
        drop(self);
    }
}

fn rate(text: &str) -> Option<Rate> {
    Some(Rate { rx: last_number(text, "Rx-pps:")?, tx: last_number(text, "Tx-pps:")? })
}

fn totals(text: &str) -> Option<Totals> {
    let (_, all) = text.rsplit_once("Accumulated forward statistics")?;
    Some(Totals {
        rx: last_number(all, "RX-packets:")?,
        tx: last_number(all, "TX-packets:")?,
        tx_dropped: last_number(all, "TX-dropped:")?,
    })
}

fn last_number(text: &str, name: &str) -> Option<u64> {
    text.rsplit_once(name)?.1.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_gives_both_rates() {
        let text = "  Rx-pps:            7          Rx-bps:            0\n  Tx-pps:     18100725          Tx-bps:   9267571352\n";
        assert_eq!(rate(text), Some(Rate { rx: 7, tx: 18_100_725 }));
    }

    #[test]
    fn the_final_counts_are_those_of_all_ports() {
        let text = "  RX-packets: 1  TX-packets: 2\n +++ Accumulated forward statistics for all ports+++\n  \
                    RX-packets: 10             RX-dropped: 0             RX-total: 10\n  \
                    TX-packets: 71854080       TX-dropped: 28599008      TX-total: 100453088\n";
        assert_eq!(totals(text), Some(Totals { rx: 10, tx: 71_854_080, tx_dropped: 28_599_008 }));
    }

    #[test]
    fn output_without_final_statistics_gives_none() {
        assert_eq!(totals("EAL: Error - exiting with code: 1"), None);
    }
}
