//! Event objects and console events, with real processes: each test runs this file again as a server in a process of
//! its own, and sets its event objects from here.
// Only Windows has such events. What they have in common with signals is in tests/signals.rs.
#![cfg(all(windows, feature = "signals"))]

use std::collections::BTreeSet;
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle};
use std::os::windows::process::CommandExt;
use std::process::Command;
use std::ptr;
use std::thread;
use std::time::Duration;

use handover::Builder;
use server_process::{ServerProcess, builder, log_to_stdout, say, serve};
use windows_sys::Win32::Foundation::{HANDLE, LocalFree};
use windows_sys::Win32::Security::Authorization::{
    ConvertSidToStringSidW, ConvertStringSecurityDescriptorToSecurityDescriptorW, GetSecurityInfo,
    SDDL_REVISION_1, SE_KERNEL_OBJECT,
};
use windows_sys::Win32::Security::{
    ACCESS_ALLOWED_ACE, ACL, DACL_SECURITY_INFORMATION, GetAce, GetTokenInformation, PSID,
    SECURITY_ATTRIBUTES, TOKEN_QUERY, TOKEN_USER, TokenUser,
};
use windows_sys::Win32::System::Console::{CTRL_BREAK_EVENT, GenerateConsoleCtrlEvent};
use windows_sys::Win32::System::Threading::{
    CREATE_NEW_PROCESS_GROUP, CreateEventW, EVENT_ALL_ACCESS, EVENT_MODIFY_STATE,
    GetCurrentProcess, OpenEventW, OpenProcessToken, SetEvent,
};
use windows_sys::core::w;

mod support;

#[path = "support/server_process.rs"]
mod server_process;

/// STATUS_CONTROL_C_EXIT.
const CONTROL_C_EXIT: i32 = 0xC000_013A_u32 as i32;
/// READ_CONTROL.
const READ_CONTROL: u32 = 0x20000;

#[test]
fn a_stop_event_of_another_process_drains() {
    assert_drains(
        "stop",
        "stop event: draining, at most 60 s; once more stops now",
    );
}

/// Its default action would end the process in the middle of an answer.
#[test]
fn a_restart_event_drains_a_server_that_has_no_restart() {
    assert_drains(
        "restart",
        "restart event: draining, at most 60 s, as this server cannot restart; the stop-now event stops now",
    );
}

/// The event lets a request in progress end, and then the server.
#[track_caller]
fn assert_drains(what: &str, line: &str) {
    let mut server = Running::start("run");
    let mut client = server.client();
    client.hold();
    server.set(what);
    server.until(line);
    // How many connections are open is not known: the server may not have seen the end of one yet.
    server.until("stopping, ");
    client.send("go on\n");
    assert_eq!(client.rest(), "go on\n");
    let (status, output) = server.end();
    assert!(status.success(), "{what}: {status}");
    assert!(output.contains("0 forced, 0 dropped"), "{output}");
}

#[test]
fn a_second_stop_event_stops_now() {
    let mut server = Running::start("run");
    let mut client = server.client();
    client.hold();
    server.set("stop");
    server.until("stop event: draining");
    server.set("stop");
    assert_eq!(client.rest(), "");
    let (status, output) = server.end();
    assert!(status.success(), "{status}");
    assert!(
        output.contains("stop event again: stopping now"),
        "{output}"
    );
    assert!(output.contains("1 forced"), "{output}");
}

#[test]
fn a_stop_now_event_stops_now() {
    let mut server = Running::start("run");
    let mut client = server.client();
    client.hold();
    server.set("stop-now");
    assert_eq!(client.rest(), "");
    let (status, output) = server.end();
    assert!(status.success(), "{status}");
    assert!(output.contains("stop-now event: stopping now"), "{output}");
    assert!(output.contains("1 forced"), "{output}");
}

#[test]
fn a_user1_event_calls_the_hook() {
    let mut server = Running::start("run");
    let mut client = server.client();
    for _ in 0..3 {
        server.set("user1");
        server.until("the hook was called");
        client.send("still there\n");
        assert_eq!(client.line(), "still there\n");
    }
    server.set("stop");
    assert!(server.end().0.success());
}

