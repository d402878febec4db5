//! Listeners: the options of a bind, the bind, and listening sockets that the application already
//! has.

mod bind_error;
mod conversions;
mod datagram;
mod unix_path;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, Socket, TcpKeepalive, Type};

use crate::addr::{Addr, AddrError, SocketKind};
use crate::log;
use crate::sys::{self, Descriptor, DirectoryEntry, FoundFile, IfLocked};
use crate::wire::{BindAddr, BindOptions, BindRequest, ListenerId, WirePath, to_fd_name};

pub use bind_error::BindError;
pub(crate) use datagram::is_datagram;
use unix_path::UnixPath;

/// An address to listen on, and the options for it.
///
/// Texts, socket addresses, pairs of host and port, and a `TcpListener` convert into a `Bind`, so
/// most servers never name this type.
///
/// | | listens on |
/// |---|---|
/// | `"127.0.0.1:8080"`, `"[::1]:8080"`, `"unix:/run/app.sock"` | this address, see [`Addr`] |
/// | `"localhost:8080"`, `("localhost", 8080)` | one address of this host: its first IPv4 address, else its first |
/// | `":8080"`, `("", 8080)` | all addresses of the machine, IPv6 and IPv4 |
/// | a `SocketAddr`, `(Ipv4Addr::LOCALHOST, 8080)` | this address |
/// | a `TcpListener` | the listener as it is: see [`Listener::from_std`] |
///
/// A host is resolved when the `Bind` is made, by the system's resolver, which may take a while.
/// Port 0 is any free port.
///
/// # Examples
///
/// ```
/// use handover::{Bind, Server};
///
/// let listener = Bind::new("127.0.0.1:0").name("public").backlog(4096).bind()?;
/// println!("listening on {}", listener.addr());
///
/// let builder = Server::builder().listener(listener).listen("localhost:0").listen(("::1", 0));
/// # Ok::<(), handover::BindError>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "a Bind listens only after `bind` or `Builder::build` is called"]
pub struct Bind {
    addr: Result<Addr, AddrError>,
    kind: SocketKind,
    options: BindOptions,
    keepalive: Option<Duration>,
    attempts: u32,
    interval: Duration,
    speaks_first: bool,
    /// The user that a Unix socket is for, if this process binds it for another one.
    for_user: Option<u32>,
    /// The directory of a Unix socket.
    if_locked: IfLocked,
    /// A listener that the application has.
    given: Option<Arc<TcpListener>>,
}

impl Bind {
    /// Listens on an address as text: as [`Addr`], or with a host name, or as `:8080`, see above.
    /// [`bind`](Self::bind) reports a bad address.
    ///
    /// `udp:127.0.0.1:53` and `unixgram:/run/app.sock` are datagram sockets, which only a
    /// supervisor binds, for its program: see [`Supervisor::listen`](crate::Supervisor::listen).
    pub fn new(addr: impl AsRef<str>) -> Self {
        addr.as_ref()
            .parse()
            .unwrap_or_else(|error| Self::with(Err(error)))
    }

    fn with(addr: Result<Addr, AddrError>) -> Self {
        Self {
            addr,
            kind: SocketKind::Stream,
            options: BindOptions {
                backlog: 1024,
                nodelay: true,
                ..BindOptions::default()
            },
            keepalive: None,
            attempts: 10,
            interval: Duration::from_millis(100),
            speaks_first: false,
            for_user: None,
            if_locked: IfLocked::Wait,
            given: None,
        }
    }

