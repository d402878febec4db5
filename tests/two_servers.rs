//! The example `two_servers`, as a process: an HTTP server and a line protocol, which are restarted and stopped together.
#![cfg(all(target_os = "linux", feature = "http", feature = "signals"))] // signals

mod support;

use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use support::{ProcessGroup, connect};

struct Example {
    first: Child,
    lines: Lines<BufReader<ChildStdout>>,
    public: SocketAddr,
    admin: SocketAddr,
    group: ProcessGroup,
}

impl Example {
    /// `None` if the example was not built.
    fn start() -> Option<Self> {
        let test = std::env::current_exe().unwrap();
        let profile = test.parent().and_then(Path::parent).unwrap();
        let binary = profile.join("examples/two_servers");
        if !binary.exists() {
            let path = binary.display();
            eprintln!(
                "SKIPPED: {path} is not there; `cargo build --examples --all-features` makes it"
            );
            return None;
        }
        let mut first = Command::new(binary)
            .args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
            .env_remove("NOTIFY_SOCKET")
            .env_remove("LISTEN_FDS")
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let group = ProcessGroup::of(&first);
        let mut lines = BufReader::new(first.stdout.take().unwrap()).lines();
        let [public, admin] = announced(&mut lines);
        Some(Self {
            first,
            lines,
            public,
            admin,
            group,
        })
    }

    fn get(&self, path: &str) -> String {
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        ask(self.public, &request)
    }

    fn tell(&self, command: &str) -> String {
        ask(self.admin, &format!("{command}\n"))
    }
}

/// The addresses of both servers, which a process prints when it is about to serve.
#[track_caller]
fn announced(lines: &mut Lines<BufReader<ChildStdout>>) -> [SocketAddr; 2] {
    let mut next = |prefix: &str| {
        let line = lines.next().expect("the process has ended").unwrap();
        let addr = line.strip_prefix(prefix).map(str::parse);
        addr.unwrap_or_else(|| panic!("{line:?}")).unwrap()
    };
    [next("listening on http://"), next("listening on ")]
}

/// All that the server answers, until it closes.
#[track_caller]
fn ask(to: SocketAddr, request: &str) -> String {
    let mut stream = connect(to);
    stream.write_all(request.as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn one_successor_takes_over_both_servers_and_the_state() {
    let Some(mut example) = Example::start() else {
        return;
    };
    assert!(example.get("/").ends_with("visit 1\n"));
    assert!(example.get("/").ends_with("visit 2\n"));
    let stats = example.tell("stats");
    assert!(stats.starts_with("generation 1: 2 visits, "), "{stats}");
    assert!(example.tell("nonsense").starts_with("ERROR "));
    assert!(example.get("/health").starts_with("HTTP/1.1 200 "));
    assert_eq!(example.tell("leave"), "OK\n");
    assert!(example.get("/health").starts_with("HTTP/1.1 503 "));
    assert!(example.get("/").ends_with("visit 3\n"));

    assert_eq!(example.tell("restart"), "OK\n");
    let new = announced(&mut example.lines);
    assert_eq!(new, [example.public, example.admin]);
    for _ in 0..2 {
        let report = example.lines.next().unwrap().unwrap();
        assert!(report.contains("0 forced, 0 dropped"), "{report}");
    }
    assert!(example.first.wait().unwrap().success());
    let stats = example.tell("stats");
    assert!(stats.starts_with("generation 2: 3 visits, "), "{stats}");
    assert!(example.get("/").ends_with("visit 4\n"));
    assert!(example.get("/health").starts_with("HTTP/1.1 200 "));

    assert_eq!(example.tell("stop"), "OK\n");
    let reports: Vec<String> = example.lines.map(Result::unwrap).collect();
    example.group.assert_in_time();
    assert_eq!(reports.len(), 2, "{reports:?}");
    let is_clean = |report: &String| report.contains("0 forced, 0 dropped");
    assert!(reports.iter().all(is_clean), "{reports:?}");
}
