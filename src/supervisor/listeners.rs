//! The listeners that the supervisor holds. While no process serves, the kernel goes on queueing
//! the connections of clients for them.

use std::io;
use std::time::{Duration, Instant};

use super::Settings;
use super::bind_rules::Sender;
use super::fleet::event::ListenerId;
use crate::clock::Deadline;
use crate::listener::{Bind, BindError, Fit, Listener, is_datagram};
use crate::log;
use crate::notify;
use crate::restart::Inherited;
use crate::sys::{self, Descriptor, FoundFile, IfLocked};
use crate::wire::{ListenerRecord, to_fd_name};

/// The most listeners that processes can have the supervisor hold, beside those of the settings and
/// of a socket activator: each of them takes a descriptor, and is passed to each process.
const MAX_OF_PROCESSES: usize = 256;

/// How long processes are told to try again if another process has locked the directory of a Unix
/// socket. Then the socket is bound without the lock. Less than the time for which a process tries
/// by default, see [`Bind::bind_attempts`].
const LOCK_PATIENCE: Duration = Duration::from_millis(500);

/// The time between two attempts to bind what is missing.
const BIND_INTERVAL: Duration = Duration::from_millis(100);

/// All listeners that are held.
#[derive(Debug, Default)]
pub(super) struct HeldListeners {
    all: Vec<HeldListener>,
    /// Since when another process has locked a directory that is needed.
    locked_since: Option<Instant>,
    /// The listeners of the settings whose address is in use.
    missing: Vec<Missing>,
    /// When they are tried again.
    next_attempt: Deadline,
}

#[derive(Debug)]
struct Missing {
    bind: Bind,
    give_up_at: Deadline,
}

#[derive(Debug)]
pub(super) struct HeldListener {
    /// The drop of the listener removes the file of a Unix socket, even if a serving process has
    /// bound the socket.
    pub(super) listener: Listener,
    pub(super) record: ListenerRecord,
    pub(super) holder: Holder,
    pub(super) id: ListenerId,
}

/// What a listener is held for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holder {
    /// The processes that use it.
    Process,
    /// The settings, which name it.
    Settings,
    /// The socket activator that passed it, and holds it: no copy needs to be stored.
    ServiceManager,
}

impl Holder {
    /// Whether the listener is held even if no process uses it.
    pub(super) fn keeps_when_unused(self) -> bool {
        self != Self::Process
    }
}

impl HeldListener {
    /// Match quality between this listener and a bind request, see [`Bind::fit`].
    fn fit(&self, bind: &Bind, trusts_names: bool) -> Option<Fit> {
        match bind.has_kind_of(&self.listener.socket) {
            true => bind.fit(&self.record.name, self.listener.addr(), trusts_names),
            false => None,
        }
    }

    /// Stores a copy with the service manager, for the next supervisor.
    fn store(&self) {
        match sys::descriptor::duplicate(&self.listener.socket) {
            Ok(copy) => notify::store_listener(self.record.to_stored_name(), copy),
            Err(error) => log::error!("cannot copy the listener {}: {error}", self.record.name),
        }
    }
}

impl HeldListeners {
    /// Takes the listeners that this process inherited, and binds those of the settings that are
    /// missing.
    pub(super) fn inherit_or_bind(
        mut inherited: Inherited,
        settings: &Settings,
    ) -> io::Result<Self> {
        let mut held = Self::default();
        let stored = inherited.stored_listeners();
        let found = inherited.take_listeners(&settings.listen.iter().collect::<Vec<_>>());
        for (bind, found) in settings.listen.iter().zip(found) {
            let (listener, holder) = match found {
                None => {
                    let bind = bind.clone().for_user(settings.user_id());
                    (bind.bind_for_others()?, Holder::Settings)
                }
                Some(listener) => claim(listener, &stored)?,
            };
            held.hold_configured(listener, holder, settings.runs_other_program)?;
        }
        held.hold_inherited(inherited.take_all());
        Ok(held)
    }

    /// Holds what the settings do not name: listeners of a socket activator, and those that an
    /// earlier supervisor has left with the service manager.
    fn hold_inherited(&mut self, passed: Vec<(String, Descriptor)>) {
        for (name, descriptor) in passed {
            let stored = ListenerRecord::from_stored_name(&name);
            let holder = match stored {
                Some(_) => Holder::Process,
                None => Holder::ServiceManager,
            };
            let record = stored.unwrap_or(ListenerRecord {
                name: to_fd_name(&name),
                matches_by_name: true,
                removes_file: false,
            });
            match self.add_descriptor(record, descriptor, holder, is_of_own_user) {
                Ok(_) => log::info!("inherited the listener {name:?}"),
                Err(error) => log::error!("cannot use the descriptor {name:?}: {error}"),
            }
        }
    }

