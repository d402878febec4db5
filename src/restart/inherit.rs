//! What a process was started with: listeners from whoever started it, and from a predecessor more than that.
//!
//! Listeners come as systemd passes them (sd_listen_fds(3)): from systemd, from any other socket activator, and from
//! our own predecessor. A predecessor also leaves a control socket, the standard error that it has replaced by a pipe
//! of its own meanwhile, and bytes of its service's. Which they are is said by one more variable.

use std::env;
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use socket2::Socket;

use super::message::VERSION;
use crate::addr::Addr;
use crate::listener::{Bind, Fit, Listener};
use crate::sys::{self, Descriptor};

pub(super) const LISTEN_PID: &str = "LISTEN_PID";
pub(super) const LISTEN_FDS: &str = "LISTEN_FDS";
pub(super) const LISTEN_FDNAMES: &str = "LISTEN_FDNAMES";

/// The version of the protocol, the generation, the descriptors of the control socket, of standard error and of the
/// state (`-` if there is none), and the process that all this is for; separated by commas.
pub(super) const HANDOVER: &str = "HANDOVER_PREDECESSOR";

/// More descriptors than anybody passes.
const MOST: i32 = 4096;

/// What this process was started with.
#[derive(Default)]
pub(super) struct Inherited {
    /// With their names.
    descriptors: Vec<(String, Descriptor)>,
    pub(super) predecessor: Option<Predecessor>,
}

/// What a predecessor left beside its listeners.
pub(super) struct Predecessor {
    pub(super) control: Socket,
    pub(super) stderr: Option<Descriptor>,
    pub(super) state: Option<Vec<u8>>,
    /// Of this process.
    pub(super) generation: u64,
}

impl Inherited {
    /// Takes what there is. The second time there is nothing any more.
    pub(super) fn take() -> Self {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        if TAKEN.swap(true, SeqCst) {
            return Self::default();
        }
        let variable = |name| env::var(name).unwrap_or_default();
        let passed = Passed::read(
            &variable(LISTEN_PID),
            &variable(LISTEN_FDS),
            &variable(LISTEN_FDNAMES),
        );
        let mut descriptors = Vec::new();
        for (number, name) in (sys::FIRST_PASSED..).zip(passed.names) {
            match sys::adopt(number) {
                Ok(descriptor) => descriptors.push((name, descriptor)),
                Err(error) => log::error!("descriptor {number}, {name:?}, was not passed: {error}"),
            }
        }
        Self {
            descriptors,
            predecessor: Predecessor::read(&variable(HANDOVER)),
        }
    }

    /// Takes a descriptor by its name.
    pub(super) fn remove(&mut self, name: &str) -> Option<Descriptor> {
        let place = self
            .descriptors
            .iter()
            .position(|(other, _)| *other == fd_name(name))?;
        Some(self.descriptors.remove(place).1)
    }

    /// The inherited listeners for these, in their order; `None` where there is none.
    pub(super) fn listeners(&mut self, binds: &[&Bind]) -> Vec<Option<Listener>> {
        // Whoever started a process that is nobody's successor knows by name what it gives.
        let trusts_names = self.predecessor.is_none();
        let mut found: Vec<Option<Listener>> = binds.iter().map(|_| None).collect();
        // The best fits first: a listener on any port must not take what another one asks for by its port.
        for least in [Fit::Name, Fit::Addr, Fit::AnyPort] {
            for (bind, found) in binds.iter().zip(&mut found) {
                if found.is_none() {
                    *found = self.listener(bind, least, trusts_names);
                }
            }
        }
        found
    }

    fn listener(&mut self, bind: &Bind, least: Fit, trusts_names: bool) -> Option<Listener> {
        let (place, socket) =
            self.descriptors
                .iter()
                .enumerate()
                .find_map(|(place, (name, descriptor))| {
                    let socket = sys::into_socket(descriptor.try_clone().ok()?).ok()?;
                    if !sys::is_listening_stream(&socket).unwrap_or(false) {
                        return None;
                    }
                    let local = Addr::from_kernel(&socket.local_addr().ok()?);
                    let is_named = bind
                        .asked_name()
                        .is_some_and(|asked| fd_name(asked) == *name);
                    let fit = bind.fit(is_named, &local, trusts_names)?;
                    (fit >= least).then_some((place, socket))
                })?;
        let (name, _) = self.descriptors.remove(place);
        match bind.clone().adopt(socket) {
            Ok(listener) => {
                log::info!("inherited the listener {}", listener.local_addr());
                Some(listener)
            }
            Err(error) => {
                log::error!("cannot use the inherited listener {name:?}: {error}");
                None
            }
        }
    }

