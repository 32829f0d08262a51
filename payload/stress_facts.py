"""What this host has for a stress client: ports, limits, memory. The edge that feeds `stress_plan`.

Reads /proc and one sock_diag dump; changes nothing.
"""

import errno
import ipaddress
import itertools
import os
import re
import resource
import socket
import struct
from typing import Dict, FrozenSet, List, Optional, Sequence, Set, Tuple

import nofile
import observe_netlink as netlink
from stress_plan import OBJECTS, PROCESS_BYTES, HostFacts, Range

LISTEN = 10
MOST_SOURCES = 4096
CGROUP_MEMORY = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
SPARE_PORTS = 200  # of each address, for those that turn out to be busy


class FactsError(Exception):
    """Something the plan cannot do without could not be had; the text is one sentence for the user."""


def resolve(host: str, port: int) -> Tuple[int, tuple]:
    """(address family, socket address) of the target. Raises FactsError when the name has no address."""
    try:
        found = socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as e:  # UnicodeError: a name that DNS cannot have
        raise FactsError("cannot resolve {}: {}".format(host, getattr(e, "strerror", None) or e))
    # A server bound to 0.0.0.0 is not reachable over ::1, which "localhost" may name first.
    found.sort(key=lambda row: row[0] != socket.AF_INET)
    return found[0][0], found[0][4]


def route_source(family: int, address: tuple) -> str:
    """The address the kernel would connect from. Raises FactsError when there is no route."""
    probe = socket.socket(family, socket.SOCK_DGRAM)
    try:
        probe.connect(address)  # a datagram socket's connect only looks up the route
        return probe.getsockname()[0]
    except OSError as e:
        raise FactsError("no route to {}: {}".format(address[0], os.strerror(e.errno or 0)))
    finally:
        probe.close()


def is_local_address(family: int, address: str) -> bool:
    """Whether a socket can be bound to `address` here."""
    probe = socket.socket(family, socket.SOCK_DGRAM)
    try:
        socket.inet_pton(family, address)  # bind would look names up
    except OSError:
        kind = "IPv4" if family == socket.AF_INET else "IPv6"
        raise FactsError("{} is not an {} address, as the target's is".format(address, kind))
    try:
        probe.bind((address, 0))
        return True
    except OSError as e:
        if e.errno in (errno.EADDRNOTAVAIL, errno.EINVAL):
            return False
        raise FactsError("cannot bind to {}: {}".format(address, os.strerror(e.errno or 0)))
    finally:
        probe.close()


def _may_bind(family: int, source: str, low: int) -> bool:
    """Whether this user may take a port that only root has as a rule."""
    probe = socket.socket(family, socket.SOCK_DGRAM)
    try:
        probe.bind((source, low))
    except OSError as e:
        return e.errno != errno.EACCES
    finally:
        probe.close()
    return True


def read_facts(family: int, target: tuple, sources: Sequence[str], ports: Optional[Range]) -> HostFacts:
    """The facts of this host for connections from `sources` to `target`. Raises FactsError."""
    text = _read("/proc/sys/net/ipv4/ip_local_port_range")
    if text is None and ports is None:
        raise FactsError("cannot read net.ipv4.ip_local_port_range; give the source ports with --ports A-B")
    span = tuple(int(word) for word in text.split()) if text else ports
    low, high = ports or span
    busy, busy_from = read_busy(family, target, sources, low, high)
    reserved = parse_ranges(_read("/proc/sys/net/ipv4/ip_local_reserved_ports") or "")
    first = (_numbers("/proc/sys/net/ipv4/ip_unprivileged_port_start") or [0])[0]
    if low < first and not _may_bind(family, sources[0], low):
        reserved += ((1, first - 1),)
    return HostFacts(
        port_range=(span[0], span[1]),
        reserved=reserved,
        busy=busy,
        nofile=nofile.reachable(),
        cpus=len(os.sched_getaffinity(0)),
        memory_available=_memory_available(),
        files_free=_files_free(),
        processes_free=_processes_free(),
        conntrack_free=_conntrack_free(),
        target_here=is_local_address(family, target[0]),
        busy_from=busy_from,
        limits=resource.getrlimit(resource.RLIMIT_NOFILE),
        socket_bytes=socket_bytes(_read("/proc/slabinfo") or ""),
    )


