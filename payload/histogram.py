"""A mergeable log-linear histogram of durations in whole microseconds.

Percentiles of a run come from merged histograms, never from averaged percentiles. Below 256 us every
microsecond has its own bucket; above, each power of two is cut into 128 equal buckets, so a bucket is at
most 1/128 of its value wide and its middle is off by at most 0.4%. (The idea is HdrHistogram's,
https://hdrhistogram.github.io/HdrHistogram/, at a fixed 2+ significant digits.) The same file runs on the
hosts and in the controller; it needs nothing but the standard library.
"""

import math
import sys
from array import array
from typing import Any, Dict, Iterable, Mapping, Optional, Sequence

SUB_BITS = 7  # 2**7 = 128 buckets per power of two
LINEAR = 2 << SUB_BITS  # values below this are exact
MAX_VALUE = (1 << 36) - 1  # 19 hours in microseconds; more is counted as this much
SCHEME = "log-linear/7"
MOST = 1 << 53  # of a count or a maximum that is read: what JSON carries exactly, and many of it add up to 64 bits


def bucket_of(value: int) -> int:
    """The index of the bucket that holds `value` (microseconds, 0 <= value <= MAX_VALUE)."""
    if value < LINEAR:
        return value
    shift = value.bit_length() - SUB_BITS - 1
    return (shift << SUB_BITS) + (value >> shift)


SIZE = bucket_of(MAX_VALUE) + 1
_EMPTY = bytes(8 * SIZE)


def lowest(index: int) -> int:
    """The smallest value (microseconds) that falls into bucket `index`."""
    if index < LINEAR:
        return index
    shift = (index >> SUB_BITS) - 1
    return (index - (shift << SUB_BITS)) << shift


def middle(index: int) -> int:
    """The value (microseconds) that stands for bucket `index`: its midpoint."""
    return (lowest(index) + lowest(index + 1) - 1) // 2


class Histogram:
    """Counts of durations, in microseconds.

    `counts` is an array of SIZE unsigned 64-bit counts, open to a hot loop that computes `bucket_of` inline
    (such a loop keeps `max` itself); everything else goes through `record`.
    """

    __slots__ = ("counts", "max")

    def __init__(self) -> None:
        self.counts = array("Q", _EMPTY)
        self.max = 0

    @property
    def count(self) -> int:
        """How many values were recorded."""
        return sum(self.counts)

    @property
    def mean(self) -> Optional[float]:
        """The mean in microseconds, from the middles of the buckets; None when empty."""
        total = self.count
        if not total:
            return None
        return sum(n * middle(i) for i, n in enumerate(self.counts) if n) / total

    def record(self, value: int, count: int = 1) -> None:
        """Add `count` observations of `value` microseconds; out of range counts as the nearest end."""
        value = min(max(value, 0), MAX_VALUE)
        self.counts[bucket_of(value)] += count
        if value > self.max:
            self.max = value

    def merge(self, other: "Histogram") -> None:
        """Add all of `other`'s observations to this one."""
        # As one number of 64 bits a bucket, none of which overflows into the next: ten times as fast as a loop.
        counts = other.counts.tobytes()
        if counts != _EMPTY:
            total = _as_number(counts) + _as_number(self.counts.tobytes())
            self.counts = array("Q", total.to_bytes(len(_EMPTY), sys.byteorder))
        self.max = max(self.max, other.max)

    def percentile(self, percent: float) -> Optional[int]:
        """The value in microseconds that `percent` (0 to 100) of the observations do not exceed, within 0.4%.

        None when nothing was recorded. 100 is the exact maximum.
        """
        total = self.count
        if not total:
            return None
        rank = max(1, math.ceil(total * percent / 100.0 - 1e-9))
        if rank >= total:
            return self.max
        seen = 0
        for index, count in enumerate(self.counts):
            seen += count
            if seen >= rank:
                return min(middle(index), self.max)
        return self.max

    def summary_ms(self) -> Dict[str, Any]:
        """{"p50", "p90", "p99", "p999", "max": milliseconds or None, "count": n}."""
        out = {}  # type: Dict[str, Any]
        for name, percent in (("p50", 50), ("p90", 90), ("p99", 99), ("p999", 99.9), ("max", 100)):
            value = self.percentile(percent)
            out[name] = None if value is None else value / 1000.0
        out["count"] = self.count
        return out

    def point_ms(self) -> Optional[Dict[str, Any]]:
        """{"p50", "p99", "max": milliseconds, "count": n}: one point of a latency over time; None when empty."""
        p50, p99 = self.percentile(50), self.percentile(99)
        if p50 is None or p99 is None:
            return None
        return {"p50": p50 / 1000.0, "p99": p99 / 1000.0, "max": self.max / 1000.0, "count": self.count}

    def to_dict(self) -> Dict[str, Any]:
        """A JSON-ready form that `from_dict` reads back: only the buckets that hold something."""
        buckets = [[index, count] for index, count in enumerate(self.counts) if count]
        return {"scheme": SCHEME, "unit": "us", "max": self.max, "buckets": buckets}

    @classmethod
    def from_dict(cls, data: Dict[str, Any]) -> "Histogram":
        """The histogram that `to_dict` wrote. Raises ValueError for another scheme or a bad bucket."""
        found = data.get("scheme") if isinstance(data, dict) else data
        if found != SCHEME:
            raise ValueError("histogram scheme is {!r}, not {!r}".format(found, SCHEME))
        out = cls()
        try:
            for index, count in data["buckets"]:
                if not 0 <= index < SIZE or not 0 <= count <= MOST:
                    raise ValueError("histogram bucket {!r}: {!r} is out of range".format(index, count))
                out.counts[index] += count
            out.max = int(data["max"])
            if not 0 <= out.max <= MOST:
                raise ValueError("histogram max {!r} is out of range".format(out.max))
        except (KeyError, TypeError, OverflowError) as error:
            raise ValueError("a histogram is damaged: {!r}".format(error))
        return out

    @classmethod
    def merged(cls, parts: "Iterable[Histogram]") -> "Histogram":
        """A new histogram with the observations of all `parts`."""
        out = cls()
        for part in parts:
            out.merge(part)
        return out

    def differences(self, earlier: "Histogram") -> "Histogram":
        """What was recorded since `earlier`, a copy of this histogram's past; max is that of the top bucket."""
        out = Histogram()
        top = -1  # type: int
        for index, before in enumerate(earlier.counts):
            if self.counts[index] > before:
                out.counts[index] = self.counts[index] - before
                top = index
        out.max = min(self.max, lowest(top + 1) - 1) if top >= 0 else 0
        return out


def _as_number(counts: bytes) -> int:
    return int.from_bytes(counts, sys.byteorder)


def worse_row(rows: "Sequence[Mapping[str, Any]]") -> Dict[str, Any]:
    """Rows {"t", name: `point_ms`} as one: the latest t, the highest of each value, counts added.

    Percentiles cannot be merged; what was measured together has none that is higher than the highest.
    """
    out = {"t": max(row["t"] for row in rows)}  # type: Dict[str, Any]
    for name in rows[0]:
        points = [row[name] for row in rows if name != "t" and row.get(name)]
        if points:
            out[name] = {key: max(point[key] for point in points) for key in ("p50", "p99", "max")}
            out[name]["count"] = sum(point["count"] for point in points)
        elif name != "t":
            out[name] = None
    return out