    /// Binds the listeners of the settings that are not held yet, without waiting: an address in use
    /// is tried again by [`retry_missing`](Self::retry_missing). Errors are only logged.
    pub(super) fn bind_missing(&mut self, settings: &Settings) {
        let now = Instant::now();
        let missing = settings.listen.iter().map(|bind| Missing {
            give_up_at: Deadline::after(now, bind.patience()),
            bind: bind.clone(),
        });
        self.missing = missing.collect();
        self.retry_missing(settings);
    }

    /// Tries once more to bind what is missing.
    pub(super) fn retry_missing(&mut self, settings: &Settings) {
        let now = Instant::now();
        for missing in std::mem::take(&mut self.missing) {
            let is_held = |held: &HeldListener| held.fit(&missing.bind, true).is_some();
            if self.all.iter().any(is_held) {
                continue;
            }
            let bind = missing.bind.clone().for_user(settings.user_id());
            let bind = bind.if_locked(IfLocked::Ignore).bind_attempts(1);
            let bound = bind.bind_for_others().map_err(io::Error::from);
            let held = bound.and_then(|listener| {
                let is_other = settings.runs_other_program;
                self.hold_configured(listener, Holder::Settings, is_other)
            });
            let is_late = missing.give_up_at.has_passed(now);
            match held {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && !is_late => {
                    self.missing.push(missing);
                }
                Err(error) => log::error!("{error}"),
                Ok(()) => {}
            }
        }
        self.next_attempt = match self.missing.is_empty() {
            true => Deadline::NEVER,
            false => Deadline::after(now, BIND_INTERVAL),
        };
    }

    /// When to call [`retry_missing`](Self::retry_missing).
    pub(super) fn next_attempt(&self) -> Deadline {
        self.next_attempt
    }

    /// Holds a listener that the settings name. Another program expects a blocking listener, and
    /// every program a blocking datagram socket.
    fn hold_configured(
        &mut self,
        listener: Listener,
        holder: Holder,
        runs_other_program: bool,
    ) -> io::Result<()> {
        let is_blocking = runs_other_program || listener.is_datagram();
        listener.socket.set_nonblocking(!is_blocking)?;
        self.hold(listener, holder).map(drop)
    }

    /// Holds a listener that this process has bound, or has claimed from the service manager.
    fn hold(&mut self, listener: Listener, holder: Holder) -> io::Result<ListenerId> {
        let id = sys::descriptor::inode(&sys::descriptor::duplicate(&listener.socket)?)?;
        log::info!("listening on {}", listener.shown_addr());
        let held = HeldListener {
            id,
            record: ListenerRecord {
                name: to_fd_name(listener.name()),
                matches_by_name: holder.keeps_when_unused(),
                removes_file: listener.removed_file().is_some(),
            },
            listener,
            holder,
        };
        if holder != Holder::ServiceManager {
            held.store();
        }
        self.all.push(held);
        Ok(id)
    }

    /// The listener that a process asks for: a held listener that matches, or a new one. A process
    /// that asks for any free port does not get the port of another process. `None` if there is no
    /// such listener, and the process may not have one bound.
    pub(super) fn find_or_bind(
        &mut self,
        bind: Bind,
        may_bind: bool,
        sender: Sender,
    ) -> io::Result<Option<(ListenerId, Descriptor)>> {
        let fits = |held: &&HeldListener| {
            let fit = held.fit(&bind, held.record.matches_by_name);
            fit.is_some_and(|fit| fit > Fit::AnyPort)
        };
        if let Some(held) = self.all.iter().find(fits) {
            let descriptor = sys::descriptor::duplicate(&held.listener.socket)?;
            return Ok(Some((held.id, descriptor)));
        }
        if !may_bind {
            return Ok(None);
        }
        self.check_room()?;
        let listener = self.bind_without_waiting(bind.for_user(Some(sender.uid)))?;
        let descriptor = sys::descriptor::duplicate(&listener.socket)?;
        Ok(Some((self.hold(listener, Holder::Process)?, descriptor)))
    }

