//! What a process was started with: listeners from whoever started it, and from a predecessor more than that.
//!
//! Listeners come as systemd passes them (sd_listen_fds(3)): from systemd, from any other socket activator, and from
//! our own predecessor. A predecessor also leaves a control socket, the standard error that it has replaced by a pipe
//! of its own meanwhile, and bytes of its service's. Which they are is said by one more variable.

use std::env;
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use socket2::Socket;

use super::link::VERSION;
use crate::addr::Addr;
use crate::listener::{Bind, Fit, Listener};
use crate::sys::{self, Descriptor};

pub(crate) const LISTEN_PID: &str = "LISTEN_PID";
pub(crate) const LISTEN_FDS: &str = "LISTEN_FDS";
pub(crate) const LISTEN_FDNAMES: &str = "LISTEN_FDNAMES";

/// Separated by commas: the version of the protocol, the generation, the descriptors of the control socket, of standard
/// error, of the end of the pipe that is there instead, and of the state (`-` where there is none), the places of those
/// listeners that are known by their names only (separated by `+`), and the process that all this is for.
pub(crate) const HANDOVER: &str = "HANDOVER_PREDECESSOR";

/// Separated by commas: the version of the protocol, what the process is to be, and what belongs to that. For one that is
/// to serve, [`SERVE`]: its generation, the descriptor that ends when the supervisor does, the places of those listeners that are known by their
/// names only (separated by `+`). Always last, the process that all this is for.
pub(crate) const SUPERVISOR: &str = "HANDOVER_SUPERVISOR";
pub(crate) const SERVE: &str = "serve";

/// The name by which a predecessor passes on the descriptor that ends when the supervisor does.
pub(super) const LIFELINE: &str = "handover-supervisor";

/// More descriptors than anybody passes.
const MOST: i32 = 4096;

/// What this process was started with.
#[derive(Default)]
pub(crate) struct Inherited {
    passed: Vec<Passed>,
    /// Where those that were taken stood.
    pub(super) taken: Vec<u32>,
    pub(super) predecessor: Option<Predecessor>,
    pub(super) supervised: Option<Supervised>,
    /// There is a predecessor, but no way to talk to it.
    pub(super) broken: Option<String>,
}

/// A descriptor that was passed.
struct Passed {
    place: u32,
    name: String,
    descriptor: Descriptor,
    /// Its name says what it is for, whatever its address.
    by_name: bool,
}

/// What a supervisor leaves beside listeners.
pub(super) struct Supervised {
    /// Its end is that of the supervisor.
    pub(super) lifeline: Socket,
    /// Of this process.
    generation: u64,
    by_name: Vec<u32>,
}

/// What a predecessor left beside its listeners.
pub(super) struct Predecessor {
    pub(super) control: Socket,
    pub(super) stderr: Option<Stderr>,
    pub(super) state: Option<Vec<u8>>,
    /// Of this process.
    pub(super) generation: u64,
    by_name: Vec<u32>,
}

/// The standard error that is to come back.
pub(super) struct Stderr {
    pub(super) own: Descriptor,
    /// As long as this is there, writing to the pipe is no error, even if the predecessor has died.
    _pipe: Option<Descriptor>,
}

impl Inherited {
    /// Takes what there is. The second time there is nothing any more.
    pub(crate) fn take() -> Self {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        if TAKEN.swap(true, SeqCst) {
            return Self::default();
        }
        let variable = |name| env::var(name).unwrap_or_default();
        let (predecessor, broken) = match Predecessor::read(&variable(HANDOVER)) {
            Ok(predecessor) => (predecessor, None),
            Err(why) => (None, Some(why)),
        };
        let mut supervised = Supervised::read(&variable(SUPERVISOR));
        let names = names(
            &variable(LISTEN_PID),
            &variable(LISTEN_FDS),
            &variable(LISTEN_FDNAMES),
        );
        let mut passed = Vec::new();
        for ((place, number), name) in (0..).zip(sys::FIRST_PASSED..).zip(names) {
            // A service manager knows by name what it gives.
            let by_name = match (&predecessor, &supervised) {
                (Some(from), _) => from.by_name.contains(&place),
                (None, Some(from)) => from.by_name.contains(&place),
                (None, None) => true,
            };
            match sys::descriptor::adopt(number) {
                Ok(descriptor) => passed.push(Passed {
                    place,
                    name,
                    descriptor,
                    by_name,
                }),
                Err(error) => log::error!("descriptor {number}, {name:?}, was not passed: {error}"),
            }
        }
        let mut inherited = Self {
            passed,
            taken: Vec::new(),
            predecessor,
            supervised: None,
            broken,
        };
        if let Some(predecessor) = &inherited.predecessor {
            let generation = predecessor.generation;
            let lifeline = inherited.remove(LIFELINE);
            let lifeline =
                lifeline.and_then(|lifeline| sys::descriptor::into_socket(lifeline).ok());
            supervised = lifeline.map(|lifeline| Supervised {
                lifeline,
                generation,
                by_name: Vec::new(),
            });
        }
        inherited.supervised = supervised;
        inherited
    }