/// The only console event that one process can send to another one's process group. Ctrl-C goes the same way.
#[test]
fn ctrl_break_drains_and_the_second_one_stops_now() {
    if support::wine_cannot("Ctrl-Break for the process group of a child") {
        return;
    }
    let mut server = Running::start("run");
    let mut client = server.client();
    client.hold();
    server.press_break();
    server.until("Ctrl-C or Ctrl-Break: draining, at most 60 s; once more stops now");
    client.send("go on\n");
    assert_eq!(client.rest(), "go on\n");
    let (status, output) = server.end();
    assert!(status.success(), "{status}");
    assert!(output.contains("0 forced, 0 dropped"), "{output}");

    let mut server = Running::start("run");
    let mut client = server.client();
    client.hold();
    server.press_break();
    server.until("draining");
    server.press_break();
    assert_eq!(client.rest(), "");
    assert!(server.end().1.contains("1 forced"));
}

#[test]
fn the_event_of_a_second_instance_does_not_stop_the_first() {
    let mut first = Running::start("run");
    let mut second = Running::start("run");
    let mut client = first.client();
    client.hold();
    second.set("stop");
    let (status, output) = second.end();
    assert!(status.success(), "{status}: {output}");
    client.send("go on\n");
    assert_eq!(client.line(), "go on\n");
    first.client().hold();
    first.set("stop-now");
    let (_, output) = first.end();
    assert!(!output.contains("stop event"), "{output}");
}

#[test]
fn the_names_begin_as_the_setting_says() {
    for (role, prefix) in [
        ("global", r"Global\handover test"),
        ("local", r"Local\handover test"),
    ] {
        let mut server = Running::start(role);
        server.prefix = prefix.to_owned();
        server.set("stop");
        let (status, output) = server.end();
        assert!(status.success(), "{status}");
        assert!(output.contains("stop event: draining"), "{output}");
    }
}

#[test]
fn only_the_user_administrators_and_the_system_may_open_an_event() {
    let mut server = Running::start("run");
    let wanted = ["S-1-5-18".to_owned(), "S-1-5-32-544".to_owned(), own_user()];
    let wanted = wanted.map(|sid| (sid, EVENT_ALL_ACCESS));
    for what in ["stop", "stop-now", "restart", "user1"] {
        let event = open_event(&server.name(what), READ_CONTROL).unwrap();
        assert_eq!(
            access_rules(&event),
            BTreeSet::from(wanted.clone()),
            "{what}"
        );
    }
    server.set("stop");
    assert!(server.end().0.success());
}

#[test]
fn a_name_that_another_program_has_taken_is_an_error() {
    for what in ["stop", "stop-now", "restart", "user1"] {
        let mut server = Running::spawn(&format!("taken {what}"));
        let (status, output) = server.end();
        assert!(!status.success(), "{status}");
        let pid = server.pid;
        let sentence = format!(
            r"cannot create the event object {}.{pid}.{what}: another program has taken this name",
            default_prefix()
        );
        assert!(output.contains(&sentence), "{sentence}: {output}");
    }
}

/// As a user of the machine can do with the names of a service.
#[test]
fn a_name_that_another_user_has_taken_is_an_error_that_says_what_to_do() {
    let mut server = Running::spawn("taken-by-other stop");
    let (status, output) = server.end();
    assert!(!status.success(), "{status}");
    let pid = server.pid;
    let sentence = format!(
        r"cannot create the event object {}.{pid}.stop: another program, perhaps of another user, has taken this name and denies access; set an event prefix that no other user can guess",
        default_prefix()
    );
    assert!(output.contains(&sentence), "{sentence}: {output}");
}

#[test]
fn after_the_end_a_stop_event_ends_the_process_and_the_others_do_nothing() {
    let mut server = Running::start("linger");
    server.set("stop");
    server.until("returned");
    server.set("user1");
    server.set("restart");
    server.set("stop");
    let (status, _) = server.end();
    assert_eq!(status.code(), Some(CONTROL_C_EXIT));
}

#[test]
fn a_later_server_has_the_same_events() {
    let mut server = Running::start("twice");
    for _ in 0..2 {
        let mut client = server.client();
        client.hold();
        // The first one for each server, so that it drains.
        server.set("stop");
        server.until("stop event: draining");
        client.send("go on\n");
        assert_eq!(client.rest(), "go on\n");
        server.until("0 forced, 0 dropped");
        server.addr = server.listening();
    }
    // A server that answers handles its events.
    server.client().hold();
    server.set("stop");
    assert!(server.end().0.success());
}

