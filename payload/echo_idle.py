"""The idle timeout: which connections have been silent for too long, found a part at a time.

The kernel keeps the time of each connection's last input, so nothing is counted per message; all connections are
looked at once in a quarter of the timeout.
"""

import time
from typing import Dict, List, Optional

from echo_connection import Busy, activity

PASSES = 4  # looks at each connection within one timeout: it is closed at most a quarter later
TICK_SECONDS = 0.25  # how often a part is looked at


class IdleSweep:
    """The sweep over one worker's connections; `due` is the monotonic time of the next `next_idle`."""

    def __init__(self, timeout: float, family: int) -> None:
        """timeout: seconds; family: of the connections' addresses."""
        self._timeout, self._family = timeout, family
        self._tick = min(TICK_SECONDS, timeout / PASSES)
        self._at = 0
        self.due = time.monotonic() + self._tick

    def next_idle(self, now: float, held: bytearray, busy: Dict[int, Busy]) -> List[int]:
        """Look at the next part of the connections; return the descriptors of those that are to be closed.

        held: 1 at the number of each descriptor that is a connection. A slow reader counts as alive as long as it
        takes bytes, and half a request has to become a whole one within the timeout.
        """
        self.due = now + self._tick
        part = int(len(held) * self._tick * PASSES / self._timeout) + 1
        end = min(self._at + part, len(held))
        found = []
        fd = held.find(1, self._at, end)
        while fd >= 0:
            if self._is_idle(fd, now, busy.get(fd)):
                found.append(fd)
            fd = held.find(1, fd + 1, end)
        self._at = end if end < len(held) else 0
        return found

    def _is_idle(self, fd: int, now: float, busy: Optional[Busy]) -> bool:
        silent, acked = activity(fd, self._family)
        if busy is not None:
            if busy.waits and acked != busy.acked:
                busy.acked, busy.since = acked, now
            if now - busy.since < self._timeout or busy.rest:
                return now - busy.since >= self._timeout
        return silent >= self._timeout