    /// Closes what nobody asked for.
    pub(super) fn close_rest(&mut self) {
        for (name, _) in self.descriptors.drain(..) {
            log::warn!("closing the inherited descriptor {name:?}: nothing here asks for it");
        }
    }
}

/// A name as it is passed on: colons separate names there, and systemd takes no control characters.
pub(super) fn fd_name(name: &str) -> String {
    let is_fine = |char: char| char.is_ascii_graphic() && char != ':';
    let name = name
        .chars()
        .map(|char| if is_fine(char) { char } else { '_' });
    name.take(255).collect()
}

/// The names of the descriptors that are passed to this process.
struct Passed {
    names: Vec<String>,
}

impl Passed {
    fn read(pid: &str, count: &str, names: &str) -> Self {
        let none = Self { names: Vec::new() };
        // Meant for another process, such as our parent: the descriptors there are others.
        if pid.parse() != Ok(std::process::id()) {
            return none;
        }
        let count = match count.parse() {
            Ok(count @ 0..=MOST) => count,
            _ => {
                log::error!("{LISTEN_FDS} makes no sense: {count:?}");
                return none;
            }
        };
        let mut given = names.split(':').filter(|_| !names.is_empty());
        let names = (0..count).map(|_| given.next().unwrap_or("unknown").to_owned());
        Self {
            names: names.collect(),
        }
    }
}

impl Predecessor {
    fn read(text: &str) -> Option<Self> {
        if text.is_empty() {
            return None;
        }
        let parts: Vec<&str> = text.split(',').collect();
        let [version, generation, control, stderr, state, pid] = parts[..] else {
            log::error!("{HANDOVER} makes no sense: {text:?}");
            return None;
        };
        if pid.parse() != Ok(std::process::id()) {
            return None;
        }
        if version.parse() != Ok(VERSION) {
            log::error!("the predecessor speaks version {version} of the protocol, not {VERSION}");
            return None;
        }
        let adopt = |number: &str| sys::adopt(number.parse().ok()?).ok();
        let control = sys::into_socket(adopt(control)?).ok()?;
        let mut read = Vec::new();
        let state = adopt(state).and_then(|state| {
            let result = sys::into_file(state).read_to_end(&mut read);
            result
                .inspect_err(|error| log::error!("cannot read the predecessor's state: {error}"))
                .ok()?;
            Some(read)
        });
        Some(Self {
            control,
            stderr: adopt(stderr),
            state,
            generation: generation.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_meant_for_another_process_is_not_adopted() {
        let own = std::process::id().to_string();
        for pid in ["", "1", "x", "-1"] {
            assert!(Passed::read(pid, "1", "a").names.is_empty(), "{pid}");
        }
        for count in ["", "-1", "x", "100000"] {
            assert!(Passed::read(&own, count, "").names.is_empty(), "{count}");
        }
        assert_eq!(Passed::read(&own, "2", "a").names, ["a", "unknown"]);
        assert_eq!(Passed::read(&own, "2", "a:b:c").names, ["a", "b"]);
        assert_eq!(Passed::read(&own, "1", "").names, ["unknown"]);
        for text in ["", "1", "1,2,3,4,-,1", "9,2,3,4,-,", "a,b,c,d,e,f"] {
            assert!(Predecessor::read(text).is_none(), "{text}");
        }
    }

    #[test]
    fn names_survive_the_list() {
        assert_eq!(fd_name("public"), "public");
        assert_eq!(fd_name("127.0.0.1:80"), "127.0.0.1_80");
        assert_eq!(fd_name("a\nb c"), "a_b_c");
    }
}