    /// Sets a name, for logs and for
    /// [`Connection::listener_name`](crate::Connection::listener_name). Defaults to the address.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.options.name = Some(name.into());
        self
    }

    /// How many connections the kernel queues before they are accepted (`listen(2)`; the system may
    /// cap it). Defaults to 1024.
    pub fn backlog(mut self, connections: u32) -> Self {
        self.options.backlog = connections;
        self
    }

    /// Sends small responses at once (TCP_NODELAY). Defaults to true.
    pub fn nodelay(mut self, on: bool) -> Self {
        self.options.nodelay = on;
        self
    }

    /// Probes TCP clients that have been silent for `idle` (SO_KEEPALIVE, TCP_KEEPIDLE). Systems
    /// count in seconds, from 1 to 32,767: a time outside counts as the nearest. Defaults to no
    /// probes.
    pub fn keepalive(mut self, idle: Duration) -> Self {
        self.keepalive = Some(idle.clamp(Duration::from_secs(1), Duration::from_secs(32_767)));
        self
    }

    /// Lets the kernel hold a new connection back until its first bytes have arrived (Linux:
    /// TCP_DEFER_ACCEPT; elsewhere without effect). Defaults to false.
    pub fn defer_accept(mut self, on: bool) -> Self {
        self.options.defer_accept = on;
        self
    }

    /// Accepts data in the opening packet, with at most `queue` such connections pending (Linux:
    /// TCP_FASTOPEN; elsewhere without effect). Defaults to off.
    pub fn fast_open(mut self, queue: u32) -> Self {
        self.options.fast_open = Some(queue);
        self
    }

    /// Lets other sockets of the same user listen on the same address (SO_REUSEPORT; an error where
    /// the system has no such option). Connections that are queued on a socket when it closes are
    /// reset, so a restart passes its listeners on instead. Defaults to false.
    pub fn reuse_port(mut self, on: bool) -> Self {
        self.options.reuse_port = on;
        self
    }

    /// Makes an IPv6 listener accept no IPv4 clients (IPV6_V6ONLY). Defaults to false, also where
    /// the system's default is true.
    pub fn only_v6(mut self, on: bool) -> Self {
        self.options.only_v6 = on;
        self
    }

    /// Sets how often an address in use is tried, at least once. Defaults to 10.
    pub fn bind_attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts.max(1);
        self
    }

    /// Sets the time between two such attempts. Defaults to 100 ms.
    pub fn bind_interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// Makes the server speak first: the service is called for a new connection at once. Defaults
    /// to false: the service is called when the client has sent something.
    pub fn speaks_first(mut self, on: bool) -> Self {
        self.speaks_first = on;
        self
    }

    /// Sets the mode of a Unix socket's file, such as `0o660`. Defaults to what the umask leaves.
    pub fn unix_mode(mut self, mode: u32) -> Self {
        self.options.unix_mode = Some(mode);
        self
    }

    /// Lets the clients of a Unix socket send descriptors (SCM_RIGHTS in unix(7)). A service that
    /// wants them has to receive them itself. If false, Linux from 6.16 on refuses them, by the error
    /// EPERM for the client (SO_PASSRIGHTS). An older system closes those that the service does not
    /// receive, on the thread that reads from the connection or closes it. The client can make this
    /// thread wait: by a TCP socket with SO_LINGER (socket(7)). So on such a system, let only users
    /// connect that may stop the server ([`unix_mode`](Self::unix_mode)). An inherited socket gets the
    /// option when the server begins to accept, since the process before may still serve until then.
    /// Defaults to false.
    pub fn unix_descriptors(mut self, on: bool) -> Self {
        self.options.unix_descriptors = on;
        self
    }

    /// Binds for another user: root replaces the file of a dead socket of this user, too.
    pub(crate) fn for_user(mut self, uid: Option<u32>) -> Self {
        self.for_user = uid;
        self
    }

    /// Sets what to do if another process has locked the directory of a Unix socket.
    pub(crate) fn if_locked(mut self, if_locked: IfLocked) -> Self {
        self.if_locked = if_locked;
        self
    }

    /// Match quality between a listener and this bind request; `None` if they do not match. `name`
    /// is the listener's, as [`to_fd_name`] makes it. The listener has the [kind](Self::has_kind_of)
    /// that this request asks for. Where names are trusted, the name alone is a
    /// match, at any address; a name that is only the default does not count.
    pub(crate) fn fit(&self, name: &str, local: &Addr, trusts_names: bool) -> Option<Fit> {
        let wanted = self.addr.as_ref().ok().filter(|_| self.given.is_none())?;
        let is_named = self.options.name.as_deref().map(to_fd_name).as_deref() == Some(name);
        let fits_but_for_the_port = match (wanted, local) {
            (Addr::Ip(wanted), Addr::Ip(local)) => wanted.port() == 0 && wanted.ip() == local.ip(),
            _ => false,
        };
        match wanted == local {
            _ if is_named && trusts_names => Some(Fit::TrustedName),
            is_equal if is_named && (is_equal || fits_but_for_the_port) => Some(Fit::Name),
            true => Some(Fit::Addr),
            false => fits_but_for_the_port.then_some(Fit::AnyPort),
        }
    }

    /// The request to another process to bind and listen in place of this process. `None` if the
    /// address is not one that can be bound, or is bound already, and for datagram sockets.
    pub(crate) fn to_request(&self) -> Option<BindRequest> {
        if self.given.is_some() || self.kind == SocketKind::Datagram {
            return None;
        }
        let addr = match self.addr.as_ref().ok()? {
            Addr::Ip(addr) => BindAddr::Tcp(*addr),
            // The other process may work in another directory.
            Addr::Unix(path) => {
                BindAddr::Unix(WirePath::new(&std::path::absolute(path.as_ref()?).ok()?)?)
            }
        };
        let options = self.options.clone();
        Some(BindRequest { addr, options })
    }

    /// The bind request of another process, which retries by itself.
    pub(crate) fn from_request(mut request: BindRequest) -> Self {
        let addr = match request.addr {
            BindAddr::Tcp(addr) => Addr::Ip(addr),
            BindAddr::Unix(path) => Addr::Unix(Some(sys::file::os_string(path.as_bytes()).into())),
        };
        request.options.name.take_if(|name| name.is_empty());
        Self {
            options: request.options,
            attempts: 1,
            ..Self::with(Ok(addr))
        }
    }

    /// Makes the listener from an inherited socket. The options of the socket stay as they are, as
    /// other processes share it, until [`Listener::begin_accepting`]. `matches_by_name`: as
    /// [`Listener::matches_by_name`].
    pub(crate) fn adopt(self, socket: Socket, matches_by_name: bool) -> io::Result<Listener> {
        socket.set_nonblocking(true)?;
        let path = self.addr.as_ref().ok().and_then(Addr::as_path);
        let path = path.map(|path| UnixPath::of(path, false));
        let origin = Origin::Given { matches_by_name };
        let mut listener = Listener::new(socket, path, &self, origin)?;
        listener.may_be_shared = true;
        let is_unix = listener.addr().as_ip().is_none();
        listener.unix_descriptors = is_unix.then_some(self.options.unix_descriptors);
        Ok(listener)
    }

    /// Binds and listens.
    ///
    /// The file of a Unix socket that no process listens on any more is replaced. If a process
    /// listens, the address is in use. Any other file is left alone, and is an error; so is, for
    /// root, a socket of another user: root replaces its own sockets, and a supervisor also those
    /// of the user whose processes it serves.
    ///
    /// # Errors
    ///
    /// [`BindError`] names the address, how often it was tried, and the cause.
    pub fn bind(self) -> Result<Listener, BindError> {
        self.bind_by(Self::try_bind)
    }

    /// Binds and listens by `try_bind`, with the retries that were set.
    pub(crate) fn bind_by(
        self,
        try_bind: impl Fn(&Self, &Addr) -> io::Result<Listener>,
    ) -> Result<Listener, BindError> {
        let addr = self.addr.clone().map_err(|error| BindError {
            shown: None,
            attempts: 0,
            cause: io::Error::new(io::ErrorKind::InvalidInput, error),
        })?;
        let mut attempts = 0;
        loop {
            attempts += 1;
            match try_bind(&self, &addr) {
                Ok(listener) => return Ok(listener),
                Err(error)
                    if error.kind() == io::ErrorKind::AddrInUse && attempts < self.attempts =>
                {
                    let addr = self.kind.show(&addr);
                    let left = self.attempts - attempts;
                    let seconds = self.patience().as_secs_f32();
                    let times = match left {
                        1 => "once".to_owned(),
                        _ => format!("up to {left} times"),
                    };
                    match attempts {
                        1 => {
                            log::info!("{addr} is in use: trying {times} more, for {seconds:.1} s")
                        }
                        _ => {
                            log::debug!("{addr} is in use, attempt {attempts} of {}", self.attempts)
                        }
                    }
                    std::thread::sleep(self.interval);
                }
                Err(cause) => {
                    return Err(BindError {
                        shown: Some(self.kind.show(&addr)),
                        attempts,
                        cause,
                    });
                }
            }
        }
    }

    pub(crate) fn try_bind(&self, addr: &Addr) -> io::Result<Listener> {
        self.check_stream().map_err(BindError::into_cause)?;
        if let Some(given) = &self.given {
            return Listener::from_given(given.try_clone()?.into(), self);
        }
        // Held until the socket listens: of several servers that start over the file of a dead one,
        // exactly one gets the path.
        let lock = |path| sys::file::lock_directory_of(path, self.if_locked);
        let _lock = addr.as_path().map(lock).transpose()?;
        let (socket, path) = match addr {
            Addr::Ip(ip) => (self.bind_tcp(*ip)?, None),
            Addr::Unix(path) => {
                let path = path.as_deref().unwrap_or(Path::new(""));
                let (socket, path) = self.bind_unix(path, Type::STREAM)?;
                (socket, Some(path))
            }
        };
        let backlog = i32::try_from(self.options.backlog).unwrap_or(i32::MAX);
        socket.listen(backlog)?;
        socket.set_nonblocking(true)?;
        Listener::new(socket, path, self, Origin::Bound)
    }

    fn bind_tcp(&self, addr: SocketAddr) -> io::Result<Socket> {
        let options = &self.options;
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        if addr.is_ipv6() {
            socket.set_only_v6(options.only_v6)?;
        }
        sys::socket::allow_rebind(&socket)?;
        sys::socket::set_reuse_port(&socket, options.reuse_port)?;
        sys::socket::set_accept_options(&socket, options.defer_accept, options.fast_open)?;
        sys::socket::bind(&socket, &addr.into())?;
        Ok(socket)
    }

    fn bind_unix(&self, path: &Path, kind: Type) -> io::Result<(Socket, UnixPath)> {
        let addr = SockAddr::unix(path)?;
        let entry = DirectoryEntry::open(path)?;
        sys::file::free_socket_path(&entry, path, self.for_user)?;
        let socket = Socket::new(Domain::UNIX, kind, None)?;
        if !self.options.unix_descriptors {
            allow_descriptors(&socket, false);
        }
        // No call binds in a directory that is held open under the socket's own path, which clients
        // and `local_addr` name. So a user who may change a directory of the path can have the file
        // made elsewhere. Such a file is found neither here nor later, and so never removed.
        socket.bind(&addr)?;
        let path = UnixPath::in_directory(path, entry, true);
        if let Some(mode) = self.options.unix_mode {
            path.set_access(None, mode)?;
        }
        Ok((socket, path))
    }

    /// How long an address in use is tried.
    pub(crate) fn patience(&self) -> Duration {
        self.interval.saturating_mul(self.attempts - 1)
    }
}

