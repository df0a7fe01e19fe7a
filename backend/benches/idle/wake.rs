//! The first packet after a sleep, beside the wake-up of a thread that does nothing but wait for its eventfd.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mdevd::sys::{EventFd, Interest, Poll};
use mdevd::worker::{Mode, Worker, events};
use rustix::thread::{CpuSet, sched_setaffinity};

use super::{Tenant, spread, started};

const ROUNDS: usize = 500;
/// Whoever is to be woken sleeps by then.
const ASLEEP: Duration = Duration::from_millis(2);

/// A thread on the last processor that sleeps until its bell rings, and counts.
struct Sleeper {
    bell: Arc<EventFd>,
    woken: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
}

impl Sleeper {
    fn spawn(processor: usize) -> Result<Sleeper, Box<dyn Error>> {
        let sleeper =
            Sleeper { bell: Arc::new(EventFd::new()?), woken: Arc::default(), over: Arc::default() };
        let (bell, woken, over) = (sleeper.bell.clone(), sleeper.woken.clone(), sleeper.over.clone());
        let poll = Poll::new()?;
        poll.add(bell.as_ref(), 0, Interest::READ | Interest::EDGE)?;
        std::thread::spawn(move || {
            let mut only = CpuSet::new();
            only.set(processor);
            let _ = sched_setaffinity(None, &only);
            let mut ready = Vec::new();
            while !over.load(Ordering::Relaxed) && poll.wait(None, &mut ready).is_ok() {
                bell.drain();
                woken.fetch_add(1, Ordering::Release);
            }
        });
        Ok(sleeper)
    }

    /// From the bell to the sign of life.
    fn wake(&self) -> Duration {
        let before = self.woken.load(Ordering::Acquire);
        let began = Instant::now();
        self.bell.signal();
        while self.woken.load(Ordering::Acquire) == before {
            std::hint::spin_loop();
        }
        began.elapsed()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        self.bell.signal();
    }
}

/// From the driver's first step to the used chain.
fn first_packet(tenant: &mut Tenant) -> Result<Duration, Box<dyn Error>> {
    let began = Instant::now();
    tenant.guest.tx.send(1, |_, _| 64)?;
    if tenant.guest.tx.queue.publish() {
        tenant.kicks[1].signal();
    }
    while tenant.guest.tx.reclaim(1, |_| ())? == 0 {
        std::hint::spin_loop();
    }
    Ok(began.elapsed())
}

/// Both, in turns.
pub fn compare() -> Result<(), Box<dyn Error>> {
    let last = std::thread::available_parallelism()?.get() - 1;
    let (sink, source) = events()?;
    let worker = Worker::spawn("bench", Some(last), Mode::Adaptive, sink)?;
    let mut tenant = Tenant::new(16 << 20)?;
    tenant.start(&worker, 0);
    started(&source, 2);
    let sleeper = Sleeper::spawn(last)?;
    let (mut packets, mut wakes, mut quotients) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        std::thread::sleep(ASLEEP);
        let wake = sleeper.wake().as_secs_f64() * 1e6;
        std::thread::sleep(ASLEEP);
        let packet = first_packet(&mut tenant)?.as_secs_f64() * 1e6;
        packets.push(packet);
        wakes.push(wake);
        quotients.push(packet / wake);
    }
    println!("\nfirst packet after a sleep:  {}", spread(&mut packets, "us"));
    println!("an eventfd's sleeper awake:  {}", spread(&mut wakes, "us"));
    println!("one by the other, in turns:  {}", spread(&mut quotients, "times"));
    drop(worker);
    Ok(())
}
