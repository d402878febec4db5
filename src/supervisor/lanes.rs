//! The lanes of processes: sockets over which the supervisor tells a process to move its connections to
//! another process, and to end. See `restart/restarter/lane.rs` for the messages.
//!
//! A process sends one end of its lane in a notification. The holder of that end can make the process
//! leave: so a process gets the lane of another one only if both have the same user, which could
//! send the signals too.

use std::collections::HashMap;
use std::io;

use crate::sys::{self, Descriptor};
use crate::wire::{HandshakeMessage, LaneRecord, Record};

/// At most one lane for each process.
#[derive(Debug, Default)]
pub(super) struct Lanes(HashMap<u32, Lane>);

#[derive(Debug)]
pub(super) struct Lane {
    pub(super) descriptor: Descriptor,
    /// The user of the process when it sent the lane.
    pub(super) uid: u32,
}

impl Lanes {
    /// Adds the lane of a process. Returns its former lane.
    pub(super) fn insert(&mut self, pid: u32, lane: Lane) -> Option<Descriptor> {
        let former = self.0.insert(pid, lane);
        former.map(|former| former.descriptor)
    }

    /// Removes the lanes of all processes but these.
    pub(super) fn remove_others(&mut self, pids: &[u32]) -> Vec<Descriptor> {
        let ended: Vec<u32> = self.0.keys().copied().collect();
        let ended = ended.iter().filter(|pid| !pids.contains(pid));
        let lanes = ended.filter_map(|pid| self.0.remove(pid));
        lanes.map(|lane| lane.descriptor).collect()
    }

    /// Tells a process to leave its connections to the process `recipient`, without waiting.
    ///
    /// # Errors
    ///
    /// `NotFound` if one of them has no lane, `PermissionDenied` if they are of different users, and
    /// errors of the system. The process was not told then.
    pub(super) fn tell_to_leave(&self, pid: u32, recipient: u32) -> io::Result<()> {
        let lane = |pid| self.0.get(&pid).ok_or(io::ErrorKind::NotFound);
        let (own, other) = (lane(pid)?, lane(recipient)?);
        if own.uid != other.uid {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let socket = sys::descriptor::into_socket(own.descriptor.try_clone()?)?;
        let send = |message: HandshakeMessage, descriptors: &[&Descriptor]| {
            sys::message::send_packet(&socket, &message.encode()?, descriptors)
        };
        send(HandshakeMessage::Recipient, &[&other.descriptor])?;
        send(HandshakeMessage::Leave, &[])
    }

    /// The lanes for a snapshot. `keep` keeps a descriptor open, and returns its number.
    pub(super) fn records(
        &self,
        mut keep: impl FnMut(Descriptor) -> i32,
    ) -> io::Result<Vec<LaneRecord>> {
        let lanes = self.0.iter();
        let record = |(pid, lane): (&u32, &Lane)| -> io::Result<LaneRecord> {
            Ok(LaneRecord {
                pid: *pid,
                uid: lane.uid,
                descriptor: keep(lane.descriptor.try_clone()?),
            })
        };
        lanes.map(record).collect()
    }

    pub(super) fn resume(records: Vec<LaneRecord>) -> io::Result<Self> {
        let lane = |record: LaneRecord| -> io::Result<(u32, Lane)> {
            let descriptor = sys::descriptor::adopt(record.descriptor)?;
            let uid = record.uid;
            Ok((record.pid, Lane { descriptor, uid }))
        };
        let lanes = records.into_iter().map(lane);
        lanes.collect::<io::Result<_>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_of_a_process_of_its_user_only() {
        let mut lanes = Lanes::default();
        let mut ends = Vec::new();
        for (pid, uid) in [(1, 7), (2, 7), (3, 8)] {
            let Ok((own_end, other_end)) = sys::message::create_pair() else {
                return;
            };
            let descriptor = sys::descriptor::from_socket(other_end).unwrap();
            assert!(lanes.insert(pid, Lane { descriptor, uid }).is_none());
            ends.push(own_end);
        }
        let error = |pid, recipient| lanes.tell_to_leave(pid, recipient).unwrap_err().kind();
        assert_eq!(error(1, 3), io::ErrorKind::PermissionDenied);
        assert_eq!(error(1, 4), io::ErrorKind::NotFound);
        assert_eq!(error(4, 1), io::ErrorKind::NotFound);
        let mut buffer = [0; 256];
        let received = sys::message::receive(&ends[0], &mut buffer);
        assert!(received.is_err(), "a process was told");
        lanes.tell_to_leave(1, 2).unwrap();
        let mut receive = || {
            let (size, descriptor) = sys::message::receive(&ends[0], &mut buffer).unwrap();
            let message = HandshakeMessage::decode(&buffer[..size]).unwrap();
            (message, descriptor)
        };
        let (message, recipient) = receive();
        assert_eq!(message, HandshakeMessage::Recipient);
        // It is the lane of process 2.
        let recipient = sys::descriptor::into_socket(recipient.unwrap()).unwrap();
        sys::message::send_packet(&recipient, "text", &[]).unwrap();
        assert_eq!(sys::message::receive(&ends[1], &mut [0; 8]).unwrap().0, 4);
        assert!(matches!(receive(), (HandshakeMessage::Leave, None)));
        // A process whose end is closed cannot be told.
        assert_eq!(lanes.remove_others(&[1, 3]).len(), 1);
        drop(ends);
        assert!(lanes.tell_to_leave(1, 1).is_err());
    }
}
