"""Who makes the load: wrk or h2load, and the companions beside them."""

import contextlib
import json
import pathlib
import subprocess

from .failure import Failure
from .servers import BINARIES

WRK_SCRIPT = pathlib.Path(__file__).with_name("wrk.lua")


class Wrk:
    name = "wrk"

    def takes_part(self, workload):
        return True

    def command(self, url, workload, seconds, threads, scratch):
        command = ["wrk", "-t", threads, "-c", workload.connections, "-d", f"{seconds}s"]
        if not workload.keep_alive:
            command += ["-H", "Connection: close"]
        return [*command, "-s", WRK_SCRIPT, url, "--", workload.pipeline, workload.connections]

    def figures(self, output, scratch):
        return json.loads(next(line for line in output.splitlines() if line.startswith("{")))


class H2load:
    """It keeps its requests in flight one by one, where wrk sends the next batch after the last."""

    name = "h2load"

    def takes_part(self, workload):
        return workload.keep_alive

    def command(self, url, workload, seconds, threads, scratch):
        # Its summary has no percentiles.
        command = ["h2load", "--h1", "--log-file", scratch / "h2load.log", "-D", seconds]
        return [*command, "-t", threads, "-c", workload.connections, "-m", workload.pipeline, url]

    def figures(self, output, scratch):
        log = scratch / "h2load.log"
        with open(log) as entries:
            latencies = sorted(int(entry.split()[2]) for entry in entries)
        log.unlink()
        summary = {name: value for name, _, value in (line.partition(": ") for line in output.splitlines())}
        counts = dict(reversed(count.split()) for count in summary["requests"].split(", "))
        per_second = next(line for line in output.splitlines() if line.startswith("finished in ")).split()[3]
        requests = int(counts["done"])
        return {
            "requests": requests,
            "seconds": requests / float(per_second) if requests else 0,
            "p50_us": latencies[len(latencies) // 2] if latencies else 0,
            "p99_us": latencies[len(latencies) * 99 // 100] if latencies else 0,
            "errors": sum(int(counts[kind]) for kind in ("failed", "errored", "timeout")),
        }


CLIENTS = {client.name: client for client in (Wrk(), H2load())}


@contextlib.contextmanager
def running_companions(companions, port):
    """Holds the clients beside the load. Yields how to ask, once, how many of them are still connected."""
    if not companions:
        yield lambda: None
        return
    program = BINARIES / companions.program
    command = [program, "--connect", f"127.0.0.1:{port}", "--connections", str(companions.number)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True) as process:

        def number_after(word):
            said, _, number = process.stdout.readline().partition(" ")
            return int(number) if said == word else 0

        def still_open():
            process.stdin.close()
            return number_after("open")

        try:
            ready = number_after("ready")
            if ready < companions.number:
                process.kill()
                why = process.stderr.read().strip()
                number = f"{ready:,} of the {companions.number:,}"
                raise Failure(f"served only {number} {companions.program} ({why})")
            yield still_open
        finally:
            process.kill()
