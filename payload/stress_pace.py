"""How fast and how many at once: a token bucket for the asked rate, a window for connects in flight.

Pure arithmetic on numbers and times that the caller passes in; no clock, no socket.
"""

from typing import Optional

BURST_SECONDS = 0.08
"""Depth of the bucket beyond one token, in seconds of rate: a worker that was held up catches up by this much at
most, so that no 100 ms see more than 1.8 times the asked rate (and one connect)."""


class TokenBucket:
    """Connects allowed by a rate.

    :param rate: tokens per second, > 0.
    :param start: the time (seconds, any monotonic clock) of the first token; workers that share a rate are
        given staggered starts so that their connects interleave.
    """

    __slots__ = ("depth", "rate", "stamp", "tokens")

    def __init__(self, rate: float, start: float) -> None:
        self.rate = rate
        self.depth = 1.0 + rate * BURST_SECONDS
        self.tokens = 1.0
        self.stamp = start

    def available(self, now: float) -> int:
        """How many connects may start at `now`."""
        if now < self.stamp:
            return 0  # not begun
        self.tokens = min(self.depth, self.tokens + (now - self.stamp) * self.rate)
        self.stamp = now
        return int(self.tokens)

    def take(self, count: int) -> None:
        """Use up `count` tokens that `available` granted."""
        self.tokens -= count

    def next_time(self) -> float:
        """When the next whole token will be there."""
        return self.stamp + max(0.0, 1.0 - self.tokens) / self.rate


class Window:
    """How many connections may be on their way (started, first echo not yet verified) at once, per worker.

    A server's accept queue is short (listen's backlog, cut to net.core.somaxconn). When it is full, the kernel
    drops the SYN, or the last ACK of the handshake, and the client tries again after 1 s, then 2 s, then 4 s: a
    cliff that says nothing about the server. So the window follows the delay, as TCP Vegas does
    (doi:10.1145/190809.190317): connects that wait for the server = window x (1 - shortest / mean delay).
    It grows while too few wait and shrinks while too many do; all workers of a client together aim at WAITING. On
    a near host that is where it ends; over a long path it opens as far as the path holds. A delay that smells
    of a dropped SYN halves the window and keeps it there.

    :param most: of the whole client, or None: the caller's own bound.
    :param workers: how many workers share `most` and WAITING.
    """

    WAITING = 16
    MOST = 4096
    DROPPED_SECONDS = 0.9  # the kernel's first SYN retransmission is after 1 s (RFC 6298)
    PROBE_SECONDS = 10.0
    FAR_SECONDS = 0.002  # nearer than this, WAITING connects keep any server busy, and more only fill its queue

    __slots__ = (
        "best",
        "ceiling",
        "drops",
        "high",
        "low",
        "most",
        "probe_at",
        "rounds",
        "size",
        "summed",
        "until",
    )

    def __init__(self, most: Optional[int] = None, workers: int = 1) -> None:
        self.most = max(1, (most or self.MOST) // workers)
        self.high = max(2, self.WAITING // workers)
        self.low = self.high * 3 // 4
        self.size = min(self.most, max(1, self.high // 2))
        self.ceiling = self.most
        self.best = None  # type: Optional[float]
        self.summed = 0.0
        self.rounds = 0
        self.drops = 0
        self.until = 0.0
        self.probe_at = 0.0

    def verified(self, delay: float, now: float) -> None:
        """Learn that a connection took `delay` seconds from connect to its first verified echo."""
        best = self.best
        if best is None or delay < best:
            self.best = best = delay
        elif delay > self.DROPPED_SECONDS and delay > best * 3:
            self.drops += 1
            self.overflow(now)
            return
        self.summed += delay
        self.rounds += 1
        if self.rounds >= self.size:
            self._turn(now)

    def overflow(self, now: float) -> None:
        """Learn that a connection attempt was very likely dropped by a full queue."""
        if now < self.until:
            return  # the same overflow, seen on another connection
        self.until = now + 1.0
        self.size = self.ceiling = max(1, self.size // 2)
        self.probe_at = now + self.PROBE_SECONDS
        self.summed, self.rounds = 0.0, 0

    def _turn(self, now: float) -> None:
        mean = self.summed / self.rounds
        self.summed, self.rounds = 0.0, 0
        if self.ceiling < self.most and now >= self.probe_at:
            self.ceiling = min(self.most, self.ceiling + max(1, self.ceiling // 8))
            self.probe_at = now + self.PROBE_SECONDS
        waiting = self.size * (1.0 - (self.best or mean) / mean) if mean > 0 else 0.0
        if waiting < self.low:
            far = (self.best or mean) > self.FAR_SECONDS
            most = self.ceiling if far else min(self.ceiling, self.high)
            self.size = max(self.size, min(most, self.size + max(1, self.size // 2)))
        elif waiting > self.high:
            self.size = max(1, self.size - max(1, int(waiting - self.high) // 2))