/// Connections have the option of their listener.
fn allow_descriptors(socket: &Socket, on: bool) {
    if let Err(error) = sys::message::allow_descriptors(socket, on) {
        log::debug!("the clients of a Unix socket can send descriptors: {error}");
    }
}

/// A listening socket, for [`Builder::listener`](crate::Builder::listener).
///
/// Dropping it closes the socket, and removes the file of a Unix socket that it bound.
#[derive(Debug)]
pub struct Listener {
    // Dropped before the socket: as long as the socket is open, no other file has its inode.
    path: Option<UnixPath>,
    pub(crate) socket: Socket,
    pub(crate) info: Arc<ListenerInfo>,
    /// The listener was inherited by its name, at whatever address.
    pub(crate) matches_by_name: bool,
    /// Other processes may accept from the socket: it was not bound here.
    pub(crate) may_be_shared: bool,
    /// Whether clients may send descriptors, if that is to be set on the socket.
    unix_descriptors: Option<bool>,
}

/// The match quality between a listener and a bind request, from the worst to the best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fit {
    /// The request has port 0, and the rest of the address matches.
    AnyPort,
    /// The address matches.
    Addr,
    /// The name matches, and the address at least but for the port.
    Name,
    /// The name matches, and is trusted: the address may be another one.
    TrustedName,
}

