//! Large bodies of requests: a client that sends one holds no worker, and takes no more memory, disk and time than it
//! may.

#![cfg(feature = "http")]

mod support;
#[path = "support/http.rs"]
mod web;

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use handover::Handle;
use handover::http::{self, Body, Http, OwnedBody, Reply, Request, Response, request};
use parking_lot::Mutex;
#[cfg(unix)]
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tempfile::TempDir;

use support::{
    Child, LIMIT, as_child, bytes_at, door, eventually, keep_log, logged, pause, server, start,
    stop, until,
};
use web::{Client, Seen, get, post, post_chunks};

/// What a spool keeps in memory.
const BLOCK: usize = 64 * 1024;

fn post_head(target: &str, length: usize) -> String {
    format!("POST {target} HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n")
}

/// A body in chunks of this size.
fn chunks(body: &[u8], size: usize) -> Vec<u8> {
    let mut all = Vec::new();
    for chunk in body.chunks(size) {
        all.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
        all.extend(chunk);
        all.extend(b"\r\n");
    }
    all.extend(b"0\r\n\r\n");
    all
}

/// Sends a request's body back.
fn echo(request: &mut Request<Body<'_>>) -> Response<Reply> {
    match request.uri().path() {
        "/panic" => panic!("as it was asked to"),
        "/noread" => Response::new("not read".into()),
        _ => match request.body_mut().read_all(1 << 28) {
            Ok(body) => Response::new(body.into()),
            Err(_) => Response::new("the service answers this one".into()),
        },
    }
}

/// The temporary files in a directory that this process has open. They have no name.
#[cfg(unix)]
fn open_files(dir: &Path) -> usize {
    open_files_of("self", dir)
}

#[cfg(unix)]
fn open_files_of(process: &str, dir: &Path) -> usize {
    let links = fs::read_dir(format!("/proc/{process}/fd"));
    let links = links.into_iter().flatten().flatten();
    let links = links.filter_map(|entry| fs::read_link(entry.path()).ok());
    links.filter(|link| link.starts_with(dir)).count()
}

/// The same. They have a name here, until they are closed.
#[cfg(windows)]
fn open_files(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().count()
}

/// A directory for temporary files that nothing else uses.
struct Dir(TempDir);

impl Dir {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn until_open(&self, count: usize) {
        eventually("the temporary files", || open_files(self.path()) == count);
    }

    /// Asserts that nothing is left, neither a name nor an open file.
    #[track_caller]
    fn is_clean(&self) {
        self.until_open(0);
        assert_eq!(fs::read_dir(self.path()).unwrap().count(), 0);
    }
}

// ---- workers ----

/// More clients than workers send large bodies a byte at a time, and the others are served as if they were not there.
#[test]
fn slow_senders_hold_no_worker() {
    const CLIENTS: usize = 40;
    const SIZE: usize = 70_000;
    let handle = start(server().workers(2), http::service(echo));
    let mut slow: Vec<Client> = (0..CLIENTS).map(|_| Client::to(&handle)).collect();
    for (at, client) in slow.iter_mut().enumerate() {
        client.send(match at % 2 {
            0 => post_head("/", SIZE),
            // Larger than what is collected, so that it is known to be large.
            _ => post_chunks("/") + &format!("{SIZE:x}\r\n"),
        });
        client.send(bytes_at(0, SIZE - 100));
    }
    until(&handle, "all are parked", |stats| {
        stats.parked as usize == CLIENTS
    });
    for place in SIZE - 100..SIZE {
        for client in &mut slow {
            client.send(bytes_at(place, 1));
        }
        if place % 10 == 0 {
            Client::to(&handle).get("/").is(200, "");
        }
    }
    for (at, client) in slow.iter_mut().enumerate() {
        if at % 2 == 1 {
            client.send("\r\n0\r\n\r\n");
        }
        assert!(client.answer().body == bytes_at(0, SIZE));
    }
    stop(&handle);
}

