//! Listeners from the supervisor.
//!
//! A supervised process asks the supervisor for each listener that it was not started with. So all
//! processes of the service share the same listeners, and need no privileges to bind them.
//!
//! For a process of another user, the supervisor binds only what is on its list. The process binds
//! other addresses itself, if it may, and leaves a copy with the supervisor.

use std::io;

use crate::listener::{Bind, BindError, Listener};
use crate::notify;
use crate::sys;
use crate::wire::{BindAnswer, BindRequest, Record};

/// Makes the supervisor bind.
pub(super) fn bind(generation: u64, bind: Bind) -> Result<Listener, BindError> {
    bind.bind_by(|bind, addr| {
        let Some(request) = bind.to_request() else {
            return bind.try_bind(addr);
        };
        match ask_supervisor(generation, bind, request)? {
            Some(listener) => Ok(listener),
            None => bind.try_bind(addr).map_err(|error| {
                let text = format!(
                    "{error}; the supervisor does not bind this address for this user, see \
                     Supervisor::allow_bind"
                );
                match error.kind() {
                    io::ErrorKind::PermissionDenied => io::Error::new(error.kind(), text),
                    _ => error,
                }
            }),
        }
    })
}

/// `None` if the supervisor does not bind this address for the user of this process.
fn ask_supervisor(
    generation: u64,
    bind: &Bind,
    request: BindRequest,
) -> io::Result<Option<Listener>> {
    let mut buffer = [0; BindAnswer::LIMIT];
    let (size, descriptor) = match notify::request_bind(generation, request, &mut buffer) {
        Ok((0, _)) => return Err(io::Error::other("the supervisor does not answer")),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
            return Err(io::Error::other("the supervisor takes too long to answer"));
        }
        answer => answer?,
    };
    let answer = BindAnswer::decode(&buffer[..size])?;
    if let BindAnswer::Refused {
        is_forbidden: true, ..
    } = answer
    {
        return Ok(None);
    }
    answer.into_result()?;
    let descriptor = descriptor.ok_or_else(|| io::Error::other("the listener was not passed"))?;
    let socket = sys::descriptor::into_socket(descriptor)?;
    bind.clone().adopt(socket, false).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Addr;

    #[test]
    fn what_a_bind_needs_goes_there_and_back() {
        let path = sys::file::os_string(b"/run/\xff").into();
        for bind in [
            Bind::new("127.0.0.1:80")
                .name("a\tb")
                .backlog(7)
                .fast_open(3)
                .reuse_port(true),
            Bind::from(Addr::Unix(Some(path))).unix_mode(0o660),
        ] {
            let request = bind.to_request().unwrap();
            let back = Bind::from_request(request.clone()).to_request();
            assert_eq!(back, Some(request));
        }
        assert_eq!(Bind::new("nonsense").to_request(), None);
        assert_eq!(Bind::from(Addr::Unix(None)).to_request(), None);
    }
}
