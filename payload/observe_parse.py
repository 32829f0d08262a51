"""Pure parsers for `observe`: text of the kernel and of ss, lsof in; plain data out.

No function here reads anything. Each accepts what old and new kernels and tools print, ignores lines it
does not know, and raises ValueError only when nothing of what it is for is there. Memory is in bytes,
time in seconds.
"""

import re

# The eleven states of RFC 793, named as ss names them. CLOSED has no socket in the kernel's tables.
STATES = (
    "LISTEN",
    "SYN-SENT",
    "SYN-RECV",
    "ESTAB",
    "FIN-WAIT-1",
    "FIN-WAIT-2",
    "CLOSE-WAIT",
    "CLOSING",
    "LAST-ACK",
    "TIME-WAIT",
    "CLOSED",
)

# include/net/tcp_states.h; 12 (NEW_SYN_RECV) is a request socket, 13 (BOUND_INACTIVE, Linux 6.8) a
# socket that is bound and neither listens nor connects, which is CLOSED as TCP sees it.
STATE_OF_NUMBER = {
    1: "ESTAB",
    2: "SYN-SENT",
    3: "SYN-RECV",
    4: "FIN-WAIT-1",
    5: "FIN-WAIT-2",
    6: "TIME-WAIT",
    7: "CLOSED",
    8: "CLOSE-WAIT",
    9: "LAST-ACK",
    10: "LISTEN",
    11: "CLOSING",
    12: "SYN-RECV",
    13: "CLOSED",
}

# Spellings of ss (UNCONN: not connected) and netstat.
_SPELLINGS = {
    "UNCONN": "CLOSED",
    "CLOSE": "CLOSED",
    "BOUND-INACTIVE": "CLOSED",
    "ESTABLISHED": "ESTAB",
    "SYN-RECEIVED": "SYN-RECV",
    "NEW-SYN-RECV": "SYN-RECV",
    "FIN-WAIT1": "FIN-WAIT-1",
    "FIN-WAIT2": "FIN-WAIT-2",
}


def state_name(text):
    """One of `STATES` for any spelling, or None.

    >>> state_name("CLOSE_WAIT"), state_name("UNCONN"), state_name("what")
    ('CLOSE-WAIT', 'CLOSED', None)
    """
    name = text.upper().replace("_", "-")
    name = _SPELLINGS.get(name, name)
    return name if name in STATES else None


def split_endpoint(text):
    """Address and port of ss's ``ADDRESS:PORT`` (``*`` is port 0).

    >>> split_endpoint("[::ffff:10.0.0.1%eth0]:1883")
    ('::ffff:10.0.0.1%eth0', 1883)
    """
    address, _, port = text.rpartition(":")
    return address.strip("[]"), 0 if port == "*" else int(port)


def parse_ss_socket(line):
    """One line of ``ss -tan``.

    :returns: ``(state, recv_q, send_q, local address, local port, remote address, remote port)``, or
        None for the header, an empty line, or a line of another shape.
    """
    fields = line.split()
    if len(fields) < 5:
        return None
    state = state_name(fields[0])
    if state is None:
        return None
    try:
        local, lport = split_endpoint(fields[3])
        remote, rport = split_endpoint(fields[4])
        return state, int(fields[1]), int(fields[2]), local, lport, remote, rport
    except ValueError:
        return None


def parse_proc_tcp(line):
    """One line of /proc/net/tcp or tcp6 (proc_net_tcp in the kernel's documentation).

    :returns: as `parse_ss_socket`; addresses stay in the kernel's hexadecimal (see `hex_address`). None
        for the header. For LISTEN recv_q is the accept queue and send_q is always 0: the backlog is not
        in this file.
    """
    fields = line.split()
    if len(fields) < 5 or ":" not in fields[1]:
        return None
    try:
        local, lport = fields[1].split(":")
        remote, rport = fields[2].split(":")
        send_q, recv_q = fields[4].split(":")
        state = STATE_OF_NUMBER[int(fields[3], 16)]
        return state, int(recv_q, 16), int(send_q, 16), local, int(lport, 16), remote, int(rport, 16)
    except (ValueError, KeyError):
        return None


