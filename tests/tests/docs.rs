//! What the documents say is what is there. The rules that read them are in `mdev_tests::documents`.

use clap::ValueEnum;
use mdev_protocol::virtio::{blk, feature, net};
use mdev_tests::documents::{self, Document};
use mdev_tests::house::{Finding, Tree};
use mdevd::device::blk::{BlkConfig, BlkDevice};
use mdevd::device::net::{NetConfig, NetDevice};
use mdevd::device::{DropCause, VirtioDevice};
use mdevd::link::LinkKind;
use mdevd::regress::{Body, Transport, scenarios};
use mdevd::report::Report;
use mdevd::session::{MAX_SLOTS, OFFERED_PROTOCOL_FEATURES};
use mdevd::store::StoreKind;
use mdevd::worker::Mode;

fn tree() -> Tree {
    Tree::of_workspace().expect("the source tree can be read")
}

fn page(path: &str) -> Document {
    Document::find(&tree(), path).unwrap_or_else(|| panic!("no {path}"))
}

fn none(found: &[Finding]) {
    let lines: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert!(lines.is_empty(), "\n{}\n", lines.join("\n"));
}

/// The first column of the table under a heading, without backquotes.
fn first_column(page: &Document, heading: &str) -> Vec<String> {
    let rows = page.table(heading);
    assert!(!rows.is_empty(), "no table under {heading:?} in {}", page.path());
    rows.into_iter().map(|row| row.into_iter().next().unwrap_or_default()).collect()
}

#[test]
fn every_relative_link_leads_somewhere() {
    none(&documents::broken_links(&tree()));
}

#[test]
fn every_page_of_the_book_is_in_its_summary() {
    none(&documents::pages_left_out(&tree()));
}

#[test]
fn every_dependency_has_its_line_and_every_line_a_dependency() {
    none(&documents::dependencies(&tree()));
}

#[test]
fn every_example_is_named_and_run_by_a_test() {
    none(&documents::examples(&tree()));
}

#[test]
fn every_package_with_benches_is_named() {
    none(&documents::benches(&tree()));
}

#[test]
fn the_columns_of_perf_are_those_of_its_table() {
    let page = page("docs/operating.md");
    let columns = page.tables("mdevd perf net").into_iter().nth(1).expect("a table of columns");
    let written: Vec<&str> = columns.iter().flat_map(|row| row[0].split(", ")).collect();
    let table = mdevd::perf::table::table(&[]);
    let printed: Vec<&str> = table.lines().next().unwrap_or_default().split_whitespace().collect();
    assert_eq!(written, printed);
}

#[test]
fn the_options_of_mdevd_net_are_those_of_its_help() {
    let command = mdevd::cli::command();
    let net = command.find_subcommand("net").expect("mdevd net");
    none(&documents::options(&page("docs/operating.md"), "mdevd net", net));
}

#[test]
fn the_options_of_mdevd_blk_are_those_of_its_help() {
    let command = mdevd::cli::command();
    let blk = command.find_subcommand("blk").expect("mdevd blk");
    none(&documents::options(&page("docs/operating.md"), "mdevd blk", blk));
}

#[test]
fn the_options_of_mdevd_nvme_are_those_of_its_help() {
    let command = mdevd::cli::command();
    let nvme = command.find_subcommand("nvme").expect("mdevd nvme");
    none(&documents::options(&page("docs/operating.md"), "mdevd nvme", nvme));
}

#[test]
fn the_stores_can_be_asked_for_as_they_are_written() {
    let page = page("docs/operating.md");
    let stores = page.tables("mdevd blk").into_iter().nth(1).expect("a table of stores");
    let asked = stores.iter().map(|row| row[0].replace("PATH", "disk.img").replace("=N", "=1024"));
    let kinds: Vec<String> = asked
        .map(|name| name.parse::<StoreKind>().unwrap_or_else(|error| panic!("{name}: {error}")).to_string())
        .collect();
    let file = "file=disk.img";
    assert_eq!(
        kinds,
        [file, &format!("{file},direct=on"), &format!("{file},ro=on"), "mem,size=1024", "null,size=1024"]
    );
}

#[test]
fn the_options_of_mdevd_serve_are_those_of_its_help() {
    let command = mdevd::cli::command();
    let serve = command.find_subcommand("serve").expect("mdevd serve");
    none(&documents::options(&page("docs/operating.md"), "mdevd serve", serve));
}

#[test]
fn the_options_of_mdevd_perf_net_are_those_of_its_help() {
    let command = mdevd::cli::command();
    let net =
        command.find_subcommand("perf").and_then(|perf| perf.find_subcommand("net")).expect("mdevd perf net");
    none(&documents::options(&page("docs/operating.md"), "mdevd perf net", net));
}

