//! A server and its next versions, for the tests of restarts that run on every system: a test binary is copied, and run
//! as a server that replaces itself when a client asks for it.
//!
//! The server speaks HTTP. Its successors do what the file `mode` in its directory says. Each process ends when the
//! file `alive` there is gone. Each test binary has a test `child` that calls [`serve_if_child`].

// Each test binary uses a part of it.
#![allow(dead_code)]

use std::ffi::OsString;
use std::fs;
use std::hint::black_box;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use handover::http::{self, Body, Reply, Request, Response};
use handover::{Handle, Restart, Server};
use tempfile::TempDir;

#[allow(unused_imports)]
pub(crate) use super::support::replaced::{
    HARNESS, ask, body_of, end_as, option, random_below, try_get as get,
};
use super::support::{self, LIMIT, replaced};

pub(crate) type Who = replaced::Who<u32>;

const DIR: &str = "HANDOVER_VERSIONS_DIR";

/// What makes a process of this binary one that only waits.
const LINGERS: &str = "HANDOVER_VERSIONS_LINGERS";

/// Another version of the program is a copy with another byte here.
static VERSION: [u8; 24] = *b"the version of this is 1";

/// Longer than the time-out of any start in a test.
const AGES: Duration = Duration::from_secs(3600);

// ---- the server ----

static HANDLE: OnceLock<Handle> = OnceLock::new();

/// The server that the tests start, if this process is to be one.
pub(crate) fn serve_if_child() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else {
        return;
    };
    end_with(dir.clone());
    if std::env::var_os(LINGERS).is_some() {
        put(
            &dir.join("lingers"),
            std::process::id().to_string().as_bytes(),
        );
        loop {
            thread::park();
        }
    }
    let mode = option(&dir, "mode").unwrap_or_default();
    misbehave(&dir, &mode, "early ");
    let mut restart = Restart::inherit().unwrap_or_else(|error| fail(&error));
    misbehave(&dir, &mode, "");
    let generation = restart.generation();
    let state = String::from_utf8(restart.inherited_state().unwrap_or_default()).unwrap();
    if let Some(millis) = option(&dir, "ready-timeout") {
        restart = restart.ready_timeout(Duration::from_millis(millis.parse().unwrap()));
    }
    if option(&dir, "stay").is_some() {
        restart = restart.move_connections(false);
    }
    if let Some(millis) = option(&dir, "grace") {
        restart = restart.idle_grace(Duration::from_millis(millis.parse().unwrap()));
    }
    if option(&dir, "environment").is_some() {
        restart = restart.environment_file(dir.join("environment"));
    }
    if option(&dir, "pid-file").is_some() {
        restart = restart.pid_file(dir.join("pid"));
    }
    let passed = restart.inherited("datagrams");
    // On Unix, this cannot fail.
    #[allow(clippy::unnecessary_fallible_conversions)]
    let passed = passed.map(|passed| UdpSocket::try_from(passed).unwrap());
    let datagrams = passed.unwrap_or_else(|| UdpSocket::bind("127.0.0.1:0").unwrap());
    let udp = datagrams.local_addr().unwrap().port();
    let own = dir.clone();
    let restart = restart.pass("datagrams", datagrams);
    let restart = restart.ready_when(move || -> Result<(), String> {
        misbehave(&own, &mode, "late ");
        match mode.as_str() {
            "late error" => Err("the cache is cold".to_owned()),
            _ => Ok(()),
        }
    });
    let left = format!("{state}{generation},");
    let restart = restart.pass_state(move || left.clone().into_bytes());
    let own = dir.clone();
    let who = format!("{} {generation} {udp} {state}", std::process::id());
    let service = http::service(move |request: &mut Request<Body<'_>>| {
        Response::new(respond(&own, request, &who))
    });
    let listen = option(&dir, "listen").unwrap_or("127.0.0.1:0".to_owned());
    let builder = Server::builder()
        .workers(4)
        .drain_timeout(Duration::from_secs(20));
    #[cfg(feature = "signals")]
    let builder = builder.signals(option(&dir, "signals").is_some());
    let server = builder.listen(&*listen).restart(restart).build(service);
    let server = server.unwrap_or_else(|error| fail(&error));
    let addr = server.local_addrs()[0].to_string();
    let handle = server.start().unwrap_or_else(|error| fail(&error));
    HANDLE.get_or_init(|| handle.clone());
    if generation == 1 {
        put(&dir.join("addr"), addr.as_bytes());
    }
    let report = handle.join();
    put(
        &dir.join(format!("report {generation}")),
        report.to_string().as_bytes(),
    );
    std::process::exit(0);
}

fn fail(error: &dyn std::fmt::Display) -> ! {
    eprintln!("{error}");
    std::process::exit(1);
}

