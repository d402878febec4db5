//! What a request on a kept-alive connection allocates: nothing, once the worker has served the first ones.
//!
//! The program counts the allocations of all of its threads. So it has one test, whose client allocates nothing while
//! it counts.

#![cfg(feature = "http")]
// An allocator can only be written with `unsafe`.
#![allow(unsafe_code)]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use handover::http::{self, Body, Reply, Request, Response};
use support::{addr, connect, server, start, stop};

const EXCHANGES: usize = 1000;

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Sends a batch of requests, and reads the responses, whose length is known.
fn exchange(stream: &mut TcpStream, batch: &[u8], answer: &mut [u8]) {
    stream.write_all(batch).unwrap();
    stream.read_exact(answer).unwrap();
}

fn answer(request: &mut Request<Body<'_>>) -> Response<Reply> {
    assert!(!request.headers().is_empty());
    Response::new("Hello, World!".into())
}

/// How many allocations [`EXCHANGES`] exchanges of a batch make, after the first few.
fn allocations(stream: &mut TcpStream, head: &str, batch: usize) -> usize {
    // The length of a response does not depend on the time.
    let mut one = [0; 4096];
    stream.write_all(head.as_bytes()).unwrap();
    let mut length = 0;
    while !one[..length].ends_with(b"Hello, World!") {
        length += stream.read(&mut one[length..]).unwrap();
    }
    let batch_bytes = head.repeat(batch);
    let mut answers = vec![0; length * batch];
    for _ in 0..300 {
        exchange(stream, batch_bytes.as_bytes(), &mut answers);
    }
    let before = ALLOCATIONS.load(Relaxed);
    for _ in 0..EXCHANGES {
        exchange(stream, batch_bytes.as_bytes(), &mut answers);
    }
    assert!(answers.ends_with(b"Hello, World!"));
    ALLOCATIONS.load(Relaxed) - before
}

#[test]
fn a_kept_alive_request_allocates_nothing() {
    let handle = start(server().workers(1), http::service(answer));
    let mut stream = connect(addr(&handle));
    for (what, head) in [
        ("one field", "GET / HTTP/1.1\r\nHost: a:80\r\n\r\n"),
        (
            "a target and the fields of a browser",
            "GET /index.html?a=b HTTP/1.1\r\nHost: a:80\r\nConnection: keep-alive\r\nUser-Agent: Mozilla/5.0\r\n\
             Accept: text/html,*/*;q=0.8\r\nAccept-Encoding: gzip, deflate, br\r\nAccept-Language: en\r\n\
             Cookie: a=b; c=d\r\nCache-Control: no-cache\r\n\r\n",
        ),
        // Further values of a name are in a part of the map of their own.
        (
            "two fields of one name",
            "GET /a HTTP/1.1\r\nHost: a:80\r\nCookie: a\r\nCookie: b\r\n\r\n",
        ),
    ] {
        // When a tick of the clock ends a call in the middle of a batch, or a batch arrives in parts, the connection
        // keeps the rest in a buffer of its own.
        for (batch, most) in [(1, 0), (16, EXCHANGES / 4)] {
            let count = allocations(&mut stream, head, batch);
            assert!(count <= most, "{what}, {batch} at a time: {count}");
        }
    }
    drop(stream);
    stop(&handle);
}
