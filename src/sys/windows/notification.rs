//! Windows: there is no service manager that takes sd_notify(3) notifications.

use std::ffi::OsStr;
use std::io;

use super::no_restarts;
use crate::sys::Descriptor;

pub(crate) fn send(_manager: &OsStr, _text: &str, _descriptors: &[&Descriptor]) -> io::Result<()> {
    Err(no_restarts())
}
