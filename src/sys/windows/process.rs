//! Windows: no process starts a successor yet.

use std::io;
use std::process::ExitStatus;
use std::time::Duration;

use super::no_restarts_error;
use crate::sys::{ProcessState, SpawnOptions};

pub(crate) const SUPPORTS_RESTARTS: bool = false;

#[derive(Debug)]
pub(crate) enum Process {}

impl Process {
    pub(crate) fn id(&self) -> u32 {
        match *self {}
    }

    pub(crate) fn wait(&mut self, _timeout: Duration) -> io::Result<ProcessState> {
        match *self {}
    }

    pub(crate) fn kill(&mut self) -> io::Result<()> {
        match *self {}
    }

    pub(crate) fn detach(&mut self) {
        match *self {}
    }
}

pub(crate) fn spawn(_options: &SpawnOptions<'_>) -> io::Result<Process> {
    Err(no_restarts_error())
}

pub(crate) fn spawn_child(_options: &SpawnOptions<'_>) -> io::Result<u32> {
    Err(no_restarts_error())
}

pub(crate) fn replace_program(_options: &SpawnOptions<'_>) -> io::Error {
    no_restarts_error()
}

pub(crate) fn raw_exit_status(_status: ExitStatus) -> Option<i32> {
    None
}

pub(crate) fn exit_status(_raw: i32) -> Option<ExitStatus> {
    None
}

pub(crate) fn is_group_leader() -> bool {
    false
}

pub(crate) fn effective_gid() -> u32 {
    u32::MAX
}

pub(crate) fn effective_uid() -> u32 {
    u32::MAX
}