def hex_address(text, little_endian=True):
    """Bytes in network order of an address of /proc/net/tcp{,6}: 32-bit words in the host's order."""
    raw = bytes.fromhex(text)
    if not little_endian:
        return raw
    return b"".join(raw[i : i + 4][::-1] for i in range(0, len(raw), 4))


def parse_ss_summary(text):
    """``ss -s``.

    :returns: ``{"total": n, "tcp": {"total", "estab", "closed", "orphaned", "timewait", ...}, "transport":
        {"TCP": {"total", "ipv4", "ipv6"}, ...}}``.
    :raises ValueError: when there is no "TCP:" line.
    """
    result = {"total": None, "tcp": {}, "transport": {}}
    for line in text.splitlines():
        match = re.match(r"Total:\s*(\d+)", line)
        if match:
            result["total"] = int(match.group(1))
            continue
        match = re.match(r"TCP:\s*(\d+)(?:\s*\((.*?)\))?", line)
        if match:
            result["tcp"] = {"total": int(match.group(1))}
            for name, number in re.findall(r"([a-z]+)\s+(\d+)", match.group(2) or ""):
                result["tcp"][name] = int(number)
            continue
        fields = line.split()
        if len(fields) == 4 and fields[1].isdigit():
            total, ipv4, ipv6 = (int(value) if value.isdigit() else None for value in fields[1:])
            result["transport"][fields[0]] = {"total": total, "ipv4": ipv4, "ipv6": ipv6}
    if not result["tcp"]:
        raise ValueError("no TCP line in the output of ss -s")
    return result


def parse_counters(text):
    """/proc/net/snmp and /proc/net/netstat: a line of names, then a line of numbers, per group.

    :returns: ``{"TcpExt": {"ListenOverflows": n, ...}, ...}``.
    :raises ValueError: when no such pair is there.
    """
    result, names = {}, {}
    for line in text.splitlines():
        group, colon, rest = line.partition(":")
        fields = rest.split()
        if not colon or not fields:
            continue
        if group not in names:
            names[group] = fields
            continue
        try:
            pairs = zip(names.pop(group), [int(value) for value in fields])  # noqa: B905 (strict= needs 3.10)
            result[group] = dict(pairs)
        except ValueError:
            continue
    if not result:
        raise ValueError("no counters found")
    return result


def parse_sockstat(text):
    """/proc/net/sockstat and sockstat6: ``TCP: inuse 3 orphan 0 ...``; ``mem`` there is in pages.

    :raises ValueError: when no line has that shape.
    """
    result = {}
    for line in text.splitlines():
        group, colon, rest = line.partition(":")
        fields = rest.split()
        if colon and len(fields) >= 2:
            try:
                result[group] = {fields[i]: int(fields[i + 1]) for i in range(0, len(fields) - 1, 2)}
            except ValueError:
                continue
    if not result:
        raise ValueError("no socket statistics found")
    return result


def parse_softnet(text):
    """/proc/net/softnet_stat: one line of hexadecimal columns per CPU, summed.

    :returns: ``{"cpus", "processed", "dropped", "time_squeeze", "flow_limit"}``: packets; dropped means
        netdev_max_backlog was full, time_squeeze that netdev_budget ran out.
    :raises ValueError: when empty.
    """
    rows = [[int(value, 16) for value in line.split()] for line in text.splitlines() if line.strip()]
    if not rows:
        raise ValueError("no CPU lines found")

    def total(column):
        return sum(row[column] for row in rows if len(row) > column)

    return {
        "cpus": len(rows),
        "processed": total(0),
        "dropped": total(1),
        "time_squeeze": total(2),
        "flow_limit": total(10),
    }


def parse_meminfo(text):
    """/proc/meminfo; bytes (counts such as HugePages_Total stay counts).

    :raises ValueError: when there is no MemTotal.
    """
    result = {}
    for name, number, unit in re.findall(r"^(\S+):\s+(\d+)(?: (kB))?", text, re.M):
        result[name] = int(number) * (1024 if unit else 1)
    if "MemTotal" not in result:
        raise ValueError("no MemTotal found")
    return result


