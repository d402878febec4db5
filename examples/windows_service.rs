//! A service of Windows that sends back what it receives.
//!
//! ```text
//! cargo build --release --example windows_service --features windows-service
//! sc.exe create echo binPath= "C:\echo\windows_service.exe --listen 0.0.0.0:7003"
//! sc.exe start echo
//! sc.exe query echo
//! sc.exe stop echo
//! sc.exe delete echo
//! ```
//!
//! `sc.exe stop` lets requests in progress end. From a terminal, and on other systems, the program
//! serves until Ctrl-C.

mod common;

use std::error::Error;
use std::io::{self, Read, Write};
use std::process::ExitCode;

use handover::{Connection, Next, WindowsService};
use lexopt::ValueExt;

fn echo(conn: &mut Connection) -> io::Result<Next> {
    let mut bytes = [0; 512];
    let count = conn.read(&mut bytes)?;
    conn.write_all(&bytes[..count])?;
    Ok(Next::Park)
}

const ABOUT: common::About = common::About {
    name: "windows_service",
    purpose: "A service of Windows that sends back what it receives.",
    listen: "127.0.0.1:7003",
    own_options: "  --service NAME            the name of the service; without it, \"echo\"\n",
    can_restart: false,
};

fn main() -> ExitCode {
    let mut name = "echo".to_owned();
    let options = common::Options::parse_with(&ABOUT, |option, parser| {
        if option != "service" {
            return Ok(false);
        }
        name = parser.value()?.string()?;
        Ok(true)
    });
    if !cfg!(windows) {
        eprintln!(
            "windows_service: only Windows has such services; this process serves as any other"
        );
    }
    WindowsService::new(name).run(|| serve(&options))
}

/// What `main` would be without a service.
fn serve(options: &common::Options) -> Result<(), Box<dyn Error>> {
    let server = options.builder().build(echo)?;
    common::announce(&server.local_addrs());
    let report = server.run()?;
    common::say(report);
    Ok(())
}
