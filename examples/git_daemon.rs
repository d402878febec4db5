//! Serves Git repositories for reading: it runs `git upload-pack` for each connection.
//!
//! ```sh
//! cargo run --release --example git_daemon -- --base-path /srv/git --listen 127.0.0.1:9418
//! git clone git://127.0.0.1:9418/repo
//! ```
//!
//! On SIGTERM during a clone, the server refuses new clients at once, finishes the clone, prints a
//! report and ends. A second server can listen on the port meanwhile, because the subprocess
//! inherits only the client's socket. After `--drain`, or on SIGQUIT, the client's socket is shut
//! down, which ends the subprocess.
//!
//! On SIGHUP, a new process takes over at once, while this one finishes its clones.
//!
//! Every repository below `--base-path` (by default the working directory) is served, and nothing
//! above it: paths with `..` and symbolic links that lead outside are refused. The other options:
//!
//! - `--strict`: the path has to be the path of the repository itself; `.git` and `/.git` are not
//!   appended to it.
//! - `--timeout SECONDS`: how long a client may send nothing. Defaults to 30 for its request, and
//!   to no limit while its subprocess waits for it.
//! - `--drain SECONDS`: how long a stop waits for clones in progress. Defaults to 3600.
//! - `--workers N`: the number of clones at the same time, since each of them holds a worker.
//!   Defaults to 16.

#[cfg(unix)]
mod common;

#[cfg(not(unix))]
fn main() {
    eprintln!("this example hands its sockets to subprocesses, which it can do on Unix only");
    std::process::exit(1);
}

#[cfg(unix)]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    unix::main()
}

#[cfg(unix)]
mod unix {
    use std::ffi::OsStr;
    use std::io::{self, BufRead, Read, Write};
    use std::net::Shutdown;
    use std::os::fd::{AsFd, OwnedFd};
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::process::CommandExt;
    use std::path::{Component, Path, PathBuf};
    use std::process::{Child, Command, Stdio};
    use std::thread;
    use std::time::Duration;

    use handover::{Connection, Detached, Next};

    use crate::common::{About, Options, announce, say};

    /// The longest request in bytes, with the path and the host name.
    const REQUEST_LIMIT: usize = 8 * 1024;

    struct Daemon {
        /// An absolute path without symbolic links.
        base_path: PathBuf,
        strict: bool,
        /// The `--timeout` of `git upload-pack` in seconds; 0 means no limit.
        timeout: u64,
    }

    const ABOUT: About = About {
        name: "git_daemon",
        purpose: "Serves Git repositories for reading (git://).",
        listen: "127.0.0.1:9418",
        own_options: "  --base-path PATH          serve the repositories below this directory
  --strict                  take paths as they are, without a .git behind them
",
        can_restart: true,
    };

    pub(crate) fn main() -> Result<(), Box<dyn std::error::Error>> {
        let mut daemon = Daemon {
            base_path: PathBuf::from("."),
            strict: false,
            timeout: 0,
        };
        let mut options = Options::parse_with(&ABOUT, |name, parser| {
            match name {
                "base-path" => daemon.base_path = parser.value()?.into(),
                "strict" => daemon.strict = true,
                _ => return Ok(false),
            }
            Ok(true)
        });
        options.workers.get_or_insert(16);
        options.drain.get_or_insert(Duration::from_secs(3600));
        let timeout = options.timeout.unwrap_or_default();
        daemon.timeout = timeout.as_secs_f64().ceil() as u64;
        daemon.base_path = daemon
            .base_path
            .canonicalize()
            .map_err(|error| format!("{}: {error}", daemon.base_path.display()))?;

        let restart = options.restart()?;
        let server = options
            .builder()
            .restart(restart)
            .build(move |conn: &mut Connection| daemon.serve(conn))?;
        announce(&server.local_addrs());
        let report = server.run()?;
        say(report);
        Ok(())
    }

    impl Daemon {
        fn serve(&self, conn: &mut Connection) -> io::Result<Next> {
            let request = match Request::take(conn) {
                Ok(Some(request)) => request,
                Ok(None) => return Ok(Next::More),
                Err(why) => return refuse(conn, why),
            };
            if request.service != "git-upload-pack" {
                return refuse(conn, "only git-upload-pack is served here");
            }
            let Some(repository) = self.repository(&request.path) else {
                // The client is not told whether the repository is missing or forbidden.
                return refuse(conn, "no such repository is served here");
            };
            let detached = conn.detach()?;
            // The connection counts as in progress, and a stop waits for it, until this returns.
            let status = self.upload_pack(&request, &repository, detached)?;
            if !status.success() {
                eprintln!("git upload-pack {}: {status}", repository.display());
            }
            Ok(Next::Close)
        }

        /// The directory of a repository; `None` if `path` is not a repository below the base path.
        fn repository(&self, path: &Path) -> Option<PathBuf> {
            let mut full = self.base_path.clone();
            for part in path.strip_prefix("/").ok()?.components() {
                match part {
                    Component::Normal(name) => full.push(name),
                    Component::CurDir => {}
                    Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                        return None;
                    }
                }
            }
            let endings: &[&str] = match self.strict {
                true => &[""],
                false => &["/.git", "", ".git/.git", ".git"],
            };
            endings.iter().find_map(|ending| {
                let mut name = full.clone().into_os_string();
                name.push(ending);
                // Symbolic links are resolved before the check, and git gets the resolved path.
                let found = Path::new(&name).canonicalize().ok()?;
                let is_repository = found.join("HEAD").exists() && found.join("objects").is_dir();
                (found.starts_with(&self.base_path) && is_repository).then_some(found)
            })
        }

