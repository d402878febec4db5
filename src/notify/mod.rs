//! Notifications to the service manager, in systemd's protocol (sd_notify(3)): systemd itself, a
//! supervisor of this crate, or any other manager that sets `NOTIFY_SOCKET`. Without a manager,
//! nothing is sent.
//!
//! A notification is a datagram of lines `VARIABLE=value`. A supervisor of this crate gets one more
//! variable, with [`HandoverFields`]. [`Notification`] is what a supervisor reads.
//!
//! No call waits for the manager, unless it says so. What the manager does not take at once is sent
//! later, by [`retry`].

mod notification;
mod outbox;

use std::env;
use std::ffi::OsString;
use std::fmt::Display;
use std::io;
use std::process;
use std::time::{Duration, Instant};

use crate::clock::Deadline;
use crate::log;
use crate::sys::message::AnswerChannel;
use crate::sys::{self, Descriptor};
use crate::wire::{BindRequest, HandoverFields, ListenerRecord, Record};

use outbox::{Kind, Message, OUTBOX};

pub(crate) use notification::{Notification, WatchdogMessage};

/// Whether there is a service manager that reads notifications.
pub(crate) fn has_manager() -> bool {
    env::var_os("NOTIFY_SOCKET").is_some_and(|manager| !manager.is_empty())
}

// ---- the state of the service ----

/// The process serves. `generation` is for the supervisor.
pub(crate) fn send_ready(generation: Option<u64>, status: impl Display) {
    let text = format!("READY=1\nSTATUS={}\n", one_line(status));
    send_state(&text, of_generation(generation).as_ref());
    #[cfg(feature = "windows-service")]
    crate::service_manager::report_ready();
}

/// A restart has begun. [`send_ready`], [`send_main_pid`] or [`send_restart_failed`] follows.
pub(crate) fn send_reloading(status: impl Display) {
    let micros = sys::clock::monotonic_nanos() / 1000;
    let text = format!("RELOADING=1\nMONOTONIC_USEC={micros}\nSTATUS={status}\n");
    send_state(&text, None);
}

/// Another process serves from now on; `generation` is its generation, for the supervisor. Returns
/// when the manager has read this, so that this process may end, or after five seconds.
pub(crate) fn send_main_pid(pid: u32, generation: Option<u64>, status: impl Display) {
    let text = format!("READY=1\nMAINPID={pid}\nSTATUS={status}\n");
    send_state(&text, of_generation(generation).as_ref());
    if has_manager() {
        // The manager closes the socket when it has read this (sd_notify_barrier(3)).
        let end = send_and_receive("BARRIER=1", None, READ_TIMEOUT, &mut [0]);
        if let Err(error) = end {
            log::warn!("cannot tell whether the service manager knows of process {pid}: {error}");
        }
    }
}

/// The process was not replaced. It goes on serving, or stops. `generation` is for the supervisor.
pub(crate) fn send_restart_failed(
    generation: Option<u64>,
    serves: bool,
    status: impl Display,
    why: impl Display,
) {
    let ready = if serves { "READY=1\n" } else { "" };
    let text = format!("{ready}STATUS={}\n", one_line(status));
    let mut handover_fields = of_generation(generation);
    if let Some(handover_fields) = &mut handover_fields {
        handover_fields.failed = Some(one_line(why));
    }
    send_state(&text, handover_fields.as_ref());
}

/// The process ends.
pub(crate) fn send_stopping(status: impl Display) {
    send_state(&format!("STOPPING=1\nSTATUS={status}\n"), None);
    #[cfg(feature = "windows-service")]
    crate::service_manager::report_stopping();
}

/// What the process does now, for people.
pub(crate) fn send_status(status: impl Display) {
    send_or_log(Kind::Status, &format!("STATUS={}\n", one_line(status)));
}

/// Asks for more time for the start, the restart or the stop in progress.
pub(crate) fn request_more_time(by: Duration) {
    let micros = u64::try_from(by.as_micros()).unwrap_or(u64::MAX);
    let text = format!("EXTEND_TIMEOUT_USEC={micros}\n");
    send_or_log(Kind::MoreTime, &text);
}

