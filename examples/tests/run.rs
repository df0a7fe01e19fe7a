//! Every example runs to its end and says what it promises.

use std::path::PathBuf;
use std::process::Command;

/// What an example of this name writes to standard output.
///
/// `cargo test` builds the examples of a package before its tests, into a folder beside them.
fn run(name: &str) -> String {
    let this = std::env::current_exe().expect("a running program has a path");
    let folder: PathBuf = this.ancestors().nth(2).expect("target/PROFILE/deps/this").join("examples");
    let output = Command::new(folder.join(name)).output().unwrap_or_else(|error| {
        panic!("{name}: {error}; run all of `cargo test -p mdev-examples`, which builds it")
    });
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{name}: {}\n{out}{err}", output.status);
    out.into_owned()
}

/// The number behind `label` in what an example wrote.
fn number(said: &str, label: &str) -> u64 {
    let rest = said.split_once(label).unwrap_or_else(|| panic!("no {label:?} in\n{said}")).1;
    let digits: String = rest.chars().skip_while(|c| *c == ' ').take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or_else(|error| panic!("{label:?} {rest:?}: {error}"))
}

#[test]
fn map_and_pin_shows_a_gate_that_closes_at_once_and_an_unmap_that_waits() {
    let said = run("map_and_pin");
    let lines: Vec<&str> = said.lines().collect();
    let expected = [
        "mapped 0x40000000..=0x401fffff",
        "the byte behind the area: the range is not mapped completely; map what is missing",
        "pins out: 1",
        "asked to let go of 0x40000000..=0x401fffff",
        "a lookup now: the area is gated by an unmap; finish the unmap and map it anew",
        "the pin reads: hello",
        "the unmap has returned: false",
        "the pin is gone: 2097152 bytes unmapped, pins out: 0",
        "a lookup afterwards: the range is not mapped completely; map what is missing",
        "a lookup after the close: the access is not attached to an address space; attach it first",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn unmap_under_load_unmaps_under_a_worker_that_writes_and_maps_no_window_anew() {
    let said = run("unmap_under_load");
    assert!(number(&said, "writes:") > 0, "{said}");
    assert_eq!(number(&said, "unmaps:"), 500, "{said}");
    assert_eq!(number(&said, "windows mapped in all that time:"), 1, "{said}");
}

#[test]
fn vring_without_vm_gets_back_what_it_sends_and_stops_its_rings_where_they_are() {
    let said = run("vring_without_vm");
    let lines: Vec<&str> = said.lines().collect();
    let expected = [
        "sent one, received one",
        "sent two, received two",
        "sent three, received three",
        "receive ring stopped at 3",
        "transmit ring stopped at 3",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn rust_vmm_device_serves_from_a_burst_and_is_told_that_its_memory_is_gone() {
    let said = run("rust_vmm_device");
    let lines: Vec<&str> = said.lines().collect();
    let expected = [
        "1 chain: hello -> HELLO",
        "1 chain: rust-vmm -> RUST-VMM",
        "after the unmap: error accessing guest memory",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn software_mdev_lets_go_when_it_is_told_and_pins_nothing_after_its_close() {
    let said = run("software_mdev");
    let lines: Vec<&str> = said.lines().collect();
    let expected = [
        "2 pages written through pins, 2 pins out",
        "4096 bytes unmapped, 1 pin out",
        "1 page written",
        "another pin there: the range is not mapped completely; map what is missing",
        "closed: 0 pins out, 1 area still mapped",
        "another pin: the access is not attached to an address space; attach it first",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn vaddr_and_file_goes_on_by_the_file_where_the_address_is_refused_or_fails() {
    let said = run("vaddr_and_file");
    let lines: Vec<String> =
        said.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    let expected = [
        "the owner by address by its file",
        "does nothing hello hello",
        "unmaps its memory EFAULT hello",
        "executes itself anew EFAULT hello",
        "hands over EINVAL hello",
        "dies EFAULT hello",
    ];
    assert_eq!(lines, expected);
}