    pub(super) fn generation(&self) -> u64 {
        match (&self.predecessor, &self.supervised) {
            (Some(predecessor), _) => predecessor.generation,
            (None, Some(supervised)) => supervised.generation,
            (None, None) => 1,
        }
    }

    /// Everything that was passed, with its name.
    pub(crate) fn take_all(&mut self) -> Vec<(String, Descriptor)> {
        let passed = self.passed.drain(..);
        passed.map(|one| (one.name, one.descriptor)).collect()
    }

    /// Takes a descriptor by its name.
    pub(super) fn remove(&mut self, name: &str) -> Option<Descriptor> {
        let name = fd_name(name);
        let index = self.passed.iter().position(|passed| passed.name == name)?;
        Some(self.take_at(index).descriptor)
    }

    fn take_at(&mut self, index: usize) -> Passed {
        let passed = self.passed.remove(index);
        self.taken.push(passed.place);
        passed
    }

    /// The inherited listeners for these, in their order; `None` where there is none.
    pub(crate) fn listeners(&mut self, binds: &[&Bind]) -> Vec<Option<Listener>> {
        let mut found: Vec<Option<Listener>> = binds.iter().map(|_| None).collect();
        // The best fits first: a listener on any port must not take what another one asks for by its port.
        for least in [Fit::Name, Fit::Addr, Fit::AnyPort] {
            for (bind, found) in binds.iter().zip(&mut found) {
                if found.is_none() {
                    *found = self.listener(bind, least);
                }
            }
        }
        found
    }