#[test]
fn a_server_that_does_not_handle_signals_has_no_event() {
    let mut server = Running::start("embedded");
    server.client().hold();
    for what in ["stop", "stop-now", "restart", "user1"] {
        assert!(
            open_event(&server.name(what), EVENT_MODIFY_STATE).is_none(),
            "{what}"
        );
    }
    server.kill();
    server.end();
}

// ---- the servers ----

/// Not a test: a server, when one of the tests has started it.
#[test]
fn child() {
    let Some(role) = server_process::role() else {
        return;
    };
    log_to_stdout();
    match role.split_once(' ').unwrap_or((&role, "")) {
        ("run", _) => run(builder()),
        ("global", _) => run(builder().event_prefix(r"Global\handover test")),
        ("local", _) => run(builder().event_prefix("handover test")),
        ("taken", what) => {
            let name = format!("{}.{}.{what}", default_prefix(), std::process::id());
            let _taken = create_event(&name, None);
            run(builder());
        }
        ("taken-by-other", what) => {
            let name = format!("{}.{}.{what}", default_prefix(), std::process::id());
            // Nobody may open it, as if the user of this process were not among those who may.
            let _taken = create_event(&name, Some(w!("D:P")));
            run(builder());
        }
        ("linger", _) => {
            run(builder().drain_timeout(Duration::ZERO));
            say("returned");
            loop {
                thread::park();
            }
        }
        ("twice", _) => (0..3).for_each(|_| run(builder())),
        ("embedded", _) => {
            let handle = builder().build(serve).unwrap().start().unwrap();
            say(&format!("listening on {}", handle.local_addrs()[0]));
            loop {
                thread::park();
            }
        }
        other => panic!("there is no server {other:?}"),
    }
}

fn run(builder: Builder) {
    server_process::run(builder, serve);
}

// ---- the tests' side ----

/// A server and its event objects.
struct Running {
    process: ServerProcess,
    /// How the names of its event objects begin.
    prefix: String,
}

impl Deref for Running {
    type Target = ServerProcess;

    fn deref(&self) -> &ServerProcess {
        &self.process
    }
}

impl DerefMut for Running {
    fn deref_mut(&mut self) -> &mut ServerProcess {
        &mut self.process
    }
}

impl Running {
    /// Starts a server, and waits until it serves. Then its event objects are there.
    fn start(role: &str) -> Self {
        Self::with(ServerProcess::start(role, in_own_group))
    }

    fn spawn(role: &str) -> Self {
        Self::with(ServerProcess::spawn(role, in_own_group))
    }

    fn with(process: ServerProcess) -> Self {
        let prefix = default_prefix();
        Self { process, prefix }
    }

    fn name(&self, what: &str) -> String {
        format!("{}.{}.{what}", self.prefix, self.pid)
    }

    /// Sets an event object of the server.
    #[track_caller]
    fn set(&self, what: &str) {
        let name = self.name(what);
        let event = open_event(&name, EVENT_MODIFY_STATE);
        set(&event.unwrap_or_else(|| panic!("{name}: {}", io::Error::last_os_error())));
    }

    /// Sends a Ctrl-Break to the server's process group.
    #[allow(unsafe_code)]
    fn press_break(&self) {
        // SAFETY: the call takes numbers only.
        let sent = unsafe { GenerateConsoleCtrlEvent(CTRL_BREAK_EVENT, self.pid) };
        assert_ne!(sent, 0, "{}", io::Error::last_os_error());
    }
}

/// What the test sends to the group reaches the server alone.
fn in_own_group(command: &mut Command) {
    command.creation_flags(CREATE_NEW_PROCESS_GROUP);
}

// ---- the system's calls ----
//
// The standard library knows no event objects and no access rules.

fn default_prefix() -> String {
    let program = std::env::current_exe().unwrap();
    format!(r"Local\{}", program.file_stem().unwrap().to_str().unwrap())
}

fn wide(text: &str) -> Vec<u16> {
    text.encode_utf16().chain([0]).collect()
}

#[allow(unsafe_code)]
fn open_event(name: &str, access: u32) -> Option<OwnedHandle> {
    // SAFETY: the name ends with a null character. A handle that is not null has no other owner.
    unsafe {
        let event = OpenEventW(access, 0, wide(name).as_ptr());
        (!event.is_null()).then(|| OwnedHandle::from_raw_handle(event))
    }
}

