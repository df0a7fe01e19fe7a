//! What `nvme` and `lspci` say of the controller of `mdevd nvme` in a Linux guest.

use mdev_tests::lab::{Lab, Mdevd, QemuGuest, Skip, Trial};

use super::controller::{CONTROLLER, DISK, guest, ready};
use super::disk::{SIZE, off, ran, runs};

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::new("nvme_host_tool_is_answered_by_the_controller", tool),
        Trial::new("nvme_host_finds_interrupts_and_express_in_the_configuration_space", configuration_space),
    ]
}

fn tool(lab: &Lab) -> Result<(), Skip> {
    let (first, second) = (format!("mem,size={SIZE}"), format!("mem,size={}", 2 * SIZE));
    let mut mdevd = Mdevd::nvme(lab, "nvme.sock", 2, &[&first, &second], &["--serial", "SN-1"]);
    let mut guest = guest(lab, "guest", 2).lab_programs(&["/usr/sbin/nvme"]).start();
    ready(&mut guest, 2);
    identifies(&mut guest);
    has_features(&mut guest);
    has_logs(&mut guest);
    runs(&mut guest, "dd if=/dev/urandom of=/tmp/one bs=1M count=1");
    runs(&mut guest, &format!("dd if=/tmp/one of={DISK} bs=64k conv=fsync"));
    runs(&mut guest, "nvme reset /dev/nvme0 && nvme ns-rescan /dev/nvme0");
    assert!(runs(&mut guest, &format!("cat {CONTROLLER}/state")).contains("live"));
    runs(
        &mut guest,
        &format!("dd if={DISK} of=/tmp/two bs=1M count=1 iflag=direct && cmp /tmp/one /tmp/two"),
    );
    let drops: u64 = mdevd.counters().iter().map(|queue| queue.get("drops")).sum();
    assert_eq!(drops, 1, "the command that there is not");
    off(guest, mdevd);
    Ok(())
}

/// The value of a field in a list of `name : value`.
fn field<'a>(said: &'a str, name: &str) -> &'a str {
    let lines = said.lines().filter_map(|line| line.split_once(':'));
    let value = lines.into_iter().find(|(title, _)| title.trim() == name).map(|(_, value)| value.trim());
    value.unwrap_or_else(|| panic!("no {name}: {said}"))
}

fn identifies(guest: &mut QemuGuest) {
    let said = runs(guest, "nvme id-ctrl /dev/nvme0");
    assert_eq!((field(&said, "vid"), field(&said, "sn")), ("0x1b36", "SN-1"));
    assert_eq!((field(&said, "ver"), field(&said, "mdts")), ("0x20000", "8"));
    assert!(field(&said, "vwc").ends_with(['1', '3', '5', '7']), "a cache that can be flushed: {said}");
    assert!(field(&said, "subnqn").starts_with("nqn."), "{said}");
    let said = runs(guest, "nvme list-ns /dev/nvme0");
    assert!(said.contains("[   0]:0x1") && said.contains("[   1]:0x2"), "{said}");
    for (namespace, size) in [(1, SIZE), (2, 2 * SIZE)] {
        let said = runs(guest, &format!("nvme id-ns /dev/nvme0 -n {namespace}"));
        let blocks = format!("{:#x}", size / 512);
        assert_eq!((field(&said, "nsze"), field(&said, "ncap")), (&*blocks, &*blocks), "{said}");
        assert!(said.contains("lbads:9"), "{said}");
        let said = runs(guest, &format!("nvme ns-descs /dev/nvme0 -n {namespace}"));
        assert!(field(&said, "uuid").contains(|digit| !['0', '-'].contains(&digit)), "{said}");
    }
    let said = runs(guest, "nvme list");
    assert!(said.contains("/dev/nvme0n1") && said.contains("SN-1"), "{said}");
    let said = runs(guest, "nvme id-ns /dev/nvme0 -n 77");
    assert_eq!(field(&said, "nsze"), "0", "a namespace that there could be: {said}");
    let (status, said) = ran(guest, "nvme id-ns /dev/nvme0 -n 1000");
    assert_ne!(status, 0, "{said}");
}

