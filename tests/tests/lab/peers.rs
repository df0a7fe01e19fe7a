//! The lab by itself: the peers against each other, without the product. When one of these fails, the lab is broken, not the product.

use std::time::Duration;

use mdev_tests::lab::{Forward, Lab, Pages, QemuGuest, Skip, Testpmd, Trial};

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::new("peers_testpmd_front_end_sends_to_testpmd_back_end", |lab| sends(lab, Pages::Small)),
        Trial::new("peers_testpmd_front_end_sends_from_huge_pages", |lab| sends(lab, Pages::Huge)),
        Trial::new("peers_guest_boots_and_gets_its_frames_back_from_testpmd", guest_boots),
    ]
}

fn sends(lab: &Lab, pages: Pages) -> Result<(), Skip> {
    let back = Testpmd::back_end("net.sock", Forward::RxOnly).start(lab)?;
    let mut front = Testpmd::front_end("net.sock", Forward::TxOnly).pages(pages).start(lab)?;
    let rate = front.next_rate();
    assert!(rate.tx > 0 && rate.rx == 0, "{rate:?}");
    let sent = front.stop();
    let received = back.stop();
    assert!(sent.tx > 0 && received.rx <= sent.tx && received.rx + 256 >= sent.tx, "{sent:?} {received:?}");
    Ok(())
}

fn guest_boots(lab: &Lab) -> Result<(), Skip> {
    let _back = Testpmd::back_end("net.sock", Forward::Io).start(lab)?;
    let mut guest = QemuGuest::with_script(lab, "guest", "ip link set eth0 up && guest-frames eth0 200")
        .program("guest-frames", env!("CARGO_BIN_EXE_guest-frames"))
        .vhost_user_net("net.sock", 1)
        .start();
    guest.booted();
    guest.expect("frames: 200 sent and back", Duration::from_secs(30));
    guest.expect("guest: script ended with status 0", Duration::from_secs(10));
    guest.powered_off();
    Ok(())
}
