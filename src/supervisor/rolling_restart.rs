//! A graceful restart: the processes are replaced slot by slot. If one cannot be replaced, it
//! serves on, and so do the processes of the slots that follow.

use std::time::{Duration, Instant};

use super::run::Run;
use super::slot::ProcessSlot;
use crate::clock::Deadline;
use crate::log;
use crate::notify;
use crate::sys::Signal;
use crate::wire::Answer;

/// A restart in progress.
#[derive(Debug)]
pub(super) struct RollingRestart {
    /// The index of the slot whose process is being replaced.
    pub(super) index: usize,
    progress: SlotProgress,
    /// The process in this slot was ending already when it was to be replaced. Its exit is not a
    /// failure of the restart.
    exit_is_no_failure: bool,
    /// When the replacement in this slot must be complete.
    pub(super) deadline: Deadline,
    started_at: Instant,
    failure: Option<String>,
    /// The control clients that wait for the result.
    waiting_clients: Vec<u64>,
}

/// How far the replacement in the slot at `index` is.
#[derive(Clone, Copy, Debug)]
enum SlotProgress {
    NotRequested,
    /// Complete when the slot is ready with a process other than `old`. `None`: the slot had no
    /// process, or one that was still starting, so that every ready process is a new one.
    Requested {
        old: Option<u32>,
    },
}

/// Added to `ready_timeout`: the time for the predecessor to report how the replacement went.
const REPORT_TIMEOUT: Duration = Duration::from_secs(30);

impl Run {
    /// Begins a restart, or joins the one in progress. The control client `client` gets the result.
    pub(super) fn begin_rolling_restart(&mut self, client: Option<u64>) {
        if self.shutdown.is_some() {
            let why = "the supervisor is being stopped".to_owned();
            let answer = Answer::new(Some(why), Some(Duration::ZERO));
            return client
                .into_iter()
                .for_each(|client| self.reply(client, &answer));
        }
        if self.sent_ready {
            notify::send_reloading("restarting");
        }
        let restart = self.rolling_restart.get_or_insert_with(|| RollingRestart {
            index: 0,
            progress: SlotProgress::NotRequested,
            exit_is_no_failure: false,
            deadline: Deadline::NEVER,
            started_at: Instant::now(),
            failure: None,
            waiting_clients: Vec::new(),
        });
        restart.waiting_clients.extend(client);
    }

    /// Takes the restart as far as possible without waiting.
    pub(super) fn advance_rolling_restart(&mut self) {
        while let Some(restart) = &mut self.rolling_restart {
            let index = restart.index;
            if restart.failure.is_none() && restart.deadline.has_passed(Instant::now()) {
                restart.failure = Some("the restart timed out".to_owned());
            }
            let Some(slot) = self.slots.get(index).filter(|_| restart.failure.is_none()) else {
                let failure = restart.failure.take();
                return self.end_rolling_restart(failure);
            };
            match restart.progress {
                SlotProgress::NotRequested => self.request_replacement(index),
                SlotProgress::Requested { old } if slot.is_ready() && slot.current_pid() != old => {
                    restart.index += 1;
                    restart.progress = SlotProgress::NotRequested;
                    restart.deadline = Deadline::NEVER;
                }
                SlotProgress::Requested { .. } => return,
            }
        }
    }

    fn request_replacement(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        let mut old = slot.current_pid();
        let (mut failure, mut exit_is_no_failure) = (None, false);
        match &slot.current {
            // The process starts its successor itself, and reports how that went.
            Some(current) if current.is_serving() && current.starts_successors => {
                current.send(Signal::Hangup)
            }
            Some(current) if current.is_serving() => match self.start_process(index) {
                Ok(successor) => self.slots[index].successor = Some(successor),
                Err(why) => failure = Some(why),
            },
            Some(current) if current.ready_since.is_none() => old = None,
            // The process is stopping or aborted. Another one is started when it has exited.
            Some(_) => exit_is_no_failure = true,
            None if slot.successor.is_some() => {}
            // The restart does not wait for the back-off.
            None => slot.start_at = Deadline::at(Some(Instant::now())),
        }
        let timeout = self.settings.ready_timeout.saturating_add(REPORT_TIMEOUT);
        if let Some(restart) = &mut self.rolling_restart {
            restart.progress = SlotProgress::Requested { old };
            restart.failure = failure;
            restart.exit_is_no_failure = exit_is_no_failure;
            restart.deadline = Deadline::after(Instant::now(), timeout);
        }
    }

    /// The process in this slot was not replaced. Ends the restart, if it has got as far as there.
    pub(super) fn fail_rolling_restart(&mut self, index: usize, why: &str) {
        let restart = self.rolling_restart.as_mut();
        let Some(restart) = restart.filter(|restart| restart.index == index) else {
            return;
        };
        match restart.progress {
            _ if restart.exit_is_no_failure => restart.exit_is_no_failure = false,
            SlotProgress::NotRequested => {}
            SlotProgress::Requested { .. } => {
                restart.failure.get_or_insert_with(|| why.to_owned());
            }
        }
    }

    /// Ends the restart: it has succeeded, or has failed with this error. Logs the result, and
    /// tells the service manager and the control clients that wait.
    pub(super) fn end_rolling_restart(&mut self, error: Option<String>) {
        let Some(restart) = self.rolling_restart.take() else {
            return;
        };
        let took = restart.started_at.elapsed();
        match &error {
            None => log::info!("restarted in {:.3} s", took.as_secs_f32()),
            Some(why) => log::error!("the restart failed: {why}"),
        }
        if self.shutdown.is_none() {
            let summary = self.summary();
            self.sent_ready |= self.slots.iter().all(ProcessSlot::is_ready);
            match &error {
                _ if !self.sent_ready => notify::send_status(summary),
                None => notify::send_ready(None, summary),
                Some(why) => {
                    let status = format!("{summary}; the last restart failed: {why}");
                    notify::send_ready(None, status);
                }
            }
        }
        let answer = Answer::new(error, Some(took));
        for client in restart.waiting_clients {
            self.reply(client, &answer);
        }
        self.last_restart = Some(answer);
    }
}