def parse_limits(text):
    """/proc/PID/limits.

    :returns: ``{"Max open files": {"soft": n|None, "hard": n|None, "unit": "files"}, ...}``; None is
        unlimited.
    :raises ValueError: when no limit is found.
    """
    result = {}
    for line in text.splitlines():
        match = re.match(r"(Max .+?)\s{2,}(\S+)\s+(\S+)(?:\s+(\S+))?\s*$", line)
        if match:
            name, soft, hard, unit = match.groups()
            try:
                values = [None if value == "unlimited" else int(value) for value in (soft, hard)]
            except ValueError:
                continue
            result[name] = {"soft": values[0], "hard": values[1], "unit": unit or ""}
    if not result:
        raise ValueError("no limits found")
    return result


def parse_status(text):
    """/proc/PID/status; sizes in bytes, counts as int, the rest as text.

    :raises ValueError: when there is no Name.
    """
    result = {}
    for line in text.splitlines():
        name, colon, rest = line.partition(":")
        value = rest.strip()
        if not colon:
            continue
        if re.match(r"\d+ kB$", value):
            result[name] = int(value[:-3]) * 1024
        elif value.isdigit() and not name.startswith(("Sig", "Shd", "Cap")):  # those are hexadecimal masks
            result[name] = int(value)
        else:
            result[name] = value
    if "Name" not in result:
        raise ValueError("no Name found")
    return result


CPU_COUNTS = {"ctxt": "context_switches", "procs_running": "processes_running", "btime": "boot_epoch"}


def parse_cpu(text, ticks_per_second):
    """The ``cpu`` line of /proc/stat, with what else counts the machine's work.

    :returns: ``{"cpus": n, "user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal" (seconds
        since boot, all CPUs together), "context_switches", "processes_running", "boot_epoch"}``.
    :raises ValueError: when there is no cpu line.
    """
    names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
    found = {"cpus": len(re.findall(r"^cpu\d+ ", text, re.M))}
    for line in text.splitlines():
        fields = line.split()
        if not fields:
            continue
        if fields[0] == "cpu":
            for name, value in zip(names, fields[1:]):  # noqa: B905 (strict= needs 3.10)
                found[name] = int(value) / float(ticks_per_second)
        elif fields[0] in CPU_COUNTS and len(fields) > 1:
            found[CPU_COUNTS[fields[0]]] = int(fields[1])
    if "user" not in found:
        raise ValueError("no cpu line found")
    return found


# What one TCP connection is made of in kernel memory, as /proc/slabinfo names it.
TCP_SLABS = (
    "TCP",
    "TCPv6",
    "tw_sock_TCP",
    "tw_sock_TCPv6",
    "request_sock_TCP",
    "request_sock_TCPv6",
    "tcp_bind_bucket",
    "tcp_bind2_bucket",
    "sock_inode_cache",
    "filp",
    "dentry",
    "eventpoll_epi",
    "skbuff_head_cache",
    "skbuff_small_head",
    "nf_conntrack",
)


def parse_slabs(text, names=TCP_SLABS):
    """/proc/slabinfo, the given caches only (merged caches keep one name, so some may be missing).

    :returns: ``{"TCP": {"active": n, "total": n, "object_bytes": n, "bytes": n}, ...}``.
    :raises ValueError: when the header is missing.
    """
    if "slabinfo" not in text.split("\n", 1)[0]:
        raise ValueError("no slabinfo header found")
    result = {}
    for line in text.splitlines():
        fields = line.split()
        if len(fields) > 3 and fields[0] in names:
            active, total, size = (int(value) for value in fields[1:4])
            result[fields[0]] = {"active": active, "total": total, "object_bytes": size, "bytes": total * size}
    return result


def parse_file_nr(text):
    """/proc/sys/fs/file-nr.

    :returns: ``{"open", "unused", "max"}``: open file descriptions of the whole machine.
    :raises ValueError: when it has other than three numbers.
    """
    open_files, unused, maximum = (int(value) for value in text.split())
    return {"open": open_files, "unused": unused, "max": maximum}


def parse_loadavg(text):
    """/proc/loadavg: ``{"1min", "5min", "15min", "running", "processes"}``.

    :raises ValueError: when it is not such a line.
    """
    one, five, fifteen, tasks, _last = text.split()
    running, processes = tasks.split("/")
    return {
        "1min": float(one),
        "5min": float(five),
        "15min": float(fifteen),
        "running": int(running),
        "processes": int(processes),
    }