/// A client that sends as fast as it can, and never ends, takes turns with the others.
#[test]
fn a_fast_sender_takes_turns() {
    let service = http::service(|request: &mut Request<Body<'_>>| {
        let count = std::io::copy(request.body_mut(), &mut std::io::sink());
        Response::new(format!("{count:?}"))
    });
    let handle = start(server().workers(1), service);
    let mut endless = Client::to(&handle);
    endless.send(post_chunks("/"));
    let is_over = Arc::new(AtomicBool::new(false));
    let ends = Arc::clone(&is_over);
    let mut stream = endless.stream.try_clone().unwrap();
    let sending = thread::spawn(move || {
        let chunk = [b"10000\r\n", &[b'x'; BLOCK][..], b"\r\n"].concat();
        while !ends.load(SeqCst) && stream.write_all(&chunk).is_ok() {}
    });
    until(&handle, "much has come", |stats| stats.bytes_in > 4 << 20);
    for _ in 0..100 {
        Client::to(&handle).get("/").is(200, "Ok(0)");
    }
    assert!(!sending.is_finished(), "it was refused");
    is_over.store(true, SeqCst);
    sending.join().unwrap();
    drop(endless);
    stop(&handle);
}

// ---- content ----

/// Wherever a body is kept, the handler gets all of it, and the connection goes on behind it.
#[test]
fn bodies_arrive_whole_from_memory_and_from_files() {
    let dir = Dir::new();
    let path = dir.path().to_owned();
    let service = http::service(move |request: &mut Request<Body<'_>>| {
        let files = open_files(&path);
        let peer = request.body().connection().peer().to_string();
        assert!(peer.starts_with("127.0.0.1:"), "{peer}");
        let remaining = request.body().remaining();
        let mut body = Vec::new();
        // In pieces of many sizes.
        let mut room = vec![0; 100_000];
        for at in 1.. {
            let most = (at * 7919) % room.len() + 1;
            match request.body_mut().read(&mut room[..most]).unwrap() {
                0 => break,
                count => body.extend_from_slice(&room[..count]),
            }
        }
        assert_eq!(remaining, Some(body.len() as u64));
        assert_eq!(request.body().remaining(), Some(0));
        let mut response = Response::new(body);
        response.headers_mut().insert("x-files", files.into());
        response
    });
    let service = service.small_body(0).spool_dir(dir.path());
    let handle = start(server(), service);
    let mut client = Client::to(&handle);
    for size in [
        1,
        BLOCK - 1,
        BLOCK,
        BLOCK + 1,
        2 * BLOCK,
        2 * BLOCK + 1,
        1 << 20,
    ] {
        let body = bytes_at(0, size);
        let mut sender = client.stream.try_clone().unwrap();
        let requests = [
            post("/", &body),
            post_chunks("/").into_bytes(),
            chunks(&body, size / 3 + 1),
            get("/behind").into_bytes(),
        ];
        let sending = thread::spawn(move || sender.write_all(&requests.concat()).unwrap());
        for _ in 0..2 {
            let answer = client.answer();
            assert!(answer.body == body, "{size}");
            // A larger body needs a file only if its connection was parked.
            let files = answer.field("x-files");
            assert!(files == Some("0") || size > BLOCK, "{size}: {files:?}");
        }
        client.answer().is(200, "");
        sending.join().unwrap();
    }
    for size in [BLOCK + 1, 300_000] {
        let body = bytes_at(0, 2 * size);
        begin_chunks(&mut client, &handle, &body[..size]);
        client.send(chunks(&body[size..], size));
        let answer = client.answer();
        assert!(answer.body == body, "{size}");
        assert_eq!(answer.field("x-files"), Some("1"), "{size}");
    }
    dir.is_clean();
    stop(&handle);
}