/// What every connection knows of its listener.
#[derive(Clone, Debug)]
pub(crate) struct ListenerInfo {
    pub(crate) name: String,
    pub(crate) local: Addr,
    kind: SocketKind,
    pub(crate) speaks_first: bool,
    // What is set on each connection, because connections do not inherit it from the listener.
    nodelay: bool,
    keepalive: Option<Duration>,
}

impl ListenerInfo {
    /// By which another process knows the listener.
    pub(crate) fn id(&self) -> ListenerId {
        ListenerId {
            name: self.name.clone(),
            addr: self.local.to_wire(),
        }
    }
}

/// Where a listening socket comes from.
enum Origin {
    /// This process has bound it, and may set its options.
    Bound,
    /// The application or another process has made it. Its options stay as they are, as others may
    /// share it. `matches_by_name`: as [`Listener::matches_by_name`].
    Given { matches_by_name: bool },
}

impl Listener {
    /// Binds with the defaults of [`Bind`].
    ///
    /// # Errors
    ///
    /// As [`Bind::bind`].
    pub fn bind(addr: impl Into<Bind>) -> Result<Self, BindError> {
        addr.into().bind()
    }

    /// Takes a TCP listener that the application already has, under a name for logs.
    ///
    /// The listener becomes non-blocking, for every process that shares it, and child processes do
    /// not inherit it any more (FD_CLOEXEC). Its backlog and all its other options stay as they
    /// are. Its connections get TCP_NODELAY, see [`nodelay`](Self::nodelay).
    ///
    /// # Errors
    ///
    /// The system's error if the socket cannot be used.
    pub fn from_std(listener: TcpListener, name: impl Into<String>) -> io::Result<Self> {
        Self::from_socket(listener.into(), name)
    }

