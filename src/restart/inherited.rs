//! What this process was started with.
//!
//! Listeners come as systemd passes them (sd_listen_fds(3)): from systemd or another socket
//! activator, from the supervisor, or from the predecessor. What a supervisor or a predecessor
//! passes besides is in the launch record ([`Launch`]).

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use socket2::Socket;

use super::launch::{own_launch, passed_names};
use crate::addr::Addr;
use crate::listener::{Bind, Fit, Listener, is_datagram};
use crate::log;
use crate::sys::{self, Descriptor};
use crate::wire::{EarlierGeneration, Launch, ListenerRecord, to_fd_name};

/// The name under which a predecessor passes the supervisor's lifeline on.
pub(super) const LIFELINE_NAME: &str = "handover-supervisor";

/// What this process was started with.
#[derive(Default)]
pub(crate) struct Inherited {
    passed: Vec<Passed>,
    /// The positions of the descriptors that this process took.
    pub(super) taken: Vec<u32>,
    pub(super) predecessor: Option<Predecessor>,
    /// The predecessor, and the generations before it that still drain.
    pub(super) earlier: Vec<PassedGeneration>,
    /// The socket on which this process sees end-of-file when the supervisor dies.
    pub(super) lifeline: Option<Socket>,
    /// Zero if this process was started without a number.
    generation: u64,
    /// Why this process cannot talk to its predecessor; `None` if it can, or has none.
    pub(super) predecessor_error: Option<String>,
}

/// A descriptor that was passed, in `LISTEN_FDS`.
struct Passed {
    position: u32,
    name: String,
    descriptor: Descriptor,
    /// A bind request with this name gets this listener, even if the address differs.
    matches_by_name: bool,
}

/// An earlier generation, as a predecessor passes it.
pub(super) struct PassedGeneration {
    pub(super) generation: u64,
    /// This process sees end-of-file on it when the generation has drained.
    pub(super) socket: Socket,
    /// See [`EarlierGeneration`].
    pub(super) drains_until: Option<u64>,
}

impl PassedGeneration {
    fn adopt(record: &EarlierGeneration) -> Option<Self> {
        let generation = record.generation;
        let failed = |error: &io::Error| {
            log::error!("cannot see when generation {generation} has drained: {error}");
        };
        Some(Self {
            generation,
            socket: adopt_socket(record.socket).inspect_err(failed).ok()?,
            drains_until: record.drains_until,
        })
    }
}

/// What a predecessor passes beside listeners.
pub(super) struct Predecessor {
    pub(super) handshake: Socket,
    pub(super) stderr: Option<OwnStderr>,
    /// What the predecessor has left by [`pass_state`](crate::Restart::pass_state).
    pub(super) state: Option<Vec<u8>>,
    /// Closed when this process can serve.
    pub(super) start_pipe: Option<Descriptor>,
}

/// The standard error that this process gets back when it is ready.
pub(super) struct OwnStderr {
    /// Dropped when this process has it back.
    pub(super) own: Arc<Descriptor>,
    /// The reading end of the pipe that is in its place: writing to the pipe is no error while
    /// this is open, even if the predecessor has died.
    pub(super) pipe: Option<Descriptor>,
}

impl Inherited {
    /// Takes what this process was started with, once.
    ///
    /// # Errors
    ///
    /// `AlreadyExists` the second time.
    pub(crate) fn take() -> io::Result<Self> {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        let mut inherited = Self::default();
        if TAKEN.swap(true, SeqCst) {
            let text = "this process has taken what it was started with: it has one Restart, for \
                        all of its servers";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
        }
        let matched_by_name = inherited.take_launched();
        inherited.take_passed(matched_by_name.as_deref());
        if inherited.predecessor.is_some() {
            let lifeline = inherited.remove(LIFELINE_NAME);
            inherited.lifeline =
                lifeline.and_then(|lifeline| sys::descriptor::into_socket(lifeline).ok());
        }
        Ok(inherited)
    }

    /// Takes what the launch record names. Returns the positions of the listeners that are known by
    /// their names; `None` means all, as a service manager names what it passes.
    fn take_launched(&mut self) -> Option<Vec<u32>> {
        match own_launch() {
            Ok(Some(Launch::Successor {
                generation,
                handshake,
                stderr,
                state,
                matched_by_name,
                earlier,
                start_pipe,
            })) => {
                self.earlier = earlier.iter().filter_map(PassedGeneration::adopt).collect();
                let failed = |error: &io::Error| {
                    self.predecessor_error =
                        Some(format!("cannot talk to the predecessor: {error}"));
                };
                let handshake = adopt_socket(handshake).inspect_err(failed).ok()?;
                let adopt = |number| sys::descriptor::adopt(number).ok();
                let own_stderr = |(own, pipe)| {
                    let pipe = adopt(pipe);
                    let own = adopt(own).map(Arc::new);
                    own.map(|own| OwnStderr { own, pipe })
                };
                self.predecessor = Some(Predecessor {
                    handshake,
                    stderr: stderr.and_then(own_stderr),
                    state: state.and_then(read_passed_state),
                    start_pipe: start_pipe.and_then(adopt),
                });
                self.generation = generation;
                Some(matched_by_name)
            }
            Ok(Some(Launch::Serve {
                generation,
                lifeline,
                matched_by_name,
            })) => {
                let failed = |error: &io::Error| {
                    log::error!("cannot see when the supervisor dies: {error}");
                };
                self.lifeline = Some(adopt_socket(lifeline).inspect_err(failed).ok()?);
                self.generation = generation;
                Some(matched_by_name)
            }
            Ok(Some(Launch::DryRun { .. } | Launch::Resume { .. }) | None) => None,
            Err(error) if error.by_predecessor => {
                self.predecessor_error = Some(error.text);
                None
            }
            // The supervisor notices, as it is never told that this process is ready.
            Err(error) => {
                log::error!("{}", error.text);
                None
            }
        }
    }