/// Sends a request with the first chunk of its body, and waits until all of it has been received, and
/// its connection is parked.
fn begin_chunks(client: &mut Client, handle: &Handle, chunk: &[u8]) {
    // What came before is counted.
    until(handle, "no turn is in progress", |stats| stats.active == 0);
    let before = handle.stats().bytes_in;
    let frame = [format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat();
    let request = [post_chunks("/").into_bytes(), frame].concat();
    client.send(&request);
    until(handle, "it is parked", |stats| {
        stats.active == 0 && stats.bytes_in >= before + request.len() as u64
    });
}

/// A spooled body that no handler reads leaves nothing to discard, however large it is.
#[test]
fn a_spooled_body_need_not_be_read() {
    let handle = start(server(), http::service(echo));
    let mut client = Client::to(&handle);
    for _ in 0..2 {
        client.send(post("/noread", vec![b'x'; 1 << 20]));
        let answer = client.answer();
        answer.is(200, "not read");
        assert!(!answer.closes());
    }
    stop(&handle);
}

/// A handler can keep a body for its response or for another thread.
#[test]
fn bodies_can_outlive_their_requests() {
    let dir = Dir::new();
    let kept: Arc<Mutex<Vec<OwnedBody>>> = Arc::default();
    let keep = Arc::clone(&kept);
    let service = http::service(move |request: &mut Request<Body<'_>>| {
        let keeps = request.uri().path() == "/keep";
        let body = request.body_mut();
        let mut begin = [0; 10];
        body.read_exact(&mut begin).unwrap();
        let body = body.take_owned().unwrap();
        let length = body.remaining().to_string();
        match keeps {
            true => keep.lock().push(body),
            false => return Response::new(Reply::from(body)),
        }
        Response::new(length.into())
    });
    let service = service
        .spool_dir(dir.path())
        .stream_body_if(|head| head.uri.query() == Some("stream"));
    let handle = start(server(), service);
    let mut client = Client::to(&handle);
    for size in [10, 100, BLOCK + 10, 1 << 20] {
        for query in ["", "?stream"] {
            let body = bytes_at(0, size);
            client.send(post(&format!("/{query}"), &body));
            assert!(client.answer().body == body[10..], "{size}{query}");
            client.send(post(&format!("/keep{query}"), &body));
            client.answer().is(200, &(size - 10).to_string());
            let mut kept = kept.lock().pop().unwrap();
            let mut rest = Vec::new();
            thread::spawn(move || {
                kept.read_to_end(&mut rest).unwrap();
                assert!(rest == body[10..]);
            })
            .join()
            .unwrap();
        }
    }
    dir.is_clean();
    stop(&handle);
}

/// Many bodies that outlive their requests do not take the memory of the others: those have files.
#[test]
fn many_bodies_can_outlive_their_requests() {
    const CLIENTS: usize = 40;
    const SIZE: usize = 900_000;
    let dir = Dir::new();
    let kept: Arc<Mutex<Vec<OwnedBody>>> = Arc::default();
    let keep = Arc::clone(&kept);
    let service = http::service(move |request: &mut Request<Body<'_>>| {
        keep.lock().push(request.body_mut().take_owned().unwrap());
        Response::new(())
    });
    let handle = start(server(), service.spool_dir(dir.path()));
    let body = bytes_at(0, SIZE);
    for _ in 0..CLIENTS {
        let mut client = Client::to(&handle);
        client.send(post("/", &body));
        client.answer().is(200, "");
    }
    // Some of the 16 buffers are left for bodies that arrive.
    assert!(open_files(dir.path()) >= CLIENTS - 15);
    for mut body_kept in std::mem::take(&mut *kept.lock()) {
        let mut all = Vec::new();
        body_kept.read_to_end(&mut all).unwrap();
        assert!(all == body);
    }
    dir.is_clean();
    stop(&handle);
}

// ---- room ----

/// A server on which 300,000 bytes of bodies have room.
fn narrow(
    dir: &Dir,
) -> Http<impl Fn(&mut Request<Body<'_>>) -> Response<Reply> + Clone + Send + Sync + use<>> {
    http::service(echo)
        .max_spooled(300_000)
        .spool_dir(dir.path())
}

/// A client that has sent 200,000 bytes of a longer body.
fn holder(handle: &Handle, dir: &Dir) -> Client {
    let mut holder = Client::to(handle);
    holder.send(post_head("/", 250_000));
    holder.send(vec![b'x'; 200_000]);
    dir.until_open(1);
    let received = handle.stats().bytes_in;
    until(handle, "it is parked", |stats| {
        stats.parked >= 1 && stats.active == 0 && stats.bytes_in >= received
    });
    holder
}

