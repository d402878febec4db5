"""The figures of all rounds as Markdown."""

import datetime
import os
import platform
import statistics

# /proc counts CPU time in ticks, mostly of 10 ms. With fewer of them the figure is marked as rough.
ROUGH_BELOW_TICKS = 50
# A share of the CPUs that went to strangers, above which the figures are not to be trusted.
DISTURBED_ABOVE = 0.05

COLUMNS = ["server", "requests/s", "CPU µs/request", "p50 ms", "p99 ms", "RSS MiB", "threads", "errors", "clients served"]


def machine_line(client, pinned, seconds, rounds):
    placement = "server on CPU 0, client on CPU 1" if pinned else "not pinned"
    length = f"median of {rounds} rounds of {seconds} s" if rounds > 1 else f"one round of {seconds} s"
    date = datetime.datetime.now(datetime.timezone.utc).date()
    system = f"{platform.system()} {platform.release()}"
    return f"{os.cpu_count()} × {cpu_model()}, {system}, {date}; {client}, {placement}, {length}."


def cpu_model():
    with open("/proc/cpuinfo") as facts:
        names = [line.split(":", 1)[1].strip() for line in facts if line.startswith("model name")]
    return names[0] if names else platform.machine()


def table(workload, servers, cells):
    """One workload: a row for each server, and below it what went wrong."""
    columns = COLUMNS + ([workload.companions.program.replace("_clients", " open")] if workload.companions else [])
    rows = [columns, ["---"] + ["---:"] * (len(columns) - 1)]
    remarks = []
    all_measured = []
    for server in servers:
        rounds = [cell for cell in cells if (cell["workload"], cell["server"]) == (workload.name, server.name)]
        measured = [cell for cell in rounds if "failure" not in cell]
        failures = [cell["failure"] for cell in rounds if "failure" in cell]
        rows.append([server.name, *(medians(workload, measured) if measured else ["fails"])])
        if failures:
            often = f" in {len(failures)} of {len(rounds)} rounds" if measured else ""
            remarks.append(f"- {server.name} fails{often}: {'; '.join(dict.fromkeys(failures))}.")
        all_measured += measured
    remarks += disturbance(all_measured)
    lines = [f"| {' | '.join(row + [''] * (len(columns) - len(row)))} |" for row in rows]
    return "\n".join([f"### {workload.name}", "", workload.meaning, "", *lines, "", *remarks, *([""] if remarks else [])])


def disturbance(cells):
    """What is to be said of other processes' share in these measurements: a line, or none."""
    shares = [cell["others_share"] for cell in cells if cell["others_share"] > DISTURBED_ABOVE]
    if not shares:
        return []
    return [
        f"- Disturbed: in {len(shares)} of the measurements other processes took up to {max(shares):.0%} of the CPUs."
    ]


def medians(workload, cells):
    def median(figure):
        return statistics.median(cell[figure] for cell in cells)

    rough = "≈ " if median("cpu_ticks") < ROUGH_BELOW_TICKS else ""
    served = [cell["clients_served"] for cell in cells if cell["clients_served"] is not None]
    entries = [
        f"{median('requests_per_second'):,.0f}",
        f"{rough}{median('cpu_us_per_request'):.2f}",
        f"{median('p50_us') / 1000:.2f}",
        f"{median('p99_us') / 1000:.2f}",
        f"{median('rss_bytes') / 2**20:.1f}",
        f"{median('threads'):.0f}",
        f"{sum(cell['errors'] for cell in cells):,}",
        f"{min(served)} of {workload.connections}" if served else "",
    ]
    if workload.companions:
        entries.append(f"{min(cell['companions_open'] for cell in cells):,}")
    return entries
