//! `mdevd blk` under QEMU's tools for images, which reach it through libblkio: a client that polls and has no guest.

use mdev_tests::lab::{Lab, Mdevd, Running, Skip, Trial};
use mdev_tests::random::Random;

use super::disk::{DOES, SIZE, clean, image};

/// The device, as `--image-opts` of those tools names it.
const DEVICE: &str = "driver=virtio-blk-vhost-user,path=blk.sock,cache.direct=on";

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::new("blk_client_of_memory_reads_and_writes_in_every_depth_and_finds_an_image_again", |lab| {
            client(lab, &format!("mem,size={SIZE}"))
        }),
        Trial::new("blk_client_of_a_file_reads_and_writes_in_every_depth_and_finds_an_image_again", |lab| {
            let (_, store) = image(lab, "disk.img", SIZE, "");
            client(lab, &store)
        }),
        Trial::new(
            "blk_client_of_a_direct_file_reads_and_writes_in_every_depth_and_finds_an_image_again",
            |lab| {
                let (_, store) = image(lab, "disk.img", SIZE, ",direct=on");
                client(lab, &store)
            },
        ),
    ]
}

fn client(lab: &Lab, store: &str) -> Result<(), Skip> {
    let mut mdevd = Mdevd::blk(lab, "blk.sock", 1, store, &[]);
    for (what, depth, size) in
        [("read", 1, 4096), ("write", 32, 4096), ("read", 64, 512), ("write", 8, 131_072)]
    {
        let (depth, size) = (depth.to_string(), size.to_string());
        let mut arguments = vec!["bench", "-t", "none", "-c", "4000", "-d", &depth, "-s", &size];
        if what == "write" {
            arguments.extend(["-w", "--flush-interval=64"]);
        }
        arguments.extend(["--image-opts", DEVICE]);
        let said = qemu_img(lab, &arguments);
        let rate = said.lines().find(|line| line.contains("seconds")).unwrap_or(&said);
        println!("4000 times {what} {size} bytes, {depth} at once: {rate}");
    }
    let mut bytes = vec![0; SIZE as usize];
    let mut random = Random::seeded("blk_client");
    // Not all of it: what is zero is written as zeroes.
    bytes.chunks_mut(1 << 20).step_by(2).for_each(|piece| random.fill(piece));
    std::fs::write(lab.work().join("image"), bytes).expect("room for an image");
    let from = "driver=raw,file.driver=file,file.filename=image";
    qemu_img(lab, &["convert", "-n", "-t", "none", "--image-opts", "--target-image-opts", from, DEVICE]);
    let said = qemu_img(lab, &["compare", "-s", "--image-opts", from, DEVICE]);
    assert!(said.contains("identical"), "{said}");
    clean(&mut mdevd);
    mdevd.terminate();
    Ok(())
}

/// Run `qemu-img` with these arguments, which succeeds, and return what it says.
fn qemu_img(lab: &Lab, arguments: &[&str]) -> String {
    let mut command = lab.command("/usr/bin/qemu-img");
    command.args(arguments);
    let ended = Running::spawn("qemu-img", command).ended(DOES);
    assert!(ended.status.success(), "qemu-img {arguments:?}: {}", ended.output);
    ended.output
}
