"""What `status` shows: facts that the supervisor writes beside the shared counters, and both read together.

Nothing is asked of the server, so this works however busy it is.
"""

import os
import socket
from typing import Any, Dict, Optional

import echo_counters
import echo_notify
import echo_port
from daemon import PidFile
from echo_plan import Options, Plan

# Summed over the workers.
_TOTALS = [
    "connections",
    "accepted",
    "echoes",
    "bytes",
    "backpressured",
    "buffered",
    "full",
    "times_full",
    "resets",
]
_TOTALS += ["errors", "idle_closed", "bad_requests"]


def header(
    options: Options,
    plan: Plan,
    listener: socket.socket,
    nofile: int,
    started: str,
    version: str,
    reloads: Dict[str, Any],
) -> Dict[str, Any]:
    """Return the facts, as they are read back by `read`.

    started: ISO 8601; version: the program's; reloads: attempts, at (ISO 8601 or None), error.
    """
    asked = dict(options._asdict())
    asked["workers"] = "auto" if options.workers is None else options.workers
    asked["keepalive"] = list(options.keepalive)
    del asked["pid_file"], asked["log_file"]
    return {
        "pid": os.getpid(),
        "started": started,
        "reload": reloads,
        "version": version,
        "manager": "systemd" if echo_notify.is_asked_for() else "none",
        "options": asked,
        "listening": [address(listener)],
        "backlog": echo_port.backlog(),
        "nofile": nofile,
        "note": plan.note,
        "log_file": options.log_file,
    }


def address(listener: socket.socket) -> str:
    """Return ADDRESS:PORT of the listener, IPv6 in brackets."""
    host, port = listener.getsockname()[:2]
    return "%s:%d" % ("[%s]" % host if ":" in host else host, port)


def read(pid_file: str) -> Optional[Dict[str, Any]]:
    """Return the state of the server with this pid file, None if none runs (or it is just starting).

    Keys: running, pid, started, version, options, listening, backlog, capacity, nofile, connections,
    accepted, echoes, bytes, backpressured, buffered, full, times_full, resets, errors, errors_by_errno,
    idle_closed, bad_requests, manager, reload, note, log_file, workers.
    """
    pid = PidFile.read(pid_file)
    if pid is None:
        return None
    try:
        table = echo_counters.read(echo_counters.counters_path(pid_file))
    except (OSError, ValueError):
        return None
    header, workers = table["header"], table["workers"]
    if header.pop("pid") != pid:
        return None
    state = {"running": True, "pid": pid}  # type: Dict[str, Any]
    state.update(header)
    state["capacity"] = sum(w["limit"] for w in workers)
    for total in _TOTALS:
        state[total] = sum(w[total] for w in workers)
    by_errno = {}  # type: Dict[str, int]
    for w in workers:
        for name, count in w["errors_by_errno"].items():
            by_errno[name] = by_errno.get(name, 0) + count
    state["errors_by_errno"] = by_errno
    state["workers"] = workers
    return state
