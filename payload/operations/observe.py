"""What one host's TCP stack, server and limits look like now; changes nothing.

One trip per host: everything is read and aggregated here, so what travels is a few kilobytes whether ten
connections are open or a million. What cannot be read appears as ``{"unavailable": "reason"}``.

To add a section: one function ``(look) -> value`` below and one row in `SECTIONS`.
"""

import errno
import json
import os
import re
import resource
import socket
import stat
import sys
import time

import observe_netlink
import observe_parse as parse
from observe_processes import find
from observe_read import command_text, is_unavailable, read_text, tail_text, unavailable
from observe_sockets import SOURCES, count_sockets

from operations import OperationError
from operations import _sysctl_order as order

SCHEMA = "tcpfleet.observation/1"
RAW_LIMIT = 256 * 1024  # bytes per raw text
RAW_TOTAL_LIMIT = 2 * 1024 * 1024  # bytes of all raw texts together
LSOF_MOST_SOCKETS = 30000
DEFAULT_SYSCTLS = (
    "fs.file-max",
    "fs.nr_open",
    "net.core.somaxconn",
    "net.core.rmem_default",
    "net.core.wmem_default",
    "net.core.rmem_max",
    "net.core.wmem_max",
    "net.core.optmem_max",
    "net.core.netdev_max_backlog",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
    "net.ipv4.tcp_mem",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_max_syn_backlog",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_tw_reuse",
    "net.ipv4.tcp_max_tw_buckets",
    "net.ipv4.tcp_max_orphans",
    "net.ipv4.tcp_abort_on_overflow",
)


class Look(object):
    """One observation being made: the arguments, and what several sections share.

    :ivar raw: file name -> text, filled by the sections through `keep`.
    :ivar cut: file name -> in what way its text is not whole.
    """

    def __init__(self, args, stopping):
        self.port = args["port"]
        self.pid_file = args.get("pid_file")
        self.log_file = args.get("log_file")
        self.log_lines = args.get("log_lines", 50)
        self.sysctls = args.get("sysctls") or DEFAULT_SYSCTLS
        self.sources = args.get("socket_sources") or SOURCES
        self.lsof_seconds = args.get("lsof_seconds", 5.0)
        self.lsof_lines = args.get("lsof_lines", 1000)
        self.stopping = stopping
        self.server_program = args.get("server_program")
        self.raw, self.cut = {}, {}
        self._sockets = None
        self._processes = None

    def keep(self, name, text, cut=None):
        """Keeps a raw text as the source of a number, cut to what is left of the limits; the cut is said.

        :param cut: why the text is not whole as it comes.
        """
        if cut:
            self.cut[name] = cut
        left = min(RAW_LIMIT, RAW_TOTAL_LIMIT - sum(len(one.encode("utf-8")) for one in self.raw.values()))
        data = text.encode("utf-8", "replace")
        if len(data) > left:
            self.cut[name] = "%d of %d bytes kept" % (max(0, left - 80), len(data))
            text = data[: max(0, left - 80)].decode("utf-8", "ignore") + "\n[cut here: %s]\n" % self.cut[name]
        if left > 80:
            self.raw[name] = text

    def read(self, path, name=None):
        """Text of a file, kept as raw under `name` if given."""
        text = read_text(path, RAW_LIMIT)
        if name:
            self.keep(name, text)
        return text

    def sockets(self):
        """``(states, listeners)`` of the port, counted once."""
        if self._sockets is None:
            self._sockets = count_sockets(self.port, self.sources, stopping=self.stopping)
        return self._sockets

    def processes(self):
        """`observe_processes.find` for the port, looked up once."""
        if self._processes is None:
            self._processes = find(self.port, self.pid_file)
        return self._processes


