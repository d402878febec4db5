//! Panics of the application's code: contained, and turned into an error text.

use std::any::Any;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Calls code of the application. A panic becomes an error with the panic's text.
pub(crate) fn contain<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|panic| {
        let text = message(&*panic).to_owned();
        discard(panic);
        text
    })
}

/// Drops the payload of a panic. Its drop is the application's code as well. If the drop panics,
/// the payload of that panic is leaked: its drop might panic in turn, without end.
fn discard(panic: Box<dyn Any + Send>) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
        mem::forget(panic);
    }
}

/// The text of a panic, as `panic!` and `assert!` leave it in the payload.
fn message(panic: &(dyn Any + Send)) -> &str {
    if let Some(text) = panic.downcast_ref::<&str>() {
        text
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text
    } else {
        "a panic without a text"
    }
}