    /// Takes any listening stream socket that the application already has, under a name for logs,
    /// as [`from_std`](Self::from_std) does: a `UnixListener`, an `OwnedFd` (`OwnedSocket` on
    /// Windows), a socket of another library, or what
    /// [`Restart::inherited`](crate::Restart::inherited) gives. The file of a Unix socket stays
    /// when the listener is dropped.
    ///
    /// # Errors
    ///
    /// The system's error if the socket cannot be used; `InvalidInput` if it does not listen.
    pub fn from_descriptor(
        descriptor: impl Into<Descriptor>,
        name: impl Into<String>,
    ) -> io::Result<Self> {
        Self::from_socket(sys::descriptor::into_socket(descriptor.into())?, name)
    }

    fn from_socket(socket: Socket, name: impl Into<String>) -> io::Result<Self> {
        if !sys::socket::is_listening_stream(&socket)? {
            let text = "not a listening stream socket";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        Self::from_given(socket, &Bind::with(Ok(Addr::Unix(None))).name(name))
    }

    fn from_given(socket: Socket, bind: &Bind) -> io::Result<Self> {
        sys::socket::set_cloexec(&socket)?;
        socket.set_nonblocking(true)?;
        let origin = Origin::Given {
            matches_by_name: false,
        };
        let mut listener = Self::new(socket, None, bind, origin)?;
        listener.may_be_shared = true;
        Ok(listener)
    }

    /// A listener that this process holds for other processes. Its options, which they share, stay
    /// as they are.
    pub(crate) fn for_others(
        socket: Socket,
        name: String,
        matches_by_name: bool,
    ) -> io::Result<Self> {
        let local = Addr::from_kernel(&socket.local_addr()?);
        let path = local.as_path().map(|path| UnixPath::of(path, false));
        let mut bind = Bind::with(Ok(Addr::Unix(None))).name(name).nodelay(false);
        if is_datagram(&socket)? {
            bind.kind = SocketKind::Datagram;
        }
        Self::new(socket, path, &bind, Origin::Given { matches_by_name })
    }

    fn new(
        socket: Socket,
        path: Option<UnixPath>,
        bind: &Bind,
        origin: Origin,
    ) -> io::Result<Self> {
        let local = Addr::from_kernel(&socket.local_addr()?);
        let name = bind.options.name.clone();
        let is_tcp = local.as_ip().is_some() && bind.kind == SocketKind::Stream;
        let mut info = ListenerInfo {
            name: name.unwrap_or_else(|| bind.kind.show(&local)),
            kind: bind.kind,
            speaks_first: bind.speaks_first,
            nodelay: bind.options.nodelay && is_tcp,
            keepalive: bind.keepalive.filter(|_| is_tcp),
            local,
        };
        let matches_by_name = match origin {
            // Where connections inherit the options of their listener, as on Linux, they are set
            // only here, and cost nothing for each connection.
            Origin::Bound if sys::socket::ACCEPT_INHERITS_OPTIONS => {
                info.set_connection_options(&socket)?;
                (info.nodelay, info.keepalive) = (false, None);
                false
            }
            Origin::Bound => false,
            Origin::Given { matches_by_name } => {
                let has_nodelay = || socket.tcp_nodelay().unwrap_or(false);
                info.nodelay &= !(sys::socket::ACCEPT_INHERITS_OPTIONS && has_nodelay());
                matches_by_name
            }
        };
        Ok(Self {
            socket,
            info: Arc::new(info),
            path,
            matches_by_name,
            may_be_shared: false,
            unix_descriptors: None,
        })
    }

    /// The address that the listener is bound to, as `TcpListener::local_addr` gives it, with the
    /// real port if port 0 was requested. [`addr`](Self::addr) has no error, and names Unix sockets
    /// too.
    ///
    /// # Errors
    ///
    /// `Unsupported` for a Unix socket, which has no IP address.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.info.local.to_ip()
    }

