"""The memory that workers and their supervisor share: each worker's counters, histograms and errors.

Anonymous shared memory outlives the worker that wrote it, so a worker killed in the middle leaves exact counts
behind (as of its last turn) and nothing has to be sent through a pipe.

There are no locks: a reader never waits for a writer, who may be dead. All numbers are aligned words, stored and
loaded whole. What must fit together (the counters; the errors' text) exists twice: a version number says which
copy is the last whole one while the writer fills the other, and a check word beside each copy says whether
what was read is what was written, whatever order the processor's stores became visible in.
"""

import json
import mmap
import zlib
from array import array
from typing import Dict, List, Tuple

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
    "churned",  # connections begun in the steady phase, mode churn
    "churn_ok",  # of those, verified
    "begun_us",  # monotonic time of the last connect, where a rate was asked for
)
STATE, STARTED, ESTABLISHED, BROKEN, FAILED, OPEN, SENT, ECHOED, MISMATCHED, LOST = range(10)
FIRST_US, LAST_US, CPU_US, LAG_US, WINDOW, DROPS, SKIPPED, DRAINED, CHURNED, CHURN_OK, BEGUN_US = range(10, 21)
WAITING, RAMPING, RAMPED, STEADY, CLOSING, DONE = range(6)  # values of STATE

HISTOGRAMS = ("connect", "first", "service", "response")
"""first: service time of messages during the ramp; service and response: of the steady phase."""

_COUNT = len(COUNTERS)
_HISTOGRAM_WORDS = 1 + histogram.SIZE
_ERRORS_BYTES = 16384
# In words: version of the counters, their two copies (check word first), version of the errors, checks and lengths
# of their two copies; the histograms; then the errors' texts.
_COUNTERS_AT = 1
_ERRORS_VERSION_AT = _COUNTERS_AT + 2 * (1 + _COUNT)
_ERRORS_FACTS_AT = _ERRORS_VERSION_AT + 1
_HISTOGRAMS_AT = 64
_TEXT_AT = _HISTOGRAMS_AT + len(HISTOGRAMS) * _HISTOGRAM_WORDS
STRIDE = (8 * _TEXT_AT + 2 * _ERRORS_BYTES + 4095) // 4096 * 4096

_MASK = (1 << 64) - 1
_SALT = 0x9E3779B97F4A7C15  # odd and dense: a copy of one version never checks as one of another
_TRIES = 50  # a whole write would have to fall into each of them

Errors = Dict[Tuple[str, str], List]  # (phase, errno) -> [count, first, last (epoch seconds), sample]


def allocate(workers: int) -> mmap.mmap:
    """Shared memory for `workers` slabs; children forked later see it."""
    return mmap.mmap(-1, workers * STRIDE)


class Slab:
    """Worker number `index`'s part of the shared memory. One process writes, others read."""

    def __init__(self, memory: mmap.mmap, index: int) -> None:
        self.bytes = memoryview(memory)[index * STRIDE : (index + 1) * STRIDE]
        # Native 8-byte items: one aligned store or load each. (struct's "=" formats go byte by byte.)
        self.words = self.bytes.cast("Q")
        self._counters = [0] * _COUNT  # as last read whole
        self._errors = {}  # type: Errors

    def write_counters(self, values: List[int]) -> None:
        """Publish the counters, in the order of COUNTERS: readers see all of them or none."""
        words = self.words
        version = words[0] + 1
        at = _COUNTERS_AT + (version & 1) * (1 + _COUNT)
        words[at] = (sum(values) + version * _SALT) & _MASK
        for number, value in enumerate(values, at + 1):
            words[number] = value
        words[0] = version

    def write_histogram(self, number: int, source: Histogram) -> None:
        """Publish histogram `number` of HISTOGRAMS. Each bucket is whole; a reader may see some of them newer."""
        at = _HISTOGRAMS_AT + number * _HISTOGRAM_WORDS
        self.words[at + 1 : at + _HISTOGRAM_WORDS] = memoryview(source.counts)
        self.words[at] = source.max

    def write_errors(self, errors: Errors) -> None:
        """Publish the errors; samples go when they do not fit."""
        rows = [list(key) + row for key, row in errors.items()]
        text = json.dumps(rows).encode("ascii")
        if len(text) > _ERRORS_BYTES:
            text = json.dumps([[*row[:5], ""] for row in rows[:150]]).encode("ascii")
        words = self.words
        version = words[_ERRORS_VERSION_AT] + 1
        which = version & 1
        words[_ERRORS_FACTS_AT + 2 * which] = zlib.crc32(text)
        words[_ERRORS_FACTS_AT + 2 * which + 1] = len(text)
        at = 8 * _TEXT_AT + which * _ERRORS_BYTES
        self.bytes[at : at + len(text)] = text
        words[_ERRORS_VERSION_AT] = version

    def counters(self) -> Dict[str, int]:
        """The counters as last published, by name: of one moment, never older than what was returned before."""
        words = self.words
        for _ in range(_TRIES):
            version = words[0]
            if not version:
                break
            at = _COUNTERS_AT + (version & 1) * (1 + _COUNT)
            check = words[at]
            values = words[at + 1 : at + 1 + _COUNT].tolist()
            if check == (sum(values) + version * _SALT) & _MASK:
                self._counters = values
                break
        return {name: self._counters[number] for number, name in enumerate(COUNTERS)}

    def histogram(self, number: int) -> Histogram:
        """A copy of histogram `number` as last published."""
        at = _HISTOGRAMS_AT + number * _HISTOGRAM_WORDS
        out = Histogram()
        out.max = self.words[at]
        counts = array("Q")
        counts.frombytes(self.bytes[8 * (at + 1) : 8 * (at + _HISTOGRAM_WORDS)])
        out.counts = counts
        return out

    def errors(self) -> Errors:
        """The errors as last published."""
        words = self.words
        for _ in range(_TRIES):
            version = words[_ERRORS_VERSION_AT]
            if not version:
                break
            which = version & 1
            check, size = words[_ERRORS_FACTS_AT + 2 * which], words[_ERRORS_FACTS_AT + 2 * which + 1]
            at = 8 * _TEXT_AT + which * _ERRORS_BYTES
            text = bytes(self.bytes[at : at + min(size, _ERRORS_BYTES)])
            if zlib.crc32(text) == check:
                self._errors = {(row[0], row[1]): row[2:] for row in json.loads(text.decode("ascii"))}
                break
        return self._errors