    /// Binds for a process, which tries again if the address is in use: also if another process has
    /// locked the directory of a Unix socket. Such a process must not make the supervisor wait, nor
    /// keep others from listening.
    fn bind_without_waiting(&mut self, bind: Bind) -> io::Result<Listener> {
        let is_patient = self
            .locked_since
            .is_none_or(|since| since.elapsed() < LOCK_PATIENCE);
        let if_locked = match is_patient {
            true => IfLocked::Fail,
            false => IfLocked::Ignore,
        };
        let bound = bind.if_locked(if_locked).bind();
        match bound.map_err(BindError::into_cause) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.locked_since.get_or_insert_with(Instant::now);
                Err(io::Error::new(io::ErrorKind::AddrInUse, error))
            }
            bound => {
                self.locked_since = None;
                bound
            }
        }
    }

    /// Whether a process may have one more listener held.
    fn check_room(&self) -> io::Result<()> {
        let of_processes = self
            .all
            .iter()
            .filter(|held| !held.holder.keeps_when_unused());
        match of_processes.count() < MAX_OF_PROCESSES {
            true => Ok(()),
            false => {
                let text = format!("{MAX_OF_PROCESSES} listeners of processes are held already");
                Err(io::Error::other(text))
            }
        }
    }

    /// Holds the copy of a listener that a process has sent, unless the listener is held already. A
    /// process of another user cannot make this process remove a file of yet another user, nor have
    /// later processes take the listener for one of another address.
    pub(super) fn hold_copy(
        &mut self,
        mut record: ListenerRecord,
        descriptor: Descriptor,
        sender: Sender,
    ) -> io::Result<ListenerId> {
        let id = sys::descriptor::inode(&descriptor)?;
        if self.all.iter().any(|held| held.id == id) {
            return Ok(id);
        }
        self.check_room()?;
        if is_datagram(&sys::descriptor::into_socket(descriptor.try_clone()?)?)? {
            return Err(not_a_listener());
        }
        record.matches_by_name &= sender.is_privileged();
        let is_own = |found: &FoundFile| sender.is_privileged() || found.owner == sender.uid;
        self.add_descriptor(record, descriptor, Holder::Process, is_own)?;
        if let Some(new) = self.all.last() {
            log::info!("holding the listener {}", new.listener.addr());
            new.store();
        }
        Ok(id)
    }

    /// Adds the listener of a descriptor, unless the listener is held already. `is_own`: whether the
    /// file at the path of a Unix socket is the listener's, so that it may be removed in the end.
    ///
    /// # Errors
    ///
    /// When the descriptor is neither a listening stream socket nor a datagram socket.
    pub(super) fn add_descriptor(
        &mut self,
        mut record: ListenerRecord,
        descriptor: Descriptor,
        holder: Holder,
        is_own: impl FnOnce(&FoundFile) -> bool,
    ) -> io::Result<ListenerId> {
        let id = sys::descriptor::inode(&descriptor)?;
        if self.all.iter().any(|held| held.id == id) {
            return Ok(id);
        }
        let socket = sys::descriptor::into_socket(descriptor)?;
        if !sys::socket::is_listening_stream(&socket)? && !is_datagram(&socket)? {
            return Err(not_a_listener());
        }
        let mut listener =
            Listener::for_others(socket, record.name.clone(), record.matches_by_name)?;
        listener.check_file(is_own);
        record.removes_file &= listener.file().is_some();
        listener.set_removes_file(record.removes_file);
        self.all.push(HeldListener {
            listener,
            record,
            holder,
            id,
        });
        Ok(id)
    }

    /// Closes the listeners that no process uses, unless they are kept when unused. Returns what is
    /// left to close: with the last descriptor of a Unix socket's listener, the descriptors are
    /// closed that clients have sent to it.
    pub(super) fn close_unused(&mut self, used: &[ListenerId]) -> Vec<Descriptor> {
        let (before, mut last) = (self.all.len(), Vec::new());
        self.all.retain(|held| {
            let stays = held.holder.keeps_when_unused() || used.contains(&held.id);
            if !stays {
                let is_unix = held.listener.addr().as_path().is_some();
                let copy = || sys::descriptor::duplicate(&held.listener.socket).ok();
                last.extend(is_unix.then(copy).flatten());
                log::info!("closing the listener {}", held.listener.shown_addr());
                notify::remove_stored_listeners(held.record.to_stored_name());
            }
            stays
        });
        if self.all.len() < before {
            // The service manager forgets all listeners of a name, and another listener that is
            // still held may have the same name.
            self.store_all();
        }
        last
    }

    /// Stores copies with the service manager, which ignores those that it has.
    pub(super) fn store_all(&self) {
        let is_own = |held: &&HeldListener| held.holder != Holder::ServiceManager;
        let own = self.all.iter().filter(is_own);
        own.for_each(HeldListener::store);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &HeldListener> {
        self.all.iter()
    }

    /// Makes the drop keep the files of Unix sockets: the next supervisor gets the listeners from
    /// the service manager.
    pub(super) fn keep_socket_files(&self) {
        for held in &self.all {
            held.listener.set_removes_file(false);
        }
    }
}

