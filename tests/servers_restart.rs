//! Two servers in one process, HTTP and a line protocol, with real processes: restarts, alone and under a supervisor,
//! lose no request of either. `HANDOVER_TEST_RESTARTS` is the number of restarts of each trial under load.

#[cfg(target_os = "linux")]
#[path = "support/generations.rs"]
mod generations;
#[cfg(target_os = "linux")]
#[path = "support/load.rs"]
mod load;
#[cfg(target_os = "linux")]
mod support;

#[cfg(target_os = "linux")]
fn main() {
    generations::serve_if_child();
    let arguments = libtest_mimic::Arguments::from_args();
    libtest_mimic::run(&arguments, trials::all()).exit();
}

#[cfg(not(target_os = "linux"))]
fn main() {}

#[cfg(target_os = "linux")]
mod trials {
    use std::io::{self, BufRead, BufReader, Read, Write};
    use std::net::{Shutdown, SocketAddr, TcpStream};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
    use std::thread::{self, JoinHandle};
    use std::time::{Duration, Instant};

    use libtest_mimic::Trial;
    use parking_lot::Mutex;
    use rustix::process::Signal;

    use crate::generations::*;
    use crate::load::{Kind, Load, To};
    use crate::support;

    pub(crate) fn all() -> Vec<Trial> {
        let trials: [(&str, fn()); 5] = [
            (
                "restarts_lose_no_request_of_either_server",
                restarts_lose_no_request_of_either_server,
            ),
            (
                "a_supervisor_restarts_both_servers_and_replaces_them_after_a_crash",
                a_supervisor_restarts_both_servers_and_replaces_them_after_a_crash,
            ),
            (
                "a_supervisor_ends_a_process_of_which_one_server_hangs",
                a_supervisor_ends_a_process_of_which_one_server_hangs,
            ),
            (
                "a_successor_that_fails_changes_nothing_for_either_server",
                a_successor_that_fails_changes_nothing_for_either_server,
            ),
            (
                "a_stop_waits_for_both_servers_and_reports_each",
                a_stop_waits_for_both_servers_and_reports_each,
            ),
        ];
        let trials = trials.into_iter();
        let trial = |(name, run): (&str, fn())| {
            Trial::test(name, move || {
                run();
                Ok(())
            })
        };
        trials.map(trial).collect()
    }

    /// Clients of the line protocol: each connection asks for some lines, checks every answer, and ends its side.
    struct LineLoad {
        stop: Arc<AtomicBool>,
        answers: Arc<AtomicU64>,
        failures: Arc<Mutex<Vec<String>>>,
        threads: Vec<JoinHandle<()>>,
    }

    impl LineLoad {
        fn start(to: SocketAddr, clients: usize) -> Self {
            let mut load = Self {
                stop: Arc::default(),
                answers: Arc::default(),
                failures: Arc::default(),
                threads: Vec::new(),
            };
            for client in 0..clients {
                let (stop, answers) = (Arc::clone(&load.stop), Arc::clone(&load.answers));
                let failures = Arc::clone(&load.failures);
                load.threads.push(thread::spawn(move || {
                    while !stop.load(SeqCst) {
                        // Connections of one line, and of many.
                        let lines = if client % 2 == 0 { 1 } else { 50 };
                        if let Err(error) = lines_of_one_connection(to, lines, &answers) {
                            failures.lock().push(error.to_string());
                        }
                    }
                }));
            }
            load
        }

        #[track_caller]
        fn wait_for(&self, more: u64) {
            let goal = self.answers.load(SeqCst) + more;
            eventually("more lines", || {
                self.answers.load(SeqCst) >= goal || !self.failures.lock().is_empty()
            });
        }

        #[track_caller]
        fn end(self) -> u64 {
            self.stop.store(true, SeqCst);
            for thread in self.threads {
                thread.join().unwrap();
            }
            let failures = self.failures.lock();
            assert!(failures.is_empty(), "{failures:#?}");
            self.answers.load(SeqCst)
        }
    }