/// Ends the process when its test has ended.
fn end_with(dir: PathBuf) {
    let watch = move || {
        while dir.join("alive").exists() {
            thread::park_timeout(Duration::from_millis(20));
        }
        std::process::exit(99);
    };
    thread::spawn(watch);
}

/// What a new version may do instead of serving.
fn misbehave(dir: &Path, mode: &str, prefix: &str) {
    let how = mode.strip_prefix(prefix).unwrap_or_default();
    end_as(how);
    match how {
        "abort" => std::process::abort(),
        "hang" => {
            put(&dir.join("at"), b"");
            loop {
                thread::park();
            }
        }
        // Until the test says so.
        "pause" => {
            put(&dir.join("at"), b"");
            until_there(&dir.join("go"));
        }
        _ => {}
    }
}

fn until_there(path: &Path) {
    while !path.exists() {
        thread::park_timeout(Duration::from_millis(2));
    }
}

fn respond(dir: &Path, request: &mut Request<Body<'_>>, who: &str) -> Reply {
    match request.uri().path() {
        "/" => "Hello, World!".into(),
        "/echo" => request
            .body_mut()
            .read_all(4 << 20)
            .unwrap_or_default()
            .into(),
        "/who" => who.to_owned().into(),
        "/version" => char::from(black_box(&VERSION)[23]).to_string().into(),
        "/args" => {
            // The first ones are those of the test harness.
            let args = std::env::args_os().skip(HARNESS.len() + 1);
            format!("{:?}", args.collect::<Vec<_>>()).into()
        }
        "/variable" => {
            let name = request.uri().query().unwrap_or_default();
            format!("{:?}", std::env::var_os(name)).into()
        }
        "/place" => format!("{:?}", std::env::current_dir().unwrap()).into(),
        // Until the test says so.
        "/hold" => {
            let go = dir.join(request.uri().query().unwrap_or_default());
            put(&go.with_extension("taken"), b"");
            until_there(&go);
            who.to_owned().into()
        }
        "/linger" => {
            let own = std::env::current_exe().unwrap();
            // It outlives this process.
            #[allow(clippy::zombie_processes)]
            let child = Command::new(own)
                .args(HARNESS)
                .env(LINGERS, "")
                .spawn()
                .unwrap();
            child.id().to_string().into()
        }
        "/stop" => {
            the_handle().stop(Duration::from_secs(20));
            "".into()
        }
        "/restart" => {
            // A restart that succeeds is over when this answer is sent, too.
            let restart = thread::spawn(|| the_handle().restart());
            eventually("an outcome", || {
                restart.is_finished() || the_handle().is_stopping()
            });
            if !restart.is_finished() {
                return "restarted".into();
            }
            match restart.join().unwrap() {
                Ok(report) => format!("{report}").into(),
                Err(error) => {
                    let (kind, status) = (error.kind(), error.status());
                    let code = status.and_then(|status| status.code());
                    format!("{kind:?}|{code:?}|{:?}|{error}", error.stderr()).into()
                }
            }
        }
        _ => "?".into(),
    }
}

/// `start` returns the handle a moment after it serves.
fn the_handle() -> &'static Handle {
    eventually("the handle", || HANDLE.get().is_some());
    HANDLE.get().unwrap()
}

/// Writes a file in one step, so that no process reads half of it.
pub(crate) fn put(path: &Path, bytes: &[u8]) {
    let new = path.with_extension(format!("new{}", std::process::id()));
    fs::write(&new, bytes).unwrap();
    // On Windows, this fails while a process reads the file before.
    eventually("nobody reads the old file", || {
        fs::rename(&new, path).is_ok()
    });
}

// ---- the test's side ----

/// The versions of one server.
pub(crate) struct Versions {
    pub(crate) dir: TempDir,
    pub(crate) program: PathBuf,
    pub(crate) first: Child,
}

impl Versions {
    pub(crate) fn start(options: &[(&str, &str)]) -> Self {
        Self::start_with(options, |_| {})
    }

    pub(crate) fn start_with(options: &[(&str, &str)], prepare: impl FnOnce(&mut Command)) -> Self {
        let dir = TempDir::new().unwrap();
        for (name, value) in [("alive", "")].iter().chain(options) {
            fs::write(dir.path().join(name), value).unwrap();
        }
        let program = dir
            .path()
            .join(format!("a server{}", std::env::consts::EXE_SUFFIX));
        install(&program, b'1');
        let mut command = Command::new(&program);
        command.args(HARNESS).env(DIR, dir.path());
        command.stdin(Stdio::null()).stdout(Stdio::null());
        prepare(&mut command);
        let first = command.spawn().unwrap();
        let versions = Self {
            dir,
            program,
            first,
        };
        eventually("the first one serves", || versions.path("addr").exists());
        versions
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        fs::read_to_string(self.path("addr"))
            .unwrap()
            .parse()
            .unwrap()
    }

