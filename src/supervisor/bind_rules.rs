//! What the supervisor binds for processes of other users.
//!
//! A process whose user is not the supervisor's may be one that an attacker controls. With the
//! supervisor's privileges it could take any port, and have files made in any directory. So the
//! supervisor binds for it only what is on a list:
//!
//! - what the settings name,
//! - what processes of the supervisor's own user have asked for,
//! - what the program has asked for before one of its processes was ready for the first time: until
//!   then, no client can have reached it.

use super::Settings;
use crate::sys;
use crate::wire::BindAddr;

/// The process that asks for something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sender {
    pub(super) uid: u32,
}

impl Sender {
    /// The process could do everything itself that the supervisor can do for it.
    pub(super) fn is_privileged(self) -> bool {
        self.uid == 0 || self.uid == sys::process::effective_uid()
    }
}

/// The list.
#[derive(Debug, Default)]
pub(super) struct BindRules {
    allowed: Vec<BindAddr>,
}

/// The longest list. A program that asks for more is refused.
const MAX_ALLOWED: usize = 1024;

impl BindRules {
    /// Those of the settings.
    pub(super) fn new(settings: &Settings) -> Self {
        let binds = settings.listen.iter().chain(&settings.allowed_binds);
        let mut rules = Self::default();
        rules.extend(binds.filter_map(|bind| Some(bind.to_request()?.addr)));
        rules
    }

    pub(super) fn extend(&mut self, addrs: impl IntoIterator<Item = BindAddr>) {
        for addr in addrs {
            if !self.allowed.contains(&addr) && self.allowed.len() < MAX_ALLOWED {
                self.allowed.push(addr);
            }
        }
    }

    pub(super) fn allowed(&self) -> &[BindAddr] {
        &self.allowed
    }

    /// Whether the address is bound for this process. `has_served`: a process of the service has
    /// been ready.
    pub(super) fn allow(&mut self, addr: &BindAddr, is_privileged: bool, has_served: bool) -> bool {
        if is_privileged || !has_served {
            self.extend([addr.clone()]);
        }
        is_privileged || self.allowed.contains(addr)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_made_by_the_settings_the_first_start_and_privileged_processes() {
        let tcp = |port: u16| BindAddr::Tcp(([0, 0, 0, 0], port).into());
        let mut rules = BindRules::default();
        rules.extend([tcp(80)]);
        // (port, is privileged, has served, the answer)
        for (port, is_privileged, has_served, answer) in [
            (80, false, true, true),
            (81, false, true, false),
            (81, false, false, true),
            (81, false, true, true),
            (82, true, true, true),
            (82, false, true, true),
            (0, false, true, false),
            (0, true, false, true),
            (0, false, true, true),
            (1, false, true, false),
        ] {
            let allowed = rules.allow(&tcp(port), is_privileged, has_served);
            assert_eq!(allowed, answer, "{port} {is_privileged} {has_served}");
        }
        rules.extend((100..).take(2 * MAX_ALLOWED).map(tcp));
        assert_eq!(rules.allowed().len(), MAX_ALLOWED);
        assert!(!rules.allow(&tcp(5), false, false) && rules.allow(&tcp(5), true, true));
    }
}
