#!/usr/bin/env python3
"""Looks at this host once a second while a load runs and appends what it saw to FOLDER/rows.jsonl, as a daemon.

    observe_sampler.py FOLDER

FOLDER/config.json: ``{"port", "counters": [names], "server": whether this host has the port's server, "pid_file":
its path or null}``. Returns once the first row is there; the log is FOLDER/log. Being a daemon it needs no
controller: it ends at SIGTERM, after LONGEST, or when the port has had no connection for QUIET seconds.

Lines of rows.jsonl are objects: the first is ``{"epoch": wall clock at t = 0, "interval": s, "states_share"}``;
then rows (`difference`, `with_states`) and ``{"unavailable": {name: reason}}``, each name once; the last is
``{"ended": why}``.

A row costs about a millisecond. Counting the port's sockets by state costs a second or so per 400,000 of them: a
child of low priority does it, as often as keeps it at STATES_SHARE of one processor, at most with every row.
"""

import json
import os
import select
import signal
import sys
import time

import daemon
import echo_counters
import observe_parse as parse
from echo_server import program_version
from observe_processes import find
from observe_read import read_text, unavailable
from observe_sockets import count_sockets

INTERVAL = 1.0  # seconds between rows
STATES_SHARE = 0.05  # of one processor, for counting sockets by state
QUIET = 120.0  # seconds without a connection of the port after which a sampler that nobody ended ends
LONGEST = 6 * 3600.0  # seconds
FIND_AGAIN = 10.0  # seconds between looks for the server's processes, while all of them live
COUNT_WAIT = 0.3  # seconds that a row waits for a count begun with it
COUNT_TIMEOUT = 60.0

PAGE = os.sysconf("SC_PAGE_SIZE")
TICKS = os.sysconf("SC_CLK_TCK")


def sockets_of(text, text6=""):
    """What rows tell of sockstat and sockstat6."""
    tcp = parse.parse_sockstat(text)["TCP"]
    six = parse.parse_sockstat(text6)["TCP6"]["inuse"] if text6 else 0
    return {
        "tcp_inuse": tcp["inuse"] + six,
        "tcp_tw": tcp["tw"],
        "tcp_orphan": tcp["orphan"],
        "tcp_mem": tcp["mem"] * PAGE,
    }


def watched(text, names, group=None):
    """The counters `names` in the text of snmp or netstat, of that group alone: names recur in others."""
    found = parse.parse_counters(text).get(group, {})
    return {name: found[name] for name in found if name in names}


