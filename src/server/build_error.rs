//! Why a server could not be built.

use std::error::Error;
use std::fmt;
use std::io;

use crate::listener::BindError;
#[cfg(feature = "signals")]
use crate::sys::EventPrefix;

/// A setting of the [`Builder`](crate::Builder) that [`BuildError`] names. Its text is the name of
/// the builder's method, or of that of [`Restart`](crate::Restart).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Setting {
    /// [`Builder::workers`](crate::Builder::workers).
    Workers,
    /// [`Builder::worker_groups`](crate::Builder::worker_groups).
    WorkerGroups,
    /// [`Builder::queue`](crate::Builder::queue).
    Queue,
    /// [`Builder::max_connections`](crate::Builder::max_connections).
    MaxConnections,
    /// [`Builder::max_per_client`](crate::Builder::max_per_client).
    MaxPerClient,
    /// [`Builder::input_limit`](crate::Builder::input_limit).
    InputLimit,
    /// [`Builder::stack_size`](crate::Builder::stack_size).
    StackSize,
    /// [`Builder::queue_timeout`](crate::Builder::queue_timeout).
    QueueTimeout,
    /// [`Builder::first_byte_timeout`](crate::Builder::first_byte_timeout).
    FirstByteTimeout,
    /// [`Builder::idle_timeout`](crate::Builder::idle_timeout).
    IdleTimeout,
    /// [`Builder::read_timeout`](crate::Builder::read_timeout).
    ReadTimeout,
    /// [`Builder::write_timeout`](crate::Builder::write_timeout).
    WriteTimeout,
    /// [`Builder::stuck_after`](crate::Builder::stuck_after).
    StuckAfter,
    /// [`Restart::ready_timeout`](crate::Restart::ready_timeout).
    ReadyTimeout,
    /// [`Restart::pause_limit`](crate::Restart::pause_limit).
    PauseLimit,
}

impl Setting {
    fn is_time(self) -> bool {
        match self {
            Self::Workers
            | Self::WorkerGroups
            | Self::Queue
            | Self::MaxConnections
            | Self::MaxPerClient
            | Self::InputLimit
            | Self::StackSize => false,
            Self::QueueTimeout
            | Self::FirstByteTimeout
            | Self::IdleTimeout
            | Self::ReadTimeout
            | Self::WriteTimeout
            | Self::StuckAfter
            | Self::ReadyTimeout
            | Self::PauseLimit => true,
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Workers => "workers",
            Self::WorkerGroups => "worker_groups",
            Self::Queue => "queue",
            Self::MaxConnections => "max_connections",
            Self::MaxPerClient => "max_per_client",
            Self::InputLimit => "input_limit",
            Self::StackSize => "stack_size",
            Self::QueueTimeout => "queue_timeout",
            Self::FirstByteTimeout => "first_byte_timeout",
            Self::IdleTimeout => "idle_timeout",
            Self::ReadTimeout => "read_timeout",
            Self::WriteTimeout => "write_timeout",
            Self::StuckAfter => "stuck_after",
            Self::ReadyTimeout => "ready_timeout",
            Self::PauseLimit => "pause_limit",
        })
    }
}

/// Why a server could not be built.
#[non_exhaustive]
pub enum BuildError {
    /// This setting must be at least 1, or must be more than zero if it is a time.
    Zero(Setting),
    /// This setting must be at least `least`.
    TooSmall {
        /// The setting.
        setting: Setting,
        /// The least value that is possible.
        least: usize,
    },
    /// This setting must be at most `most`.
    TooLarge {
        /// The setting.
        setting: Setting,
        /// The largest value that is possible.
        most: usize,
    },
    /// This [`Builder::event_prefix`](crate::Builder::event_prefix) is not valid.
    #[cfg(feature = "signals")]
    EventPrefix(String),
    /// The service refuses its own settings, or those of the server: the error of
    /// [`Service::check`](crate::Service::check).
    Service(Box<dyn Error + Send + Sync>),
    /// Neither [`Builder::listen`](crate::Builder::listen) nor
    /// [`Builder::listener`](crate::Builder::listener) was called.
    NoListener,
    /// An address cannot be listened on.
    Bind(BindError),
    /// The servers of this [`Restart`](crate::Restart) run already.
    Restart(io::Error),
    /// The system has no room for what every server needs, such as descriptors.
    System(io::Error),
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zero(setting) if setting.is_time() => {
                write!(
                    f,
                    "{setting} must be more than zero (Duration::MAX is no limit)"
                )
            }
            Self::Zero(setting) => write!(f, "{setting} must be at least 1"),
            Self::TooSmall { setting, least } => write!(f, "{setting} must be at least {least}"),
            Self::TooLarge { setting, most } => write!(f, "{setting} must be at most {most}"),
            #[cfg(feature = "signals")]
            Self::EventPrefix(prefix) => write!(
                f,
                "event_prefix must be {}, and is {prefix:?}",
                EventPrefix::RULE
            ),
            Self::Service(error) => error.fmt(f),
            Self::NoListener => f.write_str("the server has no address to listen on"),
            Self::Bind(error) => error.fmt(f),
            Self::Restart(error) => error.fmt(f),
            Self::System(error) => write!(f, "cannot make the server: {error}"),
        }
    }
}

/// The text of the error with its cause, as `main` prints it.
impl fmt::Debug for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Error for BuildError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Zero(_) | Self::TooSmall { .. } | Self::TooLarge { .. } | Self::NoListener => {
                None
            }
            #[cfg(feature = "signals")]
            Self::EventPrefix(_) => None,
            Self::Service(error) => error.source(),
            Self::Bind(error) => error.source(),
            Self::Restart(error) | Self::System(error) => Some(error),
        }
    }
}

impl From<BuildError> for io::Error {
    fn from(error: BuildError) -> Self {
        match error {
            BuildError::Zero(_)
            | BuildError::TooSmall { .. }
            | BuildError::TooLarge { .. }
            | BuildError::Service(_)
            | BuildError::NoListener => Self::new(io::ErrorKind::InvalidInput, error),
            #[cfg(feature = "signals")]
            BuildError::EventPrefix(_) => Self::new(io::ErrorKind::InvalidInput, error),
            BuildError::Bind(error) => error.into(),
            BuildError::Restart(error) | BuildError::System(error) => error,
        }
    }
}
