"""`inv bench stress`: the stress client beside C, beside ports that the kernel chooses, and at its own limits.

Everything runs on this machine over loopback, client and server side by side; the two sides of a ratio take turns,
so that other work on the machine slows both. Nothing listens on other addresses.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tcpfleet.bench import machine, median, publish, table, timed
from tcpfleet.cli import ROOT, Answer, Options
from tcpfleet.errors import BadInput, HostFailed

CLIENT = ROOT / "payload/stress_client.py"
SERVER = ROOT / "payload/echo_server.py"
SOURCE = ROOT / "benchmarks/stress_reference.c"
TIMES = ROOT / "benchmarks/accept_times.py"
PARTS = {
    "connect": "connect rate beside C and beside the kernel's choice of ports",
    "tail": "connect rate at the end of the port range beside its beginning",
    "echo": "echo load of one worker beside C",
    "rate": "asked rates against measured ones, and bursts",
    "million": "1,000,000 connections on this machine (a minute and 8 GB; only when named)",
}
CONNECTIONS = 20_000
RATES = (500, 2_000, 10_000)


class Bench:
    """The tools in a temporary folder, and a server where one is needed."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.folder, self.say = folder, say
        self.reference = folder / "reference"
        timed(["cc", "-O2", "-o", self.reference, SOURCE])

    @contextmanager
    def server(self, connections: int, *, cpu: int | None = None) -> Iterator[int]:
        """An echo server of ours for so many connections; its port."""
        port, pid_file = free_port(), self.folder / "echo.pid"
        pin = ["taskset", "-c", str(cpu)] if cpu is not None else []
        argv = [*pin, sys.executable, SERVER, "start", "--bind", "127.0.0.1", "--port", port]
        argv += ["--pid-file", pid_file, "--log-file", self.folder / "echo.log"]
        timed([*argv, "--max-connections", connections, *(["--workers", 1] if cpu is not None else [])])
        try:
            yield port
        finally:
            timed([sys.executable, SERVER, "stop", "--pid-file", pid_file])

    def ours(self, port: int, connections: int, *options: object, pin: Sequence[str] = ()) -> dict[str, Any]:
        """One run of the stress client; its result, which must be a pass.

        :raises HostFailed: it was none.
        """
        argv = [*pin, sys.executable, CLIENT, "127.0.0.1", port, "--connections", connections, "--json", *options]
        done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, check=False)
        if done.returncode:
            raise HostFailed(
                f"the stress client ended with {done.returncode}: {done.stdout[-500:]}{done.stderr[-500:]}"
            )
        result: dict[str, Any] = json.loads(done.stdout)
        time.sleep(0.5)  # until the server has closed its ends
        return result

    def c(self, *words: object, pin: Sequence[str] = ()) -> float:
        """One run of the reference; its rate per second."""
        rate = float(timed([*pin, self.reference, *words]).output)
        time.sleep(0.5)
        return rate


def measure(options: Options, rounds: int, only: list[str]) -> Answer:
    """The parts named by `only`, all but `million` when it is empty.

    :raises BadInput: there is no such part.
    """
    unknown = [part for part in only if part not in PARTS]
    if unknown:
        raise BadInput(f"there is no part {unknown[0]!r}; there are: {', '.join(PARTS)}")
    parts = only or [part for part in PARTS if part != "million"]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="tcpfleet-bench-") as folder:
        bench = Bench(Path(folder), options.say)
        for part in parts:
            options.say(f"{part}: {PARTS[part]}")
            data, text = MEASURES[part](bench, rounds)
            found[part] = data
            times = 1 if part == "million" else rounds
            publish(f"bench stress, {part}", f"{text}\n\n{machine()}; {times} round{'s' if times != 1 else ''}.")
            options.say(text)
    return Answer(found)


def connect(bench: Bench, rounds: int) -> tuple[Any, str]:
    """Connect phase; C connects only, ours verifies an echo on each connection."""
    rows: dict[str, list[float]] = {"C": [], "kernel": [], "ours": []}
    low, _ = port_range()
    with bench.server(2 * CONNECTIONS) as port:
        for _ in range(rounds):
            rows["C"].append(bench.c("connect", "127.0.0.1", port, CONNECTIONS, 2, low))
            result = bench.ours(port, CONNECTIONS, "--hold", 0)
            rows["ours"].append(result["rate"]["connects_per_second"])
            rows["kernel"].append(bench.c("connect", "127.0.0.1", port, CONNECTIONS, 2, 0))
    ratios = [ours / c for ours, c in zip(rows["ours"], rows["C"], strict=True)]
    text = table(
        ["connect phase, 20,000 connections", "connects/s", "ratio to C"],
        [
            ["C, 2 processes, planned ports, connect only", span(rows["C"]), "1"],
            [
                "C, 2 processes, the kernel chooses the ports",
                span(rows["kernel"]),
                ratio(rows["kernel"], rows["C"]),
            ],
            ["stress client: connect, message, echo verified", span(rows["ours"]), f"{median(ratios):.2f}"],
        ],
    )
    return rows, text