    /// What successors are to do from now on.
    pub(crate) fn mode(&self, mode: &str) {
        put(&self.path("mode"), mode.as_bytes());
    }

    #[track_caller]
    pub(crate) fn get(&self, path: &str) -> String {
        get(self.addr(), path).unwrap()
    }

    #[track_caller]
    pub(crate) fn who(&self) -> Who {
        Who::parse(&self.get("/who"))
    }

    /// Has the serving process replaced, and returns the new one.
    #[track_caller]
    pub(crate) fn restart(&self) -> Who {
        let old = self.who();
        let outcome = self.get("/restart");
        assert_eq!(outcome, "restarted");
        let who = self.who();
        assert_eq!(who.generation, old.generation + 1);
        who
    }

    /// Asks for a restart that fails: the kind, the exit code, the last lines, and the text of the error.
    #[track_caller]
    pub(crate) fn failed_restart(&self) -> [String; 4] {
        let outcome = self.get("/restart");
        let parts: Vec<String> = outcome.splitn(4, '|').map(str::to_owned).collect();
        parts.try_into().unwrap_or_else(|_| panic!("{outcome}"))
    }

    /// The report of a generation that has ended.
    #[track_caller]
    pub(crate) fn report(&self, generation: u64) -> String {
        let path = self.path(&format!("report {generation}"));
        eventually("the old one ends", || path.exists());
        fs::read_to_string(path).unwrap()
    }

    /// Waits until no process listens any more.
    #[track_caller]
    pub(crate) fn until_port_is_free(&self) {
        let addr = self.addr();
        eventually("the port is free", || TcpListener::bind(addr).is_ok());
    }

    /// Stops the serving process, and waits for its end.
    #[track_caller]
    pub(crate) fn stop(&self) -> String {
        let last = self.who().generation;
        self.get("/stop");
        self.report(last)
    }
}

impl Drop for Versions {
    fn drop(&mut self) {
        fs::remove_file(self.path("alive")).unwrap();
        let _ = self.first.wait();
        // On Windows, the directory can be removed when the processes of its programs have ended.
        let begin = Instant::now();
        while fs::remove_dir_all(self.dir.path()).is_err() && begin.elapsed() < LIMIT {
            thread::park_timeout(Duration::from_millis(5));
        }
    }
}

/// Puts this version of the program there, where no file is.
pub(crate) fn install(program: &Path, version: u8) {
    let own = std::env::current_exe().unwrap();
    let mut bytes = fs::read(&own).unwrap();
    let length = VERSION.len();
    let places: Vec<usize> = (0..bytes.len() - length)
        .filter(|&at| bytes[at..at + length - 1] == VERSION[..length - 1])
        .collect();
    assert!(!places.is_empty(), "the version is not in the program");
    for at in places {
        bytes[at + length - 1] = version;
    }
    fs::write(program, bytes).unwrap();
    fs::set_permissions(program, fs::metadata(own).unwrap().permissions()).unwrap();
}

/// Waits until something holds. Other processes need the time more than this one.
#[track_caller]
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    support::eventually(what, || {
        let holds = holds();
        if !holds {
            thread::park_timeout(Duration::from_millis(2));
        }
        holds
    });
}

/// Arguments that a command line holds only if it is quoted well.
pub(crate) fn awkward_arguments() -> Vec<OsString> {
    let texts = [
        "",
        "two words",
        "a\tb",
        r#"a"b"#,
        r#""quoted""#,
        r"back\slash",
        r"at the end\",
        r"two at the end\\",
        r#"before a quote\""#,
        r#"in words \\" and\"#,
        "%PATH%",
        "^&|<>()!",
        "ä€𝄞",
        "'single'",
        "*",
    ];
    texts.iter().map(OsString::from).collect()
}

/// Sets an event object of another process.
#[cfg(windows)]
#[track_caller]
#[allow(unsafe_code)]
pub(crate) fn set_event(name: &str) {
    use windows_sys::Win32::Foundation::CloseHandle;
    use windows_sys::Win32::System::Threading::{EVENT_MODIFY_STATE, OpenEventW, SetEvent};
    let wide: Vec<u16> = name.encode_utf16().chain([0]).collect();
    // SAFETY: the name ends with a NUL, and the handle is open until it is closed here.
    unsafe {
        let event = OpenEventW(EVENT_MODIFY_STATE, 0, wide.as_ptr());
        assert!(
            !event.is_null(),
            "{name}: {}",
            std::io::Error::last_os_error()
        );
        assert_ne!(SetEvent(event), 0);
        CloseHandle(event);
    }
}
