//! What a serving process tells its supervisor beyond systemd's variables, and listeners that the
//! supervisor holds.

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

use super::{BindRequest, Record};

/// This crate's addition to an sd_notify(3) datagram, for the supervisor: the value of the variable
/// `X_HANDOVER`. systemd would ignore the variable.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(arbitrary::Arbitrary))]
pub(crate) struct HandoverFields {
    /// The generation of the sender, or of the process that `MAINPID` names. A datagram with a
    /// generation comes from a server of this crate, not from a subprocess of a server.
    pub(crate) generation: Option<u64>,
    /// Listeners of the sender that the supervisor is to hold; their descriptors go with the
    /// datagram, in this order.
    #[serde(default)]
    pub(crate) listeners: Vec<ListenerRecord>,
    /// A listener that the sender needs. A socket for the [`BindAnswer`](super::BindAnswer) goes
    /// with the datagram.
    pub(crate) bind: Option<BindRequest>,
    /// The process id of the successor that the sender has started.
    pub(crate) successor: Option<u32>,
    /// Why the restart of the sender failed.
    pub(crate) failed: Option<String>,
    /// How many requests the sender has served.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) requests: Option<u64>,
    /// One end of the sender's lane goes with the datagram, and nothing else does. The sender
    /// understands [`Leave`](super::HandshakeMessage::Leave) on the other end, and
    /// [`Connections`](super::HandshakeMessage::Connections).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) lane: bool,
}

impl Record for HandoverFields {
    /// The supervisor reads datagrams of up to 32 KiB, which contain systemd's variables too.
    /// systemd itself, which drops datagrams over 4096 bytes, never gets this record.
    const LIMIT: usize = 24 * 1024;
}

impl HandoverFields {
    /// The name of the variable.
    pub(crate) const VARIABLE: &'static str = "X_HANDOVER";
}

/// A listener that the supervisor holds for later processes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(arbitrary::Arbitrary))]
pub(crate) struct ListenerRecord {
    /// The name under which the descriptor is passed on, as [`to_fd_name`] makes it.
    #[serde(deserialize_with = "read_fd_name")]
    #[cfg_attr(test, arbitrary(with = super::tests::any_fd_name))]
    pub(crate) name: String,
    /// A bind request with this name gets this listener, even if the address differs.
    pub(crate) matches_by_name: bool,
    /// The listener is a Unix socket, whose file the holder removes in the end.
    pub(crate) removes_file: bool,
}

/// The longest name of a descriptor (sd_listen_fds(3)), in bytes.
const MAX_NAME: usize = 255;

/// How names begin under which the service manager stores listeners for the supervisor.
const STORED: &str = "handover-";

impl ListenerRecord {
    /// The name (FDNAME= in sd_notify(3)) under which the service manager stores the listener:
    /// ASCII without a colon, at most 255 bytes. `handover-FLAGS-NAME`, where FLAGS has an `n` if
    /// the listener is known by its name, and then a `u` if the file is to be unlinked:
    /// `handover-nu-web`, `handover--127.0.0.1_80`. A name that gets too long is cut.
    pub(crate) fn to_stored_name(&self) -> String {
        let matches_by_name = if self.matches_by_name { "n" } else { "" };
        let removes_file = if self.removes_file { "u" } else { "" };
        let mut stored = format!("{STORED}{matches_by_name}{removes_file}-{}", self.name);
        stored.truncate(MAX_NAME);
        stored
    }

    /// Reads such a name. `None` if the descriptor has another origin.
    pub(crate) fn from_stored_name(stored: &str) -> Option<Self> {
        let (flags, name) = stored.strip_prefix(STORED)?.split_once('-')?;
        let (matches_by_name, removes_file) = match flags {
            "" => (false, false),
            "n" => (true, false),
            "u" => (false, true),
            "nu" => (true, true),
            _ => return None,
        };
        Some(Self {
            name: to_fd_name(name),
            matches_by_name,
            removes_file,
        })
    }
}

/// A name as descriptors have it when they are passed on: printable ASCII without a colon, which
/// separates names in LISTEN_FDNAMES, at most 255 bytes. Other characters become `_`.
pub(crate) fn to_fd_name(name: &str) -> String {
    let plain = |char: char| if is_plain(char) { char } else { '_' };
    name.chars().map(plain).take(MAX_NAME).collect()
}

fn is_plain(char: char) -> bool {
    char.is_ascii_graphic() && char != ':'
}

/// Any process of the same user may send this record, so that names in it are checked.
fn read_fd_name<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let name = String::deserialize(from)?;
    match name.len() <= MAX_NAME && name.chars().all(is_plain) {
        true => Ok(name),
        false => Err(D::Error::custom("not a name of a descriptor")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::tests::Random;

    #[test]
    fn names_survive_the_list() {
        assert_eq!(to_fd_name("public"), "public");
        assert_eq!(to_fd_name("127.0.0.1:80"), "127.0.0.1_80");
        assert_eq!(to_fd_name("a\nb c"), "a_b_c");
        for name in ["a:b", "a b", "ä", &"x".repeat(256)] {
            let text = format!(
                r#"{{"v":1,"listeners":[{{"name":"{name}","matches_by_name":true,"removes_file":true}}]}}"#
            );
            assert!(HandoverFields::decode(text.as_bytes()).is_err(), "{name}");
        }
    }

    #[test]
    fn a_stored_listener_is_known_by_its_name() {
        for seed in 0..100 {
            let listener: ListenerRecord = Random(seed).value();
            let stored = listener.to_stored_name();
            assert!(
                stored.len() <= 255 && to_fd_name(&stored) == stored,
                "{stored}"
            );
            assert_eq!(ListenerRecord::from_stored_name(&stored), Some(listener));
        }
        let listener = ListenerRecord {
            name: "x".repeat(255),
            matches_by_name: true,
            removes_file: true,
        };
        assert_eq!(
            listener.to_stored_name(),
            format!("handover-nu-{}", "x".repeat(243))
        );
        for other in [
            "",
            "web",
            "handover-",
            "handover-web",
            "handover-un-web",
            "handover-x-web",
        ] {
            assert_eq!(ListenerRecord::from_stored_name(other), None, "{other}");
        }
    }
}
