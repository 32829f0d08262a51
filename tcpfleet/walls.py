"""Name the wall that a load hit: from the clients' errors and what the counters of both ends did meanwhile.

In: a `Scene`: error rows, counts, what the clients said, the observations before the load, at its peak and after
it, and the samples of each second. Out: {"name", "evidence", "fix", "also"} or None. Pure: one function for each
wall, in the order in which they explain one another (a process without descriptors fills its accept queue, so it
comes before the queue), and CHECKS, the table of them. The first that has evidence is the wall; the others that
have some are in `also`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tcpfleet.report_data import View, dig, number_at, rows_at

Wall = dict[str, Any]
FULL = 0.98  # of a limit, seen at the peak: what was in use a moment earlier or later may have been all of it
BUSY = 0.95  # share of all processors at work
SHORT = 1.5  # seconds of work that are not yet a wall: one sample's may be chance
CONTENT = ("EBADMSG", "CROSSED", "EPROTO")  # what replies say; no queue, table or limit changes a byte
SPARE_FILES = 8  # a process that has so few descriptors left could not take the next connection


@dataclass(frozen=True)
class Scene:
    """What is known of a run when it is over.

    :ivar errors: rows of run.json, most frequent first.
    :ivar connections: run.json's counts.
    :ivar observations: phase -> host -> saved outcome.
    :ivar server: the target's host name, None outside the inventory.
    :ivar clients: names of the client hosts.
    :ivar lost: host -> why it is out of reach.
    :ivar said: walls that the clients named, with their number of failed connections.
    :ivar capacity: connections that the server said it can hold, None if it said nothing.
    :ivar slow_connects: connects that took a retransmission.
    :ivar samples: host -> what its sampler saw (tcpfleet.samples/1).
    :ivar phases: words for a part of the load -> its begin and end, as t of the samples.
    """

    errors: Sequence[Mapping[str, Any]]
    connections: Mapping[str, int]
    observations: Mapping[str, Mapping[str, Mapping[str, Any]]]
    server: str | None
    clients: Sequence[str]
    lost: Mapping[str, str]
    said: Sequence[tuple[Mapping[str, str], int]] = ()
    capacity: int | None = None
    slow_connects: int = 0
    samples: Mapping[str, Any] = field(default_factory=dict)
    phases: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def seen(self, phase: str, host: str | None) -> Mapping[str, Any]:
        """One observation; empty where there is none."""
        outcome = dig(self.observations, phase, host) if host else None
        found = dig(outcome, "observation") if dig(outcome, "status") == "ok" else None
        return found if isinstance(found, Mapping) else {}

    def grown(self, host: str | None, *keys: str, until: str = "after") -> int:
        """By how much a counter of a host grew from before the load; 0 where it cannot be told."""
        start, end = self.seen("before", host), self.seen(until, host)
        if dig(start, "identity", "boot_id") != dig(end, "identity", "boot_id"):
            return 0
        old, new = number_at(start, "counters", *keys), number_at(end, "counters", *keys)
        return max(0, int(new - (old or 0))) if new is not None else 0

    def held_back(self) -> bool:
        """Connections did not come up, or slowly: what a limit of their number or a queue for them can do."""
        return self.connections.get("established", 0) < self.connections["requested"] or self.slow_connects > 0

    def dropped_by_others(self) -> bool:
        """The server's own listeners dropped nothing: what the counters of its host say is another port's."""
        old, new = (dig(self.seen(phase, self.server), "listener_drops") for phase in ("before", "after"))
        return number_at(old, "drops") is not None and old == new

    def hosts(self) -> list[str]:
        """Every host of the run, the server first, each machine's namespaces as they are."""
        return [*([self.server] if self.server else []), *(one for one in self.clients if one != self.server)]

    def machines(self) -> list[tuple[str, list[str]]]:
        """(one of its hosts, all of them) per machine: hosts on one kernel are one, containers among them."""
        view = View({"hosts": self.hosts()}, self.observations)
        found: dict[str, list[str]] = {}
        for host in self.hosts():
            found.setdefault(view.machine(host), []).append(host)
        return [(hosts[0], hosts) for hosts in found.values()]

    def count(self, *names: str) -> int:
        """Connections that failed with one of these errors (errno names)."""
        return sum(int(row["count"]) for row in self.errors if row["errno"] in names)


