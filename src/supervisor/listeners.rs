//! The listeners that the supervisor holds: while nobody serves, the kernel goes on queueing clients for them.

use std::io;

use crate::listener::{Bind, BindError, Fit, Listener};
use crate::notify;
use crate::restart::Inherited;
use crate::sys::{self, Descriptor};
use crate::wire::{ListenerRecord, fd_name};

/// All that are held.
#[derive(Debug, Default)]
pub(super) struct HeldListeners(Vec<HeldListener>);

#[derive(Debug)]
pub(super) struct HeldListener {
    /// It removes the file of a Unix socket in the end that a serving process has bound.
    pub(super) listener: Listener,
    pub(super) about: ListenerRecord,
    /// It was there before any process asked for it, and stays whether one does or not.
    pub(super) pinned: bool,
    /// The service manager listens on it by itself.
    pub(super) is_managers: bool,
    pub(super) id: Id,
}

/// What tells one socket from another.
pub(super) type Id = (u64, u64);

impl HeldListener {
    /// Leaves it with the service manager, for the next supervisor.
    fn store(&self) {
        match sys::descriptor::duplicate(&self.listener.socket) {
            Ok(copy) => notify::store(self.about.to_stored_name(), &copy),
            Err(error) => log::error!("cannot copy the listener {}: {error}", self.about.name),
        }
    }
}

impl HeldListeners {
    /// Takes what this process was started with: from a socket activator, or what an earlier supervisor has left with the
    /// service manager.
    fn inherit(&mut self, passed: Vec<(String, Descriptor)>) {
        for (name, descriptor) in passed {
            let stored = ListenerRecord::from_stored_name(&name);
            let pinned = stored.is_none();
            let about = stored.unwrap_or(ListenerRecord {
                name: fd_name(&name),
                by_name: true,
                owns_path: false,
            });
            match self.insert(about, descriptor, pinned) {
                Ok(_) => log::info!("inherited the listener {name:?}"),
                Err(error) => log::error!("cannot use the descriptor {name:?}: {error}"),
            }
        }
    }

    /// Takes what this process was started with, and binds what is asked for and not among that.
    pub(super) fn open(
        mut inherited: Inherited,
        binds: &[Bind],
        foreign: bool,
    ) -> io::Result<Self> {
        let mut held = Self::default();
        let found = inherited.listeners(&binds.iter().collect::<Vec<_>>());
        for (bind, found) in binds.iter().zip(found) {
            let is_managers = found.is_some();
            let listener = found.map_or_else(|| bind.clone().bind(), Ok)?;
            held.pin(listener, is_managers, foreign)?;
        }
        held.inherit(inherited.take_all());
        Ok(held)
    }

    /// Binds what is not there already.
    pub(super) fn bind_missing(&mut self, binds: &[Bind], foreign: bool) {
        for bind in binds {
            let fits = |one: &HeldListener| {
                let is_named = bind.asked_name().map(fd_name).as_ref() == Some(&one.about.name);
                bind.fit(is_named, one.listener.local_addr(), true)
                    .is_some()
            };
            if !self.0.iter().any(fits) {
                let bound = bind.clone().bind().map_err(io::Error::from);
                if let Err(error) = bound.and_then(|listener| self.pin(listener, false, foreign)) {
                    log::error!("{error}");
                }
            }
        }
    }

    /// Holds one for whoever wants it. A foreign program expects that accepting waits, and says so if not.
    fn pin(&mut self, listener: Listener, is_managers: bool, foreign: bool) -> io::Result<()> {
        listener.socket.set_nonblocking(!foreign)?;
        log::info!("listening on {}", listener.local_addr());
        let one = HeldListener {
            id: sys::descriptor::inode(&sys::descriptor::duplicate(&listener.socket)?)?,
            about: ListenerRecord {
                name: fd_name(listener.name()),
                by_name: true,
                owns_path: listener.own_path().is_some(),
            },
            listener,
            pinned: true,
            is_managers,
        };
        self.add(one);
        Ok(())
    }

    /// The listener that a process asks for: one that is here, or that is bound for it. No process gets another one's only
    /// because any port would do.
    pub(super) fn give(&mut self, bind: Bind) -> io::Result<(Id, Descriptor)> {
        let fits = |one: &&HeldListener| {
            let is_named = bind.asked_name().map(fd_name).as_ref() == Some(&one.about.name);
            let fit = bind.fit(is_named, one.listener.local_addr(), one.about.by_name);
            fit.is_some_and(|fit| fit > Fit::AnyPort)
        };
        if let Some(one) = self.0.iter().find(fits) {
            return Ok((one.id, sys::descriptor::duplicate(&one.listener.socket)?));
        }
        let listener = bind.bind().map_err(BindError::into_cause)?;
        let descriptor = sys::descriptor::duplicate(&listener.socket)?;
        let about = ListenerRecord {
            name: fd_name(listener.name()),
            by_name: false,
            owns_path: listener.own_path().is_some(),
        };
        let id = sys::descriptor::inode(&descriptor)?;
        log::info!("listening on {}", listener.local_addr());
        self.add(HeldListener {
            listener,
            about,
            pinned: false,
            is_managers: false,
            id,
        });
        Ok((id, descriptor))
    }

    fn add(&mut self, one: HeldListener) {
        if !one.is_managers {
            one.store();
        }
        self.0.push(one);
    }

    /// Holds what a process has left here, and says what it is. Nothing changes if it is here already.
    pub(super) fn hold(&mut self, about: ListenerRecord, descriptor: Descriptor) -> io::Result<Id> {
        let before = self.0.len();
        let id = self.insert(about, descriptor, false)?;
        if let Some(new) = self.0.get(before) {
            log::info!("holding the listener {}", new.listener.local_addr());
            new.store();
        }
        Ok(id)
    }

    pub(super) fn insert(
        &mut self,
        about: ListenerRecord,
        descriptor: Descriptor,
        pinned: bool,
    ) -> io::Result<Id> {
        let id = sys::descriptor::inode(&descriptor)?;
        if self.0.iter().any(|one| one.id == id) {
            return Ok(id);
        }
        let socket = sys::descriptor::into_socket(descriptor)?;
        if !sys::socket::is_listening_stream(&socket)? {
            let text = "not a listening stream socket";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let listener = Listener::for_others(socket, about.name.clone(), about.by_name)?;
        listener.set_own_path(about.owns_path);
        self.0.push(HeldListener {
            listener,
            about,
            pinned,
            // What was there at the beginning, and was not stored here.
            is_managers: pinned,
            id,
        });
        Ok(id)
    }

    /// Closes those that are in nobody's list, and were not there from the beginning.
    pub(super) fn keep_only(&mut self, wanted: &[Id]) {
        let before = self.0.len();
        self.0.retain(|one| {
            let stays = one.pinned || wanted.contains(&one.id);
            if !stays {
                log::info!("closing the listener {}", one.listener.local_addr());
                notify::forget(one.about.to_stored_name());
            }
            stays
        });
        if self.0.len() < before {
            // The manager forgets by name, and another one may have the same.
            self.0
                .iter()
                .filter(|one| !one.is_managers)
                .for_each(HeldListener::store);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &HeldListener> {
        self.0.iter()
    }

    /// Their files are not to be removed: the service manager keeps them for the next supervisor.
    pub(super) fn leave_files(&self) {
        for one in &self.0 {
            one.listener.set_own_path(false);
        }
    }
}