    fn lines_of_one_connection(
        to: SocketAddr,
        lines: usize,
        answers: &AtomicU64,
    ) -> io::Result<()> {
        let stream = TcpStream::connect(to)?;
        stream.set_read_timeout(Some(support::LIMIT))?;
        stream.set_nodelay(true)?;
        let mut stream = BufReader::new(stream);
        for index in 0..lines {
            let text = match index % 10 {
                9 => "slow 5\n".to_owned(),
                _ => format!("line {index} {}\n", random_below(1 << 40)),
            };
            stream.get_mut().write_all(text.as_bytes())?;
            let mut answer = String::new();
            stream.read_line(&mut answer)?;
            if answer != text {
                let text = format!("line {index} of {lines}: {answer:?} for {text:?}");
                return Err(io::Error::other(text));
            }
            answers.fetch_add(1, SeqCst);
        }
        stream.get_ref().shutdown(Shutdown::Write)?;
        match stream.read(&mut [0])? {
            0 => Ok(()),
            _ => Err(io::Error::other("more than was asked for")),
        }
    }

    impl Generations {
        fn lines_addr(&self) -> SocketAddr {
            self.addrs[1].parse().unwrap()
        }

        /// Which process answers the line protocol.
        #[track_caller]
        fn pid_of_lines(&self) -> i32 {
            self.try_pid_of_lines().unwrap()
        }

        /// The same, of processes that may die meanwhile.
        fn try_pid_of_lines(&self) -> io::Result<i32> {
            let mut stream = TcpStream::connect(self.lines_addr())?;
            stream.set_read_timeout(Some(support::LIMIT))?;
            stream.write_all(b"pid\n")?;
            stream.shutdown(Shutdown::Write)?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            answer.trim().parse().map_err(io::Error::other)
        }
    }

    /// Restarts under load.
    fn lose_nothing(generations: &Generations, restart: impl Fn()) {
        let restarts = std::env::var("HANDOVER_TEST_RESTARTS").map_or(6, |n| n.parse().unwrap());
        let http = To::Tcp(generations.addr());
        let kinds = [
            (http.clone(), Kind::KeepAlive),
            (http.clone(), Kind::PerRequest),
            (http, Kind::Echo(16 << 10)),
        ];
        let http = Load::start(&kinds, 2);
        let lines = LineLoad::start(generations.lines_addr(), 6);
        let mut times = Vec::new();
        for _ in 0..restarts {
            http.wait_for(50);
            lines.wait_for(50);
            let old = generations.who();
            let begin = Instant::now();
            restart();
            let new = generations.until_generation(old.generation + 1);
            times.push(begin.elapsed());
            // One successor has taken over both.
            eventually("the line protocol as well", || {
                generations.pid_of_lines() == new.pid
            });
            eventually("the old process ends", || !is_alive(old.pid));
        }
        times.sort_unstable();
        let (http, lines) = (http.end(), lines.end());
        println!(
            "{restarts} restarts, median {:?}: {http} HTTP answers, {lines} lines, none failed",
            times[times.len() / 2]
        );
    }

    fn restarts_lose_no_request_of_either_server() {
        let mut generations = Generations::start(&[("lines", "127.0.0.1:0")]);
        lose_nothing(&generations, || {
            signal(generations.who().pid, Signal::HUP);
        });
        // State goes along, once for the process.
        let last = generations.who();
        let states: String = (1..last.generation).map(|n| format!("{n},")).collect();
        assert_eq!(last.state, states);
        signal(last.pid, Signal::TERM);
        let output = generations.wait();
        for report in ["\nlines, generation ", "\ngeneration "] {
            let count = output.matches(report).count() as u64;
            assert_eq!(count, last.generation, "{report:?}: {output}");
        }
        assert!(
            !output.contains("1 forced") && !output.contains("1 dropped"),
            "{output}"
        );
    }

