//! `mdevd serve`: several devices for several front-ends, and a file that changes under them.

use mdev_tests::lab::{Forward, Lab, Mdevd, Skip, Testpmd, Trial, move_into_own_network};

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::new("serve_two_front_ends_have_a_device_each_on_one_worker", two_devices),
        Trial::new("serve_devices_that_have_not_changed_do_not_notice_a_reload", reloaded),
        Trial::new("serve_devices_that_change_interfaces_on_a_reload_have_them_under_traffic", exchanged),
    ]
}

const WORKERS: &str = "[workers]\ncount = 1\n";

fn device(name: &str, keys: &str) -> String {
    format!("[[net]]\nname = \"{name}\"\nsocket-path = \"{name}.sock\"\n{keys}\n")
}

fn two_devices(lab: &Lab) -> Result<(), Skip> {
    let loopback = device("one", "link = \"loopback\"");
    let null = device("two", "link = \"null\"");
    let mut mdevd = Mdevd::serve(lab, &format!("{WORKERS}{loopback}{null}"));
    let mut one = Testpmd::front_end("one.sock", Forward::FlowGen).name("one").start(lab)?;
    let two = Testpmd::front_end("two.sock", Forward::TxOnly).name("two").start(lab)?;
    one.flows();
    assert!(one.stop().rx > 0);
    assert!(two.stop().tx > 0);
    for name in ["one", "two"] {
        assert!(mdevd.counters_of(name)[1].packets() > 0, "{name}");
    }
    mdevd.terminate();
    assert!(!lab.work().join("one.sock").exists() && !lab.work().join("two.sock").exists());
    Ok(())
}

fn reloaded(lab: &Lab) -> Result<(), Skip> {
    let stays = device("stays", "link = \"loopback\"");
    let changes = |mtu: u32| device("changes", &format!("link = \"loopback\"\nmtu = {mtu}"));
    let goes = device("goes", "");
    let mut mdevd = Mdevd::serve(lab, &format!("{WORKERS}{stays}{}{goes}", changes(1500)));
    let mut staying = Testpmd::front_end("stays.sock", Forward::FlowGen).name("staying").start(lab)?;
    let mut changing = Testpmd::front_end("changes.sock", Forward::FlowGen).name("changing").start(lab)?;
    staying.flows();
    changing.flows();
    let before = mdevd.counters_of("stays")[1].packets();

    let wrong = format!("{WORKERS}{stays}lnik = \"null\"\n");
    let said = mdevd.reload(lab, &wrong, "everything is served as before");
    assert!(said.contains("mdevd.toml:7: unknown field `lnik`"), "{said}");
    changing.flows();
    assert!(lab.work().join("goes.sock").exists());

    let new = device("new", "link = \"loopback\"");
    let said = mdevd.reload(lab, &format!("{WORKERS}{stays}{}{new}", changes(1400)), "changes: serving");
    assert!(said.contains("2 devices end, 2 begin, 1 go on"), "{said}");
    assert!(!lab.work().join("goes.sock").exists() && lab.work().join("new.sock").exists());
    changing.kill(); // its device has hung up
    let mut changing = Testpmd::front_end("changes.sock", Forward::FlowGen).name("changing").start(lab)?;
    changing.flows();
    changing.stop();
    let mut newcomer = Testpmd::front_end("new.sock", Forward::FlowGen).name("new").start(lab)?;
    newcomer.flows();
    newcomer.stop();

    staying.flows();
    assert!(mdevd.counters_of("stays")[1].packets() > before, "its counters began anew");
    assert!(staying.stop().rx > 0);
    let ended = mdevd.terminate();
    let comings = ended.output.matches("stays: connection").count();
    assert_eq!(comings, 2, "it came once and left once:\n{}", ended.output);
    Ok(())
}

/// The front-ends send until their devices hang up; the interfaces of those are free then.
fn exchanged(lab: &Lab) -> Result<(), Skip> {
    move_into_own_network()?;
    let file = |interfaces: [&str; 2]| {
        let [one, two] = interfaces.map(|name| format!("link = \"tap={name}\""));
        format!("{WORKERS}{}{}", device("one", &one), device("two", &two))
    };
    let there = ["vm0", "vm1"];
    let crossed = ["vm1", "vm0"];
    let mut mdevd = Mdevd::serve(lab, &file(there));
    for interfaces in [crossed, there, crossed] {
        let mut one = Testpmd::front_end("one.sock", Forward::TxOnly).name("one").start(lab)?;
        let mut two = Testpmd::front_end("two.sock", Forward::TxOnly).name("two").start(lab)?;
        assert!(one.next_rate().tx > 0 && two.next_rate().tx > 0);
        let said = mdevd.reload(lab, &file(interfaces), "two: serving");
        assert!(said.contains("2 devices end, 2 begin"), "{said}");
        one.kill();
        two.kill();
    }
    let ended = mdevd.terminate();
    assert!(!ended.output.contains("not served"), "{}", ended.output);
    Ok(())
}
