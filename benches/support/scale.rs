//! The same server under a supervisor, whose number of processes becomes smaller.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use handover::Supervisor;

use super::Result;
use super::descriptors;
use super::moves::{BETWEEN, Client, MOVES_HEAD, Moves, QUIET, serve_with, under_load};
use super::process::Actor;

/// Two processes serve then; one gives its clients to the other.
const PROCESSES: usize = 2;

/// The supervisor, and then each server.
pub(super) fn serve(control: &Path) -> Result<()> {
    descriptors::raise_limit()?;
    let supervisor = Supervisor::new().control_socket(control);
    serve_with(supervisor.supervise()?, false)
}

/// Asks the supervisor.
fn ask(control: &Path, request: &str) -> io::Result<String> {
    let mut socket = UnixStream::connect(control)?;
    writeln!(socket, "{request}")?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    Ok(answer)
}

/// The address on which it serves, when it does.
fn until_serving(control: &Path) -> Result<SocketAddr> {
    let limit = Instant::now() + Duration::from_secs(20);
    while Instant::now() < limit {
        let status = ask(control, "status").unwrap_or_default();
        let address = status.split(r#""address":""#).nth(1);
        let address = address.and_then(|rest| rest.split('"').next());
        match address {
            Some(address) if status.contains(r#""state":"serving","uptime"#) => {
                return Ok(address.parse()?);
            }
            _ => thread::sleep(Duration::from_millis(10)),
        }
    }
    Err("the server does not serve".into())
}

/// Measures.
pub(super) fn run(idle: usize, active: usize, think: Duration, rounds: usize) -> Result<()> {
    descriptors::raise_limit()?;
    let dir = tempfile::TempDir::new()?;
    let control = dir.path().join("control");
    let role = ["--role".as_ref(), "scale".as_ref(), "--control".as_ref()];
    let args: Vec<&std::ffi::OsStr> = role.into_iter().chain([control.as_os_str()]).collect();
    let mut server = Actor::start(None, &args)?;
    let address = until_serving(&control)?;
    let request = |request: &str| -> Result<()> {
        let answer = ask(&control, request)?;
        match answer.contains(r#""ok":true"#) {
            true => Ok(()),
            false => Err(format!("{request}: {answer}").into()),
        }
    };
    for _ in 0..rounds {
        request(&format!("scale {PROCESSES} wait"))?;
        let clients = (0..idle).map(|_| {
            let mut client = Client::connect(address)?;
            client.ask()?;
            Ok(client)
        });
        let mut clients: Vec<Client> = clients.collect::<Result<_>>()?;
        let mut line = String::new();
        let quiet = || {
            thread::sleep(QUIET);
            Ok(())
        };
        let before = under_load(address, active, think, quiet)?;
        let scale = || {
            thread::sleep(BETWEEN);
            request("scale 1")?;
            line = server.hear()?;
            thread::sleep(BETWEEN);
            Ok(())
        };
        let during = under_load(address, active, think, scale)?;
        println!("{MOVES_HEAD}");
        Moves::of(&line)?.show();
        before.show("before");
        during.show("meanwhile");
        let serving = Client::connect(address)?.ask()?;
        for client in &mut clients {
            if client.ask()? != serving {
                return Err("an idle client was answered by another process".into());
            }
        }
    }
    println!("all idle clients were answered on their first connection");
    Ok(())
}
