//! The signal that has a process finish its requests and exit.

use std::fmt;
use std::str::FromStr;

use crate::sys::{Signal, signal};

/// The signal that has a process finish its requests and exit, see
/// [`Supervisor::stop_signal`](crate::Supervisor::stop_signal).
///
/// It is made from a name, with or without `SIG`, or from a number:
///
/// ```
/// # #[cfg(unix)] {
/// use handover::StopSignal;
///
/// let signal: StopSignal = "QUIT".parse().unwrap();
/// assert_eq!(signal, "SIGQUIT".parse().unwrap());
/// assert_eq!(signal, "3".parse().unwrap());
/// assert_eq!(signal.to_string(), "SIGQUIT");
/// # }
/// ```
///
/// Signals of the processor (SIGSEGV), those that stop a process (SIGSTOP) and real-time signals are
/// refused. On Windows there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StopSignal(pub(crate) Signal);

/// There is no such signal, or no process is told to end by it.
#[derive(Clone, PartialEq, Eq)]
pub struct StopSignalError(String);

impl FromStr for StopSignal {
    type Err = StopSignalError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let name = text.to_ascii_uppercase();
        let name = name.strip_prefix("SIG").unwrap_or(&name);
        let signal = match name.parse() {
            Ok(number) => signal::from_any_number(number),
            Err(_) => signal::from_name(name),
        };
        let signal = signal.ok_or_else(|| StopSignalError(text.to_owned()))?;
        Ok(Self(signal))
    }
}

impl fmt::Display for StopSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for StopSignalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = &self.0;
        write!(f, "no signal that ends a process gracefully: {text:?}")
    }
}

/// The text of the error, as `main` prints it.
impl fmt::Debug for StopSignalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for StopSignalError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_has_a_name_with_or_without_its_prefix_and_a_number() {
        for (text, name) in [
            ("TERM", "SIGTERM"),
            ("sigusr2", "SIGUSR2"),
            ("9", "SIGKILL"),
            ("winch", "SIGWINCH"),
            ("SIGALRM", "SIGALRM"),
        ] {
            let signal = text.parse::<StopSignal>().ok();
            let shown = signal.map(|signal| signal.to_string());
            let expected = signal::from_name("TERM").map(|_| name.to_owned());
            assert_eq!(shown, expected, "{text}");
        }
        for bad in [
            "",
            "SIG",
            "0",
            "-1",
            "SEGV",
            "STOP",
            "TERM ",
            "99999999999",
            "RTMIN",
        ] {
            assert!(bad.parse::<StopSignal>().is_err(), "{bad}");
        }
    }
}