/// Asserts that a body of 250,000 bytes has room. That of a client that has left may take a moment to go.
#[track_caller]
fn has_room(handle: &Handle) {
    eventually("there is room again", || {
        let mut client = Client::to(handle);
        let _ = client.stream.write_all(&post("/", vec![b'y'; 250_000]));
        let answer = client.answer();
        assert!([200, 503].contains(&answer.status), "{answer:?}");
        answer.status == 200
    });
}

#[test]
fn all_bodies_together_have_a_limit() {
    let dir = Dir::new();
    let handle = start(server(), narrow(&dir));
    let mut holder = holder(&handle, &dir);
    let body = vec![b'x'; 150_000];
    for request in [
        // Known from the head; found while it comes.
        post("/", &body),
        [post_chunks("/").into_bytes(), chunks(&body, 1000)].concat(),
    ] {
        let mut client = Client::to(&handle);
        client.send(&request);
        // It goes on sending, and gets its answer nevertheless.
        let _ = client.stream.write_all(&vec![b'x'; 5 << 20]);
        client.finish();
        let answer = client.answer();
        assert_eq!(answer.status, 503, "{answer:?}");
        assert_eq!(answer.field("retry-after"), Some("1"));
        assert!(answer.closes());
        client.ends();
    }
    // What would not fit if it were alone.
    let mut client = Client::to(&handle);
    client.send(post_head("/", 300_001));
    assert_eq!(client.answer().status, 413);
    client.ends();
    // Small ones and smaller ones have room.
    let mut client = Client::to(&handle);
    for size in [BLOCK, BLOCK + 1, 100_000] {
        client.send(post("/", &body[..size]));
        assert_eq!(client.answer().body.len(), size);
    }
    holder.send(vec![b'x'; 50_000]);
    assert_eq!(holder.answer().body.len(), 250_000);
    // Alone it may take everything, and no more.
    client.send(post("/", vec![b'x'; 300_000]));
    assert_eq!(client.answer().status, 200);
    client.send(post_chunks("/"));
    client.send(chunks(&vec![b'x'; 300_001], 1000));
    assert_eq!(client.answer().status, 413);
    client.ends();
    has_room(&handle);
    dir.is_clean();
    stop(&handle);
}

/// A body that is sent back takes room until its client has read it, and no worker meanwhile.
#[test]
fn a_body_in_a_response_has_its_room_until_it_is_sent() {
    const SIZE: usize = 20 << 20;
    let dir = Dir::new();
    let service = http::service(|request: &mut Request<Body<'_>>| {
        let body = request.body_mut().take_owned();
        Response::new(body.map_or_else(|_| Reply::empty(), Reply::from))
    });
    let service = service.max_spooled(SIZE as u64).spool_dir(dir.path());
    let handle = start(server().workers(1), service);
    let mut client = Client::to(&handle);
    let body = bytes_at(0, SIZE);
    client.send(post("/", &body));
    until(&handle, "the response has begun", |stats| {
        stats.bytes_out > 0 && stats.active == 0 && stats.parked == 1
    });
    assert_eq!(status_of(&handle, BLOCK + 1), 503);
    Client::to(&handle).get("/").is(200, "");
    assert!(client.answer().body == body);
    eventually("there is room again", || {
        status_of(&handle, BLOCK + 1) == 200
    });
    dir.is_clean();
    stop(&handle);
}