def count_descriptors(pid):
    """Open descriptors of a process.

    Since Linux 6.2 the size of /proc/PID/fd is their number; before, they are listed.

    :raises OSError: EACCES for another user's process without privilege.
    """
    path = "/proc/%d/fd" % pid
    os.close(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))  # stat alone needs no permission
    return os.stat(path).st_size or len(os.listdir(path))


def attempt(function, *arguments):
    """The function's value, or `unavailable` of what it raised for something that cannot be read."""
    try:
        return function(*arguments)
    except (OSError, ValueError, LookupError, RuntimeError) as problem:
        if isinstance(problem, LookupError) and not isinstance(problem, (KeyError, IndexError)):
            return unavailable(str(problem))
        return unavailable(problem)


def look_identity(look):
    """Which machine, which kernel, which network stack, when."""
    uptime = attempt(lambda: float(read_text("/proc/uptime").split()[0]))
    return {
        "hostname": socket.gethostname(),
        "boot_id": attempt(lambda: read_text("/proc/sys/kernel/random/boot_id").strip()),
        "network_namespace": attempt(os.readlink, "/proc/self/ns/net"),
        "kernel": "%s %s %s" % (os.uname().sysname, os.uname().release, os.uname().machine),
        "uptime_seconds": uptime,
        "user": {"uid": os.getuid(), "euid": os.geteuid()},
    }


def look_ss(look):
    """``ss -s``, parsed; the text itself is kept."""
    outcome = command_text(["ss", "-s"], timeout=10, stopping=look.stopping)
    if outcome["status"] != 0:
        raise RuntimeError("ss -s: %s" % (outcome["truncated"] or outcome["stderr"] or outcome["status"]))
    look.keep("ss-s.txt", outcome["text"])
    return dict(parse.parse_ss_summary(outcome["text"]), text=outcome["text"])


def look_states(look):
    """TCP states of the port by side."""
    return look.sockets()[0]


def look_listeners(look):
    """Accept queues of the port, and what ``ss -ltnmi`` says of it as raw text where there is ss."""
    try:
        # -l would ask for closed sockets as well, for which the kernel goes through all connections: 0.1 s of
        # CPU at 400,000 sockets.
        argv = ["ss", "-tnmi", "state", "listening", "sport = :%d" % look.port]
        outcome = command_text(argv, timeout=10, max_lines=500, stopping=look.stopping)
        look.keep("ss-ltnmi.txt", outcome["text"], outcome["truncated"])
    except OSError:
        pass  # the numbers come from look.sockets(), which says where from
    return look.sockets()[1]


def look_listener_drops(look):
    """SYNs and handshakes that the port's listeners themselves have dropped; the counters are all listeners'.

    :returns: ``{"drops", "sockets": [inode]}``; other sockets have begun at 0.
    """
    release = os.uname().release
    if tuple(int(part) for part in re.findall(r"\d+", release)[:2]) < (4, 7):
        raise RuntimeError("Linux %s does not count a listener's drops" % release)
    found = observe_netlink.listeners(look.port)
    if None in found.values():
        raise RuntimeError("Linux %s does not tell a listener's drops" % release)
    return {"drops": sum(found.values()), "sockets": sorted(found)}


def look_lsof(look):
    """Bounded ``lsof -nP`` of the server's processes; left out where it would be a load of its own."""
    sockets = look.sockets()[0]["sockets"]
    if sockets > LSOF_MOST_SOCKETS:
        # lsof reads all of /proc/net/tcp: 1.9 s at 15,000 sockets measured, no line within 5 s at 200,000.
        raise LookupError(
            "left out at %d sockets (more than %d): it would keep a CPU busy while connections are held; "
            "descriptors per process are in `server`" % (sockets, LSOF_MOST_SOCKETS)
        )
    pids = look.processes()
    argv = ["lsof", "-nP", "-p", ",".join(str(pid) for pid in pids)]
    outcome = command_text(argv, look.lsof_seconds, look.lsof_lines, stopping=look.stopping)
    lines = outcome["text"].splitlines()
    note = "\n[stopped: %s]" % outcome["truncated"] if outcome["truncated"] else ""
    look.keep("lsof.txt", outcome["text"] + note + "\n", outcome["truncated"])
    if not lines:
        raise RuntimeError("lsof: %s" % (outcome["truncated"] or outcome["stderr"] or "no output"))
    return {
        "command": " ".join(argv),
        "lines": outcome["lines"],
        "truncated": outcome["truncated"],
        "counted": parse.parse_lsof(lines),
    }