def socket_bytes(slabinfo: str) -> int:
    """Memory of one end of an idle connection in bytes: the sizes of the kernel's objects on this host
    (/proc/slabinfo, for root), else those of Linux 6.18 on x86-64, and its part of the process."""
    sizes = dict(OBJECTS)
    for line in slabinfo.splitlines():
        fields = line.split()
        if len(fields) > 3 and fields[0] in sizes and fields[3].isdigit():
            sizes[fields[0]] = int(fields[3])
    return sum(sizes.values()) + PROCESS_BYTES


def addresses_needed(connections: int, ports: Optional[Range]) -> int:
    """How many source addresses so many connections of this host need, with a few ports of each left unused."""
    numbers = _numbers("/proc/sys/net/ipv4/ip_local_port_range")
    low, high = ports or (numbers[0], numbers[1])
    reserved = parse_ranges(_read("/proc/sys/net/ipv4/ip_local_reserved_ports") or "")
    size = high - low + 1 - sum(max(0, min(high, b) - max(low, a) + 1) for a, b in reserved)
    if connections <= size:
        return 1
    return -(-connections // max(1, size - SPARE_PORTS))


def parse_sources(text: str, family: int, target: str, needed: int) -> Tuple[str, ...]:
    """The addresses of --source: a list of addresses and networks (10.0.0.0/28: those of this host in it), or
    `auto`: all of this host; towards loopback, as many of 127.0.0.0/8 as are needed.

    :param needed: how many addresses the connections need.

    Raises FactsError for what is not an address of this host, or named twice.
    """
    found = []  # type: List[str]
    for part in (part.strip() for part in text.split(",")):
        if not part:
            continue
        if part == "auto":
            more = _loopback(needed) if target.startswith("127.") else _own_addresses(family)
        elif "/" in part:
            more = _in_network(part)
        else:
            more = [part]
        for address in more:
            if not is_local_address(family, address):
                raise FactsError("--source {} is not an address of this host".format(address))
            if address in found:
                raise FactsError("--source names {} twice".format(address))
            found.append(address)
    if not found:
        raise FactsError("--source {}: no address of this host is among them".format(text))
    return tuple(found)


def _loopback(count: int) -> List[str]:
    first = ipaddress.IPv4Address("127.0.0.1")
    return [str(first + place) for place in range(min(count, MOST_SOURCES))]


def _in_network(text: str) -> List[str]:
    try:
        network = ipaddress.ip_network(text)
    except ValueError as e:
        raise FactsError("--source {}: {}".format(text, e))
    hosts = network.hosts() if network.prefixlen < network.max_prefixlen - 1 else iter(network)
    if network.is_loopback:
        return [str(one) for one in itertools.islice(hosts, MOST_SOURCES)]
    family = socket.AF_INET if network.version == 4 else socket.AF_INET6
    return [one for one in _own_addresses(family) if ipaddress.ip_address(one) in network]


def _own_addresses(family: int) -> List[str]:
    """All addresses of this host but loopback and link-local ones, sorted."""
    if family == socket.AF_INET6:
        rows = [line.split() for line in (_read("/proc/net/if_inet6") or "").splitlines()]
        found = {str(ipaddress.IPv6Address(int(row[0], 16))) for row in rows if row}
    else:
        found = parse_fib_trie(_read("/proc/net/fib_trie") or "")
    addresses = [ipaddress.ip_address(one) for one in found]
    return [str(one) for one in sorted(addresses) if not one.is_loopback and not one.is_link_local]


def parse_fib_trie(text: str) -> Set[str]:
    """/proc/net/fib_trie: the addresses of this host (those of `/32 host LOCAL`)."""
    found = set()
    address = None
    for line in text.splitlines():
        words = line.split()
        if len(words) == 2 and words[0] == "|--":
            address = words[1]
        elif words == ["/32", "host", "LOCAL"] and address:
            found.add(address)
    return found


def parse_ranges(text: str) -> Tuple[Range, ...]:
    """ip_local_reserved_ports: "8080,9148-9150" -> ((8080, 8080), (9148, 9150))."""
    out = []
    for part in text.strip().split(","):
        if part:
            first, _, last = part.partition("-")
            out.append((int(first), int(last or first)))
    return tuple(out)


def read_busy(
    family: int, target: tuple, sources: Sequence[str], low: int, high: int
) -> Tuple[Dict[str, FrozenSet[int]], str]:
    """Per source address the ports in low..high that cannot be used towards `target`, and where it was read.

    Those are ports with a listener (or a bound, unconnected socket) on that address or on all, and ports
    with a connection to the same target, TIME_WAIT included. A port whose connections go elsewhere is
    shared, if its owner set SO_REUSEADDR too; if not, bind says so and the worker takes a spare.
    """
    wanted = {socket.inet_pton(family, source): source for source in sources}
    remote, remote_port = socket.inet_pton(family, target[0]), target[1]
    found = {source: set() for source in sources}  # type: Dict[str, Set[int]]
    if is_local_address(family, target[0]):
        for address, ports in found.items():
            # TCP connects a socket to itself where nothing listens, and then it has its own bytes back.
            if address == target[0] or not any(remote):
                ports.add(remote_port)

    def on_socket(kind, state, sport, dport, src, dst, recv_q, send_q):
        local = _address(kind, src, family)
        port = (sport[0] << 8) | sport[1]
        there = (dport[0] << 8) | dport[1]
        if there and not (there == remote_port and _address(kind, dst, family) == remote):
            return
        if local is None or not any(local):  # any address, of this family or of both
            for ports in found.values():
                ports.add(port)
        elif local in wanted:
            found[wanted[local]].add(port)

    origin = "sock_diag"
    try:
        _dump_local_ports(low, high, on_socket)
    except OSError:
        origin = "/proc/net/tcp"  # a kernel or sandbox without sock_diag
        _read_proc_net_tcp(low, high, on_socket)
    return {source: frozenset(ports) for source, ports in found.items()}, origin


def _address(kind: int, raw: bytes, family: int) -> Optional[bytes]:
    """`raw` (16 bytes, of a socket of family `kind`) as an address of `family`; None for the IPv6 wildcard."""
    if kind == socket.AF_INET:
        packed = raw[:4]
        return packed if family == socket.AF_INET else b"\0" * 10 + b"\xff\xff" + packed
    if raw[:12] == b"\0" * 10 + b"\xff\xff" and family == socket.AF_INET:
        return raw[12:]
    return raw if any(raw) else None


def _dump_local_ports(low: int, high: int, on_socket) -> None:
    """sock_diag(7) dump of all TCP sockets with a local port in low..high; the kernel drops the others."""
    program = struct.pack("=BBHBBH", netlink.BC_S_GE, 8, 20, 0, 0, low)
    program += struct.pack("=BBHBBH", netlink.BC_S_LE, 8, 12, 0, 0, high)
    attribute = struct.pack("=HH", 4 + len(program), netlink.INET_DIAG_REQ_BYTECODE) + program
    buffer = bytearray(netlink.RECEIVE_BUFFER)
    for family in (socket.AF_INET, socket.AF_INET6):
        query = struct.pack("=BBBBI48s", family, socket.IPPROTO_TCP, 0, 0, netlink.ALL_STATES, b"") + attribute
        flags = netlink.NLM_F_REQUEST | netlink.NLM_F_DUMP
        header = struct.pack("=IHHII", 16 + len(query), netlink.SOCK_DIAG_BY_FAMILY, flags, 1, 0)
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        link = socket.socket(socket.AF_NETLINK, kind, netlink.NETLINK_SOCK_DIAG)
        try:
            link.settimeout(10.0)
            link.sendto(header + query, (0, 0))
            done = False
            while not done:
                size = link.recv_into(buffer)
                done = netlink.parse_messages(buffer, size, on_socket)[0]
        finally:
            link.close()


def _read_proc_net_tcp(low: int, high: int, on_socket) -> None:
    for path, kind in (("/proc/net/tcp", socket.AF_INET), ("/proc/net/tcp6", socket.AF_INET6)):
        if not os.path.exists(path):
            continue  # no IPv6
        with open(path) as lines:
            next(lines, None)
            for line in lines:
                _, local, remote, state = line.split(None, 4)[:4]
                if low <= int(local[-4:], 16) <= high:
                    src, sport = _proc_address(local)
                    dst, dport = _proc_address(remote)
                    on_socket(kind, int(state, 16), sport, dport, src, dst, 0, 0)


def _proc_address(text: str) -> Tuple[bytes, bytes]:
    """ "0100007F:9C40" -> (16 bytes of address, 2 bytes of port), in network order."""
    address, port = text.split(":")
    words = struct.unpack("=%dI" % (len(address) // 8), bytes.fromhex(address))
    packed = struct.pack(">%dI" % len(words), *words)
    return packed.ljust(16, b"\0"), bytes.fromhex(port)


def _read(path: str) -> Optional[str]:
    try:
        with open(path) as f:
            return f.read()
    except OSError:
        return None


def _numbers(path: str) -> List[int]:
    text = _read(path) or ""
    return [int(word) for word in text.split() if word.lstrip("-").isdigit()]


def _memory_available() -> Optional[int]:
    """Of the machine, or what control groups leave of it: sockets count there too, and the page cache can go."""
    found = []
    for line in (_read("/proc/meminfo") or "").splitlines():
        if line.startswith("MemAvailable:"):
            found.append(int(line.split()[1]) * 1024)
    for group in cgroups("memory", _read("/proc/self/cgroup") or ""):
        for most, now, cached in CGROUP_MEMORY:
            limit, used = _numbers(group + "/" + most), _numbers(group + "/" + now)
            files = re.search("^{} (\\d+)$".format(cached), _read(group + "/memory.stat") or "", re.M)
            if limit and used:
                found.append(max(0, limit[0] - used[0] + (int(files.group(1)) if files else 0)))
    return min(found) if found else None


def _files_free() -> Optional[int]:
    row = _numbers("/proc/sys/fs/file-nr")  # allocated, unused, maximum
    return max(0, row[2] - row[0]) if len(row) == 3 else None


def _processes_free() -> Optional[int]:
    """Processes that can still be started here: by kernel.pid_max and threads-max (/proc/loadavg counts the tasks
    there are), by pids.max of the control groups that this process is in, and by `ulimit -u`."""
    found = []
    load = (_read("/proc/loadavg") or "").split()
    for name in ("pid_max", "threads-max"):
        most = _numbers("/proc/sys/kernel/" + name)
        if most and len(load) > 3 and "/" in load[3]:
            found.append(most[0] - int(load[3].split("/")[1]))
    for group in cgroups("pids", _read("/proc/self/cgroup") or ""):
        limit, now = _numbers(group + "/pids.max"), _numbers(group + "/pids.current")
        if limit and now:
            found.append(limit[0] - now[0])
    most = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if most != resource.RLIM_INFINITY and os.getuid() != 0:  # root's are not limited
        found.append(most - _tasks_of(os.getuid()))
    return max(0, min(found)) if found else None


def _tasks_of(user: int) -> int:
    """Processes and threads of a user, as `ulimit -u` counts them."""
    count = 0
    for name in os.listdir("/proc"):
        text = (_read("/proc/{}/status".format(name)) or "") if name.isdigit() else ""
        found = re.search(r"^Uid:\s+(\d+)(?:.*\n)*?Threads:\s+(\d+)", text, re.M)
        if found and int(found.group(1)) == user:
            count += int(found.group(2))
    return count


def cgroups(controller: str, text: str) -> List[str]:
    """Directories of the control groups whose limits hold for a process, innermost first: of the unified
    hierarchy, and of the one that `controller` has where it is an old one.

    :param text: /proc/self/cgroup.
    """
    found = []
    for line in text.splitlines():
        _, controllers, place = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = "/sys/fs/cgroup" + ("/" + controller if controllers else "")
        # In a container the path may be the host's, and the top is the container's own group.
        parts = [part for part in place.split("/") if part]
        found += ["/".join([top, *parts[:size]]) for size in range(len(parts), -1, -1)]
    return found


def _conntrack_free() -> Optional[int]:
    most = _numbers("/proc/sys/net/netfilter/nf_conntrack_max")
    count = _numbers("/proc/sys/net/netfilter/nf_conntrack_count")
    if not most or not count or count[0] == 0:
        return None  # the module is absent, or tracks nothing in this network namespace
    return max(0, most[0] - count[0])