def diagnose(scene: Scene) -> Wall | None:
    """The wall, or None where nothing failed and nothing says what slowed the run down."""
    first = next((row["errno"] for row in scene.errors if row["errno"] != "ECANCELED"), None)
    checks = (named_by_clients, *CHECKS) if first in CONTENT else CHECKS
    found = [wall for check in checks if (wall := check(scene)) is not None]
    if not found:
        return None
    also = {one["name"]: one["evidence"] for one in reversed(found) if one["name"] != found[0]["name"]}
    return found[0] | {"also": [{"name": name, "evidence": text} for name, text in reversed(also.items())]}


def _wall(name: str, evidence: str, fix: str) -> Wall:
    return {"name": name, "evidence": evidence, "fix": fix}


# ---------------------------------------------------------------- the walls, in order


DEATHS = {
    "UNREACHABLE": "a client host was lost",
    "CLIENT_DIED": "a stress client died",
    "WORKER_DIED": "a worker of a stress client died",
}


def lost_client(scene: Scene) -> Wall | None:
    if not scene.errors or scene.errors[0]["errno"] not in DEATHS:
        return None
    row = scene.errors[0]
    name = DEATHS["UNREACHABLE" if row["host"] in scene.lost else row["errno"]]
    return _wall(
        name,
        f"{row['count']:,} of {scene.connections['requested']:,} connections were {row['host']}'s: "
        f"{row['sample']}",
        f"see why {row['host']} went away (power, network, out of memory), then run again"
        if row["host"] in scene.lost
        else f"see why it ended: the logs of {row['host']}, its memory; then run again",
    )


def out_of_memory(scene: Scene) -> Wall | None:
    for first, hosts in scene.machines():
        before = {line.get("message") for line in rows_at(scene.seen("before", first), "kernel_log", "lines")}
        for line in rows_at(scene.seen("after", first), "kernel_log", "lines"):
            if line.get("means") == "memory ran out, a process was killed" and line.get("message") not in before:
                return _wall(
                    f"memory of {_names(hosts)}",
                    f"the kernel log says: {line.get('message')}",
                    "use fewer connections per machine, or a machine with more memory",
                )
    return None


def machine_files(scene: Scene) -> Wall | None:
    for first, hosts in scene.machines():
        files = dig(scene.seen("peak", first), "files")
        used, most = number_at(files, "open"), number_at(files, "max")
        if scene.errors and scene.held_back() and used and most and used >= FULL * most:
            return _wall(
                "open files of the machine (fs.file-max)",
                f"{used:,} of {most:,} were open at the peak on {_names(hosts)}"
                + (f"; {scene.count('ENFILE'):,} connects failed with ENFILE" if scene.count("ENFILE") else ""),
                "raise fs.file-max with `inv tune`",
            )
    return None


def client_limits(scene: Scene) -> Wall | None:
    """What a client's own errno says beyond doubt."""
    names = ("EMFILE", "ENFILE", "EADDRNOTAVAIL", "ENOBUFS", "ENOMEM")
    if not scene.errors or scene.errors[0]["phase"] != "connect" or scene.errors[0]["errno"] not in names:
        return None
    return _said(scene)


def tcp_memory(scene: Scene) -> Wall | None:
    for first, hosts in scene.machines():
        aborted = scene.grown(first, "netstat", "TcpExt", "TCPAbortOnMemory")
        pressed = scene.grown(first, "netstat", "TcpExt", "TCPMemoryPressures")
        pages = number_at(scene.seen("peak", first), "counters", "sockstat", "TCP", "mem")
        limits = str(dig(scene.seen("peak", first), "sysctls", "net.ipv4.tcp_mem") or "").split()
        most = int(limits[2]) if len(limits) == 3 and limits[2].isdigit() else None
        if aborted or pressed or (pages and most and pages >= FULL * most):
            evidence = (
                f"on {_names(hosts)} TCPAbortOnMemory grew by {aborted:,}, TCPMemoryPressures by {pressed:,}"
            )
            if pages is not None and most:
                evidence += f"; {pages:,} of {most:,} pages were in use at the peak"
            return _wall("TCP memory (net.ipv4.tcp_mem)", evidence, "raise net.ipv4.tcp_mem with `inv tune`")
    return None


def conntrack(scene: Scene) -> Wall | None:
    for host in scene.hosts():
        table = dig(scene.seen("peak", host), "conntrack")
        used, most = number_at(table, "count"), number_at(table, "max")
        if scene.errors and scene.held_back() and used and most and used >= FULL * most:
            return _wall(
                "connection tracking table",
                f"{used:,} of {most:,} entries were in use at the peak on {host}; a full table drops packets",
                "raise net.netfilter.nf_conntrack_max, or exempt the port from tracking (NOTRACK)",
            )
    return None


