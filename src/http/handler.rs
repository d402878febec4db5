//! Handlers: functions from a request to a response, with or without the worker's state.

use std::fmt;
use std::io;

use ::http::{Request, Response};

use super::body::Body;
use super::reply::Reply;

/// What an HTTP service calls for each request, from [`service`](super::service) or
/// [`service_with`](super::service_with): a `Fn(&mut Request<Body<'_>>) -> T` where `T` is
/// [`IntoResponse`], or a [`WithWorker`].
pub trait Handler: Send + Sync {
    /// The state of one worker, as [`Service::Worker`](crate::Service::Worker).
    type Worker;

    /// Builds a worker's state, as [`Service::worker`](crate::Service::worker).
    ///
    /// # Errors
    ///
    /// As those of `Service::worker`.
    fn worker(&self, index: usize) -> io::Result<Self::Worker>;

    /// Handles a request.
    ///
    /// # Errors
    ///
    /// As [`IntoResponse::into_response`].
    fn handle(
        &self,
        request: &mut Request<Body<'_>>,
        worker: &mut Self::Worker,
    ) -> Result<Response<Reply>, String>;
}

/// What a handler returns: a response whose body converts into a [`Reply`], or a `Result` of it
/// with an error of any type.
pub trait IntoResponse {
    /// The response.
    ///
    /// # Errors
    ///
    /// The text of the handler's error. The client gets a 500, without this text. The error is
    /// logged as a warning, and counts in [`Stats::service_errors`](crate::Stats::service_errors).
    fn into_response(self) -> Result<Response<Reply>, String>;
}

impl<R: Into<Reply>> IntoResponse for Response<R> {
    #[inline]
    fn into_response(self) -> Result<Response<Reply>, String> {
        Ok(self.map(Into::into))
    }
}

impl<R: Into<Reply>, E: fmt::Display> IntoResponse for Result<Response<R>, E> {
    #[inline]
    fn into_response(self) -> Result<Response<Reply>, String> {
        match self {
            Ok(response) => Ok(response.map(Into::into)),
            Err(error) => Err(format!("{error:#}")),
        }
    }
}

impl<F, T> Handler for F
where
    F: Fn(&mut Request<Body<'_>>) -> T + Send + Sync,
    T: IntoResponse,
{
    type Worker = ();

    fn worker(&self, _index: usize) -> io::Result<()> {
        Ok(())
    }

    #[inline]
    fn handle(
        &self,
        request: &mut Request<Body<'_>>,
        (): &mut (),
    ) -> Result<Response<Reply>, String> {
        self(request).into_response()
    }
}

/// A handler that gets the worker's state, and the function that builds this state. From
/// [`service_with`](super::service_with). Opaque.
#[derive(Clone)]
pub struct WithWorker<B, F> {
    pub(super) build: B,
    pub(super) handler: F,
}

impl<B, F, W, T> Handler for WithWorker<B, F>
where
    B: Fn(usize) -> io::Result<W> + Send + Sync,
    F: Fn(&mut Request<Body<'_>>, &mut W) -> T + Send + Sync,
    T: IntoResponse,
{
    type Worker = W;

    fn worker(&self, index: usize) -> io::Result<W> {
        (self.build)(index)
    }

    #[inline]
    fn handle(
        &self,
        request: &mut Request<Body<'_>>,
        worker: &mut W,
    ) -> Result<Response<Reply>, String> {
        (self.handler)(request, worker).into_response()
    }
}

impl<B, F> fmt::Debug for WithWorker<B, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WithWorker").finish_non_exhaustive()
    }
}