/// However a request ends, the room of its body is free again.
#[test]
fn room_is_given_back() {
    let dir = Dir::new();
    // Clones share the room.
    let service = narrow(&dir);
    let handle = start(server(), service.clone());
    // Its client leaves, with an end and with a reset.
    let mut client = holder(&handle, &dir);
    client.finish();
    assert_eq!(client.answer().status, 400);
    has_room(&handle);
    support::reset(holder(&handle, &dir).stream);
    has_room(&handle);
    // It is malformed.
    let mut client = Client::to(&handle);
    client.send(post_chunks("/") + "30d40\r\n");
    client.send(vec![b'x'; 200_001]);
    client.send("\r\n");
    assert_eq!(client.answer().status, 400);
    client.ends();
    has_room(&handle);
    // The handler panics.
    let mut client = Client::to(&handle);
    client.send(post("/panic", vec![b'x'; 250_000]));
    assert_eq!(client.answer().status, 500);
    client.ends();
    has_room(&handle);
    dir.is_clean();
    stop(&handle);
    // Its client takes too long.
    let builder = server().read_timeout(Duration::from_millis(500));
    let handle = start(builder, service.clone());
    let mut client = Client::to(&handle);
    client.send(post_head("/", 250_000));
    client.send(vec![b'x'; 200_000]);
    let answer = client.answer();
    assert_eq!(answer.status, 408);
    assert!(answer.closes());
    client.ends();
    dir.is_clean();
    stop(&handle);
    let handle = start(server(), service);
    has_room(&handle);
    stop(&handle);
}

/// Sends a large body, so that its connection is parked meanwhile, and returns the status of the answer.
#[track_caller]
fn status_of(handle: &Handle, size: usize) -> u16 {
    let mut client = Client::to(handle);
    let body = vec![b'x'; size];
    begin_chunks(&mut client, handle, &body[..size - 1]);
    let _ = client.stream.write_all(&chunks(&body[size - 1..], 1));
    let answer = client.answer();
    if answer.status == 503 {
        assert_eq!(answer.field("retry-after"), Some("1"));
        assert!(answer.closes());
        client.ends();
    }
    answer.status
}

/// Where nothing can be written, large bodies are refused and all else goes on, until something can be written again.
#[test]
fn a_directory_that_is_not_there_is_no_room() {
    keep_log();
    let dir = Dir::new();
    let inner = dir.path().join("not yet there");
    let service = http::service(echo).spool_dir(&inner);
    let handle = start(server(), service);
    for _ in 0..20 {
        assert_eq!(status_of(&handle, 200_000), 503);
        assert_eq!(status_of(&handle, BLOCK), 200);
    }
    let lines = logged(inner.to_str().unwrap());
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(lines[0].level, log::Level::Warn);
    fs::create_dir(&inner).unwrap();
    assert_eq!(status_of(&handle, 200_000), 200);
    fs::remove_dir(&inner).unwrap();
    stop(&handle);
}

/// The same where the file has begun to be written.
#[cfg(unix)] // RLIMIT_FSIZE
#[test]
fn a_file_that_cannot_grow_is_no_room() {
    const TEST: &str = "a_file_that_cannot_grow_is_no_room";
    let Some(parent) = as_child(TEST) else {
        let child = Child::of(TEST);
        assert_eq!(child.hear(), "done");
        return child.end();
    };
    keep_log();
    // The signal would end the process (setrlimit(2)).
    let signalled = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(libc_sigxfsz(), Arc::clone(&signalled)).unwrap();
    let dir = Dir::new();
    let handle = start(server(), http::service(echo).spool_dir(dir.path()));
    let before = getrlimit(Resource::Fsize);
    let current = Some(100_000);
    setrlimit(Resource::Fsize, Rlimit { current, ..before }).unwrap();
    for _ in 0..10 {
        assert_eq!(status_of(&handle, 300_000), 503);
        assert_eq!(status_of(&handle, 100_000), 200);
    }
    assert!(signalled.load(SeqCst));
    assert_eq!(logged("cannot store request bodies").len(), 1);
    setrlimit(Resource::Fsize, before).unwrap();
    assert_eq!(status_of(&handle, 300_000), 200);
    dir.is_clean();
    stop(&handle);
    parent.say("done");
}

#[cfg(unix)] // SIGXFSZ
fn libc_sigxfsz() -> i32 {
    rustix::process::Signal::XFSZ.as_raw()
}

#[cfg(unix)]
fn files_of_a_child(dir: &Path) -> usize {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let names = processes.map(|process| process.file_name().into_string().unwrap());
    names
        .filter(|name| name != "self")
        .map(|name| open_files_of(&name, dir))
        .sum()
}

#[cfg(windows)]
fn files_of_a_child(dir: &Path) -> usize {
    open_files(dir)
}