    /// The address that the listener is bound to, with the real port if port 0 was requested.
    pub fn addr(&self) -> &Addr {
        &self.info.local
    }

    /// The address as text, with the kind of the socket.
    pub(crate) fn shown_addr(&self) -> String {
        self.info.kind.show(&self.info.local)
    }

    /// The socket is for datagrams, so that nothing can be accepted.
    pub(crate) fn is_datagram(&self) -> bool {
        self.info.kind == SocketKind::Datagram
    }

    /// The listener's name.
    pub fn name(&self) -> &str {
        &self.info.name
    }

    /// As [`Bind::speaks_first`], for a listener that was not bound here.
    pub fn speaks_first(mut self, on: bool) -> Self {
        Arc::make_mut(&mut self.info).speaks_first = on;
        self
    }

    /// As [`Bind::nodelay`], for a listener that was not bound here. If false, its connections have
    /// the option as the system gives it: on Linux, as the listener has it. Defaults to true.
    pub fn nodelay(mut self, on: bool) -> Self {
        let info = Arc::make_mut(&mut self.info);
        info.nodelay = on && info.local.as_ip().is_some();
        self
    }

    /// The file of the Unix socket, if this listener removes it when it is dropped.
    pub(crate) fn removed_file(&self) -> Option<&Path> {
        self.path.as_ref()?.removed()
    }

    /// Sets whether this listener removes the file of its Unix socket when it is dropped.
    pub(crate) fn set_removes_file(&self, removes: bool) {
        if let Some(path) = &self.path {
            path.set_removes(removes);
        }
    }

