//! Admin commands: taken from their queue one at a time, each carried out before the next.
//!
//! A command either ends at once, with a result or a status; or later (the deletion of a queue, an event request, an abort); or its data
//! are in memory that is not there for the moment. Then it has not been taken, nothing of it has happened, and it is looked at again.

mod aborts;
mod events;
mod features;
mod identify;
mod logs;
mod memory;
mod namespaces;
mod queue;
mod queues;

use mdev_pin::ResolveError;
use mdev_protocol::nvme::command::{Command, FUSE_NONE, PSDT_PRP};
use mdev_protocol::nvme::event::Event;
use mdev_protocol::nvme::opcode::admin::{
    ABORT, ASYNC_EVENT, CREATE_CQ, CREATE_SQ, DELETE_CQ, DELETE_SQ, DOORBELL_BUFFER_CONFIG, GET_FEATURES,
    GET_LOG_PAGE, IDENTIFY, NAMESPACE_ATTACHMENT, NAMESPACE_MANAGEMENT, SET_FEATURES,
};
use mdev_protocol::nvme::status::Status;

use super::life::Life;
use super::{COMMANDS_AT_ONCE, Controller, Host, mishap};
use crate::device::nvme::data::Fault;

pub(super) use aborts::Aborts;
pub(super) use events::Events;
pub(super) use features::Features;
use memory::Way;
pub(super) use queue::AdminQueue;
use queue::Fetched;

/// What came of a command.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Answer {
    /// It was carried out, with this result.
    Now(u32),
    /// It ends later.
    Later,
}

/// What came of a command, or why it was not carried out.
type Outcome = Result<Answer, Fault>;

/// Nothing to tell but that it was carried out.
const DONE: Outcome = Ok(Answer::Now(0));

fn refused<T>(status: Status) -> Result<T, Fault> {
    Err(Fault::Refused(status.do_not_retry()))
}

impl Controller {
    /// Serves the admin queue. True: commands are left.
    ///
    /// # Errors
    /// The memory of the queue, or of a command's data, is not there: what was not taken is still in the queue.
    pub(super) fn serve(
        &mut self,
        admin: &mut AdminQueue,
        host: &mut dyn Host,
    ) -> Result<bool, ResolveError> {
        for _ in 0..COMMANDS_AT_ONCE {
            if !admin.settle()? {
                return Ok(false);
            }
            self.tell(admin);
            if !self.post(admin)? || self.life != Life::Enabled {
                // The host has to take completions first, or to reset.
                return Ok(false);
            }
            let command = match admin.fetch()? {
                Fetched::Nothing => return Ok(false),
                Fetched::BadDoorbell => {
                    self.events.push(Event::INVALID_DOORBELL_VALUE);
                    continue;
                }
                Fetched::Command(command) => command,
            };
            let outcome = self.execute(&mut admin.way, &command, host);
            if outcome == Err(Fault::Memory(ResolveError::Elsewhere)) && admin.way.is_fetching() {
                return Ok(false);
            }
            if let Err(Fault::Memory(error)) = outcome
                && admin.may_wait_for(error)
            {
                return Err(error);
            }
            admin.take();
            for aborted in self.events.take_aborted() {
                admin.ended(aborted, Status::ABORT_REQUESTED, 0);
            }
            let cid = command.cid();
            match outcome {
                Ok(Answer::Later) => {}
                Ok(Answer::Now(result)) => admin.carried_out(cid, result),
                Err(fault) => {
                    let status = match fault {
                        Fault::Refused(status) => status.more(),
                        Fault::Memory(_) => Status::DATA_TRANSFER_ERROR.do_not_retry().more(),
                    };
                    self.shared.mishaps.record(mishap(cid, command.nsid, status));
                    admin.ended(cid, status, 0);
                }
            }
        }
        self.tell(admin);
        self.post(admin)
    }

    /// Ends the commands that have waited for something that has happened.
    fn tell(&mut self, admin: &mut AdminQueue) {
        self.events.tell(|cid, event| admin.ended(cid, Status::SUCCESS, event.result()));
        for (cid, result) in self.aborts.take_decided() {
            admin.ended(cid, Status::SUCCESS, result);
        }
    }

    /// Tells the host what has ended. False: it has no room for all.
    fn post(&mut self, admin: &mut AdminQueue) -> Result<bool, ResolveError> {
        if admin.post()? {
            self.events.push(Event::INVALID_DOORBELL_VALUE);
        }
        Ok(admin.is_told())
    }

    fn execute(&mut self, way: &mut Way, command: &Command, host: &mut dyn Host) -> Outcome {
        if command.fuse() != FUSE_NONE || command.psdt() != PSDT_PRP {
            return refused(Status::INVALID_FIELD);
        }
        match command.opcode() {
            DELETE_SQ => self.delete_submission(command, host),
            CREATE_SQ => self.create_submission(command, host),
            GET_LOG_PAGE => self.get_log(way, command),
            DELETE_CQ => self.delete_completion(command),
            CREATE_CQ => self.create_completion(command),
            IDENTIFY => self.identify(way, command),
            ABORT => self.abort(command, host),
            SET_FEATURES => self.set_feature(way, command),
            GET_FEATURES => self.get_feature(way, command),
            ASYNC_EVENT => self.events.request(command.cid()),
            NAMESPACE_MANAGEMENT => self.manage_namespace(command),
            NAMESPACE_ATTACHMENT => self.attach_namespace(way, command),
            DOORBELL_BUFFER_CONFIG => self.use_doorbell_buffer(way, command, host),
            _ => refused(Status::INVALID_OPCODE),
        }
    }

    /// Something happened that the host may want to know. It is told when the admin queue is served next.
    pub(super) fn event(&mut self, event: Event) {
        self.events.push(event);
    }
}
