"""Plan before load: which ports, which addresses, how many workers; or why not.

Pure functions. In: a `Request` (what is asked) and `HostFacts` (what this host has, read by
`stress_facts`). Out: a `Plan` with one share per worker, or `PlanRefused` that names each ceiling, the number
it allows and what raises it.

Source ports are planned because the kernel's own choice collapses: asked to pick a free port for each of
60,000 connections to one destination it scans the range, and falls to hundreds of connects per second past
half of it. An explicit bind((address, port)) with SO_REUSEADDR costs the same for the last port as for the
first.
"""

from typing import Dict, FrozenSet, Iterator, List, NamedTuple, Optional, Sequence, Tuple

Range = Tuple[int, int]  # first and last port, both included
PortBlock = Tuple[str, int, int]  # source address, first and last port

SPARE_DESCRIPTORS = 64  # per worker: stdio, epoll, pipe, shared memory, and what was inherited
CONNECTIONS_PER_CPU = 10000  # below this, one more worker costs more than its processor brings
OBJECTS = (("TCP", 2368), ("sock_inode_cache", 832), ("filp", 192), ("eventpoll_epi", 128), ("dentry", 192))
PROCESS_BYTES = 250
"""What one end of an idle connection takes: kernel objects (bytes on Linux 6.18, x86-64; read from hosts that let
them be read), and memory of its process."""
TUNED_RANGE = (1025, 65000)  # what the tuning profile sets; only to say what tuning would allow

Request = NamedTuple(
    "Request",
    [
        ("connections", int),
        ("sources", Tuple[str, ...]),
        ("slice_index", int),
        ("slices", int),
        ("workers", Optional[int]),
        ("ports", Optional[Range]),
        ("clients", int),
    ],
)
Request.__doc__ = """What is asked of this client.

connections: of this client; sources: addresses to connect from; slice_index, slices: it is client K of N equal
ones on this host that share the ports towards its target; workers: None for automatic; ports: None for the host's
ip_local_port_range; clients: how many share memory, files and processes of this host, whatever their target.
"""

HostFacts = NamedTuple(
    "HostFacts",
    [
        ("port_range", Range),
        ("reserved", Tuple[Range, ...]),
        ("busy", Dict[str, FrozenSet[int]]),
        ("nofile", int),
        ("cpus", int),
        ("memory_available", Optional[int]),
        ("files_free", Optional[int]),
        ("processes_free", Optional[int]),
        ("conntrack_free", Optional[int]),
        ("target_here", bool),
        ("busy_from", str),
        ("limits", Tuple[int, int]),
        ("socket_bytes", int),
    ],
)
HostFacts.__doc__ = """What the host has; None where it could not be read (then it is not judged).

port_range, reserved: net.ipv4.ip_local_port_range and ip_local_reserved_ports; busy: per source address the
ports that cannot be used towards the target now; nofile: the limit one process can reach; memory_available in
bytes; files_free: fs.file-max less open files; conntrack_free: entries; target_here: the target is an address
of this host, so that it pays for both ends; busy_from: where the busy ports were read; limits: soft and hard
nofile limit as they are now; socket_bytes: memory of one end of an idle connection.
"""

Refusal = NamedTuple("Refusal", [("ceiling", str), ("allowed", int), ("fix", str), ("sentence", str)])
Refusal.__doc__ = """One reason: the ceiling's name, how many connections it allows, what raises it, and all in one
sentence."""

WorkerShare = NamedTuple(
    "WorkerShare",
    [("index", int), ("connections", int), ("first", int), ("blocks", Tuple[PortBlock, ...])],
)
WorkerShare.__doc__ = """One worker's part: how many connections, the number of its first one within this
client, and the source ports that are its own (spares included)."""

Plan = NamedTuple(
    "Plan",
    [
        ("connections", int),
        ("sources", Tuple[str, ...]),
        ("ports", Range),
        ("usable", int),
        ("busy", int),
        ("workers", Tuple[WorkerShare, ...]),
        ("nofile", int),
    ],
)
Plan.__doc__ = """What will be done.

usable: (address, port) pairs of this client's slice that are free; busy: those that are not; nofile: what each
worker raises its limit to."""


class PlanRefused(Exception):
    """The plan cannot work. `refusals` says why; the text is all their sentences."""

    def __init__(self, refusals: Sequence[Refusal]) -> None:
        super().__init__(" ".join(r.sentence for r in refusals))
        self.refusals = tuple(refusals)


