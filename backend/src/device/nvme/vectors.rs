//! Interrupts: MSI-X messages, or the one level-triggered pin.
//!
//! Which of both is in use is the session's to say. Any thread raises; the control thread says where it goes. A vector has a mutex
//! of its own, taken only when an interrupt is due. What nobody can be told of stays pending, and is told when
//! somebody can.
//!
//! Hosts mask messages: all of them in the MSI-X capability, one in the table of vectors. Clients that keep that table to themselves
//! take the event of a masked vector back instead. So a vector counts as masked only when somebody has written so.
//!
//! The pin is a level, which clients see as an event each time it rises or is looked at again: it is asserted when a
//! completion is posted, and falls when whoever knows the queues finds all of them consumed ([`Vectors::lower`]).

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};

use crate::sys::EventFd;

/// The interrupts of a controller.
pub struct Vectors {
    messages: Box<[Mutex<Message>]>,
    /// MSI-X is enabled.
    by_message: AtomicBool,
    /// The host has masked all messages (the function mask of the MSI-X capability).
    all_masked: AtomicBool,
    pin: Mutex<Option<Arc<EventFd>>>,
    /// The pin is asserted.
    asserted: AtomicBool,
    /// The host has disabled the pin (in the PCI command register). It is asserted all the same, and nobody is told.
    pin_disabled: AtomicBool,
    /// The register INTMS: vectors that the host has masked. It means the pin only.
    masked: AtomicU32,
    pending: Box<[AtomicU64]>,
}

/// The messages of a vector.
#[derive(Default)]
struct Message {
    /// Where they go.
    event: Option<Arc<EventFd>>,
    /// The host has masked them in the table of vectors.
    masked: bool,
}

impl Vectors {
    /// So many vectors, all of which go nowhere; the pin is in use.
    pub fn new(count: u16) -> Self {
        let count = usize::from(count);
        Self {
            messages: (0..count).map(|_| Mutex::default()).collect(),
            by_message: AtomicBool::new(false),
            all_masked: AtomicBool::new(false),
            pin: Mutex::new(None),
            asserted: AtomicBool::new(false),
            pin_disabled: AtomicBool::new(false),
            masked: AtomicU32::new(0),
            pending: (0..count.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// How many there are.
    pub fn count(&self) -> u16 {
        self.messages.len() as u16
    }

    /// A completion was posted that interrupts with this vector.
    pub fn raise(&self, vector: u16) {
        if !self.by_message.load(Ordering::Acquire) {
            self.asserted.store(true, Ordering::Release);
            self.tell_pin();
        } else if let Some(message) = self.messages.get(usize::from(vector)) {
            let message = lock(message);
            match self.way(&message) {
                Some(event) => event.signal(),
                // Under the lock, so that whoever opens the way finds this.
                None => self.pend(vector),
            }
        }
    }

    /// Where messages of a vector go from now on; `None`: it is masked, or has no event yet. What is pending is told at once, unless
    /// the host has masked it. Unknown vectors are left alone.
    pub fn set(&self, vector: u16, event: Option<Arc<EventFd>>) {
        self.change(vector, |message| message.event = event);
    }

    /// Masks a vector, or lets what is pending through.
    pub fn mask_message(&self, vector: u16, masked: bool) {
        self.change(vector, |message| message.masked = masked);
    }

    /// The same for all of them, beside what each of them has.
    pub fn mask_messages(&self, masked: bool) {
        self.all_masked.store(masked, Ordering::Release);
        if !masked {
            // Whoever had its lock before has left its bit; whoever gets it later sees that they are not masked.
            (0..self.count()).for_each(|vector| self.change(vector, |_| {}));
        }
    }

    fn change(&self, vector: u16, change: impl FnOnce(&mut Message)) {
        let Some(message) = self.messages.get(usize::from(vector)) else { return };
        let mut message = lock(message);
        change(&mut message);
        if let Some(event) = self.way(&message)
            && self.take_pending(vector)
        {
            event.signal();
        }
    }

    /// Where messages of a vector go, if they may.
    fn way<'m>(&self, message: &'m Message) -> Option<&'m Arc<EventFd>> {
        let masked = message.masked || self.all_masked.load(Ordering::Acquire);
        message.event.as_ref().filter(|_| !masked)
    }

    /// Whether interrupts are messages (MSI-X is enabled) or the pin.
    pub fn set_by_message(&self, by_message: bool) {
        self.by_message.store(by_message, Ordering::Release);
        if by_message {
            self.lower();
        }
    }

    /// Where the pin goes from now on. An asserted one is told at once.
    pub fn set_pin(&self, event: Option<Arc<EventFd>>) {
        *lock(&self.pin) = event;
        self.tell_pin();
    }

    /// The host forbids the pin, or allows it: if it is asserted then, it is told.
    pub fn disable_pin(&self, disabled: bool) {
        self.pin_disabled.store(disabled, Ordering::Release);
        self.tell_pin();
    }

    /// The client is ready for the next event of the pin: if it is asserted still, it is told again.
    pub fn look_again(&self) {
        self.tell_pin();
    }

    /// All completions that the pin stood for are consumed.
    pub fn lower(&self) {
        self.asserted.store(false, Ordering::Release);
    }

    /// Whether the pin is asserted, masked or not: the interrupt status of the PCI header.
    pub fn is_asserted(&self) -> bool {
        self.asserted.load(Ordering::Acquire)
    }

    /// The vectors that the host has masked (INTMS reads as this).
    pub fn masked(&self) -> u32 {
        self.masked.load(Ordering::Acquire)
    }

    /// A write to INTMS.
    pub fn mask(&self, vectors: u32) {
        self.masked.fetch_or(vectors, Ordering::AcqRel);
    }

    /// A write to INTMC.
    pub fn unmask(&self, vectors: u32) {
        self.masked.fetch_and(!vectors, Ordering::AcqRel);
        self.tell_pin();
    }

    /// 64 pending bits, from vector `64 * word` on: a word of the PBA.
    pub fn pending(&self, word: usize) -> u64 {
        self.pending.get(word).map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// As after a reset: nothing is pending, asserted or masked, and the pin is in use. Where interrupts go stays.
    pub fn reset(&self) {
        let Self { messages, by_message, all_masked, pin: _, asserted, pin_disabled, masked, pending } = self;
        messages.iter().for_each(|message| lock(message).masked = false);
        all_masked.store(false, Ordering::Release);
        pin_disabled.store(false, Ordering::Release);
        by_message.store(false, Ordering::Release);
        asserted.store(false, Ordering::Release);
        masked.store(0, Ordering::Release);
        pending.iter().for_each(|word| word.store(0, Ordering::Release));
    }

    fn tell_pin(&self) {
        // Pin-based interrupts have vector 0. Whoever asserts looks at the mask behind this, and whoever unmasks at the level.
        fence(Ordering::SeqCst);
        if self.is_asserted()
            && self.masked() & 1 == 0
            && !self.pin_disabled.load(Ordering::Acquire)
            && let Some(event) = &*lock(&self.pin)
        {
            event.signal();
        }
    }

    fn pend(&self, vector: u16) {
        if let Some(word) = self.pending.get(usize::from(vector / 64)) {
            word.fetch_or(1 << (vector % 64), Ordering::AcqRel);
        }
    }

    fn take_pending(&self, vector: u16) -> bool {
        let bit = 1 << (vector % 64);
        let word = self.pending.get(usize::from(vector / 64));
        word.is_some_and(|word| word.fetch_and(!bit, Ordering::AcqRel) & bit != 0)
    }
}

/// An event or none is valid after every step, also where a thread panicked in between.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
