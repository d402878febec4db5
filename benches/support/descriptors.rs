//! The descriptors that a process may have.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::Result;

/// Raises the limit of this process as far as it goes. Returns the limit.
pub(super) fn raise_limit() -> Result<u64> {
    let hard = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: hard,
        maximum: hard,
    };
    setrlimit(Resource::Nofile, limit)?;
    Ok(hard.unwrap_or(1 << 20))
}
