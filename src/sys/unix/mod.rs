//! Unix: every module of the contract but the poller and supervision.

pub(crate) mod clock;
pub(crate) mod descriptor;
mod exec_plan;
pub(crate) mod file;
pub(crate) mod message;
pub(crate) mod process;
pub(crate) mod signal;
pub(crate) mod socket;
pub(crate) mod unix_path;