fn has_features(guest: &mut QemuGuest) {
    assert_eq!(feature(guest, 7), 0x0001_0001, "two pairs of queues");
    for (number, value) in [(6, 0), (6, 1), (4, 0x150)] {
        runs(guest, &format!("nvme set-feature /dev/nvme0 -f {number} --value={value}"));
        assert_eq!(feature(guest, number), value);
    }
    let (status, said) = ran(guest, "nvme get-feature /dev/nvme0 -f 0x7f");
    assert_ne!(status, 0, "{said}");
}

/// The value of a feature: the tool says `Current value:0x00000001`, and of nothing `Current value:00000000`.
fn feature(guest: &mut QemuGuest, number: u8) -> u32 {
    let said = runs(guest, &format!("nvme get-feature /dev/nvme0 -f {number}"));
    let value = said.split_once("Current value:").and_then(|(_, value)| value.split_whitespace().next());
    let value = value.unwrap_or_else(|| panic!("no value: {said}")).trim_start_matches("0x");
    u32::from_str_radix(value, 16).unwrap_or_else(|error| panic!("{error}: {said}"))
}

/// Data units count reads, and what was refused is recorded.
fn has_logs(guest: &mut QemuGuest) {
    let read = |guest: &mut QemuGuest| {
        let said = runs(guest, "nvme smart-log /dev/nvme0");
        assert_eq!(field(&said, "critical_warning"), "0", "{said}");
        let number = field(&said, "host_read_commands").replace(',', "");
        number.parse::<u64>().unwrap_or_else(|error| panic!("{error}: {said}"))
    };
    let before = read(guest);
    runs(guest, &format!("dd if={DISK} of=/dev/null bs=64k count=64 iflag=direct"));
    let after = read(guest);
    assert!(after >= before + 64, "{before} commands, then {after}");
    let (status, said) = ran(guest, &format!("nvme io-passthru {DISK} --opcode=0x7f --namespace-id=1"));
    assert_ne!(status, 0, "{said}");
    let said = runs(guest, "nvme error-log /dev/nvme0 -e 1");
    assert!(field(&said, "error_count") != "0" && said.contains("Invalid Command Opcode"), "{said}");
    let said = runs(guest, "nvme fw-log /dev/nvme0");
    assert!(said.contains("frs1"), "{said}");
    let said = runs(guest, "nvme effects-log /dev/nvme0 --csi=0");
    assert!(said.lines().any(|line| line.contains("[Verify") && line.ends_with("00000001")), "{said}");
    runs(guest, "nvme changed-ns-list-log /dev/nvme0");
}

fn configuration_space(lab: &Lab) -> Result<(), Skip> {
    let mdevd = Mdevd::nvme(lab, "nvme.sock", 2, &[&format!("mem,size={SIZE}")], &[]);
    let mut guest = guest(lab, "guest", 2).lab_programs(&["/usr/bin/lspci"]).start();
    ready(&mut guest, 1);
    let said = runs(&mut guest, "lspci -nvvv -d 1b36:0010");
    for what in [" 0108: ", "MSI-X: Enable+ Count=", "Express (v2) Endpoint", "FLReset+", "Power Management"]
    {
        assert!(said.contains(what), "no {what}: {said}");
    }
    assert!(said.contains("BusMaster+") && said.contains("<MAbort-"), "{said}");
    for error in ["CorrErr+", "NonFatalErr+", "FatalErr+", "rev ff", "unknown header", "Unknown"] {
        assert!(!said.contains(error), "{error}: {said}");
    }
    println!("{said}");
    let interrupts = runs(&mut guest, "grep nvme0q /proc/interrupts");
    assert!(["nvme0q0", "nvme0q1", "nvme0q2"].iter().all(|queue| interrupts.contains(queue)), "{interrupts}");
    off(guest, mdevd);
    Ok(())
}
