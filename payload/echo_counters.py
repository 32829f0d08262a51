"""Numbers that all processes of the server share: one mmap, no locks.

Each worker has a slot and is the only writer of its cells (the supervisor clears the slot of a dead one).
Cells are aligned 64-bit words, so a reader never sees half a number. Columns are contiguous: the
sum over all workers, which balancing needs for every batch of accepts, is one call.

Layout: HEADER bytes of JSON (padded with NUL), then GLOBALS words, then one word per slot and column.
"""

import json
import mmap
import os
import tempfile
from typing import Any, Dict, Optional

COLUMNS = (
    "pid",  # 0: no worker in this slot
    "limit",  # connections it may hold
    "connections",  # held now
    "accepted",  # since the server started, as all that follow
    "echoes",  # reads that were written back
    "bytes",  # bytes written back
    "backpressured",  # connections now waiting for a slow reader
    "full",  # 1 while it does not accept because it is at its limit or out of descriptors
    "times_full",
    "resets",  # connections that the peer ended with RST while no reply was owed
    "errors",  # connections ended by any other error
    "generation",  # how often the worker in this slot has booted
)
GLOBALS = ("full_logged",)  # monotonic seconds of the last line about a pause in accepting
HEADER = 16384
_WORD = 8


class Counters:
    """The shared table for `slots` workers; `fd` is the descriptor behind it, `columns` the live views."""

    def __init__(self, fd: int, slots: int) -> None:
        """Map an existing table; see `create`."""
        self.fd = fd
        self.slots = slots
        self._map = mmap.mmap(fd, _size(slots))
        words = memoryview(self._map)[HEADER:].cast("Q")
        self.globals = words[: len(GLOBALS)]
        self.columns = {}  # type: Dict[str, Any]
        for i, name in enumerate(COLUMNS):
            start = len(GLOBALS) + i * slots
            self.columns[name] = words[start : start + slots]

    @classmethod
    def create(cls, slots: int, path: Optional[str]) -> "Counters":
        """Make an empty table at `path` (replacing what is there, 0644), or nameless if that is None.

        Raises OSError. The file appears complete: others find no table or a whole one.
        """
        if path is None:
            shm = "/dev/shm"  # noqa: S108 - nameless file; memory, so that its pages are never written to a disk
            with tempfile.TemporaryFile(dir=shm if os.access(shm, os.W_OK) else None) as f:
                fd = os.dup(f.fileno())
            os.ftruncate(fd, _size(slots))
            return cls(fd, slots)
        temporary = "%s.%d" % (path, os.getpid())
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            os.fchmod(fd, 0o644)
            os.ftruncate(fd, _size(slots))
            os.rename(temporary, path)
            return cls(fd, slots)
        except BaseException:
            os.close(fd)
            raise

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
        for name in ("pid", "connections", "backpressured", "full"):
            self.columns[name][slot] = 0


def read(path: str) -> Dict[str, Any]:
    """Return {"header": {...}, "workers": [{column: value}, ...]} from the table at `path`.

    Raises OSError if there is none and ValueError if it is not one (or just being written).
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as f:
        data = f.read()
    header = json.loads(data[:HEADER].rstrip(b"\0").decode())
    words = memoryview(data)[HEADER : HEADER + (len(data) - HEADER) // _WORD * _WORD].cast("Q")
    slots = header["slots"]
    if len(data) < _size(slots):
        raise ValueError("%s is cut short" % path)
    workers = []
    for slot in range(slots):
        row = {name: words[len(GLOBALS) + i * slots + slot] for i, name in enumerate(COLUMNS)}
        workers.append(row)
    return {"header": header, "workers": workers}


def _size(slots: int) -> int:
    return HEADER + _WORD * (len(GLOBALS) + len(COLUMNS) * slots)
