//! The devices of the process: how they begin, change and end.

use crate::device::QueueNames;
use crate::session::SessionOptions;

use super::DaemonError;
use super::control::Control;
use super::endpoint::Endpoint;
use super::model::Model;
use super::plan::Plan;
use super::served::Served;

/// What a device begins with.
pub(super) struct Beginning {
    pub(super) model: Model,
    pub(super) endpoint: Endpoint,
    pub(super) workers: Vec<usize>,
    pub(super) sessions: SessionOptions,
    pub(super) names: QueueNames,
    pub(super) plan: Option<Plan>,
}

impl Control {
    /// Serves one more device.
    pub(super) fn begin(&mut self, beginning: Beginning) -> Result<(), DaemonError> {
        let id = self.next_device;
        self.next_device += 1;
        let watching = || DaemonError::system("watch descriptors");
        let (served, connected) = Served::open(id, beginning, &self.pool, &self.poll)?;
        let of_kernel = served.kernel.is_some();
        self.devices.insert(id, served);
        if of_kernel && let Err(error) = self.connect_kernel(id) {
            self.devices.remove(&id);
            return Err(error);
        }
        if let Some(socket) = connected {
            self.connect(id, socket).map_err(watching())?;
        }
        Ok(())
    }

    /// Reads the plans again. What is not in them any more ends, what is new begins, and what is the same does not
    /// notice. Plans with errors change nothing.
    pub(super) fn reload(&mut self) {
        if self.draining() {
            return;
        }
        let Some(plans) = &mut self.plans else { return };
        let read = match plans.read() {
            Ok(read) => read,
            Err(problems) => {
                problems.iter().for_each(|problem| log::error!("{problem}"));
                log::error!("everything is served as before");
                return;
            }
        };
        let stays = |served: &Served| served.plan.as_ref().is_some_and(|plan| read.contains(plan));
        let leaving: Vec<u64> = self
            .devices
            .iter()
            .filter(|(_, served)| !served.is_shut() && !stays(served))
            .map(|(&id, _)| id)
            .collect();
        let before = self.devices.values().filter(|served| !served.is_shut()).count();
        self.wanted = read.into_iter().filter(|plan| !self.serves(plan)).collect();
        let (new, unchanged) = (self.wanted.len(), before.saturating_sub(leaving.len()));
        log::info!("read again: {} devices end, {new} begin, {unchanged} go on", leaving.len());
        leaving.into_iter().for_each(|device| self.retire(device));
        self.begin_wanted();
    }

    /// Begins what is wanted and does not stand in the way of what has not ended yet. A device that cannot begin is
    /// left out: the others do not suffer from it. How many of them there are.
    pub(super) fn begin_wanted(&mut self) -> usize {
        let mut failed = 0;
        for plan in std::mem::take(&mut self.wanted) {
            let old = |served: &Served| served.plan.as_ref().is_some_and(|old| old.collides(&plan));
            if self.devices.values().any(old) {
                self.wanted.push(plan);
                continue;
            }
            let name = plan.name.clone();
            match self.begin_plan(plan) {
                Ok(what) => log::info!("{name}: serving {what}"),
                Err(error) => {
                    failed += 1;
                    log::error!("{name}: not served: {error}");
                }
            }
        }
        failed
    }

    fn begin_plan(&mut self, plan: Plan) -> Result<String, String> {
        let Some(plans) = &mut self.plans else { return Err("nobody can make it".to_owned()) };
        let model = plans.make(&plan)?;
        let endpoint = plan.door.open().map_err(|error| error.to_string())?;
        let what = plan.to_string();
        let beginning = Beginning {
            model,
            endpoint,
            workers: plan.workers.clone(),
            sessions: plan.sessions.clone(),
            names: plan.kind.queue_names(),
            plan: Some(plan),
        };
        self.begin(beginning).map_err(|error| error.to_string())?;
        Ok(what)
    }

    /// Whether a device of exactly this plan is served, and not about to end.
    fn serves(&self, plan: &Plan) -> bool {
        self.devices.values().any(|served| !served.is_shut() && served.plan.as_ref() == Some(plan))
    }

    /// Ends a device: nobody comes any more, who is there is sent away, and when their rings have stopped it is gone.
    fn retire(&mut self, device: u64) {
        let Some(served) = self.devices.get_mut(&device) else { return };
        log::info!("{}: ends", served.name());
        served.shut(&self.poll);
        for conn in self.connections_of(device) {
            self.close(conn, None);
        }
        self.forget(device);
    }

    /// Drops a device that ends, once nobody is there any more; what waited for that begins.
    pub(super) fn forget(&mut self, device: u64) {
        // Without plans the process ends with its last connection, and its counters with the process.
        let over = |served: &Served| served.is_shut() && served.plan.is_some();
        if self.devices.get(&device).is_some_and(over)
            && self.connections_of(device).is_empty()
            && !self.draining()
        {
            self.devices.remove(&device);
            self.begin_wanted();
        }
    }
}