// ---- the watchdog ----

/// The process makes progress.
pub(crate) fn send_watchdog_alive() {
    send_or_log(Kind::Watchdog, "WATCHDOG=1\n");
}

/// The process makes no progress, and is to be ended.
pub(crate) fn send_watchdog_trigger() {
    send_or_log(Kind::Watchdog, "WATCHDOG=trigger\n");
}

/// How long the manager waits for [`send_watchdog_alive`] before it ends the process
/// (sd_watchdog_enabled(3)). `None` if the manager has no watchdog for this process.
pub(crate) fn watchdog_limit() -> Option<Duration> {
    let number = |value: OsString| value.to_str()?.parse::<u64>().ok();
    let pid = sys::process::own_variable("WATCHDOG_PID").and_then(number);
    let is_ours = pid.is_none_or(|pid| pid == u64::from(process::id()));
    let micros = env::var_os("WATCHDOG_USEC").and_then(number);
    let micros = micros.filter(|micros| *micros > 0);
    micros
        .filter(|_| is_ours && has_manager())
        .map(Duration::from_micros)
}

// ---- the manager's file descriptor store ----

/// Whether the manager stores descriptors for the next process of the service
/// (FileDescriptorStoreMax= in systemd.service(5)).
pub(crate) fn has_store() -> bool {
    let most = env::var("FDSTORE").ok().and_then(|most| most.parse().ok());
    has_manager() && most.is_some_and(|most: u64| most > 0)
}

/// Stores a listener with the manager.
pub(crate) fn store_listener(name: impl Display, descriptor: Descriptor) {
    let text = format!("FDSTORE=1\nFDNAME={name}\n");
    let kind = Kind::Store {
        name: name.to_string(),
        socket: sys::descriptor::inode(&descriptor).ok(),
    };
    let sent = send(kind, &text, None, vec![descriptor]);
    log_error(format_args!("of the listener {name}"), sent);
}

/// Makes the manager close all that was stored under a name.
pub(crate) fn remove_stored_listeners(name: impl Display) {
    let text = format!("FDSTOREREMOVE=1\nFDNAME={name}\n");
    let name = name.to_string();
    send_or_log(Kind::Remove { name }, &text);
}

// ---- for the supervisor only ----

/// The most listeners in a datagram, whose length is limited, as is the number of its descriptors.
const LISTENERS_AT_ONCE: usize = 40;

/// Leaves copies of the listeners of this process, which is of this generation.
pub(crate) fn send_listener_copies(
    generation: u64,
    listeners: &[ListenerRecord],
    descriptors: Vec<Descriptor>,
) -> io::Result<()> {
    let mut descriptors = descriptors.into_iter();
    for listeners in listeners.chunks(LISTENERS_AT_ONCE) {
        let handover_fields = HandoverFields {
            generation: Some(generation),
            listeners: listeners.to_vec(),
            ..HandoverFields::default()
        };
        let descriptors = descriptors.by_ref().take(LISTENERS_AT_ONCE).collect();
        send(Kind::State, "", Some(&handover_fields), descriptors)?;
    }
    Ok(())
}

/// Sends the supervisor one end of the lane of this process, which is of this generation.
pub(crate) fn send_lane(generation: u64, lane: Descriptor) -> io::Result<()> {
    let handover_fields = HandoverFields {
        generation: Some(generation),
        lane: true,
        ..HandoverFields::default()
    };
    send(Kind::State, "", Some(&handover_fields), vec![lane])
}

/// Asks for a listener, and waits for at most 10 s. Receives the supervisor's answer into `buffer`,
/// and the listener. The answer's length is 0 if the supervisor does not answer.
pub(crate) fn request_bind(
    generation: u64,
    request: BindRequest,
    buffer: &mut [u8],
) -> io::Result<(usize, Option<Descriptor>)> {
    let handover_fields = HandoverFields {
        generation: Some(generation),
        bind: Some(request),
        ..HandoverFields::default()
    };
    send_and_receive("", Some(&handover_fields), BIND_TIMEOUT, buffer)
}