def tail(bench: Bench, rounds: int) -> tuple[Any, str]:
    """95% of one address's ports: the last sixth of the connections beside the first."""
    low, high = port_range()
    count = int((high - low + 1) * 0.95)
    shares = []
    with bench.server(2 * count) as port:
        for _ in range(rounds):
            result = bench.ours(port, count, "--hold", 0, "--source", "127.0.0.1")
            rows = result["timeline"]
            shares.append(pace(rows, count * 5 / 6, count) / pace(rows, 0, count / 6))
    text = table(
        ["one source address", "connections", "last sixth / first sixth"],
        [[f"95% of {high - low + 1:,} ports", f"{count:,}", span(shares, "{:.2f}")]],
    )
    return shares, text


def pace(rows: Sequence[dict[str, Any]], begin: float, end: float) -> float:
    """Connections per second from the `begin`-th to the `end`-th, interpolated between the timeline's samples."""

    def moment(wanted: float) -> float:
        before = {"t": 0.0, "established": 0}
        for row in rows:
            if wanted and row["established"] >= wanted:
                grown = row["established"] - before["established"]
                share = (wanted - before["established"]) / grown if grown else 1.0
                return float(before["t"] + share * (row["t"] - before["t"]))
            before = row
        return float(before["t"]) if wanted else 0.0

    return (end - begin) / max(moment(end) - moment(begin), 1e-3)


def echo(bench: Bench, rounds: int) -> tuple[Any, str]:
    """Ping-pong of one process, 200 connections x 64 bytes, the server on the other processor."""
    here = sorted(os.sched_getaffinity(0))
    if len(here) < 2:
        raise HostFailed("needs two processors: one for the server, one for the client")
    pin = ["taskset", "-c", str(here[1])]
    rows: dict[str, list[float]] = {"C": [], "ours": []}
    # As long as C's messages, and unique per connection and sequence, as the default message is.
    message = "{conn:8}.{seq:12}." + "x" * (64 - 22)
    with bench.server(1000, cpu=here[0]) as port:
        for _ in range(rounds):
            rows["C"].append(bench.c("pingpong", "127.0.0.1", port, 200, 3, 64, pin=pin))
            flood = ["--mode", "flood", "--hold", 3, "--workers", 1, "--message", message]
            rows["ours"].append(bench.ours(port, 200, *flood, pin=pin)["rate"]["echoes_per_second"])
    ratios = [ours / c for ours, c in zip(rows["ours"], rows["C"], strict=True)]
    text = table(
        ["ping-pong, 200 connections x 64 bytes, one process", "echoes/s", "ratio to C"],
        [
            ["C", span(rows["C"]), "1"],
            ["stress client: verified, timed", span(rows["ours"]), f"{median(ratios):.2f}"],
        ],
    )
    return rows, text