/// A listener of the settings that was passed: by a socket activator, or by the service manager with
/// which an earlier supervisor has stored it.
fn claim(
    mut listener: Listener,
    stored: &[(ListenerId, ListenerRecord)],
) -> io::Result<(Listener, Holder)> {
    let id = sys::descriptor::inode(&sys::descriptor::duplicate(&listener.socket)?)?;
    let Some((_, record)) = stored.iter().find(|(stored, _)| *stored == id) else {
        return Ok((listener, Holder::ServiceManager));
    };
    listener.check_file(is_of_own_user);
    listener.set_removes_file(record.removes_file && listener.file().is_some());
    Ok((listener, Holder::Settings))
}

/// A process of another user may have had the place of a socket's file while no supervisor ran.
fn is_of_own_user(found: &FoundFile) -> bool {
    found.owner == sys::process::effective_uid()
}

fn not_a_listener() -> io::Error {
    let text = "not a listening stream socket";
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::addr::Addr;
    use crate::supervisor::Supervisor;

    #[test]
    fn an_address_in_use_is_tried_again_and_nobody_waits() {
        let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = other.local_addr().unwrap();
        let Supervisor(settings) = Supervisor::new().listen(addr);
        let mut held = HeldListeners::default();
        let before = waits();
        held.bind_missing(&settings);
        assert!(waits() - before < 5, "it has waited");
        assert!(held.next_attempt() != Deadline::NEVER && held.iter().count() == 0);
        drop(other);
        held.retry_missing(&settings);
        assert!(held.next_attempt() == Deadline::NEVER && held.iter().count() == 1);
        // An address that stays in use is given up.
        let Supervisor(mut settings) = Supervisor::new().listen(addr);
        settings.listen[0] = settings.listen[0].clone().bind_attempts(1);
        let mut other = HeldListeners::default();
        other.bind_missing(&settings);
        assert!(other.next_attempt() == Deadline::NEVER && other.iter().count() == 0);
    }

    #[test]
    fn only_an_address_in_use_is_tried_again_for_as_long_as_its_bind_says() {
        let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let in_use = Bind::from(other.local_addr().unwrap());
        let Supervisor(settings) = Supervisor::new()
            .listen(in_use.clone().bind_interval(Duration::MAX).name("patient"))
            .listen(in_use.bind_attempts(1).name("impatient"))
            .listen("unix:/no/such/directory/socket");
        let mut held = HeldListeners::default();
        held.bind_missing(&settings);
        held.retry_missing(&settings);
        assert_eq!(held.missing.len(), 1);
        assert_eq!(held.missing[0].give_up_at, Deadline::NEVER);
    }

    /// How often this thread has given up its CPU. To wait for a lock takes many such times.
    fn waits() -> u64 {
        sys::clock::thread_usage().map_or(0, |usage| usage.waits)
    }

    #[test]
    fn a_locked_directory_makes_nobody_wait_and_keeps_no_process_from_listening() {
        let dir = tempfile::tempdir().unwrap();
        let locked = File::open(dir.path());
        let is_locked = |file: &File| sys::file::try_lock(file).is_ok_and(|done| done);
        let Some(_lock) = locked.ok().filter(is_locked) else {
            return;
        };
        let uid = sys::process::effective_uid();
        let path = dir.path().join("socket");
        let mut held = HeldListeners::default();
        let before = waits();
        let mut ask = || {
            let bind = Bind::from(Addr::Unix(Some(path.clone()))).bind_attempts(1);
            held.find_or_bind(bind, true, Sender { uid })
        };
        assert_eq!(ask().unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let took = waits() - before;
        assert!(took < 100, "{took} waits");
        let asked_at = Instant::now();
        while let Err(error) = ask() {
            assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
            assert!(asked_at.elapsed() < Duration::from_secs(60));
            std::thread::park_timeout(Duration::from_millis(10));
        }
        assert!(path.exists());
        let before = waits();
        held.close_unused(&[]);
        let took = waits() - before;
        assert!(took < 100 && !path.exists(), "{took} waits");
    }
}
