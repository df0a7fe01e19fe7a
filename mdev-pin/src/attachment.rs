//! How an access leaves a space, and goes over to another one.

use std::time::Duration;

use mdev_dma::IovaRange;

use crate::{
    access::AccessCore,
    change::{Change, Work},
    error::{AccessError, IoasError},
    ioas::Ioas,
    lane,
    sync::{Arc, lock},
    sys::published::Retired,
};

/// `Attached` holds the space, and so does a change: an access keeps it alive after everything else is gone.
pub enum Attachment {
    None,
    Attached(Ioas),
    Changing {
        /// The last [`crate::Access`] was dropped meanwhile: nobody could detach it from where it goes.
        orphaned: bool,
    },
    Closed,
}

impl Attachment {
    /// The space, if it is attached and no change is under way.
    pub fn settled(&self) -> Result<Ioas, AccessError> {
        match self {
            Attachment::Attached(ioas) => Ok(ioas.clone()),
            Attachment::Changing { .. } => Err(AccessError::Busy),
            Attachment::None => Err(AccessError::Detached),
            Attachment::Closed => Err(AccessError::Closed),
        }
    }
}

impl AccessCore {
    /// Void pins are counted on slots of the space they were taken in; those of another one have the same numbers.
    pub(crate) fn has_no_void(&self) -> Result<(), AccessError> {
        self.published.sweep();
        if self.published.has_void() { Err(AccessError::Void) } else { Ok(()) }
    }

    pub(crate) fn begin_detach(this: &Arc<Self>, within: Duration) -> Result<Change, AccessError> {
        if lane::inside_burst() {
            return Err(AccessError::WouldWaitForItself);
        }
        let mut attachment = lock(&this.attachment);
        let from = attachment.settled()?;
        *attachment = Attachment::Changing { orphaned: false };
        drop(attachment);
        let work = Leave { core: this.clone(), to: None };
        Ok(Change::begin(from, within.into(), Box::new(work)))
    }

    /// `None` if it is attached to `to` already.
    pub(crate) fn begin_replace(
        this: &Arc<Self>,
        to: &Ioas,
        within: Duration,
    ) -> Result<Option<Change>, AccessError> {
        if lane::inside_burst() {
            return Err(AccessError::WouldWaitForItself);
        }
        let mut attachment = lock(&this.attachment);
        let from = attachment.settled()?;
        if from.is(to) {
            let retired = from.reopen(this);
            drop(attachment);
            from.adopt(retired.into_iter().collect());
            return Ok(None);
        }
        this.has_no_void()?;
        // Before anything else: if the other space refuses, nothing has happened.
        to.enlist(this, this.control.alignment())?;
        *attachment = Attachment::Changing { orphaned: false };
        drop(attachment);
        let work = Leave { core: this.clone(), to: Some(to.clone()) };
        Ok(Some(Change::begin(from, within.into(), Box::new(work))))
    }
}

/// The order of `iommufd_access_change_ioas`: no new pins, notify, drain, leave the list, drop the space; and if
/// there is another one, whose list it has entered before, show its table.
struct Leave {
    core: Arc<AccessCore>,
    to: Option<Ioas>,
}

impl Work for Leave {
    fn begin(&mut self, ioas: &Ioas) -> Option<Result<Vec<Retired>, IoasError>> {
        ioas.leaving(&self.core).map(|retired| Ok(vec![retired]))
    }

    fn notify(&mut self, _ioas: &Ioas) {
        self.core.notify(IovaRange::FULL);
    }

    fn drained(&self, _ioas: &Ioas) -> bool {
        self.core.published.pins() == 0
    }

    fn finish(&mut self, ioas: &Ioas) -> Vec<Retired> {
        ioas.left(&self.core);
        let mut attachment = lock(&self.core.attachment);
        let orphaned = matches!(*attachment, Attachment::Changing { orphaned: true });
        let (next, retired) = match self.to.take() {
            Some(to) if orphaned => {
                to.left(&self.core);
                (Attachment::None, None)
            }
            Some(to) => {
                let retired = to.open(&self.core);
                (Attachment::Attached(to), retired)
            }
            None => (Attachment::None, None),
        };
        *attachment = next;
        retired.into_iter().collect()
    }

    /// A replacement that fails has not happened. A detach that fails leaves the access closed to lookups.
    fn fail(&mut self, ioas: &Ioas) -> IovaRange {
        let mut attachment = lock(&self.core.attachment);
        let orphaned = matches!(*attachment, Attachment::Changing { orphaned: true });
        let mut retired = None;
        if let Some(to) = self.to.take() {
            to.left(&self.core);
            if !orphaned {
                retired = ioas.reopen(&self.core);
            }
        }
        *attachment = Attachment::Attached(ioas.clone());
        drop(attachment);
        ioas.adopt(retired.into_iter().collect());
        if orphaned {
            log::error!("an access was dropped while its device holds guest memory, which is kept for ever");
        }
        IovaRange::FULL
    }
}