    fn listener(&mut self, bind: &Bind, least: Fit) -> Option<Listener> {
        let asked = bind.asked_name().map(fd_name);
        let fits = |passed: &Passed| {
            let socket = sys::descriptor::into_socket(passed.descriptor.try_clone().ok()?).ok()?;
            if !sys::socket::is_listening_stream(&socket).unwrap_or(false) {
                return None;
            }
            let local = Addr::from_kernel(&socket.local_addr().ok()?);
            let is_named = asked.as_ref() == Some(&passed.name);
            let fit = bind.fit(is_named, &local, passed.by_name)?;
            (fit >= least).then_some((socket, is_named && passed.by_name))
        };
        let mut all = self.passed.iter().enumerate();
        let (index, (socket, by_name)) =
            all.find_map(|(index, passed)| Some((index, fits(passed)?)))?;
        let name = self.take_at(index).name;
        match bind.clone().adopt(socket, by_name) {
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
        for Passed { name, .. } in self.passed.drain(..) {
            log::warn!("closing the inherited descriptor {name:?}: nothing here asks for it");
        }
    }
}

/// A name as it is passed on: colons separate names there, and systemd takes no control characters.
pub(crate) fn fd_name(name: &str) -> String {
    let is_fine = |char: char| char.is_ascii_graphic() && char != ':';
    let name = name
        .chars()
        .map(|char| if is_fine(char) { char } else { '_' });
    name.take(255).collect()
}

/// The names of the descriptors that are passed to this process.
fn names(pid: &str, count: &str, names: &str) -> Vec<String> {
    // Meant for another process, such as our parent: the descriptors there are others.
    if pid.parse() != Ok(std::process::id()) {
        return Vec::new();
    }
    let Ok(count @ 0..=MOST) = count.parse() else {
        log::error!("{LISTEN_FDS} makes no sense: {count:?}");
        return Vec::new();
    };
    let mut given = names.split(':').filter(|_| !names.is_empty());
    let names = (0..count).map(|_| given.next().unwrap_or("unknown").to_owned());
    names.collect()
}

/// Whether a predecessor has started this process.
pub(crate) fn is_successor() -> bool {
    let text = env::var(HANDOVER).unwrap_or_default();
    let pid = text.rsplit_once(',').and_then(|(_, pid)| pid.parse().ok());
    pid == Some(std::process::id())
}

/// What a supervisor wants this process to be, if it has one: the words of [`SUPERVISOR`] between the version and the
/// process. An error if they are of another version.
pub(crate) fn role(text: &str) -> Result<Option<Vec<&str>>, String> {
    let mut words: Vec<&str> = text.split(',').collect();
    if words.len() < 3 || words.pop().and_then(|pid| pid.parse().ok()) != Some(std::process::id()) {
        return Ok(None);
    }
    match words.remove(0) {
        version if version.parse() == Ok(VERSION) => Ok(Some(words)),
        version => Err(format!(
            "the supervisor speaks version {version} of the protocol, this process {VERSION}"
        )),
    }
}

impl Supervised {
    fn read(text: &str) -> Option<Self> {
        let words = match role(text) {
            Ok(words) => words?,
            // The supervisor finds out.
            Err(why) => {
                log::error!("{why}");
                return None;
            }
        };
        let [SERVE, generation, lifeline, by_name] = words[..] else {
            return None;
        };
        let lifeline =
            sys::descriptor::adopt(lifeline.parse().ok()?).and_then(sys::descriptor::into_socket);
        Some(Self {
            lifeline: lifeline
                .inspect_err(|error| log::error!("the supervisor cannot be watched: {error}"))
                .ok()?,
            generation: generation.parse().ok()?,
            by_name: by_name.split('+').flat_map(str::parse).collect(),
        })
    }
}

impl Predecessor {
    /// `None` if this process is nobody's successor.
    fn read(text: &str) -> Result<Option<Self>, String> {
        let (Some((version, _)), Some((_, pid))) = (text.split_once(','), text.rsplit_once(','))
        else {
            return Ok(None);
        };
        if pid.parse() != Ok(std::process::id()) {
            return Ok(None);
        }
        if version.parse() != Ok(VERSION) {
            return Err(format!(
                "the predecessor speaks version {version} of the protocol, this process {VERSION}"
            ));
        }
        let nonsense = || format!("{HANDOVER} makes no sense: {text:?}");
        let parts: Vec<&str> = text.split(',').collect();
        let [_, generation, control, stderr, pipe, state, by_name, _] = parts[..] else {
            return Err(nonsense());
        };
        let adopt = |number: &str| sys::descriptor::adopt(number.parse().ok()?).ok();
        let control = adopt(control).and_then(|control| sys::descriptor::into_socket(control).ok());
        let (Some(control), Ok(generation)) = (control, generation.parse()) else {
            return Err(nonsense());
        };
        let mut read = Vec::new();
        let state = adopt(state).and_then(|state| {
            let result = std::fs::File::from(state).read_to_end(&mut read);
            result
                .inspect_err(|error| log::error!("cannot read the predecessor's state: {error}"))
                .ok()?;
            Some(read)
        });
        let _pipe = adopt(pipe);
        let stderr = adopt(stderr).map(|own| Stderr { own, _pipe });
        Ok(Some(Self {
            control,
            stderr,
            state,
            generation,
            by_name: by_name.split('+').flat_map(str::parse).collect(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_meant_for_another_process_is_not_adopted() {
        let own = std::process::id().to_string();
        for pid in ["", "1", "x", "-1"] {
            assert!(names(pid, "1", "a").is_empty(), "{pid}");
        }
        for count in ["", "-1", "x", "100000"] {
            assert!(names(&own, count, "").is_empty(), "{count}");
        }
        assert_eq!(names(&own, "2", "a"), ["a", "unknown"]);
        assert_eq!(names(&own, "2", "a:b:c"), ["a", "b"]);
        assert_eq!(names(&own, "1", ""), ["unknown"]);
        for text in ["", "1", "1,2,3,4,-,1", "9,2,3,4,-,", "a,b,c,d,e,f"] {
            assert!(matches!(Predecessor::read(text), Ok(None)), "{text}");
        }
    }

    #[test]
    fn a_predecessor_that_is_not_understood_is_one_all_the_same() {
        let own = std::process::id();
        for text in [",", "2,a,", "x,", "1,", "1,2,x,-,-,-,,", "1,2,-,-,-,-,,"] {
            let text = format!("{text}{own}");
            assert!(Predecessor::read(&text).is_err(), "{text}");
        }
    }

    #[test]
    fn names_survive_the_list() {
        assert_eq!(fd_name("public"), "public");
        assert_eq!(fd_name("127.0.0.1:80"), "127.0.0.1_80");
        assert_eq!(fd_name("a\nb c"), "a_b_c");
    }
}
