//! The connection in the poller.

use std::io;

use super::Connection;
use crate::log;
use crate::sys::{Interest, Poller};

impl Connection {
    /// Makes the poller watch the socket. Input that has arrived already is reported. Where the
    /// poller keeps its sockets, a further call with the same interest does nothing.
    #[inline]
    pub(crate) fn watch(&mut self, token: u64, interest: Interest) -> io::Result<()> {
        let (poller, socket) = (&self.poller, &self.info.socket);
        let must_rearm = std::mem::take(&mut self.must_rearm) || Poller::REPORTS_ONCE;
        match self.watched {
            Some(watched) if watched == interest && !must_rearm => return Ok(()),
            Some(_) => poller.rearm(socket, token, interest)?,
            None => {
                poller.add(socket, token)?;
                // The socket has to leave the poller even if the next call fails.
                self.watched = Some(Interest::Read);
                if interest != Interest::Read {
                    poller.rearm(socket, token, interest)?;
                }
            }
        }
        self.watched = Some(interest);
        Ok(())
    }

    /// Makes the next call of [`watch`](Self::watch) report what is ready already, also if the
    /// interest is the same.
    pub(crate) fn report_again(&mut self) {
        if let Some(watched) = &mut self.watched {
            *watched = Interest::Both;
        }
    }

    pub(crate) fn unwatch(&mut self) {
        if self.watched.take().is_some() {
            if let Err(error) = self.poller.remove(&self.info.socket) {
                log::warn!(
                    "{}: cannot remove the connection from the poller: {error}",
                    self.info
                );
            }
        }
    }
}