    fn take_passed(&mut self, matched_by_name: Option<&[u32]>) {
        for ((position, number), name) in (0..).zip(sys::FIRST_PASSED..).zip(passed_names()) {
            match sys::descriptor::adopt(number) {
                Ok(descriptor) => self.passed.push(Passed {
                    position,
                    name,
                    descriptor,
                    matches_by_name: matched_by_name
                        .is_none_or(|matched| matched.contains(&position)),
                }),
                Err(error) => log::error!("descriptor {number}, {name:?}, was not passed: {error}"),
            }
        }
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation.max(1)
    }

    /// Takes every descriptor that was passed, with its name.
    pub(crate) fn take_all(&mut self) -> Vec<(String, Descriptor)> {
        let passed = self.passed.drain(..);
        passed.map(|one| (one.name, one.descriptor)).collect()
    }

    /// Takes a descriptor by its name.
    pub(super) fn remove(&mut self, name: &str) -> Option<Descriptor> {
        let name = to_fd_name(name);
        let index = self.passed.iter().position(|passed| passed.name == name)?;
        Some(self.take_at(index).descriptor)
    }

    fn take_at(&mut self, index: usize) -> Passed {
        let passed = self.passed.remove(index);
        self.taken.push(passed.position);
        passed
    }

    /// The listeners that an earlier supervisor has stored with the service manager, by their
    /// devices and inodes.
    pub(crate) fn stored_listeners(&self) -> Vec<((u64, u64), ListenerRecord)> {
        let stored = self.passed.iter().filter_map(|passed| {
            let record = ListenerRecord::from_stored_name(&passed.name)?;
            Some((sys::descriptor::inode(&passed.descriptor).ok()?, record))
        });
        stored.collect()
    }

    /// Takes the listeners for these addresses, in their order; `None` where none was passed.
    pub(crate) fn take_listeners(&mut self, binds: &[&Bind]) -> Vec<Option<Listener>> {
        let mut found: Vec<Option<Listener>> = binds.iter().map(|_| None).collect();
        // The best fits come first: an address with any port must not take a listener that
        // another one asks for by its port.
        for least in [Fit::Name, Fit::Addr, Fit::AnyPort] {
            for (bind, found) in binds.iter().zip(&mut found) {
                if found.is_none() {
                    *found = self.take_listener(bind, least);
                }
            }
        }
        found
    }

    fn take_listener(&mut self, bind: &Bind, least: Fit) -> Option<Listener> {
        let fitting = |passed: &Passed| {
            let socket = sys::descriptor::into_socket(passed.descriptor.try_clone().ok()?).ok()?;
            if !bind.has_kind_of(&socket) {
                return None;
            }
            let local = Addr::from_kernel(&socket.local_addr().ok()?);
            let fit = bind.fit(&passed.name, &local, passed.matches_by_name)?;
            (fit >= least).then_some((socket, fit))
        };
        let mut all = self.passed.iter().enumerate();
        let (index, (socket, fit)) =
            all.find_map(|(index, passed)| Some((index, fitting(passed)?)))?;
        let name = self.take_at(index).name;
        match bind.clone().adopt(socket, fit == Fit::TrustedName) {
            Ok(listener) => {
                log::info!("inherited the listener {}", listener.shown_addr());
                Some(listener)
            }
            Err(error) => {
                log::error!("cannot use the inherited listener {name:?}: {error}");
                None
            }
        }
    }

    /// Closes the descriptors that were not taken.
    pub(crate) fn close_rest(&mut self) {
        for Passed {
            name, descriptor, ..
        } in self.passed.drain(..)
        {
            let socket = sys::descriptor::into_socket(descriptor);
            match socket.and_then(|socket| is_datagram(&socket)) {
                Ok(true) => log::warn!(
                    "closing the inherited datagram socket {name:?}: a server accepts connections. \
                     The program can take the socket by Restart::inherited"
                ),
                _ => log::warn!(
                    "closing the inherited descriptor {name:?}: this program does not use it"
                ),
            }
        }
    }
}

/// The socket that this process was started with, by its number.
pub(crate) fn adopt_socket(number: i32) -> io::Result<Socket> {
    sys::descriptor::adopt(number).and_then(sys::descriptor::into_socket)
}

fn read_passed_state(descriptor: i32) -> Option<Vec<u8>> {
    let read = sys::descriptor::adopt(descriptor).and_then(read_state);
    let failed = |error: &io::Error| log::error!("cannot read the predecessor's state: {error}");
    read.inspect_err(failed).ok()
}

/// The state in a file of the predecessor.
pub(super) fn read_state(file: Descriptor) -> io::Result<Vec<u8>> {
    let mut state = Vec::new();
    sys::descriptor::into_file(file)?.read_to_end(&mut state)?;
    Ok(state)
}