    fn a_supervisor_restarts_both_servers_and_replaces_them_after_a_crash() {
        let generations = Generations::start(&[("lines", "127.0.0.1:0"), ("supervised", "")]);
        let supervisor = generations.first.id() as i32;
        lose_nothing(&generations, || signal(supervisor, Signal::HUP));
        let old = generations.who();
        signal(old.pid, Signal::KILL);
        // The supervisor holds both listeners, so that no client is refused.
        eventually("another process serves HTTP", || {
            try_get(generations.addr(), "/who").is_ok_and(|who| Who::parse(&who).pid != old.pid)
        });
        let new = generations.who();
        assert_eq!(generations.pid_of_lines(), new.pid);
        signal(supervisor, Signal::TERM);
        let mut generations = generations;
        generations.wait();
    }

    /// The line protocol goes on, so that the process as a whole would seem alive.
    fn a_supervisor_ends_a_process_of_which_one_server_hangs() {
        let settings = "watchdog=2000 abort=200";
        let generations = Generations::start(&[("lines", "127.0.0.1:0"), ("supervised", settings)]);
        let old = generations.who();
        let clients: Vec<_> = (0..4)
            .map(|_| {
                let mut client = support::connect(generations.addr());
                client
                    .write_all(b"GET /wedge HTTP/1.1\r\nHost: test\r\n\r\n")
                    .unwrap();
                client
            })
            .collect();
        eventually("another process serves the lines", || {
            // The process may be aborted while it answers.
            generations
                .try_pid_of_lines()
                .is_ok_and(|pid| pid != old.pid)
        });
        assert_eq!(generations.who().pid, generations.pid_of_lines());
        drop(clients);
        signal(generations.first.id() as i32, Signal::TERM);
        let mut generations = generations;
        generations.wait();
    }

    fn a_successor_that_fails_changes_nothing_for_either_server() {
        let options = [
            ("lines", "127.0.0.1:0"),
            ("by-handle", ""),
            ("ready-timeout", "5000"),
        ];
        let mut generations = Generations::start(&options);
        let first = generations.who();
        let http = Load::start(&[(To::Tcp(generations.addr()), Kind::PerRequest)], 2);
        let lines = LineLoad::start(generations.lines_addr(), 2);
        for (mode, why) in [
            ("exit 3", "no configuration"),
            ("late error", "the cache is cold"),
            // It accepts, as far as this process knows, and both servers accept again.
            ("early half takeover", "half a takeover"),
            ("exit 3", "no configuration"),
        ] {
            generations.mode(mode);
            let outcome = generations.get("/restart");
            assert!(outcome.contains(why), "{outcome}");
            http.wait_for(50);
            lines.wait_for(50);
            assert_eq!(generations.who(), first);
            assert_eq!(generations.pid_of_lines(), first.pid);
        }
        generations.mode("");
        http.end();
        lines.end();
        // Its report is that of one server; the process has waited for both.
        generations.get("/restart-later");
        let second = generations.until_generation(2);
        assert_eq!(generations.pid_of_lines(), second.pid);
        let report = generations.until("report: ");
        assert!(report.contains("forced: [], dropped: 0"), "{report}");
        signal(second.pid, Signal::KILL);
    }

    /// The process ends when both have.
    fn a_stop_waits_for_both_servers_and_reports_each() {
        let mut generations = Generations::start(&[("lines", "127.0.0.1:0")]);
        let who = generations.who();
        let mut client = support::connect(generations.lines_addr());
        client.write_all(b"slow 500\n").unwrap();
        // It is in progress when a later client has been answered.
        generations.pid_of_lines();
        signal(who.pid, Signal::TERM);
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "slow 500\n");
        let output = generations.wait();
        let report = |of: &str| output.lines().find(|line| line.starts_with(of)).unwrap();
        assert!(report("lines, generation 1: ").contains("0 forced, 0 dropped"));
        // The wait for the other server is not part of its stop.
        let http = report("generation 1: ");
        let seconds = http
            .split(" in ")
            .nth(1)
            .unwrap()
            .split(' ')
            .next()
            .unwrap();
        let seconds = Duration::from_secs_f32(seconds.parse().unwrap());
        assert!(seconds < Duration::from_millis(400), "{http}");
    }
}
