"""Who is measured, and how each of them is started."""

import os
import pathlib
import resource
import shutil

from .workloads import BIG, HELLO

PACKAGE = pathlib.Path(__file__).resolve().parent.parent
BINARIES = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", PACKAGE / "target")) / "release"
REPOSITORY = PACKAGE.parent.parent
DEMO = REPOSITORY / "target" / "lto" / "examples" / "demo"
BUILD_DEMO = "cargo build --profile lto --example demo --features http"
BUILD_RIVALS = "cargo build --release"


class Server:
    """A program with `--listen` and, mostly, `--workers`."""

    def __init__(self, name, *, binary=None, build=None, has_workers=True, blocking_workers=False):
        self.name = name
        self.binary = pathlib.Path(binary or BINARIES / name)
        self.build = build or f"build it with `{BUILD_RIVALS}` in {PACKAGE}"
        self.has_workers = has_workers
        # Whether a worker is what a handler blocks, rather than a thread that runs an event loop.
        self.blocking_workers = blocking_workers

    def missing(self):
        """Why the server cannot be run, if so."""
        return None if self.binary.exists() else f"{self.binary} is missing, {self.build}"

    def takes_part(self, workload):
        return workload.workers is None or workload.only_blocking_workers or self.has_workers

    def workers(self, workload):
        told = self.blocking_workers if workload.only_blocking_workers else self.has_workers
        return workload.workers if told else None

    def command(self, port, workload, scratch, pinned):
        command = [str(self.binary), "--listen", f"127.0.0.1:{port}"]
        if workers := self.workers(workload):
            command += ["--workers", str(workers)]
        return command


class EpollLimit(Server):
    """It does not parse, so that its arguments must say what it answers."""

    def takes_part(self, workload):
        return not workload.sleeps

    def command(self, port, workload, scratch, pinned):
        command = super().command(port, workload, scratch, pinned)
        if workload.body_bytes != len(HELLO):
            command += ["--body-bytes", str(workload.body_bytes)]
        if not workload.keep_alive:
            command += ["--keep-alive", "false"]
        return command


class Nginx(Server):
    CONFIGURATION = """
        daemon off;
        worker_processes {workers};
        worker_rlimit_nofile {descriptors};
        pid {scratch}/nginx.pid;
        error_log stderr;
        events {{ worker_connections 16384; }}
        http {{
            access_log off;
            default_type text/plain;
            sendfile on;
            tcp_nopush on;
            # The default of 1,000 would make it close connections that the others keep.
            keepalive_requests 1000000000;
            client_body_temp_path {scratch}/body;
            proxy_temp_path {scratch}/proxy;
            fastcgi_temp_path {scratch}/fastcgi;
            uwsgi_temp_path {scratch}/uwsgi;
            scgi_temp_path {scratch}/scgi;
            server {{
                listen 127.0.0.1:{port} backlog=4096;
                location = / {{ return 200 "{hello}"; }}
                location = /big {{ root {scratch}; }}
            }}
        }}
    """

    def __init__(self):
        # Debian keeps it where only root looks for programs.
        binary = shutil.which("nginx") or "/usr/sbin/nginx"
        super().__init__("nginx", binary=binary, build="install it")

    def takes_part(self, workload):
        # It has no handler that could block.
        return not workload.sleeps

    def command(self, port, workload, scratch, pinned):
        # Its workers run as another user, who must come to the file.
        scratch.chmod(0o755)
        (scratch / "big").write_bytes(b"x" * BIG)
        configuration = scratch / "nginx.conf"
        configuration.write_text(
            self.CONFIGURATION.format(
                # `auto` counts the machine's CPUs, not those that the process may run on.
                workers=self.workers(workload) or (1 if pinned else "auto"),
                descriptors=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
                scratch=scratch,
                port=port,
                hello=HELLO.decode(),
            )
        )
        return [str(self.binary), "-e", "stderr", "-c", str(configuration), "-p", str(scratch)]


def all_servers(demo):
    build_demo = f"build it with `{BUILD_DEMO}` in {REPOSITORY}, or say --handover PATH"
    return [
        Server("handover", binary=demo, build=build_demo, blocking_workers=True),
        Server("tiny_http", blocking_workers=True),
        Server("rouille", blocking_workers=True),
        Server("astra", blocking_workers=True),
        Server("thread_per_connection", has_workers=False),
        Server("may_minihttp"),
        Server("hyper"),
        Server("axum"),
        Server("actix_web"),
        Nginx(),
        EpollLimit("epoll_limit"),
    ]