def make_plan(request: Request, facts: HostFacts) -> Plan:
    """The plan for `request` on a host with `facts`; raises PlanRefused with every ceiling that is too low."""
    span = request.ports or facts.port_range
    blocks, busy = usable_blocks(request, facts)
    usable = count_ports(blocks)
    refusals = []  # type: List[Refusal]
    if usable < request.connections:
        refusals.append(_refuse_ports(request, facts, span, usable, busy))
    capacity = facts.nofile - SPARE_DESCRIPTORS
    cpus = facts.cpus if facts.processes_free is None else min(facts.cpus, facts.processes_free // request.clients)
    workers = min(request.connections, request.workers or wanted_workers(request.connections, capacity, cpus))
    if capacity < 1 or workers * capacity < request.connections:
        refusals.append(_refuse_nofile(request, facts, max(0, workers * capacity), workers))
    refusals.extend(_refuse_host(request, facts, workers))
    if refusals:
        raise PlanRefused(refusals)
    shares = tuple(split_shares(request.connections, workers, blocks))
    nofile = max(share.connections for share in shares) + SPARE_DESCRIPTORS
    return Plan(request.connections, request.sources, span, usable, busy, shares, nofile)


def fewest_workers(request: Request, facts: HostFacts) -> int:
    """How many worker processes the nofile limit demands."""
    return max(1, -(-request.connections // max(1, facts.nofile - SPARE_DESCRIPTORS)))


def wanted_workers(connections: int, capacity: int, cpus: int) -> int:
    """Worker processes for `connections` when each can hold `capacity` descriptors: at least what the limit
    demands, and up to one per processor when there is work for it."""
    by_limit = -(-connections // max(1, capacity))
    by_cpu = min(cpus, -(-connections // CONNECTIONS_PER_CPU))
    return max(1, by_limit, by_cpu)


def usable_blocks(request: Request, facts: HostFacts) -> Tuple[List[PortBlock], int]:
    """The port blocks of this client's slice, busy ports taken out, and how many were busy.

    The slice is cut from the full range, before busy ports are taken out: clients of one host that plan at
    different moments, seeing different busy ports, still never overlap.
    """
    ranges = subtract(request.ports or facts.port_range, facts.reserved)
    everything = [(source, low, high) for source in request.sources for low, high in ranges]
    mine = cut(everything, request.slice_index, request.slices)
    free = []  # type: List[PortBlock]
    for source, low, high in mine:
        taken = sorted(port for port in facts.busy.get(source, ()) if low <= port <= high)
        free.extend((source, a, b) for a, b in subtract((low, high), [(port, port) for port in taken]))
    return free, count_ports(mine) - count_ports(free)


def each_port(blocks: Sequence[PortBlock]) -> Iterator[Tuple[str, int]]:
    """Every (address, port) of `blocks`, in order."""
    for source, low, high in blocks:
        for port in range(low, high + 1):
            yield source, port


def count_ports(blocks: Sequence[PortBlock]) -> int:
    """How many (address, port) pairs `blocks` hold."""
    return sum(high - low + 1 for _, low, high in blocks)


def subtract(span: Range, holes: Sequence[Range]) -> List[Range]:
    """`span` without `holes` (sorted or not, overlapping or not), as sorted ranges."""
    out = []  # type: List[Range]
    low, high = span
    for first, last in sorted(holes):
        if last < low or first > high:
            continue
        if first > low:
            out.append((low, first - 1))
        low = max(low, last + 1)
    if low <= high:
        out.append((low, high))
    return out


def cut(blocks: Sequence[PortBlock], index: int, parts: int) -> List[PortBlock]:
    """Part `index` (from 0) of `blocks` cut into `parts` runs of equal length (within one port)."""
    total = count_ports(blocks)
    return between(blocks, total * index // parts, total * (index + 1) // parts)


def between(blocks: Sequence[PortBlock], begin: int, end: int) -> List[PortBlock]:
    """The pairs number `begin` up to, not including, `end` of `blocks`."""
    out = []  # type: List[PortBlock]
    at = 0
    for source, low, high in blocks:
        size = high - low + 1
        first, last = max(begin, at), min(end, at + size)
        if first < last:
            out.append((source, low + first - at, low + last - at - 1))
        at += size
    return out


def split_shares(connections: int, workers: int, blocks: Sequence[PortBlock]) -> List[WorkerShare]:
    """Equal shares (within one connection) of `connections` and of the ports, spares included."""
    total = count_ports(blocks)
    shares = []
    for index in range(workers):
        first = connections * index // workers
        count = connections * (index + 1) // workers - first
        # By connections, not by worker, so that each worker has at least as many ports as connections.
        begin, end = total * first // connections, total * (first + count) // connections
        shares.append(WorkerShare(index, count, first, tuple(between(blocks, begin, end))))
    return shares


def plan_to_dict(plan: Plan, facts: HostFacts) -> Dict[str, object]:
    """The plan as JSON-ready data, for run.json."""
    return {
        "connections": plan.connections,
        "sources": list(plan.sources),
        "ports": "{}-{}".format(*plan.ports),
        "usable_ports": plan.usable,
        "busy_ports": plan.busy,
        "busy_from": facts.busy_from,
        "nofile": {
            "soft": facts.limits[0],
            "hard": facts.limits[1],
            "reachable": facts.nofile,
            "per_worker": plan.nofile,
        },
        "host": {
            "port_range": "{}-{}".format(*facts.port_range),
            "reserved_ports": sum(high - low + 1 for low, high in facts.reserved),
            "cpus": facts.cpus,
            "memory_available": facts.memory_available,
            "bytes_per_connection": facts.socket_bytes,
            "files_free": facts.files_free,
            "processes_free": facts.processes_free,
            "conntrack_free": facts.conntrack_free,
            "holds_both_ends": facts.target_here,
        },
        "workers": [
            {
                "index": share.index,
                "connections": share.connections,
                "ports": ["{} {}-{}".format(*block) for block in share.blocks[:8]],
                "more_blocks": max(0, len(share.blocks) - 8),
            }
            for share in plan.workers
        ],
    }


def _refuse_ports(request: Request, facts: HostFacts, span: Range, usable: int, busy: int) -> Refusal:
    reserved = span[1] - span[0] + 1 - sum(b - a + 1 for a, b in subtract(span, facts.reserved))
    origin = "--ports" if request.ports else "net.ipv4.ip_local_port_range"
    who = _names(request.sources)
    if request.slices > 1:
        who = "share {}/{} of {}".format(request.slice_index, request.slices, who)
    each = usable // len(request.sources)
    addresses = _addresses_needed(request, each) if each else 0
    tuned_size = (TUNED_RANGE[1] - TUNED_RANGE[0] + 1) // request.slices
    fix = "give at least {} source addresses (--source IP,IP,...)".format(addresses)
    if not each:
        fix = "choose other source ports (--ports A-B)"
    if request.ports is None and tuned_size > each:
        tuned = _addresses_needed(request, tuned_size)
        if tuned <= len(request.sources):
            fix = "widen the range with `inv tune` on this host, or " + fix
        else:
            fix += ", or {} after `inv tune` has widened the range".format(tuned)
    allow = "allow" if " and " in who else "allows"
    sentence = (
        "{:,} connections need as many source ports, but {} {} {:,}: {} is {}-{}, less {:,} reserved "
        "and {:,} busy; {}."
    ).format(request.connections, who, allow, usable, origin, span[0], span[1], reserved, busy, fix)
    return Refusal("source ports", usable, fix, sentence)


def _addresses_needed(request: Request, per_address: int) -> int:
    return -(-request.connections // per_address)


def _names(sources: Sequence[str]) -> str:
    if len(sources) <= 3:
        return " and ".join(sources)
    return "{} and {} more addresses".format(sources[0], len(sources) - 1)


def _refuse_nofile(request: Request, facts: HostFacts, allowed: int, workers: int) -> Refusal:
    fix = "raise the hard limit with `inv tune` on this host (limits.d, a new login)"
    if request.workers:
        fix = "let --workers be automatic, or " + fix
    sentence = (
        "{:,} connections in {} worker{} need {:,} open files each, but the limit can only reach {:,}; {}.".format(
            request.connections,
            workers,
            "" if workers == 1 else "s",
            -(-request.connections // workers) + SPARE_DESCRIPTORS,
            facts.nofile,
            fix,
        )
    )
    return Refusal("open files per process (nofile)", allowed, fix, sentence)


def _refuse_host(request: Request, facts: HostFacts, workers: int) -> List[Refusal]:
    """Ceilings of the whole host, which all clients on it share."""
    out = []  # type: List[Refusal]
    total = request.connections * request.clients
    ends = 2 if facts.target_here else 1
    clients = "" if request.clients == 1 else " of {} clients".format(request.clients)

    def refuse(ceiling: str, need: int, have: int, allowed: int, fix: str) -> None:
        both = " (both ends are on this host)" if need > total and ends == 2 else ""
        sentence = "{:,} connections{} need {:,} {}{}, but {:,} are free, enough for {:,} connections; {}.".format(
            total, clients, need, ceiling, both, have, allowed, fix
        )
        out.append(Refusal(ceiling, allowed // request.clients, fix, sentence))

    if facts.files_free is not None and total * ends > facts.files_free:
        fix = "raise fs.file-max with `inv tune` on this host"
        refuse("open files (fs.file-max)", total * ends, facts.files_free, facts.files_free // ends, fix)
    need = total * ends * facts.socket_bytes
    if facts.memory_available is not None and need > facts.memory_available:
        allowed = facts.memory_available // (ends * facts.socket_bytes)
        fix = "use fewer connections or more client hosts"
        refuse("bytes of memory", need, facts.memory_available, allowed, fix)
    if facts.conntrack_free is not None and total > facts.conntrack_free:
        fix = "raise net.netfilter.nf_conntrack_max, or exempt the port from tracking"
        refuse("conntrack entries", total, facts.conntrack_free, facts.conntrack_free, fix)
    if facts.processes_free is not None and workers * request.clients > facts.processes_free:
        each = 1 if request.workers else max(1, facts.nofile - SPARE_DESCRIPTORS)
        fix = (
            "raise the nofile limit (fewer processes then do) or the process limit (ulimit -u, pids.max, pid_max)"
        )
        if request.workers:
            fix = "let --workers be automatic, or raise the process limit (ulimit -u, pids.max, pid_max)"
        allowed = facts.processes_free * each
        refuse("worker processes", workers * request.clients, facts.processes_free, allowed, fix)
    return out