#[test]
fn the_options_of_mdevd_perf_blk_are_those_of_its_help() {
    let command = mdevd::cli::command();
    let blk =
        command.find_subcommand("perf").and_then(|perf| perf.find_subcommand("blk")).expect("mdevd perf blk");
    none(&documents::options(&page("docs/operating.md"), "mdevd perf blk", blk));
}

#[test]
fn the_options_of_mdevd_perf_nvme_are_those_of_its_help() {
    let command = mdevd::cli::command();
    let nvme = command.find_subcommand("perf").and_then(|perf| perf.find_subcommand("nvme"));
    none(&documents::options(&page("docs/operating.md"), "mdevd perf nvme", nvme.expect("mdevd perf nvme")));
}

#[test]
fn the_columns_of_perf_blk_are_those_of_its_table() {
    let page = page("docs/operating.md");
    let columns = page.tables("mdevd perf blk").into_iter().nth(1).expect("a table of columns");
    let written: Vec<&str> = columns.iter().flat_map(|row| row[0].split(", ")).collect();
    let table = mdevd::perf::blk::table::table(&[]);
    let printed: Vec<&str> = table.lines().next().unwrap_or_default().split_whitespace().collect();
    assert_eq!(written, printed);
}

#[test]
fn the_options_of_mdevd_regress_are_those_of_its_help() {
    let command = mdevd::cli::command();
    let regress = command.find_subcommand("regress").expect("mdevd regress");
    none(&documents::options(&page("docs/regression-tests.md"), "Options", regress));
}

#[test]
fn the_scenarios_are_those_that_are_played() {
    let page = page("docs/regression-tests.md");
    for (heading, transport) in [
        ("On memory", Transport::Memory),
        ("Over vhost-user", Transport::VhostUser),
        ("Over vfio-user", Transport::VfioUser),
        ("Over VDUSE", Transport::Vduse),
    ] {
        let (here, elsewhere): (Vec<_>, Vec<_>) =
            scenarios(transport).into_iter().partition(|scenario| scenario.is_of_its_transport());
        let there = here.into_iter().map(|scenario| {
            let needs = match scenario.body {
                Body::Play(_) => "-",
                Body::Needs(what) => what,
            };
            [&scenario.number.to_string(), scenario.name, scenario.origin, scenario.shows, needs]
                .map(str::to_owned)
                .to_vec()
        });
        assert_eq!(page.table(heading), there.collect::<Vec<_>>(), "{heading}");
        if !elsewhere.is_empty() {
            let mut numbers: Vec<String> =
                elsewhere.iter().map(|scenario| scenario.number.to_string()).collect();
            numbers.dedup();
            let said = format!("not on {}: {}.", transport.name(), numbers.join(", "));
            let words: Vec<&str> = page.text().split_whitespace().collect();
            assert!(words.join(" ").contains(&said), "{said:?} is missing");
        }
    }
}

#[test]
fn the_modes_are_those_of_the_worker() {
    let modes: Vec<String> = Mode::value_variants()
        .iter()
        .filter_map(|mode| Some(mode.to_possible_value()?.get_name().to_owned()))
        .collect();
    assert_eq!(first_column(&page("docs/operating.md"), "Modes"), modes);
}

#[test]
fn the_links_can_be_asked_for_as_they_are_written() {
    let page = page("docs/operating.md");
    let links = page.tables("mdevd net").into_iter().nth(1).expect("a table of links");
    let mut kinds = Vec::new();
    for name in links.iter().flat_map(|row| row[0].split(", ")) {
        let name = name.replace("=NAME", "=vm0").replace("=N", "=64");
        kinds.push(name.parse::<LinkKind>().unwrap_or_else(|error| panic!("{name}: {error}")).to_string());
    }
    kinds.dedup();
    assert_eq!(kinds, ["null", "loopback", "pktgen,size=64", "pktgen,size=imix", "tap=vm0", "peer=vm0"]);
}

#[test]
fn the_causes_of_drops_are_those_that_are_counted() {
    let page = page("docs/operating.md");
    let causes = page.tables("Counters").into_iter().nth(2).expect("a table of causes");
    let written: Vec<&str> = causes.iter().map(|row| row[0].as_str()).collect();
    assert_eq!(written, DropCause::ALL.map(DropCause::name));
}

#[test]
fn the_json_sample_is_a_report_and_leaves_nothing_out() {
    let page = page("docs/operating.md");
    let sample = page.code("json").expect("a sample of JSON");
    let report: Report = serde_json::from_str(&sample).expect("a report");
    let written: serde_json::Value = serde_json::from_str(&sample).expect("JSON");
    assert_eq!(serde_json::to_value(&report).expect("a report can be written"), written);
}

#[test]
fn the_protocol_features_are_those_that_are_offered() {
    let page = page("docs/attach-to-qemu.md");
    let tables = page.tables("What is offered");
    let written: Vec<&str> = tables[2].iter().map(|row| row[0].as_str()).collect();
    let offered: Vec<&str> = OFFERED_PROTOCOL_FEATURES.iter_names().map(|(name, _)| name).collect();
    assert_eq!(written, offered);
    assert!(page.text().contains(&format!("{MAX_SLOTS} slots")), "the page names another number of slots");
}

