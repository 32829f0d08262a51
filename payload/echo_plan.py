"""How many workers, and how many connections each: pure arithmetic, no system calls.

In: what was asked (workers, max connections) and what can be had (CPUs, open files per process). Out: a
`Plan`. Connections cost one descriptor each and the limit of open files is per process, so a capacity
beyond one process's limit is reached with more processes.
"""

from typing import List, NamedTuple, Optional, Tuple

# Descriptors of a worker that are no connections: stdio 3, listener, epoll, counters, life line, ready pipe,
# hand-over 2, signal pipe 2, and room for a log being reopened or /proc being read.
RESERVED = 24
MAX_WORKERS = 512
MODES = ("echo", "http")
# How a reload calls the program; not for users.
PROBE_OPTION, RESUME_WORKER_OPTION, RESUME_SUPERVISOR_OPTION = "--probe", "--resume-worker", "--resume-supervisor"

Options = NamedTuple(
    "Options",
    [
        ("bind", str),
        ("port", int),
        ("workers", Optional[int]),  # None: auto
        ("max_connections", Optional[int]),  # None: what the workers can hold
        ("pid_file", Optional[str]),
        ("log_file", Optional[str]),
        ("mode", str),  # one of MODES
        ("user", Optional[str]),  # USER[:GROUP] that workers run as; None: whoever started the server
        ("idle_timeout", float),  # seconds; 0: never
        ("keepalive", Tuple[int, ...]),  # seconds idle, seconds between probes, probes; (): off
        ("verbose", bool),  # a line on stdout for each piece that is read
        ("max_buffered", int),  # bytes that all workers together may hold for slow peers
    ],
)
Options.__doc__ = """What the user asked for; paths are absolute."""

WorkerSetup = NamedTuple(
    "WorkerSetup",
    [
        ("slot", int),
        ("listener", int),
        ("family", int),
        ("lifeline", int),  # read end of a pipe whose other end only the supervisor has
        ("ready", int),  # write end of a pipe to the supervisor: a byte there says "booted"
        ("handover_in", int),  # socket pair of all workers: connections on their way to another worker
        ("handover_out", int),
        ("counters", int),
        ("log_file", Optional[str]),
        ("mode", str),
        ("idle_timeout", float),  # seconds, 0: none
        ("verbose", bool),
        ("max_buffered", int),  # bytes that all workers together may hold for slow peers
        ("program", List[str]),  # argv that runs this program anew
    ],
)
WorkerSetup.__doc__ = """What a worker is given: descriptors and plain values only, so it also survives exec."""

Plan = NamedTuple("Plan", [("limits", Tuple[int, ...]), ("note", str)])
Plan.__doc__ = """What will be done.

limits: connections allowed per worker; note: one sentence where less is possible than was asked, else "".
"""


class PlanError(Exception):
    """No worker could hold a single connection; the text is one sentence for the user."""


def make_plan(
    cpus: int, reachable_nofile: int, workers: Optional[int] = None, max_connections: Optional[int] = None
) -> Plan:
    """Return the Plan for `cpus` usable CPUs and `reachable_nofile` descriptors per process.

    Workers, unless given, are one per CPU, and more where `max_connections` needs more. When
    `max_connections` cannot be had it is reduced, and the plan's note says so. Raises PlanError when the
    limit of open files leaves no room at all.
    """
    count = workers or _auto_workers(cpus, reachable_nofile, max_connections)
    each = reachable_nofile - RESERVED
    if each < 1:
        raise PlanError(
            "an open-files limit of %d leaves no room for connections: each worker needs %d descriptors "
            "for itself" % (reachable_nofile, RESERVED)
        )
    possible = each * count
    total = possible if max_connections is None else min(max_connections, possible)
    share, rest = divmod(total, count)
    note = ""
    if max_connections is not None and total < max_connections:
        note = "max-connections reduced from %d to %d: %d workers with %d open files each hold no more" % (
            max_connections,
            total,
            count,
            reachable_nofile,
        )
    limits = tuple(share + (1 if i < rest else 0) for i in range(count))
    return Plan(limits, note)


def _auto_workers(cpus: int, nofile: int, max_connections: Optional[int]) -> int:
    needed = 1
    if max_connections is not None and nofile > RESERVED:
        needed = -(-max_connections // (nofile - RESERVED))
    return min(MAX_WORKERS, max(1, cpus, needed))