def server_files(scene: Scene) -> Wall | None:
    if not scene.errors and not scene.slow_connects:
        return None
    full, total, limit = 0, 0, 0
    for row in rows_at(scene.seen("peak", scene.server), "server", "processes"):
        used, most = number_at(row, "fds"), number_at(row, "nofile", "soft")
        if used is None or most is None:
            continue
        total += 1
        if used >= most - SPARE_FILES and scene.held_back():
            full, limit = full + 1, int(most)
    refused = _log_says(scene, "EMFILE", "Too many open files", "too many open files")
    if not full and not refused:
        return None
    evidence = f"{full} of {total} server processes on {scene.server} had all of their {limit:,} open files in use"
    if not full:
        evidence = f"the server's log says: {refused}"
    return _wall(
        "open files of the server process (nofile)",
        evidence + _backlog_words(scene),
        "raise the server's nofile limit (`inv tune`, then `inv deploy-server`) or give it more worker processes",
    )


def server_capacity(scene: Scene) -> Wall | None:
    if not scene.errors or not scene.capacity or not scene.held_back():
        return None
    held = number_at(scene.seen("peak", scene.server), "states", "server", "ESTAB")
    if held is None or held < scene.capacity:
        return None
    return _wall(
        "the server's own connection limit",
        f"{held:,} connections were established on {scene.server} at the peak, it holds {scene.capacity:,}"
        + _backlog_words(scene),
        f"`inv deploy-server --max-connections {scene.connections['requested']}`",
    )


def accept_queue(scene: Scene) -> Wall | None:
    overflows = scene.grown(scene.server, "netstat", "TcpExt", "ListenOverflows")
    # Who was accepted once and heard the server's farewell later was not dropped there.
    dropped = scene.held_back() or any(row["errno"] not in (*CONTENT, "EOF") for row in scene.errors)
    if not overflows or scene.dropped_by_others() or not dropped:
        return None
    backlog = _backlog(scene)
    most = str(dig(scene.seen("before", scene.server), "sysctls", "net.core.somaxconn") or "")
    waiting = max(
        (
            int(number_at(row, "accept_queue") or 0)
            for row in rows_at(scene.seen("peak", scene.server), "listeners")
        ),
        default=0,
    )
    if backlog is not None and waiting > backlog:
        return _wall(
            "the server does not accept",
            f"{waiting:,} connections waited at the peak in an accept queue of {backlog:,} on {scene.server}; "
            f"ListenOverflows grew by {overflows:,}",
            "the server's program is stuck or too slow: see its log and its CPU; a longer queue only hides it",
        )
    fix = "have the server listen with a longer backlog"
    if backlog is not None and most.isdigit() and backlog >= int(most):
        fix = "raise net.core.somaxconn with `inv tune`, then start the server anew"
    return _wall(
        "the server's accept queue",
        f"ListenOverflows grew by {overflows:,} on {scene.server}; its accept queue holds "
        f"{'an unknown number' if backlog is None else format(backlog, ',')} (net.core.somaxconn {most or '?'})",
        fix + ", or connect more slowly (--rate)",
    )


def syn_queue(scene: Scene) -> Wall | None:
    dropped = scene.grown(scene.server, "netstat", "TcpExt", "TCPReqQFullDrop")
    cookies = scene.grown(scene.server, "netstat", "TcpExt", "TCPReqQFullDoCookies")
    # Every overflow of the accept queue is counted as a drop too.
    drops = scene.grown(scene.server, "netstat", "TcpExt", "ListenDrops")
    drops -= scene.grown(scene.server, "netstat", "TcpExt", "ListenOverflows")
    if scene.dropped_by_others():
        dropped, drops = 0, 0
    if not (dropped or cookies or drops > 0) or not scene.held_back():
        return None
    if not (dropped or cookies):
        return _wall(
            "connections dropped by the server's listener",
            f"ListenDrops grew by {drops:,} on {scene.server} without an overflow of its accept queue",
            "look for memory, a security module or a route back that is missing on the server",
        )
    return _wall(
        "the server's SYN queue",
        f"on {scene.server} {dropped:,} SYNs were dropped and {cookies:,} answered with a cookie for it was full",
        "raise net.ipv4.tcp_max_syn_backlog and net.core.somaxconn with `inv tune`, or connect more slowly "
        "(--rate)",
    )