STATUS_KEYS = ("Name", "State", "PPid", "Uid", "Threads", "VmRSS", "VmHWM", "RssAnon", "FDSize")


def read_limits(pid):
    """Parsed /proc/PID/limits."""
    return parse.parse_limits(read_text("/proc/%d/limits" % pid))


def read_status(pid):
    """`STATUS_KEYS` of /proc/PID/status."""
    status = parse.parse_status(read_text("/proc/%d/status" % pid))
    return {key: status[key] for key in STATUS_KEYS if key in status}


def process_row(pid):
    """One process: ``{"pid", "fds", "status", "nofile"}``, each part unavailable on its own."""
    limits = attempt(read_limits, pid)
    if not is_unavailable(limits):
        limits = limits.get("Max open files", unavailable("not listed"))
    return {
        "pid": pid,
        "fds": attempt(count_descriptors, pid),
        "status": attempt(read_status, pid),
        "nofile": limits,
    }


def look_server(look):
    """The server's processes: descriptors, memory, limits."""
    pids = look.processes()
    rows = [process_row(pid) for pid in pids]
    for name in ("limits", "status"):
        text = attempt(read_text, "/proc/%d/%s" % (pids[0], name))
        if not is_unavailable(text):
            look.keep("server-%s.txt" % name, text)
    counted = [row["fds"] for row in rows if not is_unavailable(row["fds"])]
    memory = [row["status"]["VmRSS"] for row in rows if "VmRSS" in row["status"]]
    return {
        "pid": pids[0],
        "limits": attempt(read_limits, pids[0]),
        "processes": rows,
        "fds": sum(counted) if counted else unavailable("descriptors of no process could be read"),
        "fds_processes": len(counted),
        "rss_bytes": sum(memory) if memory else unavailable("memory of no process could be read"),
    }


def look_files(look):
    """Open files of the whole machine against fs.file-max."""
    return parse.parse_file_nr(look.read("/proc/sys/fs/file-nr"))


def look_sysctls(look):
    """Values in force, whitespace normalised."""

    def value(key):
        return " ".join(read_text(parse.sysctl_path(key)).split())

    found = {key: attempt(value, key) for key in look.sysctls}
    asked = look_asked(look)
    lines = []
    for key, value in found.items():
        said = asked.get(key)
        lines.append(
            "%s = %s" % (key, value if not is_unavailable(value) else "[%s]" % value["unavailable"])
            + ("  # asked: %(value)s, %(file)s line %(line)d" % said if said else "")
        )
    look.keep("sysctl.txt", "\n".join(lines) + "\n")
    return found


def look_asked(look):
    """What files ask of these keys and the next boot will set: key -> ``{"value", "file", "line"}``."""
    # Without systemd it is procps that runs at boot, if anything does.
    return (order.at_boot if os.path.isdir("/run/systemd/system") else order.by_system)(look.sysctls)


def look_server_status(look):
    """The server's own word: ``echo_server.py status``, each worker a row; ``{"running": False, "reason"}``."""
    program = look.server_program
    if not program or not os.path.exists(program):
        return {"running": False, "reason": "there is no %s" % program if program else "no program was given"}
    argv = [sys.executable, "-E", "-s", "-S", program, "status", "--pid-file", str(look.pid_file)]
    outcome = command_text(argv, timeout=10, stopping=look.stopping)
    look.keep("server-status.json", outcome["text"] + "\n", outcome["truncated"])
    try:
        return json.loads(outcome["text"])
    except ValueError:
        raise RuntimeError("echo_server.py status: %s" % (outcome["truncated"] or outcome["stderr"] or "no JSON"))