/// A process was started that is to take over from this one.
pub(crate) fn announce_successor(pid: u32) {
    let handover_fields = HandoverFields {
        successor: Some(pid),
        ..HandoverFields::default()
    };
    send_state("", Some(&handover_fields));
}

/// How many requests this process has served.
pub(crate) fn send_requests(count: u64) {
    let handover_fields = HandoverFields {
        requests: Some(count),
        ..HandoverFields::default()
    };
    let sent = send(Kind::Requests, "", Some(&handover_fields), Vec::new());
    log_error("of the number of requests", sent);
}

fn of_generation(generation: Option<u64>) -> Option<HandoverFields> {
    generation.map(|generation| HandoverFields {
        generation: Some(generation),
        ..HandoverFields::default()
    })
}

// ---- sending ----

/// Sends what the manager has not taken yet, if the time for another attempt has come. Each thread
/// that notifies calls this in its loop, at [`retry_at`].
pub(crate) fn retry() {
    OUTBOX.retry(Instant::now());
}

/// When [`retry`] is to be called.
pub(crate) fn retry_at() -> Deadline {
    OUTBOX.retry_at()
}

fn send_state(text: &str, handover_fields: Option<&HandoverFields>) {
    let sent = send(Kind::State, text, handover_fields, Vec::new());
    log_error(format_args!("of {text:?} with {handover_fields:?}"), sent);
}

fn send_or_log(kind: Kind, text: &str) {
    log_error(
        format_args!("of {text:?}"),
        send(kind, text, None, Vec::new()),
    );
}

/// Sends a notification, now or when the manager takes it.
fn send(
    kind: Kind,
    text: &str,
    handover_fields: Option<&HandoverFields>,
    descriptors: Vec<Descriptor>,
) -> io::Result<()> {
    if !has_manager() {
        return Ok(());
    }
    let text = with_fields(text, handover_fields)?;
    OUTBOX.send(Message {
        kind,
        text,
        descriptors,
    })
}

fn log_error(what: impl Display, sent: io::Result<()>) {
    if let Err(error) = sent {
        log::warn!("cannot notify the service manager {what}: {error}");
    }
}

fn with_fields(text: &str, handover_fields: Option<&HandoverFields>) -> io::Result<String> {
    let Some(handover_fields) = handover_fields else {
        return Ok(text.to_owned());
    };
    let record = handover_fields.encode()?;
    Ok(format!("{text}{}={record}\n", HandoverFields::VARIABLE))
}

/// How long the supervisor may take to bind a listener.
const BIND_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the manager may take to read the notifications.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// Sends a notification, and receives the manager's answer into `buffer`, see
/// [`AnswerChannel::receive`].
fn send_and_receive(
    text: &str,
    handover_fields: Option<&HandoverFields>,
    timeout: Duration,
    buffer: &mut [u8],
) -> io::Result<(usize, Option<Descriptor>)> {
    let channel = AnswerChannel::create()?;
    let deadline = Deadline::after(Instant::now(), timeout);
    let text = with_fields(text, handover_fields)?;
    let sent_on = OUTBOX.send_by(&text, &channel.descriptors(), deadline)?;
    channel.receive(sent_on, deadline.time_left(Instant::now()), buffer)
}

/// The longest status, in bytes. systemd drops datagrams over 4096 bytes.
const MAX_STATUS: usize = 1024;

/// A text as one line of bounded length, for a status: control characters become spaces.
pub(crate) fn one_line(text: impl Display) -> String {
    let text = text.to_string();
    let mut line = String::new();
    for char in text.chars() {
        if line.len() + char.len_utf8() > MAX_STATUS {
            break;
        }
        line.push(if char.is_control() { ' ' } else { char });
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_one_line_of_bounded_length() {
        assert_eq!(one_line("a\nb\r\0c"), "a b  c");
        let long = one_line("ä".repeat(5000));
        assert_eq!(
            (long.len(), long.chars().count()),
            (MAX_STATUS, MAX_STATUS / 2)
        );
    }
}
