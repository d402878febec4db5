//! A notification as a supervisor reads it, compiled from the crate's own files, with any bytes.
//!
//! Nothing panics, and what is accepted of the crate's own variable means the same when it is encoded.
//!
//! ```sh
//! cargo +nightly fuzz run notification seeds/notification -- -max_len=32768
//! ```

#![no_main]
#![allow(dead_code, unused_imports, unused_macros)]

#[path = "../../src/log.rs"]
mod log;
#[path = "../../src/notify/notification.rs"]
mod notification;
#[path = "../../src/panic.rs"]
mod panic;
#[path = "../../src/wire/mod.rs"]
mod wire;

use libfuzzer_sys::fuzz_target;

use notification::Notification;
use wire::{HandoverFields, ListenerRecord, Record};

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    let fields = Notification::parse(&text).handover_fields;
    if let Ok(record) = fields.encode() {
        let text = format!("{}={record}\n", HandoverFields::VARIABLE);
        assert_eq!(Notification::parse(&text).handover_fields, fields);
    }
    // The name under which the service manager has stored a listener.
    let _ = ListenerRecord::from_stored_name(&text);
});