def look_nofile(look):
    """Open-file limit of this session, which a process started from it would inherit; None is unlimited."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return {"soft": None if soft < 0 else soft, "hard": None if hard < 0 else hard}


def look_counters(look):
    """Kernel counters of this network stack (and softnet, of the whole machine)."""
    tables = (
        ("netstat", "/proc/net/netstat", parse.parse_counters),
        ("snmp", "/proc/net/snmp", parse.parse_counters),
        ("sockstat", "/proc/net/sockstat", parse.parse_sockstat),
        ("sockstat6", "/proc/net/sockstat6", parse.parse_sockstat),
        ("softnet_stat", "/proc/net/softnet_stat", parse.parse_softnet),
    )

    def table(name, path, parser):
        return parser(look.read(path, "proc-net-%s.txt" % name))

    return {name: attempt(table, name, path, parser) for name, path, parser in tables}


def look_conntrack(look):
    """Connection tracking entries and their limit; absent where the module is not loaded."""
    base = "/proc/sys/net/netfilter/nf_conntrack_"
    return {"count": int(read_text(base + "count")), "max": int(read_text(base + "max"))}


def look_memory(look):
    """/proc/meminfo in bytes."""
    return parse.parse_meminfo(look.read("/proc/meminfo", "meminfo.txt"))


def look_load(look):
    """/proc/loadavg."""
    return parse.parse_loadavg(look.read("/proc/loadavg"))


def look_cpu(look):
    """Seconds of CPU by kind since boot."""
    return parse.parse_cpu(look.read("/proc/stat"), os.sysconf("SC_CLK_TCK"))


def look_slabs(look):
    """Kernel memory of TCP objects; /proc/slabinfo is for root."""
    text = read_text("/proc/slabinfo", 1024 * 1024)
    look.keep("slabinfo.txt", text)
    return parse.parse_slabs(text)


def look_log(look):
    """Tail of the server's log."""
    if not look.log_file:
        raise LookupError("no log file was given for this host")
    found = tail_text(look.log_file, look.log_lines)
    look.keep("server-log.txt", "\n".join(found["lines"]) + "\n")
    return found


def look_kernel_log(look):
    """Lines of the kernel log that name a TCP wall, the latest 50."""
    fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    found, records = [], 0
    try:
        if not stat.S_ISCHR(os.fstat(fd).st_mode):
            raise OSError(errno.ENODEV, "not the kernel's log", "/dev/kmsg")
        while records < 200000:
            try:
                record = os.read(fd, 8192)
            except BlockingIOError:
                break  # the end
            except OSError as problem:
                if problem.errno == errno.EPIPE:
                    continue  # overwritten while it was read; the next read goes on after the gap
                raise
            if not record:
                break
            records += 1
            hit = parse.parse_kmsg(record.decode("utf-8", "replace"))
            if hit:
                found.append(hit)
    finally:
        os.close(fd)
    look.keep("kernel-log.txt", "".join("[%s] %s\n" % (hit["seconds"], hit["message"]) for hit in found[-200:]))
    return {"records": records, "matching": len(found), "lines": found[-50:]}


# name in the observation -> function; sockets first, as they change fastest
SECTIONS = (
    ("identity", look_identity),
    ("ss", look_ss),
    ("states", look_states),
    ("listeners", look_listeners),
    ("listener_drops", look_listener_drops),
    ("counters", look_counters),
    ("server", look_server),
    ("server_status", look_server_status),
    ("files", look_files),
    ("conntrack", look_conntrack),
    ("memory", look_memory),
    ("slabs", look_slabs),
    ("cpu", look_cpu),
    ("load", look_load),
    ("nofile", look_nofile),
    ("sysctls", look_sysctls),
    ("sysctls_asked", look_asked),
    ("log", look_log),
    ("kernel_log", look_kernel_log),
    ("lsof", look_lsof),
)


