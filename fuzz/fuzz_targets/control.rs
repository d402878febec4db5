//! A request on the control socket of a supervisor, and its answers as a client reads them, compiled from the crate's own
//! files, with any bytes.
//!
//! Nothing panics, only exact requests are requests, and an answer that is accepted means the same when it is encoded.
//!
//! ```sh
//! cargo +nightly fuzz run control seeds/control
//! ```

#![no_main]
#![allow(dead_code, unused_imports, unused_macros)]

#[path = "../../src/wire/mod.rs"]
mod wire;

use libfuzzer_sys::fuzz_target;

use wire::{Answer, ControlRequest, Record, Status};

fuzz_target!(|bytes: &[u8]| {
    let line = String::from_utf8_lossy(bytes);
    if ControlRequest::parse(&line).is_some() {
        let is_plain =
            |byte: u8| matches!(byte, b' ' | b'+') || byte.is_ascii_lowercase() || byte.is_ascii_digit();
        assert!(line.trim_end().bytes().all(is_plain), "{line:?}");
    }
    keeps_its_meaning::<Answer>(bytes);
    keeps_its_meaning::<Status>(bytes);
});

fn keeps_its_meaning<T: Record + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    if let Ok(record) = T::decode(bytes) {
        let text = record.encode().unwrap();
        assert_eq!(T::decode(text.as_bytes()).unwrap(), record);
    }
}
