//! A connection that moves to the successor: what its record contains, and what is made of a record.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::{Connection, ConnectionInfo, Limits};
use crate::clock::{Deadline, in_millis};
use crate::wire::{ConnectionRecord, ConnectionSettings, WireBytes};

impl Connection {
    /// Whether the connection may move to a successor when it is between two messages. A connection
    /// stays if other threads or a timer may have the service called: a waker, an outbox and a timer
    /// are of one process.
    pub(crate) fn is_movable(&self) -> bool {
        !self.stays
            && !self.lingers_on_close
            && !self.wants_drain_call.load(Relaxed)
            && self.outbox.is_none()
            && !self.at_eof()
    }

    /// Whether no service is called in this process any more, because a successor has the state.
    pub(crate) fn has_ended_calls(&self) -> bool {
        self.info.open_connection.drain().has_ended_calls()
    }

    /// The connection does not move to a successor any more.
    pub(crate) fn note_stay(&mut self) {
        self.stays = true;
    }

    pub(crate) fn shared_info(&self) -> &Arc<ConnectionInfo> {
        &self.info
    }

    /// The record of this connection, without its stage and its session. `defaults` has the limits
    /// that all connections start with.
    pub(crate) fn to_record(&self, defaults: &Limits) -> ConnectionRecord {
        let now = Instant::now();
        let left = |deadline: Deadline| deadline.time_left(now).map(in_millis);
        let changed = |own: u64, default: u64| (own != default).then_some(own);
        let (read, write) = (&self.read, &self.write);
        ConnectionRecord {
            listener: self.info.listener.id(),
            peer: self.info.peer.to_wire(),
            is_new: false,
            idle_left_ms: None,
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
            settings: ConnectionSettings {
                idle_timeout_ms: changed(self.idle_timeout, in_millis(defaults.idle_timeout)),
                read_timeout_ms: changed(in_millis(read.timeout), in_millis(defaults.read_timeout)),
                write_timeout_ms: changed(
                    in_millis(write.timeout),
                    in_millis(defaults.write_timeout),
                ),
                read_left_ms: left(read.hard),
                write_left_ms: left(write.hard),
                min_rate: (read.min_rate != defaults.min_rate).then_some(read.min_rate),
                output_limit: changed(self.output_limit as u64, defaults.output_limit as u64),
                goodbye: WireBytes(self.goodbye.to_vec()),
            },
            unread: WireBytes(self.buffer().to_vec()),
            session: None,
        }
    }

    /// Gives a new connection what the record says. The record is
    /// [consistent](ConnectionRecord::is_consistent).
    pub(crate) fn apply_record(&mut self, record: ConnectionRecord) {
        let now = Instant::now();
        let until = |left| Deadline::after(now, Duration::from_millis(left));
        let settings = record.settings;
        (self.bytes_in, self.bytes_out) = (record.bytes_in, record.bytes_out);
        // The sender has counted them.
        self.counted = (record.bytes_in, record.bytes_out);
        self.input.put_back(&record.unread.0);
        self.begin_message();
        if let Some(timeout) = settings.idle_timeout_ms {
            self.idle_timeout = timeout;
        }
        if let Some(timeout) = settings.read_timeout_ms {
            self.read.timeout = Duration::from_millis(timeout);
        }
        if let Some(timeout) = settings.write_timeout_ms {
            self.write.timeout = Duration::from_millis(timeout);
        }
        self.read.hard = settings.read_left_ms.map_or(Deadline::NEVER, until);
        self.write.hard = settings.write_left_ms.map_or(Deadline::NEVER, until);
        if let Some(rate) = settings.min_rate {
            self.set_min_rate(rate);
        }
        if let Some(limit) = settings.output_limit {
            self.output_limit = usize::try_from(limit).unwrap_or(usize::MAX);
        }
        self.goodbye = settings.goodbye.0.into();
    }
}
