//! What the device on a held store makes of chains that are no requests.

use super::*;
use crate::regress::space::LONG;
use crate::store::held::Held;

#[test]
fn a_chain_that_is_no_request_is_used_with_nothing_moved_and_the_next_one_is_served() {
    let held = Held::new(vec![7; BLOCKS as usize]);
    let server = Server::held(&held, 1, LONG).unwrap();
    let (memory, mut rings) = Memory::new(1, 1).unwrap();
    let ring = &mut rings[0];
    let mut front = connect(&server, &memory).unwrap();
    ring.start(&mut front, &memory, 0).unwrap();

    let header = Piece { at: ring.headers.at, len: HEADER, device_writes: false };
    let short = Piece { len: HEADER - 1, ..header };
    let read = Piece { at: Iova(BUFFERS), len: 1, device_writes: true };
    let write = Piece { device_writes: false, ..read };
    let asked = Asked { slot: 0, operation: Operation::Read, region: 1 };
    for pieces in [&[header][..], &[read], &[short, read], &[short, write], &[header, write, read]] {
        let head = ring.queue.prepare(pieces).unwrap();
        ring.asked.push((head, asked));
        ring.queue.offer(head).unwrap();
        ring.queue.publish();
        ring.fds.kick.signal();
        let used = ring.await_used(1).unwrap();
        assert_eq!((used[0].1, held.pending().len()), (0, 0), "{pieces:?}");
    }

    ring.ask(asked).unwrap();
    await_that("the store has it", || held.finish_all() == 1).unwrap();
    assert_eq!(ring.await_used(1).unwrap()[0].1, BLOCK);
    assert_eq!(memory.block(1, 0).unwrap(), [7; BLOCK as usize]);
    assert_eq!(ring.stop(&mut front, 0).unwrap(), 0);
    drop((front, rings, memory));
    server.end().unwrap();
}
