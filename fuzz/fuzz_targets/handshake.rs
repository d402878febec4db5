//! What processes of one service tell each other in a restart, compiled from the crate's own files, with any bytes.
//!
//! Nothing panics, and what is accepted means the same when it is encoded. Long texts are cut by the first encoding.
//!
//! ```sh
//! cargo +nightly fuzz run handshake seeds/handshake -- -max_len=70000
//! ```

#![no_main]
#![allow(dead_code, unused_imports, unused_macros)]

#[path = "../../src/wire/mod.rs"]
mod wire;

use libfuzzer_sys::fuzz_target;

use wire::{BindAnswer, HandshakeMessage, Launch, Record, Snapshot};

fuzz_target!(|bytes: &[u8]| {
    keeps_its_meaning::<HandshakeMessage>(bytes);
    keeps_its_meaning::<BindAnswer>(bytes);
    keeps_its_meaning::<Launch>(bytes);
    keeps_its_meaning::<Snapshot>(bytes);
});

fn keeps_its_meaning<T: Record + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    let Ok(record) = T::decode(bytes) else {
        return;
    };
    // A record that is decoded may need more bytes when it is encoded, and then has no encoding.
    if let Ok(text) = record.encode() {
        let again = T::decode(text.as_bytes()).unwrap();
        assert_eq!(again.encode().unwrap(), text);
    }
}