/// A process that is killed leaves no file behind.
#[test]
fn a_kill_leaves_no_file() {
    const TEST: &str = "a_kill_leaves_no_file";
    if let Some(parent) = as_child(TEST) {
        let dir = parent.hear().unwrap();
        let handle = start(server(), http::service(echo).spool_dir(dir));
        parent.say(support::addr(&handle));
        parent.hear();
        return;
    }
    let dir = Dir::new();
    let mut child = Child::of(TEST);
    let addr = child.ask(dir.path().to_str().unwrap()).parse().unwrap();
    let mut client = Client::on(support::connect(addr));
    client.send(post_head("/", 10 << 20));
    client.send(vec![b'x'; 5 << 20]);
    eventually("the file is there", || files_of_a_child(dir.path()) == 1);
    drop(child);
    client.is_over();
    dir.is_clean();
}

// ---- time ----

/// The time-outs and the minimum rate hold for a body that is spooled: progress extends the time, too little does not.
#[test]
fn a_spooled_body_has_a_minimum_rate() {
    const SHORT: Duration = Duration::from_secs(1);
    for (rate, is_late) in [(10_000, false), (0, true), (1 << 30, true)] {
        let dir = Dir::new();
        let service = http::service(echo).spool_dir(dir.path());
        let builder = server().workers(1).read_timeout(SHORT).min_rate(rate);
        let handle = start(builder, service);
        let mut client = Client::to(&handle);
        client.send(post_head("/", 1 << 20));
        for _ in 0..16 {
            let _ = client.stream.write_all(&[b'x'; BLOCK]);
            pause(SHORT / 8);
        }
        let answer = client.answer();
        assert_eq!(answer.status, if is_late { 408 } else { 200 }, "{rate}");
        let expired = handle.stats().expired.read;
        assert_eq!(expired, u64::from(is_late));
        drop(client);
        dir.is_clean();
        stop(&handle);
    }
}

/// A drain waits for a body in progress, also for one that is larger than all buffers.
#[test]
fn a_stop_waits_for_a_body_in_progress() {
    const SIZE: usize = 4 << 20;
    let handle = start(server().input_limit(100_000), http::service(echo));
    let mut client = Client::to(&handle);
    client.send(post_head("/", SIZE));
    client.send(bytes_at(0, 300_000));
    until(&handle, "a part is spooled", |stats| {
        stats.bytes_in > 300_000 && stats.parked == 1
    });
    handle.stop(LIMIT);
    for from in (300_000..SIZE).step_by(100_000) {
        client.send(bytes_at(from, 100_000.min(SIZE - from)));
        support::tick();
    }
    let answer = client.answer();
    assert!(answer.body == bytes_at(0, SIZE));
    assert!(answer.closes());
    client.ends();
    let report = handle.join();
    assert!(report.is_clean(), "{report}");
}

/// Of a client that never pauses, a drain reads `input_limit` further bytes, but for those of a large body: the last of
/// these bytes is in the head of a request that has one.
#[test]
fn a_stop_reads_a_body_whose_head_crosses_the_limit() {
    const INPUT: usize = 16 * 1024;
    const BODY: usize = 200_000;
    let padded = |line: &str, fields: &str, length: usize| {
        let head = format!("{line} HTTP/1.1\r\nHost: test\r\n{fields}Padding: ");
        let padding = "x".repeat(length - head.len() - 4);
        head + &padding + "\r\n\r\n"
    };
    let request = |target: &str| padded(&format!("GET {target}"), "", 400);
    let (keeper, at_door) = door();
    let service = http::service(move |request: &mut Request<Body<'_>>| {
        if request.uri().path() == "/wait" {
            at_door.pass();
        }
        echo(request)
    });
    let handle = start(server().workers(1).input_limit(INPUT), service);
    // Each read ends within a request: between two requests, nothing more would be read.
    let small = |count: usize| request("/").repeat(count);
    let begin = request("/wait") + &small(44) + &request("/wait") + &small(4);
    let last = request("/");
    let (part, rest) = last.split_at(150);
    let limit = begin.len() + part.len() + INPUT;
    let mut client = Client::to(&handle);
    client.send(begin + part);
    keeper.wait();
    handle.stop(LIMIT);
    keeper.let_one_in();
    // The worker has read all of it, and has set the limit.
    keeper.wait();
    let mut more = rest.to_owned() + &small(37);
    let at = limit - INPUT + more.len();
    assert!(at < limit, "{at}");
    let length = format!("Content-Length: {BODY}\r\n");
    more += &padded("POST /", &length, limit + 1000 - at);
    client.send([more.as_bytes(), &bytes_at(0, 1000)].concat());
    keeper.let_one_in();
    for _ in 0..50 + 1 + 37 {
        client.answer().is(200, "");
    }
    client.send(bytes_at(1000, BODY - 1000));
    let answer = client.answer();
    assert!(answer.body == bytes_at(0, BODY));
    assert!(answer.closes());
    client.ends();
    let report = handle.join();
    assert!(report.is_clean(), "{report}");
}