# Lines of the kernel log that name a wall of TCP, each with what it means.
KERNEL_SIGNS = tuple(
    (re.compile(pattern, re.I), means)
    for pattern, means in (
        ("possible SYN flooding", "SYN queue full: net.ipv4.tcp_max_syn_backlog, net.core.somaxconn"),
        ("nf_conntrack: .*table full|conntrack: table full", "connection tracking table full"),
        ("TCP: out of memory|out of memory -- consider tuning tcp_mem", "net.ipv4.tcp_mem reached"),
        ("too many orphaned sockets", "net.ipv4.tcp_max_orphans reached"),
        ("time wait bucket table overflow", "net.ipv4.tcp_max_tw_buckets reached"),
        ("VFS: file-max limit", "fs.file-max reached"),
        ("(neighbou?r|arp_cache|ndisc_cache): .*overflow", "net.ipv4.neigh.default.gc_thresh3 reached"),
        ("Out of memory|oom-kill|Killed process|invoked oom-killer", "memory ran out, a process was killed"),
        ("page allocation failure", "the kernel could not get memory"),
        ("NETDEV WATCHDOG|link is down", "a network interface failed"),
    )
)


def parse_kmsg(record):
    """One record of /dev/kmsg (``priority,sequence,microseconds,flags;message``).

    :returns: ``{"seconds": since boot, "message": str, "means": str}`` when it matters to TCP, else None.
    """
    head, semicolon, message = record.partition(";")
    if not semicolon:
        return None
    message = message.split("\n", 1)[0]
    for pattern, means in KERNEL_SIGNS:
        if pattern.search(message):
            try:
                seconds = int(head.split(",")[2]) / 1e6
            except (IndexError, ValueError):
                seconds = None
            return {"seconds": seconds, "message": message[:500], "means": means}
    return None


def parse_lsof(lines):
    """Counts of ``lsof -nP`` output by TYPE and, for TCP, by state.

    :returns: ``{"files": n, "types": {"IPv4": n, "REG": n, ...}, "tcp_states": {"ESTAB": n, ...}}``.
    """
    types, states, files = {}, {}, 0
    for line in lines:
        fields = line.split(None, 8)
        if len(fields) < 8 or fields[0] == "COMMAND" or not fields[1].isdigit():
            continue
        if not fields[3][:1].isdigit():
            continue  # cwd, rtd, txt, mem: open, but no descriptor
        files += 1
        types[fields[4]] = types.get(fields[4], 0) + 1
        match = re.search(r"\(([A-Z0-9_]+)\)\s*$", line)
        if match and fields[4] in ("IPv4", "IPv6"):
            state = state_name(match.group(1)) or match.group(1)
            states[state] = states.get(state, 0) + 1
    return {"files": files, "types": types, "tcp_states": states}


def parse_stat_parent(text):
    """``(parent pid, name)`` of /proc/PID/stat; the name may hold spaces and parentheses.

    :raises ValueError: when it is not such a line.
    """
    name = text[text.index("(") + 1 : text.rindex(")")]
    _state, parent = text[text.rindex(")") + 1 :].split()[:2]
    return int(parent), name


def sysctl_path(key):
    """The file of a sysctl key, by sysctl(8)'s rule: the first separator, ``.`` or ``/``, decides.

    >>> sysctl_path("net.ipv4.tcp_mem")
    '/proc/sys/net/ipv4/tcp_mem'
    >>> sysctl_path("net/ipv4/conf/eth0.1/forwarding")
    '/proc/sys/net/ipv4/conf/eth0.1/forwarding'

    :raises ValueError: for a key that would leave /proc/sys.
    """
    match = re.search(r"[./]", key)
    if match and match.group() == ".":
        key = key.translate({ord("."): "/", ord("/"): "."})
    parts = key.split("/")
    if not all(part and part not in (".", "..") and "\0" not in part for part in parts):
        raise ValueError("%r is not the name of a sysctl" % key)
    return "/proc/sys/" + "/".join(parts)
