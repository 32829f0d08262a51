"""Numbers that all processes of the server share: one mmap, no locks.

Each worker has a slot and is the only writer of its cells, but for `limit` and `leaving`, which the supervisor
writes (it also clears the slot of a dead one). Cells are aligned 64-bit words, so a reader never sees half a
number. Columns are contiguous: the sum over all workers, which balancing needs for every batch of accepts, is one
call. The table always has room for MAX_WORKERS (128 KiB), so that workers can be added while it is in use.

Layout: HEADER bytes of JSON (padded with NUL), then GLOBALS words, then one word per slot and column.
"""

import errno
import json
import mmap
import os
import tempfile
from typing import Any, Dict, Optional

from daemon import replace_file
from echo_plan import MAX_WORKERS

# Errors of connections and of accept that have a column of their own; all others count as OTHER.
ERRNOS = ("ECONNRESET", "EPIPE", "ETIMEDOUT", "EHOSTUNREACH", "EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "ENOSPC")
OTHER = "OTHER"
COLUMNS = (
    "pid",  # 0: no worker in this slot
    "limit",  # connections it may hold
    "connections",  # held now
    "accepted",  # since the server started, as all that follow
    "echoes",  # reads that were written back
    "bytes",  # bytes written back
    "backpressured",  # connections now waiting for a slow reader
    "buffered",  # bytes now held for slow peers
    "full",  # 1 while it does not accept because it is at its limit or out of descriptors
    "times_full",
    "resets",  # connections that the peer ended with RST while no reply was owed
    "errors",  # connections ended by any other error
    "generation",  # how often the worker in this slot has booted
    "since",  # when it did so last, in seconds since 1970
    "leaving",  # 1 while it hands its connections over to the others in order to end
    "handed_over",  # connections given to other workers
    "taken_over",  # connections got from other workers
    "idle_closed",  # connections ended by the idle timeout
    "bad_requests",  # mode http: answered with an error and closed
    *("errno_" + name for name in (*ERRNOS, OTHER)),
)
# monotonic seconds of the last line about a pause in accepting; slots in use (the highest one, plus 1)
GLOBALS = ("full_logged", "slots")
FULL_LOGGED, SLOTS = range(len(GLOBALS))
HEADER = 16384
_WORD = 8


class Counters:
    """The shared table; `fd` is the descriptor behind it, `columns` the live views of MAX_WORKERS cells each.

    `pids`, `connections` and `leaving` are those columns as far as slots were in use at the last `look`.
    """

    def __init__(self, fd: int) -> None:
        """Map an existing table; see `create`."""
        self.fd = fd
        self._map = mmap.mmap(fd, _SIZE)
        words = memoryview(self._map)[HEADER:].cast("Q")
        self.globals = words[: len(GLOBALS)]
        self.columns = {}  # type: Dict[str, Any]
        for i, name in enumerate(COLUMNS):
            start = len(GLOBALS) + i * MAX_WORKERS
            self.columns[name] = words[start : start + MAX_WORKERS]
        self.in_use = -1
        self.look()

    def look(self) -> int:
        """Return how many slots are in use, after fitting `pids`, `connections` and `leaving` to them."""
        in_use = self.globals[SLOTS]
        if in_use != self.in_use:
            self.in_use = in_use
            self.pids, self.connections, self.leaving = (
                self.columns[name][:in_use] for name in ("pid", "connections", "leaving")
            )
        return in_use

    @classmethod
    def create(cls, path: Optional[str]) -> "Counters":
        """Make an empty table at `path` (replacing what is there, 0644), or nameless if that is None.

        Raises OSError. The file appears complete: others find no table or a whole one. All of it is written: in a
        hole, a page that finds no room on a full disk is a SIGBUS for whoever counts there.
        """
        if path is None:
            shm = "/dev/shm"  # noqa: S108 - nameless file; memory, so that its pages are never written to a disk
            with tempfile.TemporaryFile(dir=shm if os.access(shm, os.W_OK) else None) as f:
                f.write(bytes(_SIZE))
                f.flush()
                return cls(os.dup(f.fileno()))
        return cls(replace_file(path, bytes(_SIZE)))

    def write_header(self, header: Dict[str, Any]) -> None:
        """Store the facts that do not change while the server runs, as JSON.

        Raises ValueError if they are too long.
        """
        data = json.dumps(header).encode()
        if len(data) > HEADER:
            raise ValueError("the header is %d bytes, %d fit" % (len(data), HEADER))
        self._map[:HEADER] = data.ljust(HEADER, b"\0")

    def clear(self, slot: int) -> None:
        """Forget what a dead worker held; its totals stay, they are the server's."""
        for name in ("pid", "connections", "backpressured", "buffered", "full", "leaving"):
            self.columns[name][slot] = 0


def counters_path(pid_file: str) -> str:
    """Return where the server with this pid file keeps its counters: beside it."""
    return pid_file + ".counters"


def errno_column(number: int) -> str:
    """Return the column that counts errors with this errno.

    >>> errno_column(errno.EPIPE), errno_column(errno.EIO)
    ('errno_EPIPE', 'errno_OTHER')
    """
    name = errno.errorcode.get(number, OTHER)
    return "errno_" + (name if name in ERRNOS else OTHER)


def read(path: str) -> Dict[str, Any]:
    """Return {"header": {...}, "workers": [{column: value}, ...]} from the table at `path`.

    A worker's row has "errors_by_errno" ({name: count}, those that occurred) in place of their columns.
    Raises OSError if there is none and ValueError if it is not one (or just being written).
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as f:
        data = f.read()
    header = json.loads(data[:HEADER].rstrip(b"\0").decode())
    if len(data) < _SIZE:
        raise ValueError("%s is cut short" % path)
    words = memoryview(data)[HEADER:_SIZE].cast("Q")
    workers = []
    for slot in range(min(words[SLOTS], MAX_WORKERS)):
        row = {name: words[len(GLOBALS) + i * MAX_WORKERS + slot] for i, name in enumerate(COLUMNS)}
        counts = {name: row.pop("errno_" + name) for name in (*ERRNOS, OTHER)}
        row["errors_by_errno"] = {name: count for name, count in counts.items() if count}
        workers.append(row)
    return {"header": header, "workers": workers}


_SIZE = HEADER + _WORD * (len(GLOBALS) + len(COLUMNS) * MAX_WORKERS)
