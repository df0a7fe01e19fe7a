use super::*;

#[test]
fn kernel_is_told_nothing_of_segments_without_checksums() {
    let all = u64::MAX;
    assert_eq!(reads(all), READS_CSUM | READS_TSO4 | READS_TSO6 | READS_ECN | READS_USO);
    assert_eq!(reads(all & !VIRTIO_NET_F_GUEST_CSUM), 0);
    assert_eq!(reads(VIRTIO_NET_F_GUEST_CSUM | VIRTIO_NET_F_GUEST_ECN), READS_CSUM);
    assert_eq!(reads(VIRTIO_NET_F_GUEST_CSUM | VIRTIO_NET_F_GUEST_USO4), READS_CSUM, "one without the other");
    let tcp = VIRTIO_NET_F_GUEST_CSUM | VIRTIO_NET_F_GUEST_TSO6 | VIRTIO_NET_F_GUEST_ECN;
    assert_eq!(reads(tcp), READS_CSUM | READS_TSO6 | READS_ECN);
}

#[test]
fn what_the_kernel_says_is_told_apart() {
    let name = "vm0".parse().unwrap();
    let say = |step, why| refused(name, false, step, why);
    assert_eq!(say(Step::Attach, Errno::BUSY), TapError::InUse(name));
    assert_eq!(say(Step::Attach, Errno::PERM), TapError::Forbidden { name, multi_queue: false });
    assert!(say(Step::Open, Errno::NOENT).to_string().contains("load the module tun"));
    assert_eq!(lost(Errno::IO, || ()), Lost::Down);
    assert_eq!(lost(Errno::AGAIN, || ()), Lost::Full);
    assert_eq!(lost(Errno::INVAL, || ()), Lost::Refused);
}
