//! Room on the disk: taken, given back, and used up.

use std::fs::metadata;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use super::*;

const SIZE: usize = 1 << 20;

/// Images on both file systems, of which one makes no zeros without writing them.
fn images() -> [Image; 4] {
    let bytes = vec![0xff; SIZE];
    [
        Image::on_disk(&bytes),
        Image::on_disk(&bytes).direct(),
        Image::in_memory(&bytes),
        Image::in_memory(&bytes).direct(),
    ]
}

fn blocks(image: &Image) -> u64 {
    std::fs::File::open(image.path()).unwrap().sync_all().unwrap();
    metadata(image.path()).unwrap().blocks()
}

#[test]
fn what_is_discarded_gives_its_room_back_and_reads_as_zeros() {
    for operation in [Operation::Discard, Operation::WriteZeroes { unmap: true, durable: false }] {
        for image in images() {
            let (guest, (_file, mut port)) = (Guest::new(), image.open());
            let before = blocks(&image);
            let len = SIZE as u64 / 2;
            assert_eq!(end(&mut port, without_memory(1, operation, 4096, len)), Ok(len));
            assert!(blocks(&image) <= before - len / 512, "{operation:?}: {} of {before}", blocks(&image));
            assert_eq!(end(&mut port, guest.request(2, Operation::Read, 4096, 0, len as u32)), Ok(len));
            assert!(guest.read(0, len as usize).iter().all(|byte| *byte == 0));
            let bytes = image.bytes();
            assert!(bytes[..4096].iter().chain(&bytes[4096 + len as usize..]).all(|byte| *byte == 0xff));
            assert_eq!(bytes.len(), SIZE);
        }
    }
}

#[test]
fn zeroes_that_keep_their_room_are_zeros_and_nothing_else_is() {
    for image in images() {
        let (_file, mut port) = image.open();
        let before = blocks(&image);
        // From a sector within a block to another: more than is written at once.
        let (first, len) = (512, SIZE - 3 * 512);
        for _ in 0..2 {
            let zeroes = Operation::WriteZeroes { unmap: false, durable: false };
            assert_eq!(end(&mut port, without_memory(1, zeroes, first as u64, len as u64)), Ok(len as u64));
        }
        let bytes = image.bytes();
        assert!(bytes[first..first + len].iter().all(|byte| *byte == 0));
        assert!(bytes[..first].iter().chain(&bytes[first + len..]).all(|byte| *byte == 0xff));
        assert!(blocks(&image) >= before);
    }
}

#[test]
fn zeroes_longer_than_what_is_written_at_once_are_written_to_their_end() {
    let image = Image::in_memory(&vec![0xff; 5 << 20]);
    let (_file, mut port) = image.open();
    let (zeroes, len) = (Operation::WriteZeroes { unmap: false, durable: false }, (5 << 20) - 1024);
    assert_eq!(end(&mut port, without_memory(1, zeroes, 512, len)), Ok(len));
    let bytes = image.bytes();
    let (head, rest) = bytes.split_at(512);
    let (middle, tail) = rest.split_at(len as usize);
    assert!(middle.iter().all(|byte| *byte == 0));
    assert!(head.iter().chain(tail).all(|byte| *byte == 0xff));
}

/// A block device, as long as this lives.
struct Loop(PathBuf);

impl Loop {
    fn new(image: &Image) -> Option<Loop> {
        let output = Command::new("losetup").args(["--find", "--show"]).arg(image.path()).output().ok()?;
        let name = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| Loop(PathBuf::from(name.trim())))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

#[test]
fn a_block_device_is_a_store_as_a_file_is() {
    for direct in [false, true] {
        let image = Image::on_disk(&vec![0xff; SIZE]);
        let Some(device) = Loop::new(&image) else {
            println!("skipped: no block device can be made");
            return;
        };
        let options = FileOptions { direct, ..FileOptions::new(device.0.clone()) };
        let (guest, file) = (Guest::new(), File::open(&options).unwrap());
        assert_eq!((file.size(), file.limits().block, file.look()), (SIZE as u64, 512, false));
        let mut port = file.port(Arc::new(EventFd::new().unwrap())).unwrap();
        guest.write(1, &[7; 1024]);
        assert_eq!(end(&mut port, guest.request(1, Operation::WRITE, 512, 1, 1024)), Ok(1024));
        assert_eq!(end(&mut port, without_memory(2, Operation::Discard, 65536, 65536)), Ok(65536));
        for (tag, unmap) in [(3, false), (4, true)] {
            let zeroes = Operation::WriteZeroes { unmap, durable: false };
            assert_eq!(end(&mut port, without_memory(tag, zeroes, tag * 131072, 65536)), Ok(65536));
        }
        assert_eq!(end(&mut port, without_memory(5, Operation::Flush, 0, 0)), Ok(0));
        let half = SIZE as u32 / 2;
        for (tag, offset) in [(6, 0), (7, half)] {
            let read = guest.request(tag, Operation::Read, offset.into(), offset.into(), half);
            assert_eq!(end(&mut port, read), Ok(half.into()));
        }
        let bytes = guest.read(0, SIZE);
        assert_eq!(bytes[..512], [0xff; 512]);
        assert_eq!(bytes[512..1536], [7; 1024]);
        assert!(bytes[1536..65536].iter().all(|byte| *byte == 0xff));
        assert!([3, 4].iter().all(|part| bytes[part * 131072..][..65536].iter().all(|byte| *byte == 0)));
        assert!(bytes[5 * 131072..].iter().all(|byte| *byte == 0xff));
    }
}

#[test]
fn a_full_disk_fails_what_needs_room_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let mount = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=128k", "mdevd-test"])
        .arg(folder.path())
        .output();
    if !mount.is_ok_and(|mount| mount.status.success()) {
        println!("skipped: no file system can be mounted");
        return;
    }
    let path = folder.path().join("image");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(1 << 20).unwrap();
    rustix::io::pwrite(&file, &[0x77; 4096], 0).unwrap();
    let store = File::open(&FileOptions::new(path));
    // What is open stays.
    let unmounted = Command::new("umount").arg("-l").arg(folder.path()).status().unwrap();
    assert!(unmounted.success());
    let (guest, store) = (Guest::new(), store.unwrap());
    let mut port = store.port(Arc::new(EventFd::new().unwrap())).unwrap();
    let write = |tag, offset| guest.request(tag, Operation::WRITE, offset, 0, 4096);
    let found = run(&mut port, (0..64).map(|tag| write(tag, tag * 8192)).collect());
    assert!(found.values().all(|result| matches!(result, Ok(4096) | Err(Errno::NOSPC))), "{found:?}");
    assert_eq!(found[&0], Ok(4096), "there is room already");
    assert!(found.values().filter(|result| result.is_err()).count() >= 32);
    assert_eq!(end(&mut port, guest.request(99, Operation::Read, 0, 0, 4096)), Ok(4096));
    assert_eq!(guest.ioas.pins(), 0);
}
