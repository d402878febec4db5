//! Windows: handles have no limit that a process could raise.

use std::io;
use std::process::Command;

pub(crate) fn raise_descriptor_limit() -> io::Result<()> {
    Ok(())
}

pub(crate) fn descriptor_limit() -> Option<u64> {
    None
}

pub(crate) fn restore_descriptor_limit(_command: &mut Command) {}
