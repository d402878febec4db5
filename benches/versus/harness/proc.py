"""What /proc and `ss` say of processes, of the machine and of its connections."""

import contextlib
import os
import pathlib
import subprocess

TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")


class ProcessTree:
    """A process and all that descend from it."""

    def __init__(self, pid):
        self.pid = pid

    def cpu_ticks(self):
        """User and system time, with that of threads and children that have ended."""
        # utime, stime, cutime and cstime are the fields 14 to 17 of proc_pid_stat(5).
        return sum(int(ticks) for pid in self.pids() for ticks in stat_fields(pid)[13:17])

    def rss_bytes_and_threads(self):
        rss_kib = threads = 0
        for pid in self.pids():
            with contextlib.suppress(OSError), open(f"/proc/{pid}/status") as status:
                facts = dict(line.split(":", 1) for line in status)
                rss_kib += int(facts.get("VmRSS", "0 kB").split()[0])
                threads += int(facts.get("Threads", "0"))
        return rss_kib * 1024, threads

    def pids(self):
        parents = {}
        for entry in os.listdir("/proc"):
            if entry.isdecimal() and (fields := stat_fields(entry)):
                parents[int(entry)] = int(fields[3])
        found = [self.pid]
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return found


def stat_fields(pid):
    try:
        text = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    # The second field is the name, which may itself hold spaces and parentheses.
    before, _, after = text.rpartition(")")
    return [*before.split(" (", 1), *after.split()]


def busy_ticks():
    """The time that all CPUs have worked, or that the hypervisor has kept them from it."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = cpu_line()[:8]
    return user + nice + system + irq + softirq + steal


def cpu_line():
    with open("/proc/stat") as stat:
        return [int(ticks) for ticks in stat.readline().split()[1:]]


def connections_accepted():
    """How many connections the servers of this machine have been given so far."""
    with open("/proc/net/snmp") as snmp:
        names, values = [line.split() for line in snmp if line.startswith("Tcp:")]
    return int(values[names.index("PassiveOpens")])


def clients_answered(port):
    """How many of the connections to a port have brought their client anything. None without `ss`."""
    command = ["ss", "-tniHO", "state", "established", "dst", f"127.0.0.1:{port}"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return None
    return sum("bytes_received:" in line for line in lines)