    /// The socket's file, if it is a Unix socket whose file was found.
    pub(crate) fn file(&self) -> Option<&FoundFile> {
        self.path.as_ref()?.file()
    }

    /// Forgets the file that was found at the path of a Unix socket, unless it is the socket's.
    pub(crate) fn check_file(&mut self, is_own: impl FnOnce(&FoundFile) -> bool) {
        if let Some(path) = &mut self.path {
            path.check(is_own);
        }
    }

    /// Whether the socket's file is still at its path.
    pub(crate) fn has_its_file(&self) -> bool {
        self.path.as_ref().is_some_and(UnixPath::is_there)
    }

    /// Sets the group and the mode of the file of a Unix socket that this process has bound.
    pub(crate) fn set_file_access(&self, group: Option<u32>, mode: u32) -> io::Result<()> {
        let path = self.path.as_ref().ok_or(io::ErrorKind::NotFound)?;
        path.set_access(group, mode)
    }

    /// Sets the options that the process before may have wanted otherwise: from now on, this process
    /// serves.
    pub(crate) fn begin_accepting(&self) {
        if let Some(on) = self.unix_descriptors {
            allow_descriptors(&self.socket, on);
        }
    }

    /// Accepts one connection.
    pub(crate) fn accept(&self) -> io::Result<(Socket, Addr)> {
        let (socket, peer) = sys::socket::accept(&self.socket)?;
        // The clients of a Unix socket have no address. An IPv4 client of an IPv6 listener is the
        // same client as on an IPv4 listener: it has the same limits, and the same text in logs.
        let peer = peer.map_or(Addr::Unix(None), |peer| {
            Addr::Ip(SocketAddr::new(peer.ip().to_canonical(), peer.port()))
        });
        // An error here is that of one connection, which may have been reset already.
        let failed = |error| io::Error::new(io::ErrorKind::ConnectionAborted, error);
        self.info.set_connection_options(&socket).map_err(failed)?;
        Ok((socket, peer))
    }
}

impl ListenerInfo {
    fn set_connection_options(&self, socket: &Socket) -> io::Result<()> {
        if self.nodelay {
            socket.set_tcp_nodelay(true)?;
        }
        if let Some(idle) = self.keepalive {
            socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(idle))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inherited_listener_keeps_its_options_and_its_connections_get_those_of_the_bind() {
        let socket = Socket::from(TcpListener::bind("127.0.0.1:0").unwrap());
        let shared = socket.try_clone().unwrap();
        let bind = Bind::new("127.0.0.1:0").keepalive(Duration::from_secs(77));
        let listener = bind.adopt(socket, false).unwrap();
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap());
        let (conn, _) = loop {
            match listener.accept() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
                accepted => break accepted.unwrap(),
            }
        };
        assert!(conn.tcp_nodelay().unwrap() && conn.keepalive().unwrap());
        assert!(!shared.tcp_nodelay().unwrap() && !shared.keepalive().unwrap());
    }
    #[test]
    fn a_unix_socket_of_another_process_keeps_its_options_until_this_one_accepts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let bind = || Bind::from(Addr::Unix(Some(path.clone())));
        let Ok(before) = bind().unix_descriptors(true).bind() else {
            return;
        };
        if sys::message::allow_descriptors(&before.socket, true).is_err() {
            return;
        }
        let can_send_descriptors = || {
            let client = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
            client.connect(&SockAddr::unix(&path).unwrap()).unwrap();
            let descriptor = sys::descriptor::duplicate(&client).unwrap();
            sys::message::send(&client, "text", &[&descriptor]).is_ok()
        };
        assert!(can_send_descriptors());
        for on in [false, true] {
            let bind = bind().unix_descriptors(on);
            let listener = bind.adopt(before.socket.try_clone().unwrap(), false);
            let listener = listener.unwrap();
            assert_eq!(can_send_descriptors(), !on);
            listener.begin_accepting();
            assert_eq!(can_send_descriptors(), on);
        }
    }
}
