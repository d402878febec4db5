//! What the tests ask Unix, and mostly Linux, about this process and its sockets.

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use rustix::process::{Resource, getrlimit, setrlimit};

/// Nothing here is wine.
pub(crate) fn wine_cannot(_what: &str) -> bool {
    false
}

/// Lets this process have as many descriptors as it may.
pub(crate) fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
}

/// How many threads of this process have names that begin so (the kernel keeps 15 bytes of a name).
pub(crate) fn threads(prefix: &str) -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| name.starts_with(prefix)).count()
}

/// How many descriptors this process has open.
pub(crate) fn descriptors() -> usize {
    // One of them is that of the directory.
    fs::read_dir("/proc/self/fd").unwrap().count() - 1
}

/// The CPU time that this process has used. It takes no descriptor to know.
pub(crate) fn cpu_time() -> Duration {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(used.tv_sec as u64, used.tv_nsec as u32)
}

/// The server's side of a client's TCP connection, as the kernel lists it (proc_net_tcp, procfs(5)).
pub(crate) struct ServerSide {
    /// The two addresses, as they are written there.
    addresses: String,
}

impl ServerSide {
    pub(crate) fn of(client: &TcpStream) -> Self {
        let hex = |addr: SocketAddr| {
            let IpAddr::V4(ip) = addr.ip() else {
                panic!("{addr} is not an IPv4 address");
            };
            format!(
                "{:08X}:{:04X}",
                u32::from_ne_bytes(ip.octets()),
                addr.port()
            )
        };
        let server = client.peer_addr().unwrap();
        let client = client.local_addr().unwrap();
        Self {
            addresses: format!("{} {}", hex(server), hex(client)),
        }
    }

    /// How many bytes have arrived that the server has not read. The end of the stream counts as one byte. `None` if
    /// the connection is not there: it was not established yet, or was reset.
    pub(super) fn unread(&self) -> Option<usize> {
        let list = fs::read_to_string("/proc/net/tcp").unwrap();
        let line = list.lines().find(|line| line.contains(&self.addresses))?;
        let queues = line.split_whitespace().nth(4)?;
        usize::from_str_radix(queues.split_once(':')?.1, 16).ok()
    }
}
