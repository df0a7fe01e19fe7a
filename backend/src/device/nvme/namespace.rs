//! Namespaces: stores under numbers, with the names that hosts know them by, attached to the controller or not.
//!
//! A [`Namespace`] does not change; its store may grow. [`Namespaces`] is the list of all and of those that are attached.
//! Control threads change it, engines look at a copy ([`Attached`]): the generation is stored after the list is, so that an
//! engine that finds the generation it knows has the list that belongs to it or a later one that it will hear of in its next
//! burst. What is in flight in a namespace that is detached ends as it would have.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::NvmeConfigError;
use crate::store::{SECTOR, Store, StoreKind};

/// Namespaces that a device may have, and the highest identifier.
pub const MAX_NAMESPACES: u32 = 128;

/// A namespace that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceConfig {
    /// Its identifier, 1 to [`MAX_NAMESPACES`].
    pub nsid: u32,
    /// What is behind it.
    pub store: StoreKind,
    /// The host may only read, whatever the store can do.
    pub read_only: bool,
    /// Whether it is attached to the controller from the start.
    pub attached: bool,
    /// Its UUID; otherwise one that is derived from the name of the device and the identifier.
    pub uuid: Option<[u8; 16]>,
    /// Its globally unique identifier, if it has one.
    pub nguid: Option<[u8; 16]>,
    /// Its IEEE extended unique identifier, if it has one.
    pub eui64: Option<[u8; 8]>,
}

impl NamespaceConfig {
    /// An attached namespace that can be written, as far as its store can.
    pub fn new(nsid: u32, store: StoreKind) -> Self {
        Self { nsid, store, read_only: false, attached: true, uuid: None, nguid: None, eui64: None }
    }

    /// Whether such a namespace can be, as far as that can be told without its store.
    ///
    /// # Errors
    /// [`NamespaceError::Id`], [`NamespaceError::Zero`].
    pub fn check(&self) -> Result<(), NamespaceError> {
        let Self { nsid, uuid, nguid, eui64, .. } = self;
        if !(1..=MAX_NAMESPACES).contains(nsid) {
            return Err(NamespaceError::Id(*nsid));
        }
        if *uuid == Some([0; 16]) || *nguid == Some([0; 16]) || *eui64 == Some([0; 8]) {
            return Err(NamespaceError::Zero(*nsid));
        }
        Ok(())
    }
}

/// Why a namespace cannot be, or cannot be changed.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NamespaceError {
    /// An identifier out of range.
    #[error("a namespace has an identifier from 1 to {MAX_NAMESPACES}, not {0}")]
    Id(u32),
    /// Two of the same identifier.
    #[error("there is a namespace {0} already; choose another identifier")]
    Taken(u32),
    /// A name of zeros, which means none to hosts.
    #[error("namespace {0}: uuid, nguid and eui64 must not be all zeros; leave out what it does not have")]
    Zero(u32),
    /// There is none of this identifier.
    #[error("there is no namespace {0}")]
    Unknown(u32),
    /// It is attached already.
    #[error("namespace {0} is attached already")]
    Attached(u32),
    /// It is not attached.
    #[error("namespace {0} is not attached")]
    NotAttached(u32),
}

/// A store under a number.
pub struct Namespace {
    /// Its identifier.
    pub nsid: u32,
    /// What is behind it.
    pub store: Store,
    /// The host may only read.
    pub read_only: bool,
    /// Its UUID.
    pub uuid: [u8; 16],
    /// Its globally unique identifier.
    pub nguid: Option<[u8; 16]>,
    /// Its extended unique identifier.
    pub eui64: Option<[u8; 8]>,
}

impl Namespace {
    /// Bytes of a logical block.
    pub const BLOCK: u64 = SECTOR;

    /// Opens the store of a namespace of the device of this name.
    ///
    /// # Errors
    /// What is wrong with the configuration, or with the store.
    pub fn open(device: &str, config: &NamespaceConfig) -> Result<Self, NvmeConfigError> {
        config.check()?;
        let nsid = config.nsid;
        let store = Store::open(&config.store).map_err(|source| NvmeConfigError::Store { nsid, source })?;
        Ok(Self::on(device, config, store))
    }

    /// The same with a store that is open; the one of the configuration is left out.
    pub fn on(device: &str, config: &NamespaceConfig, store: Store) -> Self {
        let NamespaceConfig { nsid, read_only, uuid, nguid, eui64, .. } = config;
        Self {
            nsid: *nsid,
            read_only: *read_only || store.limits().read_only,
            uuid: uuid.unwrap_or_else(|| derived_id(&[device.as_bytes(), &nsid.to_le_bytes()])),
            nguid: *nguid,
            eui64: *eui64,
            store,
        }
    }

    /// Logical blocks, at present.
    pub fn blocks(&self) -> u64 {
        self.store.size() / Self::BLOCK
    }
}

