"""One measurement: one server under one workload, once."""

import contextlib
import http.client
import itertools
import os
import pathlib
import resource
import signal
import socket
import subprocess
import tempfile
import time

from .clients import CLIENTS, running_companions
from .failure import Failure
from .proc import TICK_SECONDS, ProcessTree, busy_ticks, clients_answered, connections_accepted

START_SECONDS = 10
STOP_SECONDS = 5
SAMPLE_SECONDS = 0.25

# Below the usual range of ephemeral ports, so that no client is given the next server's port. Every measurement gets
# another one: connections that the last one left in TIME_WAIT are none of its business.
PORTS = itertools.cycle(range(20_000, 32_000))


class Bench:
    """How to measure, the same for every cell."""

    def __init__(self, client, seconds, warm_up, pinned):
        self.client = CLIENTS[client]
        self.seconds = seconds
        self.warm_up = warm_up
        self.pinned = pinned
        # Where everyone shares the CPUs, a client of one thread could not load the server.
        self.client_threads = 1 if pinned else os.cpu_count()

    def measure(self, server, workload):
        """Runs a new process of the server, and returns its figures or raises a `Failure`."""
        with tempfile.TemporaryDirectory(prefix="versus-") as scratch:
            scratch = pathlib.Path(scratch)
            port = free_port()
            command = server.command(port, workload, scratch, self.pinned)
            with running_server(command, scratch, self.pinned) as process:
                try:
                    wait_until_it_answers(process, port, workload)
                    return self.figures(process, port, workload, scratch)
                except Failure as failure:
                    if process.poll() is None:
                        raise
                    log = (scratch / "server.log").read_text(errors="replace").strip()
                    last_line = log.splitlines()[-1:]
                    facts = f"{failure} (exit status {process.returncode})"
                    raise Failure(": ".join([facts, *last_line])) from None

    def figures(self, process, port, workload, scratch):
        tree = ProcessTree(process.pid)
        with running_companions(workload.companions, port) as companions_still_open:
            if self.warm_up:
                self.drive(tree, port, workload, self.warm_up, scratch)
            before = Accounts(tree)
            figures = self.drive(tree, port, workload, self.seconds, scratch)
            after = Accounts(tree)
            if process.poll() is not None:
                raise Failure("died under the load")
            if not figures["requests"]:
                raise Failure("answered nothing")
            if not workload.keep_alive and after.accepted - before.accepted < 0.9 * figures["requests"]:
                raise Failure("keeps connections that it was asked to close")
            ticks = after.server - before.server
            return {
                **figures,
                "requests_per_second": figures["requests"] / figures["seconds"],
                "cpu_ticks": ticks,
                "cpu_us_per_request": ticks * TICK_SECONDS * 1e6 / figures["requests"],
                "companions_open": companions_still_open(),
                "others_share": after.others_share_since(before),
            }

    def drive(self, tree, port, workload, seconds, scratch):
        """Runs the client once, and watches the server meanwhile."""
        url = f"http://127.0.0.1:{port}{workload.path}"
        command = self.client.command(url, workload, seconds, self.client_threads, scratch)
        started = time.monotonic()
        rss = threads = 0
        answered = None
        words = [str(word) for word in command]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        with subprocess.Popen(words, **pipes, text=True) as client:
            try:
                while not ended_within(client, SAMPLE_SECONDS):
                    passed = time.monotonic() - started
                    if passed > seconds + START_SECONDS:
                        raise Failure(f"{self.client.name} did not come to its end")
                    rss_now, threads_now = tree.rss_bytes_and_threads()
                    rss, threads = max(rss, rss_now), max(threads, threads_now)
                    if answered is None and workload.keep_alive and passed > 0.6 * seconds:
                        answered = clients_answered(port)
                output = client.stdout.read()
            finally:
                client.kill()
        if client.returncode:
            raise Failure(f"{self.client.name} could not connect")
        if answered is not None and workload.companions and workload.companions.answered:
            answered = max(0, answered - workload.companions.number)
        try:
            figures = self.client.figures(output, scratch)
        except (LookupError, OSError, StopIteration, ValueError) as error:
            raise Failure(f"{self.client.name} counted nothing") from error
        return {**figures, "rss_bytes": rss, "threads": threads, "clients_served": answered}


def ended_within(process, seconds):
    try:
        process.wait(timeout=seconds)
        return True
    except subprocess.TimeoutExpired:
        return False


class Accounts:
    """What has been used up to one moment."""

    def __init__(self, tree):
        self.time = time.monotonic()
        self.server = tree.cpu_ticks()
        self.accepted = connections_accepted()
        self.busy = busy_ticks()
        usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        self.client_seconds = sum(who.ru_utime + who.ru_stime for who in usage)

    def others_share_since(self, before):
        """The share of the machine's CPUs that went neither to the server nor to its clients."""
        busy = (self.busy - before.busy) * TICK_SECONDS
        server = (self.server - before.server) * TICK_SECONDS
        client = self.client_seconds - before.client_seconds
        whole = (self.time - before.time) * os.cpu_count()
        return max(0, busy - server - client) / whole


@contextlib.contextmanager
def running_server(command, scratch, pinned):
    """A server in a session of its own, which is ended with all its children."""
    if pinned:
        command = ["taskset", "-c", "0", *command]
    with open(scratch / "server.log", "wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield process
    finally:
        # Only the second signal is sure to reach every child; the first lets them clean up.
        for stop in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, stop)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=STOP_SECONDS)


def wait_until_it_answers(process, port, workload):
    """Waits until the server answers, and checks that it does so as agreed."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        if process.poll() is not None:
            raise Failure("ended at its start")
        try:
            found = get(port, workload)
            break
        except (OSError, http.client.HTTPException) as error:
            if time.monotonic() > deadline:
                raise Failure(f"does not answer: {error!r}") from error
            time.sleep(0.02)
    if found != (200, workload.body_bytes, "text/plain"):
        raise Failure(f"answers with status, bytes and type {found}")


def get(port, workload):
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    with contextlib.closing(client):
        client.request("GET", workload.path, headers={} if workload.keep_alive else {"Connection": "close"})
        response = client.getresponse()
        return response.status, len(response.read()), response.headers.get_content_type()


def free_port():
    for port in PORTS:
        with socket.socket() as probe:
            # As the servers do: what is left in TIME_WAIT does not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
