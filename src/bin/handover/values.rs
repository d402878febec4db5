//! The values of options.

use std::error::Error;
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use clap::builder::{PossibleValuesParser, TypedValueParser};

use handover::{Bind, LogFormat, NotifyAccess};

pub(super) fn seconds(text: &str) -> Result<Duration, Box<dyn Error + Send + Sync>> {
    Ok(Duration::try_from_secs_f64(text.parse()?)?)
}

/// Two durations in seconds, the longer one last: `0.1..30`.
pub(super) fn delays(text: &str) -> Result<(Duration, Duration), Box<dyn Error + Send + Sync>> {
    let (first, longest) = text
        .split_once("..")
        .ok_or("no \"..\" between two numbers")?;
    let (first, longest) = (seconds(first)?, seconds(longest)?);
    match first <= longest {
        true => Ok((first, longest)),
        false => Err("the first delay is longer than the longest".into()),
    }
}

/// Which processes are started again that exit without having been asked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum RestartWhen {
    Always,
    OnFailure,
}

/// The exit code after which a program is not started again, if there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoRestartCode(pub(super) Option<i32>);

impl FromStr for NoRestartCode {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse::<u8>() {
            _ if text == "none" => Ok(Self(None)),
            Ok(code) if code > 0 => Ok(Self(Some(code.into()))),
            _ => Err("neither a number from 1 to 255 nor \"none\""),
        }
    }
}

pub(super) fn log_format() -> impl TypedValueParser<Value = LogFormat> {
    let names = ["auto", "plain", "journal", "json"];
    PossibleValuesParser::new(names).map(|name| match name.as_str() {
        "plain" => LogFormat::Plain,
        "journal" => LogFormat::Journal,
        "json" => LogFormat::Json,
        _ => LogFormat::Auto,
    })
}

pub(super) fn notify_access(text: &str) -> Result<NotifyAccess, &'static str> {
    match text {
        "main" => Ok(NotifyAccess::Main),
        "all" => Ok(NotifyAccess::All),
        _ => Err("neither main nor all"),
    }
}

pub(super) fn minutes(text: &str) -> Result<Duration, Box<dyn Error + Send + Sync>> {
    Ok(Duration::try_from_secs_f64(60.0 * text.parse::<f64>()?)?)
}

/// The mode of a file, in octal.
pub(super) fn octal(text: &str) -> Result<u32, Box<dyn Error + Send + Sync>> {
    match u32::from_str_radix(text, 8)? {
        mode @ ..=0o777 => Ok(mode),
        _ => Err("must be at most 777".into()),
    }
}

pub(super) fn listener(text: &str) -> Result<Bind, Box<dyn Error + Send + Sync>> {
    // The whole text is tried as an address first: the path of a Unix socket may contain "=".
    match (text.parse::<Bind>(), text.split_once('=')) {
        (Ok(bind), _) => Ok(bind),
        (Err(_), Some((name, addr))) if !name.is_empty() => Ok(addr.parse::<Bind>()?.name(name)),
        (Err(error), _) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_may_have_a_name_and_its_path_an_equals_sign() {
        for good in [
            "127.0.0.1:0",
            "web=[::1]:80",
            "unix:/a=b",
            "a=unix:/b=c",
            "dns=udp:[::]:53",
            "unixgram:/a=b",
            "web=localhost:80",
            "localhost:80",
            ":0",
        ] {
            assert!(listener(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "=127.0.0.1:0",
            "web=",
            "web",
            "no host:80",
            "udp:80",
            "a=b=unix:/c",
        ] {
            assert!(listener(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn delays_are_two_numbers_in_order() {
        let expected = (Duration::from_millis(100), Duration::from_secs(30));
        assert_eq!(delays("0.1..30").unwrap(), expected);
        for bad in ["", "1", "2..1", "1..", "..1", "1..x", "-1..1"] {
            assert!(delays(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_code_is_that_of_a_failure() {
        assert_eq!("none".parse(), Ok(NoRestartCode(None)));
        assert_eq!("255".parse(), Ok(NoRestartCode(Some(255))));
        for bad in ["", "0", "256", "-1", "None"] {
            assert!(bad.parse::<NoRestartCode>().is_err(), "{bad}");
        }
    }

    #[test]
    fn seconds_are_finite_and_not_negative() {
        assert_eq!(seconds("0.25").unwrap(), Duration::from_millis(250));
        for bad in ["", "-1", "inf", "nan", "1s", "1e300"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
