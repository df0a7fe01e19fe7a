//! A device that is written for rust-vmm's crates runs on mdevd's memory.
//!
//! `virtio-queue` walks the ring and `vm-memory` reads and writes the buffers, and both are given a burst where they
//! otherwise have the guest's memory. What they cannot do then is keep any of it: unmap the memory, and the next
//! burst is told so, at once and without waiting for anybody.

use std::error::Error;
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use mdev_dma::{IovaRange, Windows};
use mdev_pin::{Access, Burst, IgnoreUnmap, Ioas};
use mdevd::driver::{GuestMemory, MemoryOptions, Piece, RingOptions, SplitQueue};
use virtio_queue::{Queue, QueueOwnedT, QueueT};

const BUFFER: u32 = 64;

fn main() -> Result<(), Box<dyn Error>> {
    // The guest: memory in a file, a ring, and a chain of one buffer to read and one to write.
    let mut memory = GuestMemory::new(MemoryOptions::default())?;
    let mut ring = SplitQueue::new(&mut memory, RingOptions::plain(16))?;
    let (question, answer) = (memory.allocate(64, 64)?, memory.allocate(64, 64)?);
    let piece = |at, device_writes| Piece { at, len: BUFFER, device_writes };
    let head = ring.prepare(&[piece(question.at, false), piece(answer.at, true)])?;

    // The device's side: an address space of the same file, an access, a lane.
    let ioas = Ioas::new(Windows::new()?);
    for region in memory.regions() {
        ioas.map(region.area())?;
    }
    let access = Access::new(Arc::new(IgnoreUnmap));
    access.attach(&ioas)?;
    let mut lane = access.lane();

    // The queue as rust-vmm has it, told where the driver's ring is.
    let mut queue = Queue::new(16)?;
    queue.set_size(16);
    let at = ring.addresses();
    queue.try_set_desc_table_address(vm_memory::GuestAddress(at.desc.0))?;
    queue.try_set_avail_ring_address(vm_memory::GuestAddress(at.avail.0))?;
    queue.try_set_used_ring_address(vm_memory::GuestAddress(at.used.0))?;
    queue.set_ready(true);

    for text in ["hello", "rust-vmm"] {
        let page = question.slice().ok_or("the buffer is there")?;
        page.fill(0);
        page.copy_from(text.as_bytes());
        ring.offer(head)?;
        ring.publish();
        let served = serve(&mut queue, &lane.enter())?;
        ring.pop()?;
        let mut bytes = [0; BUFFER as usize];
        answer.slice().ok_or("the buffer is there")?.copy_to(&mut bytes);
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        println!("{served} chain: {text} -> {}", String::from_utf8_lossy(&bytes[..end]));
    }

    ioas.unmap(IovaRange::FULL, Duration::from_secs(1))?;
    match serve(&mut queue, &lane.enter()) {
        Ok(_) => return Err("served from memory that is gone".into()),
        Err(error) => println!("after the unmap: {error}"),
    }
    access.close(Duration::from_secs(1))?;
    Ok(())
}

/// Answers every waiting chain in capitals, as a rust-vmm device does it; how many there were.
fn serve(queue: &mut Queue, memory: &Burst<'_>) -> Result<usize, Box<dyn Error>> {
    let mut served = 0;
    while let Some(chain) = queue.iter(memory)?.next() {
        let head = chain.head_index();
        let mut text = [0; BUFFER as usize];
        chain.clone().reader(memory)?.read_exact(&mut text)?;
        text.make_ascii_uppercase();
        chain.writer(memory)?.write_all(&text)?;
        // What was read from a page that its file has lost means nothing.
        if memory.poisoned() {
            return Err("the guest's memory was truncated".into());
        }
        queue.add_used(memory, head, BUFFER)?;
        served += 1;
    }
    Ok(served)
}
