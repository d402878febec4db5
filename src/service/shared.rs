//! A service in an `Arc`.

use std::error::Error;
use std::io;
use std::sync::Arc;

use super::{BufferLimits, Next, Service};
use crate::connection::{Connection, Expiry};

/// A service that is shared: by two servers, or with the application.
impl<S: Service> Service for Arc<S> {
    type Session = S::Session;
    type Worker = S::Worker;

    fn check(&self, buffers: &BufferLimits) -> Result<(), Box<dyn Error + Send + Sync>> {
        S::check(self, buffers)
    }

    fn worker(&self, index: usize) -> io::Result<S::Worker> {
        S::worker(self, index)
    }

    fn session(&self, conn: &mut Connection) -> io::Result<S::Session> {
        S::session(self, conn)
    }

    fn serve(
        &self,
        conn: &mut Connection,
        session: &mut S::Session,
        worker: &mut S::Worker,
    ) -> io::Result<Next> {
        S::serve(self, conn, session, worker)
    }

    fn handles_expiry(&self) -> bool {
        S::handles_expiry(self)
    }

    fn expired(
        &self,
        conn: &mut Connection,
        session: &mut S::Session,
        expiry: Expiry,
    ) -> io::Result<Next> {
        S::expired(self, conn, session, expiry)
    }

    fn packs_sessions(&self) -> bool {
        S::packs_sessions(self)
    }

    fn pack(&self, conn: &Connection, session: &S::Session) -> Option<Vec<u8>> {
        S::pack(self, conn, session)
    }

    fn unpack(&self, conn: &mut Connection, packed: Vec<u8>) -> io::Result<S::Session> {
        S::unpack(self, conn, packed)
    }
}