/// An identifier that is always the same for the same names: a UUID of version 8, whose bits are a hash (FNV-1a of 128
/// bits) of the names and their lengths.
pub fn derived_id(names: &[&[u8]]) -> [u8; 16] {
    const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let mut hash = BASIS;
    for name in names {
        let len = (name.len() as u64).to_le_bytes();
        for byte in len.iter().chain(*name) {
            hash = (hash ^ u128::from(*byte)).wrapping_mul(PRIME);
        }
    }
    let version = 0xf << 76;
    let variant = 0b11 << 62;
    (hash & !version & !variant | 8 << 76 | 0b10 << 62).to_be_bytes()
}

/// The namespaces that a host can use, in the order of their identifiers: a copy that does not change.
#[derive(Clone, Default)]
pub struct Attached(Vec<Arc<Namespace>>);

impl Attached {
    /// The one of this identifier.
    #[inline]
    pub fn get(&self, nsid: u32) -> Option<&Arc<Namespace>> {
        let at = self.0.binary_search_by_key(&nsid, |one| one.nsid).ok()?;
        self.0.get(at)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Namespace>> {
        self.0.iter()
    }
}

/// The namespaces of a device.
pub struct Namespaces {
    /// Of the list of those that are attached; from 1 on.
    generation: AtomicU64,
    list: Mutex<List>,
}

#[derive(Default)]
struct List {
    all: BTreeMap<u32, (Arc<Namespace>, bool)>,
    attached: Arc<Attached>,
}

impl Namespaces {
    /// These, each with whether it is attached.
    ///
    /// # Errors
    /// [`NamespaceError::Taken`], [`NamespaceError::Id`].
    pub fn new(namespaces: Vec<(Namespace, bool)>) -> Result<Self, NamespaceError> {
        let this = Self { generation: AtomicU64::new(1), list: Mutex::default() };
        for (namespace, attached) in namespaces {
            this.add(namespace, attached)?;
        }
        Ok(this)
    }

    /// Differs whenever the list of those that are attached differs. Never 0.
    #[inline]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Those that are attached, and the generation of that list. Takes the lock.
    pub fn attached(&self) -> (u64, Arc<Attached>) {
        let list = self.lock();
        (self.generation(), list.attached.clone())
    }

    /// All of them, in the order of their identifiers, each with whether it is attached.
    pub fn all(&self) -> Vec<(Arc<Namespace>, bool)> {
        self.lock().all.values().cloned().collect()
    }

    /// The one of this identifier, and whether it is attached.
    pub fn get(&self, nsid: u32) -> Option<(Arc<Namespace>, bool)> {
        self.lock().all.get(&nsid).cloned()
    }

    /// Adds one.
    ///
    /// # Errors
    /// [`NamespaceError::Taken`], [`NamespaceError::Id`].
    pub fn add(&self, namespace: Namespace, attached: bool) -> Result<(), NamespaceError> {
        let nsid = namespace.nsid;
        if !(1..=MAX_NAMESPACES).contains(&nsid) {
            return Err(NamespaceError::Id(nsid));
        }
        let mut list = self.lock();
        if list.all.contains_key(&nsid) {
            return Err(NamespaceError::Taken(nsid));
        }
        list.all.insert(nsid, (Arc::new(namespace), attached));
        self.publish(&mut list);
        Ok(())
    }

    /// Takes one away. Its store ends when nothing of it is in flight any more.
    ///
    /// # Errors
    /// [`NamespaceError::Unknown`].
    pub fn remove(&self, nsid: u32) -> Result<Arc<Namespace>, NamespaceError> {
        let mut list = self.lock();
        let (namespace, _) = list.all.remove(&nsid).ok_or(NamespaceError::Unknown(nsid))?;
        self.publish(&mut list);
        Ok(namespace)
    }

    /// Attaches one.
    ///
    /// # Errors
    /// [`NamespaceError::Unknown`], [`NamespaceError::Attached`].
    pub fn attach(&self, nsid: u32) -> Result<(), NamespaceError> {
        self.turn(nsid, true, NamespaceError::Attached(nsid))
    }

    /// Detaches one.
    ///
    /// # Errors
    /// [`NamespaceError::Unknown`], [`NamespaceError::NotAttached`].
    pub fn detach(&self, nsid: u32) -> Result<(), NamespaceError> {
        self.turn(nsid, false, NamespaceError::NotAttached(nsid))
    }

    fn turn(&self, nsid: u32, on: bool, already: NamespaceError) -> Result<(), NamespaceError> {
        let mut list = self.lock();
        match list.all.get_mut(&nsid) {
            None => return Err(NamespaceError::Unknown(nsid)),
            Some((_, attached)) if *attached == on => return Err(already),
            Some((_, attached)) => *attached = on,
        }
        self.publish(&mut list);
        Ok(())
    }

    fn publish(&self, list: &mut List) {
        let attached = list.all.values().filter(|(_, attached)| *attached);
        list.attached = Arc::new(Attached(attached.map(|(namespace, _)| namespace.clone()).collect()));
        self.generation.fetch_add(1, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
