//! The upgrade of the supervisor: a dry run of its new program, then the exec in place.
//!
//! The upgrade waits until no process is about to replace another one. An upgrade that is asked for
//! during a dry run may mean a newer program than the one that is being checked: another dry run
//! follows.

use std::time::Duration;

use super::Fleet;
use super::IS_STOPPING;
use super::event::{Effect, Severity};
use super::slot::Slot;
use crate::clock::Deadline;

/// How long a dry run may take.
pub(crate) const DRY_RUN_TIMEOUT: Duration = Duration::from_secs(10);

/// How far an upgrade is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Upgrade {
    /// An upgrade was asked for, and no dry run has begun since.
    is_wanted: bool,
    /// The dry run has succeeded, and the program is to be executed.
    is_checked: bool,
    /// The end of the dry run in progress: it is killed then.
    dry_run: Option<Deadline>,
    /// The control clients that wait for the result.
    pub(crate) clients: Vec<u64>,
}

impl Upgrade {
    pub(super) fn deadline(&self) -> Deadline {
        self.dry_run.unwrap_or(Deadline::NEVER)
    }

    pub(super) fn has_dry_run(&self) -> bool {
        self.dry_run.is_some()
    }
}

impl Fleet {
    pub(super) fn request_upgrade(&mut self, client: Option<u64>) {
        self.upgrade.clients.extend(client);
        match self.shutdown {
            Some(_) => self.end_upgrade(Some(IS_STOPPING.to_owned())),
            None => self.upgrade.is_wanted = true,
        }
    }

    pub(super) fn advance_upgrade(&mut self) {
        if std::mem::take(&mut self.upgrade.is_checked) {
            match self.is_settled() {
                true => self.effects.push(Effect::ExecuteOwnProgram),
                // A restart has begun meanwhile. Another dry run follows it.
                false => self.upgrade.is_wanted = true,
            }
        }
        if self.upgrade.is_wanted && self.upgrade.dry_run.is_none() && self.is_settled() {
            self.upgrade.is_wanted = false;
            self.upgrade.dry_run = Some(Deadline::after(self.now, DRY_RUN_TIMEOUT));
            self.effects.push(Effect::StartDryRun);
        }
    }

    /// Whether no process is about to replace another one.
    fn is_settled(&self) -> bool {
        let is_settled = |slot: &Slot| slot.successor.is_none() && !slot.is_start_pending;
        let is_answered = !self.scale.has_client();
        is_answered
            && self.round.is_none()
            && self.unannounced.is_empty()
            && self.slots.iter().all(is_settled)
    }

    pub(super) fn finish_dry_run(&mut self, result: Result<(), String>) {
        self.upgrade.dry_run = None;
        match result {
            // The stop has ended the upgrade, or a newer program is to be checked.
            _ if self.shutdown.is_some() || self.upgrade.is_wanted => {}
            Err(why) => self.end_upgrade(Some(why)),
            Ok(()) => self.upgrade.is_checked = true,
        }
    }

    /// Goes on after an upgrade, with the number of slots that the new program wants, unless another
    /// number was asked for at run time.
    pub(super) fn resume(&mut self) {
        self.resize();
        self.expect_request_report();
        self.end_upgrade(None);
        self.notify_state();
    }

    pub(super) fn handle_dry_run_deadline(&mut self) {
        if self.upgrade.deadline().has_passed(self.now) {
            self.log(
                Severity::Error,
                "the dry run takes too long: killing it".to_owned(),
            );
            self.kill_dry_run();
        }
    }

    fn kill_dry_run(&mut self) {
        if let Some(deadline) = &mut self.upgrade.dry_run {
            *deadline = Deadline::after(self.now, DRY_RUN_TIMEOUT);
            self.effects.push(Effect::KillDryRun);
        }
    }

    /// Ends the upgrade: it has succeeded, or has failed with this error.
    pub(crate) fn end_upgrade(&mut self, error: Option<String>) {
        self.upgrade.is_wanted = false;
        if self.shutdown.is_some() {
            self.kill_dry_run();
        }
        let error = error.map(|why| format!("the supervisor is not replaced: {why}"));
        let clients = std::mem::take(&mut self.upgrade.clients);
        if let (Some(why), true) = (&error, !clients.is_empty() || self.shutdown.is_none()) {
            self.log(Severity::Error, why.clone());
        }
        self.reply(clients, &error, None);
    }
}
