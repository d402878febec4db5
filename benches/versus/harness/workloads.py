"""What is measured: the page, the clients that ask for it, and those that keep the server busy beside them."""

import dataclasses

HELLO = b"Hello, World!"
BIG = 100 * 1024


@dataclasses.dataclass(frozen=True)
class Companions:
    """Clients beside the load, held by a program of this package."""

    program: str
    number: int
    # Whether they have been sent an answer.
    answered: bool


@dataclasses.dataclass(frozen=True)
class Workload:
    name: str
    meaning: str
    path: str = "/"
    body_bytes: int = len(HELLO)
    connections: int = 64
    pipeline: int = 1
    keep_alive: bool = True
    # How many threads are to serve, and whether only those servers are told whose handlers block such a thread.
    workers: int | None = None
    only_blocking_workers: bool = False
    companions: Companions | None = None

    @property
    def sleeps(self):
        return self.path.startswith("/sleep")


SLOW = Companions("slow_clients", 200, answered=False)

WORKLOADS = [
    Workload("keepalive-64", "`GET /` on 64 kept-alive connections."),
    Workload("keepalive-512", "`GET /` on 512 kept-alive connections.", connections=512),
    Workload("pipeline-16x64", "64 connections, each sending 16 requests at once.", pipeline=16),
    Workload(
        "connection-per-request",
        "64 clients that open a connection for every request (`Connection: close`).",
        keep_alive=False,
    ),
    Workload(
        "idle-8000+64",
        "64 active connections beside 8,000 that made one request and then stay silent.",
        companions=Companions("idle_clients", 8000, answered=True),
    ),
    Workload(
        "sleep-5ms-64w",
        "A handler that blocks for 5 ms; 64 connections, and 64 threads to block.",
        path="/sleep?ms=5",
        body_bytes=len(b"slept 5"),
        workers=64,
        only_blocking_workers=True,
    ),
    Workload(
        "big-100k",
        "Bodies of 100 KiB on 64 connections.",
        path=f"/big?n={BIG}",
        body_bytes=BIG,
    ),
    Workload(
        "slow-200+16",
        "16 good clients beside 200 that send the head of a request one byte per second.",
        connections=16,
        companions=SLOW,
    ),
    Workload(
        "slow-200+16-2w",
        "The same with two workers; a server that cannot be told is left out.",
        connections=16,
        workers=2,
        companions=SLOW,
    ),
]