def check_args(args):
    """Validates the arguments of `run`.

    :raises OperationError: naming the argument.
    """
    names = [name for name, _ in SECTIONS]

    def need(good, sentence):
        if not good:
            raise OperationError("observe: " + sentence)

    def whole(value):
        return isinstance(value, int) and not isinstance(value, bool)

    known = {"port", "pid_file", "log_file", "log_lines", "sysctls", "sections", "socket_sources"}
    known |= {"lsof_seconds", "lsof_lines", "server_program"}
    unknown = sorted(set(args) - known)
    need(not unknown, "unknown argument %s; known are %s" % (", ".join(unknown), ", ".join(sorted(known))))
    need(whole(args.get("port")) and 0 < args["port"] < 65536, "port must be a number from 1 to 65535")
    for name in ("pid_file", "log_file", "server_program"):
        need(args.get(name) is None or isinstance(args[name], str), "%s must be a path or null" % name)
    for name, largest in (("log_lines", 10000), ("lsof_lines", 100000)):
        value = args.get(name, 0)
        need(whole(value) and 0 <= value <= largest, "%s must be 0 to %d" % (name, largest))
    seconds = args.get("lsof_seconds", 5.0)
    need(isinstance(seconds, (int, float)) and 0 < seconds <= 60, "lsof_seconds must be above 0, at most 60")
    for name, allowed in (("sections", names), ("socket_sources", SOURCES), ("sysctls", None)):
        value = args.get(name)
        if value is None:
            continue
        listed = isinstance(value, (list, tuple)) and all(isinstance(one, str) for one in value)
        need(listed, "%s must be a list of names" % name)
        wrong = [one for one in value if allowed is not None and one not in allowed]
        need(not wrong, "%s: %s is not one of %s" % (name, ", ".join(wrong), ", ".join(allowed or ())))


def run(args, context):
    """Observes this host.

    :param args: ``{"port": n, "pid_file": path|None, "log_file": path|None, "log_lines": 50,
        "server_program": path of echo_server.py|None, "sysctls": [key], "sections": [name]|None (all),
        "socket_sources": ["netlink", "ss", "proc"], "lsof_seconds": 5.0, "lsof_lines": 1000}``;
        only port is needed.
    :returns: ``{"changed": False, "msg", "observation": {"schema", "port", "time": {"iso", "epoch"},
        "seconds": {section: cost}, "cut": {name of a raw text that is not whole: why},
        section: value | {"unavailable": reason}, ...}, "raw": {file name: text}}``.
    :raises OperationError: for bad arguments.
    """
    check_args(args)
    look = Look(args, context.stopping)
    wanted = args.get("sections")
    now = time.time()
    # an observation of two hosts is compared by this, so it is UTC and carries the fraction
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + ".%03dZ" % (now % 1 * 1000)
    observation = {"schema": SCHEMA, "port": look.port, "time": {"iso": stamp, "epoch": now}}
    costs, missing = {}, []
    for name, function in SECTIONS:
        if wanted is not None and name not in wanted and name != "identity":
            observation[name] = unavailable("not asked for")
            continue
        if context.stopping():
            raise OperationError("observe: cancelled")
        began = time.monotonic()
        observation[name] = attempt(function, look)
        costs[name] = round(time.monotonic() - began, 4)
        if is_unavailable(observation[name]):
            missing.append(name)
    observation["seconds"], observation["cut"] = costs, look.cut
    states = observation["states"]
    if is_unavailable(states):
        message = "observed"
    else:
        message = "%d TCP sockets of port %d counted by %s" % (states["sockets"], look.port, states["source"])
    if missing:
        message += "; unavailable: " + ", ".join(missing)
    return {"changed": False, "msg": message, "observation": observation, "raw": look.raw}
