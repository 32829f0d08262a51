"""The memory that workers and their supervisor share: each worker's counters, histograms and errors.

Anonymous shared memory outlives the worker that wrote it, so a worker killed in the middle leaves exact counts
behind (as of its last turn) and nothing has to be sent through a pipe.
"""

import json
import mmap
import struct
from array import array
from typing import Dict, List, NamedTuple, Tuple

import histogram
from histogram import Histogram

COUNTERS = (
    "state",  # one of STATES
    "started",  # connections begun
    "established",  # connections whose first echo was verified, ever
    "broken",  # of those, the ones that failed later
    "failed",  # connections that failed, broken ones included
    "open",  # established and open now
    "sent",  # messages
    "echoed",  # verified replies
    "mismatched",
    "lost",
    "first_us",  # monotonic time of the first connect, microseconds
    "last_us",  # monotonic time of the last first echo
    "cpu_us",
    "lag_us",  # longest turn of the loop: how late the generator itself can be
    "window",
    "drops",  # connects that look as if a full queue dropped them
    "skipped",  # source ports found busy at bind or connect
    "drained",  # lost or failed only because the run was stopped
)
STATE, STARTED, ESTABLISHED, BROKEN, FAILED, OPEN, SENT, ECHOED, MISMATCHED, LOST = range(10)
FIRST_US, LAST_US, CPU_US, LAG_US, WINDOW, DROPS, SKIPPED, DRAINED = range(10, 18)
WAITING, RAMPING, RAMPED, STEADY, CLOSING, DONE = range(6)  # values of STATE

HISTOGRAMS = ("connect", "first", "service", "response")
"""first: service time of messages during the ramp; service and response: of the steady phase."""

_HEAD = struct.Struct("=%dQ" % len(COUNTERS))
_HISTOGRAM_BYTES = 8 * (1 + histogram.SIZE)
_ERRORS_BYTES = 16384
_ERRORS_AT = 256 + len(HISTOGRAMS) * _HISTOGRAM_BYTES
_WHICH_AT = 248  # which of the two error texts is whole: a worker may be killed while it writes the other
STRIDE = (_ERRORS_AT + 2 * _ERRORS_BYTES + 4095) // 4096 * 4096

Errors = Dict[Tuple[str, str], List]  # (phase, errno) -> [count, first, last (epoch seconds), sample]

Snapshot = NamedTuple("Snapshot", [("counters", Dict[str, int]), ("errors", Errors)])


def allocate(workers: int) -> mmap.mmap:
    """Shared memory for `workers` slabs; children forked later see it."""
    return mmap.mmap(-1, workers * STRIDE)


class Slab:
    """Worker number `index`'s part of the shared memory. One process writes, others read."""

    def __init__(self, memory: mmap.mmap, index: int) -> None:
        self.memory = memory
        self.base = index * STRIDE
        self._which = 0

    def write_counters(self, values: List[int]) -> None:
        """Publish the counters, in the order of COUNTERS."""
        _HEAD.pack_into(self.memory, self.base, *values)

    def write_histogram(self, number: int, source: Histogram) -> None:
        """Publish histogram `number` of HISTOGRAMS."""
        at = self.base + 256 + number * _HISTOGRAM_BYTES
        struct.pack_into("=Q", self.memory, at, source.max)
        self.memory[at + 8 : at + _HISTOGRAM_BYTES] = source.counts.tobytes()

    def write_errors(self, errors: Errors) -> None:
        """Publish the errors; samples go when they do not fit."""
        rows = [list(key) + row for key, row in errors.items()]
        text = json.dumps(rows).encode("ascii")
        if len(text) > _ERRORS_BYTES - 4:
            text = json.dumps([[*row[:5], ""] for row in rows[:150]]).encode("ascii")
        self._which ^= 1
        at = self.base + _ERRORS_AT + self._which * _ERRORS_BYTES
        struct.pack_into("=I", self.memory, at, len(text))
        self.memory[at + 4 : at + 4 + len(text)] = text
        self.memory[self.base + _WHICH_AT] = self._which + 1

    def counters(self) -> Dict[str, int]:
        """The counters as last published, by name."""
        values = _HEAD.unpack_from(self.memory, self.base)
        return {name: values[number] for number, name in enumerate(COUNTERS)}

    def histogram(self, number: int) -> Histogram:
        """A copy of histogram `number` as last published."""
        at = self.base + 256 + number * _HISTOGRAM_BYTES
        out = Histogram()
        out.max = struct.unpack_from("=Q", self.memory, at)[0]
        counts = array("Q")
        counts.frombytes(self.memory[at + 8 : at + _HISTOGRAM_BYTES])
        out.counts = counts
        return out

    def errors(self) -> Errors:
        """The errors as last published."""
        which = self.memory[self.base + _WHICH_AT]
        if not which:
            return {}
        at = self.base + _ERRORS_AT + (which - 1) * _ERRORS_BYTES
        size = struct.unpack_from("=I", self.memory, at)[0]
        rows = json.loads(self.memory[at + 4 : at + 4 + size].decode("ascii"))
        return {(row[0], row[1]): row[2:] for row in rows}
