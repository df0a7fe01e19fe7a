//! DPDK's virtio-user front-end on each link of `mdevd net`: packets flow, and both sides count the same ones.

use mdev_tests::lab::setup::Wanted;
use mdev_tests::lab::{Counters, Forward, Lab, Layout, Mdevd, Pages, Skip, Testpmd, Trial};

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Link {
    Null,
    Pktgen,
    Loopback,
}

/// One way of connecting testpmd with mdevd.
#[derive(Copy, Clone, Debug)]
struct Case {
    link: Link,
    pairs: u16,
    ring: u16,
    mergeable: bool,
    layout: Layout,
    pages: Pages,
    mode: &'static str,
    size: u16,
}

use Layout::{Packed, PackedInOrder, Split, SplitInOrder};
use Link::{Loopback, Null, Pktgen};
use Pages::{Huge, Small};

const fn case(link: Link, pairs: u16, ring: u16, mergeable: bool, pages: Pages) -> Case {
    Case { link, pairs, ring, mergeable, layout: Split, pages, mode: "adaptive", size: 64 }
}

const fn laid_out(link: Link, layout: Layout, ring: u16, mergeable: bool) -> Case {
    Case { layout, ..case(link, 1, ring, mergeable, Small) }
}

/// The choice for every day: every value of every column with every link, and the corners that have gone wrong in other back-ends.
const EVERY_DAY: [Case; 26] = [
    case(Null, 1, 256, true, Small),
    case(Null, 2, 1024, false, Huge),
    Case { size: 1518, ..case(Null, 1, 64, true, Huge) },
    case(Pktgen, 1, 64, true, Small),
    case(Pktgen, 2, 1024, false, Small),
    case(Pktgen, 1, 256, false, Huge),
    case(Loopback, 1, 256, true, Small),
    case(Loopback, 1, 64, false, Small),
    case(Loopback, 2, 1024, true, Huge),
    case(Loopback, 2, 512, false, Small),
    case(Loopback, 1, 128, false, Huge),
    Case { mode: "busy", ..case(Loopback, 2, 64, true, Small) },
    Case { mode: "event", ..case(Loopback, 1, 1024, true, Small) },
    laid_out(Null, SplitInOrder, 256, true),
    laid_out(Pktgen, SplitInOrder, 256, false),
    laid_out(Loopback, SplitInOrder, 64, true),
    laid_out(Null, Packed, 256, true),
    laid_out(Pktgen, Packed, 64, false),
    laid_out(Pktgen, Packed, 1024, true),
    laid_out(Loopback, Packed, 256, true),
    Case { pairs: 2, mode: "busy", ..laid_out(Loopback, Packed, 112, false) },
    laid_out(Null, PackedInOrder, 256, true),
    laid_out(Pktgen, PackedInOrder, 256, true),
    laid_out(Pktgen, PackedInOrder, 1000, false),
    laid_out(Loopback, PackedInOrder, 256, false),
    Case { mode: "event", pages: Huge, ..laid_out(Loopback, PackedInOrder, 256, true) },
];

pub fn trials() -> Vec<Trial> {
    let cases = if Wanted::from_env().full { full() } else { EVERY_DAY.to_vec() };
    cases.into_iter().map(|case| Trial::new(case.name(), move |lab| case.run(lab))).collect()
}

/// The full cross product.
fn full() -> Vec<Case> {
    let mut cases = EVERY_DAY.to_vec();
    for link in [Null, Pktgen, Loopback] {
        for pairs in [1, 2] {
            for ring in [64, 128, 256, 512, 1024] {
                for mergeable in [true, false] {
                    for pages in [Small, Huge] {
                        for layout in [Split, SplitInOrder, Packed, PackedInOrder] {
                            cases.push(Case { layout, ..case(link, pairs, ring, mergeable, pages) });
                        }
                    }
                }
            }
        }
    }
    let mut names = std::collections::BTreeSet::new();
    cases.retain(|case| names.insert(case.name()));
    cases
}

impl Case {
    fn name(&self) -> String {
        let link = format!("{:?}", self.link).to_lowercase();
        let rx = if self.mergeable { "mergeable" } else { "single" };
        let pages = format!("{:?}", self.pages).to_lowercase();
        let layout = match self.layout {
            Split => "split",
            SplitInOrder => "split_in_order",
            Packed => "packed",
            PackedInOrder => "packed_in_order",
        };
        let Case { pairs, ring, mode, size, .. } = self;
        format!(
            "net_testpmd_{link}_carries_{size}_bytes_pairs_{pairs}_{layout}_ring_{ring}_{rx}_{pages}_pages_{mode}"
        )
    }

    fn run(&self, lab: &Lab) -> Result<(), Skip> {
        let (link, forward) = match self.link {
            Null => ("null", Forward::TxOnly),
            Pktgen => ("pktgen,size=64", Forward::RxOnly),
            Loopback => ("loopback", Forward::FlowGen),
        };
        let mut mdevd =
            Mdevd::net(lab, "net.sock", self.pairs, &["--link", link, "--mode", self.mode, "--cpus", "0"]);
        let mut testpmd = Testpmd::front_end("net.sock", forward)
            .queue_pairs(self.pairs)
            .ring_size(self.ring)
            .mergeable(self.mergeable)
            .layout(self.layout)
            .pages(self.pages)
            .packet_size(self.size)
            .start(lab)?;
        let rate = testpmd.next_rate();
        eprintln!(
            "{:?}: {:.2} Mpps sent, {:.2} Mpps received",
            self.link,
            rate.tx as f64 / 1e6,
            rate.rx as f64 / 1e6
        );
        assert_eq!(rate.tx > 0, self.link != Pktgen, "{rate:?}");
        assert_eq!(rate.rx > 0, self.link != Null, "{rate:?}");
        let totals = testpmd.stop();
        let counters = mdevd.counters();
        eprintln!("{totals:?}\n{counters:#?}");

        // What the front-end put on its rings and the device had not taken, or the device and the front-end had not, when it stopped.
        let in_flight = u64::from(self.ring) * u64::from(self.pairs);
        let (received, sent) = (sum(&counters, 0, "packets"), sum(&counters, 1, "packets"));
        assert!(sent <= totals.tx && totals.tx - sent <= in_flight, "sent");
        // With several queues testpmd does not count up to a ring more on each of them; it does so with DPDK's own back-end as well.
        let uncounted = if self.pairs > 1 { 2 * in_flight } else { in_flight };
        assert!(totals.rx <= received && received - totals.rx <= uncounted, "received");
        assert!(self.link == Null || totals.rx > 0, "nothing was received");
        assert!(self.link == Pktgen || sent > 0, "nothing was sent");
        assert_eq!(sum(&counters, 0, "errors") + sum(&counters, 1, "errors"), 0, "errors");
        if self.link == Null {
            assert_eq!(sum(&counters, 1, "bytes"), sent * u64::from(self.size), "bytes of what was sent");
        }
        if self.link != Null {
            for pair in counters.chunks(2) {
                assert!(pair[0].packets() > 0, "a receive queue was left out");
            }
        }
        mdevd.terminate();
        Ok(())
    }
}

/// The sum of a counter over the receive queues (`which` 0) or the transmit queues (1).
fn sum(counters: &[Counters], which: usize, title: &str) -> u64 {
    counters.iter().skip(which).step_by(2).map(|queue| queue.get(title)).sum()
}
