//! Who may have an image at the same time.

use std::io::Read;
use std::os::fd::AsFd;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use super::super::lock::{Refused, take};
use super::*;
use crate::store::StoreError;

const NOW: Duration = Duration::ZERO;
/// Other tests start processes, which have all our files open until they execute something or end.
const LONG: Duration = Duration::from_secs(60);

fn opened(image: &Image) -> std::fs::File {
    std::fs::OpenOptions::new().read(true).write(true).open(image.path()).unwrap()
}

fn lock(file: &std::fs::File, read_only: bool) -> Result<(), Refused> {
    take(file.as_fd(), read_only, NOW)
}

/// Nobody has it any more, or soon.
fn free(image: &Image) {
    assert_eq!(take(opened(image).as_fd(), false, LONG), Ok(()));
}

#[test]
fn an_image_has_one_writer_or_any_number_of_readers() {
    let image = Image::on_disk(&sectors(8));
    let files: Vec<std::fs::File> = (0..4).map(|_| opened(&image)).collect();
    assert_eq!(lock(&files[0], false), Ok(()));
    assert_eq!(lock(&files[1], false), Err(Refused::InUse));
    assert_eq!(lock(&files[2], true), Err(Refused::InUse));
    let image = Image::on_disk(&sectors(8));
    let files: Vec<std::fs::File> = (0..4).map(|_| opened(&image)).collect();
    assert_eq!([lock(&files[0], true), lock(&files[1], true)], [Ok(()), Ok(())]);
    assert_eq!(lock(&files[2], false), Err(Refused::InUse));
    assert_eq!(lock(&files[3], true), Ok(()), "one that was refused has left no lock");
}

#[test]
fn a_store_that_is_open_cannot_be_opened_again_until_it_is_dropped() {
    for image in [Image::on_disk(&sectors(8)), Image::on_disk(&sectors(8)).direct()] {
        let (file, port) = image.open();
        let error = File::open(&image.options).err().unwrap();
        assert!(matches!(error, StoreError::LockedHere(_)), "{error}");
        drop(file);
        assert_eq!(lock(&opened(&image), true), Err(Refused::InUse), "a port has the file open");
        drop(port);
        free(&image);
    }
}

#[test]
fn refusal_tells_another_process_from_this_one() {
    let image = Image::on_disk(&sectors(8));
    let theirs = opened(&image);
    assert_eq!(lock(&theirs, false), Ok(()));
    // It has the file, and with it the lock, as its output.
    let mut other = Command::new("cat").stdin(Stdio::piped()).stdout(theirs).spawn().unwrap();
    let error = File::open(&image.options).err().unwrap();
    assert!(matches!(error, StoreError::Locked(_)), "{error}");
    assert!(error.to_string().contains("another process"));
    drop(other.stdin.take());
    other.wait().unwrap();
    let _file = File::open(&image.options).unwrap();
    let error = File::open(&image.options).err().unwrap();
    assert!(error.to_string().contains("this process already"), "{error}");
}

#[test]
fn a_store_whose_user_is_about_to_go_is_waited_for() {
    let image = Image::on_disk(&sectors(8));
    let (file, port) = image.open();
    std::thread::scope(|scope| {
        let second = scope.spawn(|| free(&image));
        drop((file, port));
        second.join().unwrap();
    });
}

#[test]
fn images_in_use_by_us_are_refused_by_qemu() {
    let image = Image::on_disk(&sectors(128));
    let resize =
        || Command::new("qemu-img").args(["resize", "-f", "raw"]).arg(image.path()).arg("128K").output();
    let Ok(first) = resize() else {
        println!("skipped: there is no qemu-img");
        return;
    };
    assert!(first.status.success(), "{first:?}");
    let to = image.path().with_extension("copy");
    let convert = || {
        let images = [image.path(), &to];
        Command::new("qemu-img").args(["convert", "-f", "raw", "-O", "raw"]).args(images).output().unwrap()
    };
    let refused = |output: Output| {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains("lock"), "{text}");
    };
    let (file, port) = image.open();
    refused(resize().unwrap());
    refused(convert());
    drop((file, port));
    free(&image);
    let options = FileOptions { read_only: true, ..image.options.clone() };
    let _file = File::open(&options).unwrap();
    refused(resize().unwrap());
    assert!(convert().status.success(), "readers do not mind each other");
}

#[test]
fn images_in_use_by_qemu_are_refused_by_us() {
    let image = Image::on_disk(&sectors(128));
    let mut command = Command::new("qemu-io");
    command.args(["-f", "raw"]).arg(image.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let Ok(mut qemu) = command.spawn() else {
        println!("skipped: there is no qemu-io");
        return;
    };
    // It asks for a command when it has opened the image.
    qemu.stdout.as_mut().unwrap().read_exact(&mut [0; 7]).unwrap();
    let file = opened(&image);
    assert_eq!([lock(&file, false), lock(&file, true)], [Err(Refused::InUse); 2]);
    drop(qemu.stdin.take());
    qemu.wait().unwrap();
    free(&image);
}
