//! The values of options.

use std::error::Error;
use std::time::Duration;

use handover::{Addr, Bind};

pub(super) fn seconds(text: &str) -> Result<Duration, Box<dyn Error + Send + Sync>> {
    Ok(Duration::try_from_secs_f64(text.parse()?)?)
}

pub(super) fn listener(text: &str) -> Result<Bind, Box<dyn Error + Send + Sync>> {
    // The whole text is tried as an address first: the path of a Unix socket may contain "=".
    match (text.parse::<Addr>(), text.split_once('=')) {
        (Ok(addr), _) => Ok(addr.into()),
        (Err(_), Some((name, addr))) if !name.is_empty() => {
            Ok(Bind::from(addr.parse::<Addr>()?).name(name))
        }
        (Err(error), _) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_may_have_a_name_and_its_path_an_equals_sign() {
        for good in ["127.0.0.1:0", "web=[::1]:80", "unix:/a=b", "a=unix:/b=c"] {
            assert!(listener(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "=127.0.0.1:0",
            "web=",
            "web",
            "localhost:80",
            "a=b=unix:/c",
        ] {
            assert!(listener(bad).is_err(), "{bad}");
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