def softnet(scene: Scene) -> Wall | None:
    for first, hosts in scene.machines():
        dropped = scene.grown(first, "softnet_stat", "dropped")
        if dropped:
            return _wall(
                "packets dropped before TCP saw them (net.core.netdev_max_backlog)",
                f"softnet dropped grew by {dropped:,} on {_names(hosts)}",
                "raise net.core.netdev_max_backlog with `inv tune`, or spread the interface's interrupts",
            )
    return None


def named_by_clients(scene: Scene) -> Wall | None:
    return _said(scene) if scene.errors else None


def processors(scene: Scene) -> Wall | None:
    for _, hosts in scene.machines():
        for phase, (begin, end) in scene.phases.items():
            for host in hosts:
                busy = _busy(rows_at(scene.samples.get(host), "rows"), begin, end)
                if busy >= max(SHORT, (end - begin) / 2):
                    return _wall(
                        f"CPU of {_names(hosts)}",
                        f"its processors were {100 * BUSY:.0f}% busy or more in {busy:.1f} of "
                        f"{end - begin:.1f} s {phase}",
                        "more processors, or more hosts"
                        + (": server and clients share this machine" if len(hosts) > 1 else ""),
                    )
    return None


CHECKS: tuple[Callable[[Scene], Wall | None], ...] = (
    out_of_memory,
    lost_client,
    machine_files,
    client_limits,
    tcp_memory,
    conntrack,
    server_files,
    server_capacity,
    accept_queue,
    syn_queue,
    softnet,
    named_by_clients,
    processors,
)


# ---------------------------------------------------------------- small things


def _said(scene: Scene) -> Wall | None:
    """The wall that the clients' errors name; the one behind most failures when there are several. A client knows
    its own part, so the evidence is counted anew over all of them."""
    named: dict[str, tuple[int, Mapping[str, str]]] = {}
    for wall, failed in scene.said:
        count, first = named.get(wall["name"], (0, wall))
        named[wall["name"]] = (count + failed, first)
    if not named:
        return None
    wall = max(named.values(), key=lambda entry: entry[0])[1]
    rows = [row for row in scene.errors if (row["phase"], row["errno"]) == (wall.get("phase"), wall.get("errno"))]
    if not rows:  # said by a client of an earlier version
        return _wall(wall["name"], wall["evidence"], wall["fix"])
    count = sum(int(row["count"]) for row in rows)
    evidence = (
        f"{count:,} of {scene.connections['requested']:,} connections failed with "
        f"{wall['errno']} ({wall['phase']}), first at {min(row['first'] for row in rows)}; "
        f"at most {scene.connections['peak']:,} were open; {rows[0]['sample']}"
    )
    return _wall(wall["name"], evidence, wall["fix"])


def _names(hosts: Sequence[str]) -> str:
    if len(hosts) == 1:
        return hosts[0]
    return f"{', '.join(hosts)} (one machine, counted once)"


def _backlog(scene: Scene) -> int | None:
    for phase in ("peak", "before", "after"):
        found = [number_at(row, "backlog") for row in rows_at(scene.seen(phase, scene.server), "listeners")]
        known = [int(value) for value in found if value is not None]
        if known:
            return max(known)
    return None


def _backlog_words(scene: Scene) -> str:
    overflows = scene.grown(scene.server, "netstat", "TcpExt", "ListenOverflows")
    if not overflows or scene.dropped_by_others():
        return ""
    return f"; ListenOverflows grew by {overflows:,}, as nobody accepted"


def _log_says(scene: Scene, *words: str) -> str | None:
    lines = dig(scene.seen("after", scene.server), "log", "lines")
    old = dig(scene.seen("before", scene.server), "log", "lines")
    known = set(old) if isinstance(old, list) else set()
    for line in lines if isinstance(lines, list) else []:
        if line not in known and any(word in str(line) for word in words):
            return str(line)[:300]
    return None


def _busy(rows: Sequence[Mapping[str, Any]], begin: float, end: float) -> float:
    """Seconds of that time in which the samples say that no processor had time left."""
    seconds = 0.0
    for earlier, row in itertools.pairwise(rows):
        start, stop = number_at(earlier, "t"), number_at(row, "t")
        if start is not None and stop is not None and (number_at(row, "cpu_busy") or 0) >= BUSY:
            seconds += max(0.0, min(stop, end) - max(start, begin))
    return seconds