        fn upload_pack(
            &self,
            request: &Request,
            repository: &Path,
            client: Detached,
        ) -> io::Result<std::process::ExitStatus> {
            let mut command = Command::new("git");
            command
                .arg("upload-pack")
                .arg("--strict")
                .arg(format!("--timeout={}", self.timeout))
                .arg(repository)
                .env_remove("GIT_PROTOCOL")
                // A process group of its own: Ctrl-C in a terminal signals only the server.
                .process_group(0);
            if !request.protocol.is_empty() {
                command.env("GIT_PROTOCOL", OsStr::from_bytes(&request.protocol));
            }
            // The limit of descriptors was raised for the clients of this process.
            handover::restore_descriptor_limit(&mut command);
            let (stream, unread) = client.into_parts();
            let socket = OwnedFd::from(stream);
            command.stdout(socket.try_clone()?);
            if unread.is_empty() {
                // The usual case: a Git client waits for the first answer before it sends more.
                command.stdin(socket);
                let child = command.spawn();
                // `command` holds the socket too. The client has to see end-of-file when the child
                // ends.
                drop(command);
                return child?.wait();
            }
            command.stdin(Stdio::piped());
            let child = command.spawn();
            drop(command);
            relay(child?, &unread, socket)
        }
    }

    /// Copies to a subprocess what was read from its client already, and what the client sends from
    /// then on, until the subprocess ends.
    fn relay(
        mut child: Child,
        unread: &[u8],
        socket: OwnedFd,
    ) -> io::Result<std::process::ExitStatus> {
        let stdin = child.stdin.take();
        let mut client = std::fs::File::from(socket.try_clone()?);
        thread::scope(|scope| {
            scope.spawn(move || {
                let Some(mut stdin) = stdin else { return };
                // Either side may close at any time. The other side then sees it.
                let _ = stdin
                    .write_all(unread)
                    .and_then(|()| pump(&mut client, &mut stdin));
            });
            let status = child.wait();
            // The subprocess reads no more. This ends the read in which the other thread waits.
            let _ = socket2::SockRef::from(&socket.as_fd()).shutdown(Shutdown::Read);
            status
        })
    }

    /// Copies until end-of-file. Not with `io::copy`: on Linux it uses splice(2), which keeps the
    /// pipe locked while it waits for the socket, so the subprocess could not read from the pipe.
    fn pump(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
        let mut buffer = [0; 16 * 1024];
        loop {
            match from.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => to.write_all(&buffer[..count])?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends the client an error packet (gitprotocol-pack(5)).
    fn refuse(conn: &mut Connection, why: &str) -> io::Result<Next> {
        let line = format!("ERR {why}");
        write!(conn, "{:04x}{line}", line.len() + 4)?;
        Ok(Next::Close)
    }

    /// A request (gitprotocol-pack(5), "Git Transport"): the pkt-line
    /// `git-upload-pack /path\0host=name\0\0version=2\0`. All parts after the path are optional.
    struct Request {
        service: String,
        path: PathBuf,
        /// The extra parameters, joined by `:` as in the variable `GIT_PROTOCOL`.
        protocol: Vec<u8>,
    }

    impl Request {
        /// Takes a request out of the buffer. `None` if it is incomplete.
        fn take(conn: &mut Connection) -> Result<Option<Self>, &'static str> {
            let Some(digits) = conn.buffer().first_chunk::<4>() else {
                return Ok(None);
            };
            if !digits.iter().all(u8::is_ascii_hexdigit) {
                return Err("not a pkt-line");
            }
            let digits = std::str::from_utf8(digits).map_err(|_| "not a pkt-line")?;
            let length = usize::from_str_radix(digits, 16).map_err(|_| "not a pkt-line")?;
            if !(5..=REQUEST_LIMIT).contains(&length) {
                return Err("the request is too long, or empty");
            }
            let Some(line) = conn.buffer().get(4..length) else {
                return Ok(None);
            };
            let request = Self::parse(line);
            conn.consume(length);
            request.map(Some)
        }

        fn parse(line: &[u8]) -> Result<Self, &'static str> {
            let mut parts = line.split(|&byte| byte == 0);
            let command = parts.next().unwrap_or_default();
            let command = command.strip_suffix(b"\n").unwrap_or(command);
            let space = command.iter().position(|&byte| byte == b' ');
            let (service, path) = command.split_at(space.ok_or("a path is missing")?);
            // Skip the host. The extra parameters follow after an empty part.
            let extra: Vec<&[u8]> = parts
                .skip_while(|part| !part.is_empty())
                .filter(|part| !part.is_empty())
                .collect();
            Ok(Self {
                service: String::from_utf8_lossy(service).into_owned(),
                path: PathBuf::from(OsStr::from_bytes(&path[1..])),
                protocol: extra.join(&b':'),
            })
        }
    }
}