#[test]
fn the_virtio_features_are_those_of_the_network_device() {
    let bits = [
        ("VIRTIO_F_VERSION_1", feature::VIRTIO_F_VERSION_1),
        ("VIRTIO_F_INDIRECT_DESC", feature::VIRTIO_RING_F_INDIRECT_DESC),
        ("VIRTIO_F_EVENT_IDX", feature::VIRTIO_RING_F_EVENT_IDX),
        ("VIRTIO_F_RING_PACKED", feature::VIRTIO_F_RING_PACKED),
        ("VIRTIO_F_IN_ORDER", feature::VIRTIO_F_IN_ORDER),
        ("VIRTIO_NET_F_MRG_RXBUF", net::VIRTIO_NET_F_MRG_RXBUF),
        ("VIRTIO_NET_F_STATUS", net::VIRTIO_NET_F_STATUS),
        ("VIRTIO_NET_F_GUEST_ANNOUNCE", net::VIRTIO_NET_F_GUEST_ANNOUNCE),
        ("VIRTIO_NET_F_MQ", net::VIRTIO_NET_F_MQ),
        ("VIRTIO_NET_F_MAC", net::VIRTIO_NET_F_MAC),
        ("VIRTIO_NET_F_MTU", net::VIRTIO_NET_F_MTU),
    ];
    let bit =
        |name: &str| bits.iter().find(|(known, _)| *known == name).unwrap_or_else(|| panic!("{name}")).1;
    let page = page("docs/attach-to-qemu.md");
    let rows = page.tables("What is offered").swap_remove(0);
    let sum = |wanted: &dyn Fn(&str) -> bool| {
        rows.iter().filter(|row| wanted(&row[1])).fold(0, |sum, row| sum | bit(&row[0]))
    };
    let features = |queue_pairs, mac, mtu| {
        let config = NetConfig { name: "net".into(), queue_pairs, mac, mtu, link: LinkKind::Null };
        NetDevice::new(config).expect("a device").features()
    };
    assert_eq!(sum(&|when| when.starts_with("always")), features(1, None, None));
    assert_eq!(sum(&|_| true), features(2, Some([2, 0, 0, 0, 0, 1]), Some(1500)));
}

#[test]
fn the_virtio_features_are_those_of_the_block_device() {
    let common = feature::VIRTIO_F_VERSION_1
        | feature::VIRTIO_RING_F_INDIRECT_DESC
        | feature::VIRTIO_RING_F_EVENT_IDX
        | feature::VIRTIO_F_RING_PACKED;
    let bits = [
        ("VIRTIO_BLK_F_SIZE_MAX", blk::VIRTIO_BLK_F_SIZE_MAX),
        ("VIRTIO_BLK_F_SEG_MAX", blk::VIRTIO_BLK_F_SEG_MAX),
        ("VIRTIO_BLK_F_BLK_SIZE", blk::VIRTIO_BLK_F_BLK_SIZE),
        ("VIRTIO_BLK_F_FLUSH", blk::VIRTIO_BLK_F_FLUSH),
        ("VIRTIO_BLK_F_TOPOLOGY", blk::VIRTIO_BLK_F_TOPOLOGY),
        ("VIRTIO_BLK_F_CONFIG_WCE", blk::VIRTIO_BLK_F_CONFIG_WCE),
        ("VIRTIO_BLK_F_MQ", blk::VIRTIO_BLK_F_MQ),
        ("VIRTIO_BLK_F_RO", blk::VIRTIO_BLK_F_RO),
        ("VIRTIO_BLK_F_DISCARD", blk::VIRTIO_BLK_F_DISCARD),
        ("VIRTIO_BLK_F_WRITE_ZEROES", blk::VIRTIO_BLK_F_WRITE_ZEROES),
    ];
    let bit =
        |name: &str| bits.iter().find(|(known, _)| *known == name).unwrap_or_else(|| panic!("{name}")).1;
    let page = page("docs/attach-to-qemu.md");
    let rows = page.tables("What is offered").swap_remove(1);
    let sum = |wanted: &dyn Fn(&str) -> bool| {
        rows.iter().filter(|row| wanted(&row[1])).fold(common, |sum, row| sum | bit(&row[0]))
    };
    let features = |queues, read_only| {
        let store = "null,size=1M".parse().expect("a store");
        let config = BlkConfig { name: "blk".into(), store, queues, read_only, serial: None };
        BlkDevice::new(config).expect("a device").features()
    };
    assert_eq!(sum(&|when| when.starts_with("always")) | blk::VIRTIO_BLK_F_RO, features(1, true));
    assert_eq!(sum(&|when| !when.contains("read-only")), features(2, false));
}