def rate(bench: Bench, rounds: int) -> tuple[Any, str]:
    """What a server sees of an asked rate: connects per second, and the most in any 100 ms."""
    lines, found = [], {}
    for asked in RATES:
        got, bursts = [], []
        for _ in range(rounds):
            server = subprocess.Popen(
                [sys.executable, str(TIMES)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            assert server.stdout is not None
            port = int(server.stdout.readline())
            count = min(2 * asked, 18_000)
            bench.ours(port, count, "--rate", asked, "--hold", 0, "--in-flight", 1000)
            seen = json.loads(server.communicate()[0])
            got.append(seen["per_second"])
            bursts.append(seen["most"] / (asked * 0.1))
        found[str(asked)] = {"measured": got, "bursts": bursts}
        lines.append([f"{asked:,}", span(got), f"{100 * (median(got) / asked - 1):+.1f}%", f"{max(bursts):.2f}"])
    head = ["asked, connects/s", "measured at the server", "off", "most in any 100 ms, as a multiple of the rate"]
    return found, table(head, lines)


def million(bench: Bench, _: int) -> tuple[Any, str]:
    """`inv stress --hosts local --clients 20 --per-client 50000` against our server on this machine, once."""
    inventory = bench.folder / "local.yml"
    inventory.write_text(
        "workstation:\n  hosts:\n    local:\n      ansible_connection: local\n      server_become: false\n"
        f"      server_dir: {bench.folder}\n      server_pid_file: {bench.folder}/echo.pid\n"
    )
    before, held = memory(), caches()
    with bench.server(1_000_000) as port:
        argv = [sys.executable, "-m", "invoke", "stress", "--hosts", "local", "--inventory", str(inventory)]
        argv += ["--target", f"local:{port}", "--clients", "20", "--per-client", "50000", "--hold", "20"]
        peak: dict[str, float] = {}
        argv += ["--progress", "json", "--json"]
        # To a file: its one object is larger than a pipe holds, and only stderr is read here.
        with (
            (bench.folder / "answer.json").open("w+") as answer,
            subprocess.Popen(argv, stdout=answer, stderr=subprocess.PIPE, text=True, cwd=ROOT) as run,
        ):
            assert run.stderr is not None
            for line in run.stderr:
                row = json.loads(line) if line.startswith("{") else {}
                total = row.get("total", {})
                bench.say(f"  {row.get('seconds')} s: {total['open']:,} open" if total else "  " + line.rstrip())
                if not peak and total.get("state") == "hold":
                    peak = memory()
                    held = {name: size - held.get(name, 0) for name, size in caches().items()}
            run.wait()
            answer.seek(0)
            result = json.load(answer)
    time.sleep(5)
    after = memory()
    counts, each = result["connections"], {key: (peak[key] - before[key]) / 1_000_000 for key in peak}
    used = each["slab"] + each["pss"]
    most = sorted(held.items(), key=lambda row: -row[1])[:CACHES]
    ours = peak["cpu"] - before["cpu"]
    text = table(
        ["1,000,000 connections, both ends on this machine", ""],
        [
            ["requested, established, verified", ", ".join(f"{counts[k]:,}" for k in COUNTS)],
            [
                "failed, mismatched, lost",
                f"{counts['failed']}, {result['echoes']['mismatched']}, {result['echoes']['lost']}",
            ],
            [
                "ramp",
                f"{result['seconds']['ramp']:.1f} s, {result['rate']['connects_per_second']:,.0f} connects/s",
            ],
            [
                "slab + PSS of the processes, per connection",
                f"{used:,.0f} B ({each['slab']:,.0f} + {each['pss']:,.0f})",
            ],
            ["of the slab", ", ".join(f"{name} {size / 1_000_000:,.0f}" for name, size in most)],
            ["fall of MemAvailable, per connection", f"{-each['available']:,.0f} B"],
            [
                "processors at work until the peak",
                f"{ours:,.0f} s on server and clients, {peak['busy'] - before['busy'] - ours:,.0f} s on all else",
            ],
            ["open files at the peak", f"{peak['files']:,.0f}"],
            [
                "afterwards against before",
                f"{after['processes'] - before['processes']:+.0f} processes, "
                f"{after['files'] - before['files']:+.0f} open files, "
                f"{(after['available'] - before['available']) / 2**20:+,.0f} MiB available",
            ],
        ],
    )
    return {"result": counts, "per_connection": each}, text


COUNTS = ("requested", "established", "verified")
CACHES = 9  # of the kernel's, that are named
TICKS = os.sysconf("SC_CLK_TCK")


def memory() -> dict[str, float]:
    """What counts of the machine: bytes of slab, available, PSS of our programs; open files, processes of ours;
    CPU seconds of those, and of all that was not idle."""
    meminfo = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        meminfo[line.partition(":")[0]] = int(line.split()[1]) * 1024
    pss = processes = 0
    cpu = 0.0
    for place in Path("/proc").glob("[0-9]*"):
        try:
            command = (place / "cmdline").read_bytes()
            if b"echo_server.py" not in command and b"stress_client.py" not in command:
                continue
            processes += 1
            cpu += (
                sum(int(ticks) for ticks in (place / "stat").read_text().rpartition(")")[2].split()[11:13]) / TICKS
            )
            for line in (place / "smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    pss += int(line.split()[1]) * 1024
        except OSError:
            continue  # it ended meanwhile
    user, nice, system, _, _, irq, softirq = map(int, Path("/proc/stat").read_text().split()[1:8])
    files = int(Path("/proc/sys/fs/file-nr").read_text().split()[0])
    return {
        "slab": meminfo["Slab"],
        "available": meminfo["MemAvailable"],
        "pss": pss,
        "files": files,
        "processes": processes,
        "cpu": cpu,
        "busy": (user + nice + system + irq + softirq) / TICKS,
    }


def caches() -> dict[str, int]:
    """Bytes of each of the kernel's slab caches, pages that are partly empty included; empty without root."""
    try:
        lines = Path("/proc/slabinfo").read_text().splitlines()[2:]
    except OSError:
        return {}
    page = os.sysconf("SC_PAGE_SIZE")
    return {row[0]: int(row[14]) * int(row[5]) * page for row in map(str.split, lines)}


def port_range() -> tuple[int, int]:
    """net.ipv4.ip_local_port_range of this machine."""
    low, high = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    return int(low), int(high)


def free_port() -> int:
    """A port below the range that connections come from, free now."""
    for port in range(18_000, 18_500):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise HostFailed("no port of 18000-18499 is free")


def span(values: Sequence[float], form: str = "{:,.0f}") -> str:
    """Median, and what it lies between."""
    if len(values) == 1:
        return form.format(values[0])
    return f"{form} ({form}-{form})".format(median(values), min(values), max(values))


def ratio(some: Sequence[float], others: Sequence[float]) -> str:
    """Of their medians."""
    return f"{median(some) / median(others):.2f}"


MEASURES: dict[str, Callable[[Bench, int], tuple[Any, str]]] = {
    "connect": connect,
    "tail": tail,
    "echo": echo,
    "rate": rate,
    "million": million,
}