#[allow(unsafe_code)]
fn create_event(name: &str, access: Option<*const u16>) -> OwnedHandle {
    let mut security = SECURITY_ATTRIBUTES {
        nLength: size_of::<SECURITY_ATTRIBUTES>() as u32,
        ..SECURITY_ATTRIBUTES::default()
    };
    // SAFETY: as in `open_event`. The text of the access rules ends with a null character. The descriptor that is made
    // of it is never released.
    unsafe {
        if let Some(access) = access {
            let descriptor = &mut security.lpSecurityDescriptor;
            let none = ptr::null_mut();
            let made = ConvertStringSecurityDescriptorToSecurityDescriptorW(
                access,
                SDDL_REVISION_1,
                descriptor,
                none,
            );
            assert_ne!(made, 0, "{}", io::Error::last_os_error());
        }
        let event = CreateEventW(&security, 0, 0, wide(name).as_ptr());
        assert!(!event.is_null(), "{name}: {}", io::Error::last_os_error());
        OwnedHandle::from_raw_handle(event)
    }
}

#[allow(unsafe_code)]
fn set(event: &OwnedHandle) {
    // SAFETY: the handle is open.
    assert_ne!(unsafe { SetEvent(event.as_raw_handle()) }, 0);
}

/// Who may do what with an object, by its access control list. Each entry has to be one that allows
/// something, and is not inherited.
#[allow(unsafe_code)]
fn access_rules(object: &OwnedHandle) -> BTreeSet<(String, u32)> {
    let mut list: *mut ACL = ptr::null_mut();
    let mut descriptor = ptr::null_mut();
    let mut rules = BTreeSet::new();
    // SAFETY: the handle is open, and the pointers are to live values. The list is in the descriptor, which is
    // released last. An entry of type 0 is an ACCESS_ALLOWED_ACE.
    unsafe {
        let error = GetSecurityInfo(
            object.as_raw_handle(),
            SE_KERNEL_OBJECT,
            DACL_SECURITY_INFORMATION,
            ptr::null_mut(),
            ptr::null_mut(),
            &mut list,
            ptr::null_mut(),
            &mut descriptor,
        );
        assert_eq!(error, 0);
        assert!(!list.is_null(), "no list: everyone may do everything");
        for index in 0..(*list).AceCount {
            let mut entry = ptr::null_mut();
            assert_ne!(GetAce(list, index.into(), &mut entry), 0);
            let entry = entry.cast::<ACCESS_ALLOWED_ACE>();
            assert_eq!(((*entry).Header.AceType, (*entry).Header.AceFlags), (0, 0));
            let sid = (&raw mut (*entry).SidStart).cast();
            rules.insert((sid_text(sid), (*entry).Mask));
        }
        LocalFree(descriptor);
    }
    rules
}

#[allow(unsafe_code)]
fn own_user() -> String {
    let mut token: HANDLE = ptr::null_mut();
    let mut buffer = [0_u64; 32];
    let mut length = 0;
    // SAFETY: the pointers are to live values, and the length is that of the buffer, which holds a TOKEN_USER then.
    unsafe {
        assert_ne!(
            OpenProcessToken(GetCurrentProcess(), TOKEN_QUERY, &mut token),
            0
        );
        let token = OwnedHandle::from_raw_handle(token);
        let into = buffer.as_mut_ptr().cast();
        let size = size_of_val(&buffer) as u32;
        assert_ne!(
            GetTokenInformation(token.as_raw_handle(), TokenUser, into, size, &mut length),
            0
        );
        sid_text((*buffer.as_ptr().cast::<TOKEN_USER>()).User.Sid)
    }
}

/// # Safety
///
/// The pointer is to a security identifier.
#[allow(unsafe_code)]
unsafe fn sid_text(sid: PSID) -> String {
    let mut text = ptr::null_mut();
    // SAFETY: the caller's promise. The text ends with a null character, and is released last.
    unsafe {
        assert_ne!(ConvertSidToStringSidW(sid, &mut text), 0);
        let length = (0..).take_while(|at| *text.add(*at) != 0).count();
        let sid = String::from_utf16(std::slice::from_raw_parts(text, length)).unwrap();
        LocalFree(text.cast());
        sid
    }
}