class Host(object):
    """What is read for each row; `unavailable` is told each name with the reason why it cannot be read.

    :ivar server: whether to look for the server.
    """

    def __init__(self, config, missing):
        self.port, self.pid_file, self.server = config["port"], config["pid_file"], config["server"]
        self.names = frozenset(config["counters"])
        self._missing = missing
        self._pids, self._found_at = [], None
        self._version = program_version()

    def _try(self, names, function):
        try:
            return function()
        except (OSError, ValueError, LookupError) as problem:
            said = str(problem.args[0]) if type(problem) is LookupError else problem
            for name in names:
                self._missing(name, unavailable(said)["unavailable"])
            return {}

    def look(self, at):
        """``{"t", "cpu": (busy, all), "gauges": {...}, "counters": {name: total}, "processes": {pid: CPU s}}``.

        :param at: seconds since the first row.
        """
        seen = {"t": at, "gauges": {}, "counters": {}, "processes": {}}
        cpu = self._try(("cpu_busy",), lambda: parse.parse_cpu(read_text("/proc/stat"), TICKS))
        if cpu:
            every = sum(cpu[n] for n in ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal"))
            seen["cpu"] = (every - cpu["idle"] - cpu["iowait"], every)
        gauges, counters = seen["gauges"], seen["counters"]
        for names, function in (
            (
                ("mem_available",),
                lambda: {"mem_available": parse.parse_meminfo(read_text("/proc/meminfo"))["MemAvailable"]},
            ),
            (("files",), lambda: {"files": parse.parse_file_nr(read_text("/proc/sys/fs/file-nr"))["open"]}),
            (("tcp_inuse", "tcp_tw", "tcp_orphan", "tcp_mem"), self._sockets),
        ):
            gauges.update(self._try(names, function))
        for path, group in (("/proc/net/netstat", "TcpExt"), ("/proc/net/snmp", "Tcp")):
            text = self._try(("counters of " + path,), lambda path=path: {"text": read_text(path)})
            if text:
                found = self._try(
                    ("counters of " + path,),
                    lambda text=text, group=group: watched(text["text"], self.names, group),
                )
                counters.update(found)
        softnet = self._try(
            ("counters of /proc/net/softnet_stat",),
            lambda: parse.parse_softnet(read_text("/proc/net/softnet_stat")),
        )
        counters.update((name, softnet[name]) for name in softnet if name in self.names)
        if self.server:
            gauges.update(self._try(("server_rss", "server_cpu"), lambda: self._processes(seen)))
            gauges.update(self._try(("server_connections",), self._connections))
        return seen

    @staticmethod
    def _sockets():
        six = "/proc/net/sockstat6"
        text6 = read_text(six) if os.path.exists(six) else ""  # IPv6 may be off
        return sockets_of(read_text("/proc/net/sockstat"), text6)

    def _processes(self, seen):
        now = time.monotonic()
        if self._found_at is None or now - self._found_at > FIND_AGAIN:
            self._pids, self._found_at = [], now
            self._pids = find(self.port, self.pid_file)
        rss = 0
        for pid in self._pids:
            try:
                text = read_text("/proc/%d/stat" % pid, 4096)
            except OSError:
                self._found_at = None  # gone: look again with the next row
                continue
            fields = text[text.rindex(")") + 1 :].split()
            seen["processes"][pid] = (int(fields[11]) + int(fields[12])) / float(TICKS)
            rss += int(fields[21]) * PAGE
        return {"server_rss": rss} if seen["processes"] else {}

    def _connections(self):
        """What our server counts itself; of another one only the kernel knows (`states`)."""
        pid = self.pid_file and daemon.PidFile.read(self.pid_file)
        if not pid or pid not in self._pids:
            raise LookupError("the server of port %d is not one that keeps counters" % self.port)
        table = echo_counters.read(echo_counters.counters_path(self.pid_file))
        if table["header"]["version"] != self._version:
            # Another version may lay its table out differently, and a wrong number is worse than none.
            raise LookupError("the server is of another version than the sampler: deploy it again")
        return {"server_connections": sum(worker["connections"] for worker in table["workers"])}


def difference(before, now):
    """The row of two looks of `Host.look`: gauges as they are, the rest since the look before (None: the first).

    :returns: ``{"t", "mem_available", "tcp_mem" (bytes), "files", "tcp_inuse", "tcp_tw", "tcp_orphan",
        "server_rss" (bytes), "server_connections", "cpu_busy" (0 to 1, of all CPUs), "server_cpu" (seconds of CPU
        per second), "counters": {name: increase, above 0}}``, what could not be read left out.
    """
    row = dict(now["gauges"], t=round(now["t"], 3))
    if before is None:
        return row
    if "cpu" in before and "cpu" in now:
        busy, every = (now["cpu"][i] - before["cpu"][i] for i in (0, 1))
        if every > 0:
            row["cpu_busy"] = round(min(1.0, max(0.0, busy / every)), 4)
    span = now["t"] - before["t"]
    if now["processes"] and span > 0:
        # Of a process that is new all of its time is since the last look.
        used = sum(cpu - before["processes"].get(pid, 0.0) for pid, cpu in now["processes"].items())
        if before["processes"]:
            row["server_cpu"] = round(max(0.0, used) / span, 4)
    moved = {name: end - before["counters"].get(name, end) for name, end in now["counters"].items()}
    row["counters"] = {name: more for name, more in sorted(moved.items()) if more > 0}
    return row


class Count(object):
    """Sockets by state, counted in a child of low priority so that rows come on time.

    :ivar next: when the next count may begin, on the monotonic clock.
    """

    def __init__(self, port):
        self.port = port
        self.next = 0.0
        self.fd = self._pid = None
        self._begun, self._data = 0.0, b""

    def begin(self):
        """Fork the child, unless one is at work or it is too early."""
        now = time.monotonic()
        if self.fd is not None:
            if now - self._begun > COUNT_TIMEOUT:
                os.kill(self._pid, signal.SIGKILL)
            return
        if now < self.next:
            return
        self._begun, self._data = now, b""
        receive, send = os.pipe()
        pid = os.fork()
        if pid:
            os.close(send)
            os.set_blocking(receive, False)
            self.fd, self._pid = receive, pid
            return
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.nice(19)
            states, _ = count_sockets(self.port)
            states.pop("peers", None)
            # A row may be written while it counts: what was counted is of the middle of that time.
            data = json.dumps({"states": states, "middle": (now + time.monotonic()) / 2}).encode()
            while data:
                data = data[os.write(send, data) :]
        finally:
            os._exit(0)

    def take(self):
        """What the child at work has counted, once it is done; else None. ``{"states", "middle", "cpu"}``."""
        while True:
            try:
                part = os.read(self.fd, 65536)
            except BlockingIOError:
                return None
            if not part:
                break
            self._data += part
        usage = self._end()
        cpu = usage.ru_utime + usage.ru_stime
        self.next = max(self.next, self._begun + cpu / STATES_SHARE)
        try:
            return dict(json.loads(self._data.decode()), cpu=cpu)
        except ValueError:
            return {"states": unavailable("the count did not end within %g s" % COUNT_TIMEOUT)}

    def _end(self):
        os.close(self.fd)
        _, _, usage = os.wait4(self._pid, 0)
        self.fd = self._pid = None
        return usage

    def stop(self):
        """End a child that is at work."""
        if self.fd is not None:
            os.kill(self._pid, signal.SIGKILL)
            self._end()


def with_states(row, counted, start):
    """Adds a count to its row: ``states`` by side, above 0, and ``count``: ``t`` of it and how it was done.

    :param start: t = 0 on the monotonic clock.
    """
    states = counted["states"]
    row["states"] = {
        side: {name: count for name, count in states[side].items() if count} for side in ("server", "client")
    }
    row["count"] = {"t": round(counted["middle"] - start, 3), "cpu": round(counted["cpu"], 4)}
    row["count"].update(source=states["source"], not_used=states["not_used"])


class Sampler(object):
    """The daemon's life, `run`."""

    def __init__(self, folder):
        self.folder = folder
        with open(os.path.join(folder, "config.json")) as source:
            config = json.load(source)
        self._told = set()
        self._out = None
        self.host = Host(config, self.missing)
        self.count = Count(config["port"])
        self._start = self._busy_at = 0.0
        self._before = None

    def write(self, line):
        """Append one object, whole: a reader looks at any time."""
        data = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        while data:
            data = data[os.write(self._out, data) :]

    def missing(self, name, reason):
        """Say once why `name` is not in the rows."""
        if name not in self._told:
            self._told.add(name)
            self.write({"unavailable": {name: reason}})

    def run(self, ready):
        """Rows until something ends it; returns the exit status."""
        pid_file = daemon.PidFile(os.path.join(self.folder, "pid"))
        pid_file.acquire()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._out = os.open(os.path.join(self.folder, "rows.jsonl"), flags, 0o600)
        woken, wake = os.pipe()
        signal.signal(signal.SIGTERM, lambda number, frame: os.write(wake, b"x"))
        self._start = self._busy_at = time.monotonic()
        self.write({"epoch": round(time.time(), 3), "interval": INTERVAL, "states_share": STATES_SHARE})
        try:
            number, told, why = 0, False, "told to"
            while not told:
                self.row()
                ready()
                now = time.monotonic()
                if now - self._start > LONGEST or now - self._busy_at > QUIET:
                    why = "no connections any more" if now - self._busy_at > QUIET else "%g s are over" % LONGEST
                    break
                # A row that comes late moves none of the later ones.
                number = max(number + 1, int((now - self._start) / INTERVAL))
                told = self.wait(woken, self._start + number * INTERVAL)
            if told:
                self.row()
            self.write({"ended": why})
        finally:
            self.count.stop()
            pid_file.release()
        return 0

    def row(self):
        """Look, wait a moment for the count, write."""
        self.count.begin()
        now = self.host.look(time.monotonic() - self._start)
        row = difference(self._before, now)
        self._before = now
        until = time.monotonic() + COUNT_WAIT
        counted = None
        while not counted and self.wait(self.count.fd, until):
            counted = self.count.take()
        if counted and "unavailable" in counted["states"]:
            self.missing("states", counted["states"]["unavailable"])
            self._busy_at = time.monotonic()  # not known, so it goes on
            self.count.next = time.monotonic() + 10 * INTERVAL
        elif counted:
            with_states(row, counted, self._start)
            if any(name not in ("LISTEN", "TIME-WAIT") for side in row["states"].values() for name in side):
                self._busy_at = time.monotonic()
        self.write(row)

    @staticmethod
    def wait(fd, until):
        """Wait until a moment of the monotonic clock; True when `fd` had something first."""
        if fd is None:
            return False
        left = max(0.0, until - time.monotonic())
        return bool(select.select([fd], [], [], left)[0])


def main(argv):
    """Start the daemon in the folder `argv` names; 0 once its first row is written, else 1 and the reason."""
    (folder,) = argv
    folder = os.path.abspath(folder)
    result = daemon.start_daemon(Sampler(folder).run, os.path.join(folder, "log"))
    if not result.ok:
        sys.stderr.write("observe_sampler.py: %s\n" % result.message)
    return 0 if result.ok else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