// ---- streams, and clients that ask ----

/// The handlers of the requests that are selected by their heads are called before the body is there.
#[test]
fn bodies_stream_where_the_service_asks_for_it() {
    let (keeper, at_door) = door();
    let seen = Seen::default();
    let noted = seen.clone();
    let service = http::service(move |request: &mut Request<Body<'_>>| {
        noted.note(request);
        if request.uri().path() == "/stream" {
            at_door.pass();
        }
        echo(request)
    });
    fn streams(head: &request::Parts) -> bool {
        match head.uri.path() {
            "/broken" => panic!("as it was asked to"),
            path => path == "/stream",
        }
    }
    let handle = start(server(), service.stream_body_if(streams));
    let (first, rest) = (vec![b'x'; 90_000], vec![b'x'; 10_000]);
    let mut spooled = Client::to(&handle);
    spooled.send(post_head("/spool", 100_000));
    spooled.send(&first);
    until(&handle, "it is parked", |stats| {
        stats.bytes_in > 90_000 && stats.parked == 1
    });
    let mut stream = Client::to(&handle);
    stream.send(post_head("/stream", 100_000));
    stream.send(&first);
    keeper.wait();
    keeper.let_one_in();
    assert_eq!(seen.all(), ["/stream"]);
    for client in [&mut stream, &mut spooled] {
        client.send(&rest);
        assert_eq!(client.answer().body.len(), 100_000);
    }
    // A small one is collected.
    stream.send(post_head("/stream", 5) + "he");
    stream.is_silent();
    stream.send("llo");
    keeper.wait();
    keeper.let_one_in();
    stream.answer().is(200, "hello");
    // A panic is as that of the handler.
    stream.send(get("/before") + &post_head("/broken", 100_000));
    stream.answer().is(200, "");
    let answer = stream.answer();
    assert_eq!(answer.status, 500);
    assert!(answer.closes());
    stream.ends();
    until(&handle, "it is counted", |stats| stats.panics == 1);
    stop(&handle);
}

/// A client that waits for 100 is told to go on, and holds no worker meanwhile.
#[test]
fn clients_that_ask_are_told_to_go_on_at_once() {
    let handle = start(server().workers(1), http::service(echo).max_body(200_000));
    let head = |length: usize| {
        post_head("/", length).replace("\r\n\r\n", "\r\nExpect: 100-continue\r\n\r\n")
    };
    for length in [5, BLOCK, BLOCK + 1, 200_000] {
        let mut client = Client::to(&handle);
        // Behind the response to an earlier request.
        client.send(get("/") + &head(length));
        client.answer().is(200, "");
        assert_eq!(client.head().status, 100);
        client.is_silent();
        Client::to(&handle).get("/").is(200, "");
        client.send(vec![b'x'; length]);
        assert_eq!(client.answer().body.len(), length);
        // The handler need not read it.
        client.send(head(length).replace(" / ", " /noread "));
        assert_eq!(client.head().status, 100);
        client.send(vec![b'x'; length]);
        let answer = client.answer();
        answer.is(200, "not read");
        assert!(!answer.closes());
    }
    let mut client = Client::to(&handle);
    client.send(head(200_001));
    assert_eq!(client.answer().status, 413);
    client.ends();
    stop(&handle);
}
