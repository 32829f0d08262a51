"""The connections that one worker holds.

An idle connection costs no Python object: the descriptor is known to epoll, and a byte in `held` says that it is a
connection. Only one that owes or is owed bytes has an object (`echo_connection.Busy`); one whose reader is slow is
not read again until everything is written. How many bytes are held for slow readers is bounded (`is_tight`).
"""

import errno
import os
import select
import time
from typing import Any, Callable, Dict, List, Optional

import echo_log
from echo_connection import CLOSE, LINGER, OPEN, Busy, shut_write
from echo_counters import Counters, errno_column
from echo_plan import WorkerSetup

SMALL_READ = 1024  # bytes per read while so much waits for slow readers that memory has to be saved
LINGER_SECONDS = 2.0  # how long a peer may take to read a refusal before its connection is closed


class Connections:
    """What a worker holds; the functions of `echo_turn` and `echo_http` serve it."""

    def __init__(
        self,
        setup: WorkerSetup,
        counters: Counters,
        epoll: select.epoll,
        go_on: Any,
        plan_time: Callable[[], None],
        has_room: Callable[[], None],
    ) -> None:
        """go_on(connections, fd, busy): more has come on a connection that is in the middle of something.

        plan_time() is called when `next_due` may have changed, has_room() when a connection has ended while the
        worker did not accept because it was full.
        """
        self.slot, self.columns = setup.slot, counters.columns
        self.count = 0
        self.backpressured = 0
        self.held = bytearray(1024)  # 1 where the descriptor of this number is a connection
        self.busy: Dict[int, Busy] = {}
        # Descriptors that are no connections: what serves their events.
        self.control: Dict[int, Callable[[int], None]] = {}
        # `control` and `busy`: all that is no plain connection, so that the hot path asks once per event.
        self.special: Any = set()
        self.read = self._read_and_print if setup.verbose else os.read
        self._family, self._max_buffered = setup.family, setup.max_buffered
        self._counters, self._epoll, self._go_on = counters, epoll, go_on
        self._plan_time, self._has_room = plan_time, has_room
        self._buffered = 0
        self._lingering: Dict[int, float] = {}  # descriptor -> when it is closed at the latest; oldest first

    # -- serving -----------------------------------------------------------------------------------------

    def attend(self, fd: int, event: int) -> None:
        """Serve a descriptor of `special`: a control event, or a connection that is not idle."""
        control = self.control.get(fd)
        if control is not None:
            control(event)
            return
        busy = self.busy[fd]
        if busy.waits:
            self._flush(fd, busy)
        elif busy.ending == LINGER:
            self._throw_away(fd)
        else:
            self._go_on(self, fd, busy)

    def is_tight(self) -> bool:
        """Return whether this worker holds its share of what may be held for slow peers."""
        return self._buffered * self._counters.in_use >= self._max_buffered

    def careful_read(self, fd: int, size: int) -> bytes:
        """os.read for when memory `is_tight`: little, and only where the answer can be written at once.

        Raises BlockingIOError for a connection that cannot be written: it is read again when it can.
        """
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        if not poll.poll(0):
            self.keep(fd, Busy(), wait=True)
            raise BlockingIOError
        return self.read(fd, min(size, SMALL_READ))

    def _read_and_print(self, fd: int, size: int) -> bytes:
        """os.read that says so on stdout, and waits for whoever reads that: what no server under load may do."""
        data = os.read(fd, size)
        echo_log.write(1, b"%d: %d bytes: %s\n" % (fd, len(data), ascii(data[:60]).encode()))
        return data

    def _flush(self, fd: int, busy: Busy) -> None:
        if busy.unsent:
            try:
                sent = os.write(fd, busy.unsent)
            except BlockingIOError:
                return
            except OSError as e:
                self.close(fd, e)
                return
            self._count_held(-sent)
            busy.unsent = busy.unsent[sent:]
            if busy.unsent:
                return
        if busy.ending != OPEN:
            self._epoll.modify(fd, select.EPOLLIN)
            self.end(fd, busy)
            return
        self.forget(fd)
        self._epoll.modify(fd, select.EPOLLIN)
        if busy.rest or busy.skip:
            busy.waits = False
            self.keep(fd, busy)

    def _throw_away(self, fd: int) -> None:
        try:
            if os.read(fd, 65536):
                return
        except BlockingIOError:
            return
        except OSError as e:
            self.close(fd, e)
            return
        self.close(fd)

    # -- what is kept of one -----------------------------------------------------------------------------

    def keep(self, fd: int, busy: Busy, wait: bool = False) -> None:
        """Remember what is owed on a connection. Where bytes are unsent nothing is read until they are written."""
        self.busy[fd] = busy
        self.special.add(fd)
        self._count_held(busy.size())
        if busy.unsent or wait:
            busy.waits = True
            self._count_waiting(1)
            self._epoll.modify(fd, select.EPOLLOUT)

    def resume(self, fd: int, busy: Busy, wait: bool = False) -> None:
        """Go on with a connection that was not idle in another process, or in this one before a reload."""
        if busy.is_idle() and not wait:  # it only waited because memory was tight there
            return
        self.keep(fd, busy, wait)
        if busy.ending == LINGER and not busy.unsent:
            self._lingering[fd] = time.monotonic() + LINGER_SECONDS

    def forget(self, fd: int) -> None:
        """Nothing is owed on the connection any more."""
        busy = self.busy.pop(fd, None)
        if busy is not None:
            self.special.remove(fd)
            self._count_held(-busy.size())
            self._lingering.pop(fd, None)
            if busy.waits:
                self._count_waiting(-1)

    def _count_held(self, change: int) -> None:
        self._buffered += change
        self.columns["buffered"][self.slot] = self._buffered

    def _count_waiting(self, change: int) -> None:
        self.backpressured += change
        self.columns["backpressured"][self.slot] = self.backpressured

    # -- coming and going --------------------------------------------------------------------------------

    def gain(self, fd: int) -> None:
        """`fd` is a connection of this worker from now on; the caller counts it with `add`."""
        if fd >= len(self.held):
            self.held.extend(bytes(max(fd + 1 - len(self.held), len(self.held))))
        self.held[fd] = 1

    def add(self, gained: int) -> None:
        """Count connections."""
        self.count += gained
        self.columns["connections"][self.slot] = self.count

    def lose(self, fd: int) -> None:
        """A connection is no longer this worker's."""
        self.held[fd] = 0
        self.add(-1)
        if self.busy:
            self.forget(fd)
        if self.columns["full"][self.slot]:
            self._has_room()

    def end(self, fd: int, busy: Busy) -> None:
        """All is sent on a connection that is to end."""
        self.forget(fd)
        if busy.ending == CLOSE:
            self.close(fd)
            return
        try:
            shut_write(fd, self._family)
        except OSError as e:
            self.close(fd, e)
            return
        self.keep(fd, Busy(ending=LINGER))
        self._lingering[fd] = time.monotonic() + LINGER_SECONDS
        self._plan_time()

    def close(self, fd: int, error: Optional[OSError] = None) -> None:
        """Close a connection; `error` is what ended it, where it did not end with the peer's FIN.

        A reset where nothing is owed is a normal end: it is how a client ends without TIME_WAIT.
        """
        os.close(fd)  # leaves the epoll set by itself: nobody else has this descriptor
        self.lose(fd)
        if error is not None:
            number = error.errno or 0
            self.columns["resets" if number == errno.ECONNRESET else "errors"][self.slot] += 1
            self.columns[errno_column(number)][self.slot] += 1

    def next_due(self) -> Optional[float]:
        """Return when `close_due` has something to do (monotonic seconds), None if nothing is planned."""
        return next(iter(self._lingering.values()), None)

    def close_due(self, now: float) -> None:
        """Close those whose peers have had time to read a refusal."""
        for fd in [fd for fd, due in self._lingering.items() if due <= now]:
            self.close(fd)

    def all(self) -> List[int]:
        """Return the descriptors of all connections."""
        return [fd for fd, held in enumerate(self.held) if held]
