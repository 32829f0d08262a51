"""How a worker comes by its connections: from the listener, and from workers that leave.

All workers share one listener. Which one accepts is decided by the shared counters (see `Intake.accept_turn`),
because the kernel alone fills the workers unevenly: EPOLLEXCLUSIVE wakes the same one first.
"""

import errno
import os
import select
import signal
import socket
import time
from typing import Callable, Optional

import echo_handover
from echo_connections import Connections
from echo_counters import FULL_LOGGED, Counters, errno_column
from echo_log import log
from echo_plan import WorkerSetup

ACCEPT_BATCH = 64  # accepts in a row before connections get their turn again
LEAD_SHARE, LEAD_FIXED = 0.05, 32  # how far ahead of the mean a worker may be and still accept
STINT_SHARE, STINT_MOST = 0.05, 256  # connections in a row, of the mean, that a worker takes while it can
ASIDE_SECONDS = 0.01  # how long a worker that is ahead leaves new connections to the others
STARVED_SECONDS = 1.0  # pause after accept() failed for lack of a resource that others hold
FULL_LOG_SECONDS = 10  # at most one line about a pause in this time

# Wakes a worker because connections wait. Its default is to be ignored, so it does no harm to a process that
# has just got the pid of a worker that died.
NUDGE = signal.SIGURG

_EXCLUSIVELY = select.EPOLLIN | select.EPOLLEXCLUSIVE  # one connection wakes one worker, not all of them
# accept(2): what has happened to one connection. Any other error is one of the listener or of a resource.
_PASSING = (errno.ECONNABORTED, errno.EPERM, errno.ENETDOWN, errno.EPROTO, errno.ENOPROTOOPT, errno.EHOSTDOWN)
_PASSING += (errno.ENONET, errno.EHOSTUNREACH, errno.EOPNOTSUPP, errno.ENETUNREACH)

_WATCHES = "no more descriptors in epoll, see fs.epoll.max_user_watches"


class Intake:
    """One worker's side of the listener and of the hand-over socket; `open` begins it."""

    def __init__(
        self,
        setup: WorkerSetup,
        counters: Counters,
        epoll: select.epoll,
        connections: Connections,
        plan_time: Callable[[], None],
    ) -> None:
        """plan_time() is called when `rejoin_at` has changed."""
        self.rejoin_at: Optional[float] = None  # when a pause ends (monotonic seconds)
        self.listening = False  # the listener is in our epoll set
        self.handover = echo_handover.end(setup.handover_in)
        self._slot, self._columns, self._counters = setup.slot, counters.columns, counters
        self._epoll, self._connections, self._plan_time = epoll, connections, plan_time
        self._listener = socket.socket(setup.family, socket.SOCK_STREAM, 0, setup.listener)
        self._listener.setblocking(False)
        self._must_accept = False
        self._line = self._stint_end = 0  # numbers of connections, see accept_turn
        self._closed = False

    def open(self) -> None:
        """Begin to accept, unless the worker is full already."""
        full = self._connections.count >= self._columns["limit"][self._slot]
        self._columns["full"][self._slot] = 1 if full else 0  # what it was before a reload, in a pause perhaps
        if not full:
            self._listen()

    def close(self) -> None:
        """Accept no more."""
        self._closed = True
        self._unlisten()
        self.rejoin_at = None
        self._columns["full"][self._slot] = 0
        self._plan_time()

    def close_listener(self) -> None:
        """Accept no more, and refuse whoever comes once the other processes have done so too."""
        self.close()
        self._listener.close()

    def _listen(self) -> None:
        """Wait for new connections, as the last in the kernel's queue of waiting workers."""
        if self.listening or self._closed:
            return
        self.listening = True
        try:
            for one in (self._listener, self.handover):
                self._epoll.register(one, _EXCLUSIVELY)
        except OSError as e:
            self._starve(e)

    def _unlisten(self) -> None:
        if not self.listening:
            return
        self.listening = False
        for one in (self._listener, self.handover):
            try:
                self._epoll.unregister(one)
            except FileNotFoundError:
                pass  # there was no room for it, see _listen

    def rejoin(self) -> None:
        """End a pause: a connection has ended, more are allowed, or the time is over."""
        self.rejoin_at = None
        self._columns["full"][self._slot] = 0
        self._listen()
        self._plan_time()

    def nudged(self) -> None:
        """Somebody says that connections wait."""
        if self._columns["full"][self._slot] and self._connections.count < self._columns["limit"][self._slot]:
            self.rejoin()  # workers have left, or more connections are allowed now
        if self.listening:
            self.take_over()
            self.accept_turn()

    # -- from the listener -------------------------------------------------------------------------------

    def accept_turn(self, event: int = 0) -> None:
        """Take new connections, as many as this worker's share allows; or leave them to another.

        A worker may be a little ahead of the mean. One that is further ahead wakes the worker with the
        fewest connections and stands aside for ASIDE_SECONDS; if the connections still wait then (that
        worker may be stopped), it takes a batch after all. The worker with the fewest never stands aside,
        so somebody always accepts.

        The kernel wakes the workers that wait in the order of registration, the next one where the first is at
        work. So few workers take what comes, with few wake-ups, until each has had its stint and registers
        anew; only then the counters of all are looked at again.
        """
        limit = self._columns["limit"][self._slot]
        count = self._connections.count
        room = limit - count
        quota = min(ACCEPT_BATCH, room)
        alone = self._counters.look() == 1
        if not alone and not self._must_accept:
            if count >= min(self._line, self._stint_end):
                self._look_around(count)
            quota = min(quota, self._line - count)
            if quota <= 0 and room > 0:
                self._unlisten()
                self._must_accept = True
                self.rejoin_at = time.monotonic() + ASIDE_SECONDS
                self._plan_time()
                self._nudge_another()
                return
        drained = self._accept(quota)
        self._must_accept = False
        if self._connections.count >= limit:
            self._become_full()
        elif not alone and self.listening and self._connections.count >= self._stint_end:
            self._unlisten()
            self._listen()
        if not drained and not self.listening:
            self._nudge_another()

    def _accept(self, quota: int) -> bool:
        """Accept up to `quota` connections; return whether no more are waiting."""
        accept, admit = self._listener._accept, self._admit  # type: ignore
        gain = self._connections.gain
        drained, accepted = False, 0
        while accepted < quota:
            try:
                fd, _ = accept()  # socket.accept() without the socket object
                admit(fd)
            except BlockingIOError:
                drained = True
                break
            except OSError as e:
                if e.errno in _PASSING:
                    continue
                self._starve(e)
                break
            gain(fd)
            accepted += 1
        if accepted:
            self._connections.add(accepted)
            self._columns["accepted"][self._slot] += accepted
        return drained

    def _admit(self, fd: int) -> None:
        """Have epoll report what comes on a new connection; where it cannot, close that and raise OSError."""
        os.set_blocking(fd, False)
        try:
            self._epoll.register(fd, select.EPOLLIN)
        except OSError as e:
            os.close(fd)
            raise OSError(e.errno, _WATCHES if e.errno == errno.ENOSPC else e.strerror)

    def _look_around(self, count: int) -> None:
        """Work out how far this worker, with `count` connections, may go: up to which number it is no further
        ahead than others may be, and at which its stint ends."""
        counters = self._counters
        workers = sum(1 for pid in counters.pids if pid) - sum(counters.leaving)
        mean = sum(counters.connections) / max(1, workers)
        self._line = int(mean * (1 + LEAD_SHARE)) + LEAD_FIXED
        self._stint_end = count + max(1, min(STINT_MOST, int(mean * STINT_SHARE)))

    def _become_full(self) -> None:
        """At the limit: leave the listener alone until a connection ends."""
        self._unlisten()
        self.rejoin_at = None
        self._plan_time()
        self._columns["full"][self._slot] = 1
        self._columns["times_full"][self._slot] += 1
        held, places = sum(self._counters.connections), sum(self._columns["limit"])
        if held >= places:
            self._log_pause("all %d places are taken: new connections wait until others end" % places)

    def _starve(self, e: OSError) -> None:
        """Accepting lacks a resource: try again after a pause or when a connection ends, never in a spin."""
        self._unlisten()
        self.rejoin_at = time.monotonic() + STARVED_SECONDS
        self._plan_time()
        self._columns["full"][self._slot] = 1
        self._columns["times_full"][self._slot] += 1
        self._columns[errno_column(e.errno or 0)][self._slot] += 1
        self._log_pause("accepting pauses for %g s: %s" % (STARVED_SECONDS, e.strerror))

    def _log_pause(self, message: str) -> None:
        """Log why accepting pauses, at most once in FULL_LOG_SECONDS for all workers together."""
        now = int(time.monotonic())
        if now - self._counters.globals[FULL_LOGGED] >= FULL_LOG_SECONDS:
            self._counters.globals[FULL_LOGGED] = now
            log(message)

    def _nudge_another(self) -> None:
        """Wake the worker with the fewest connections that has room: connections are waiting for it."""
        limits, best, fewest = self._columns["limit"], -1, 0
        for slot, pid in enumerate(self._counters.pids):
            held = self._counters.connections[slot]
            if pid and slot != self._slot and held < limits[slot] and (best < 0 or held < fewest):
                best, fewest = slot, held
        if best >= 0:
            nudge(self._counters.pids[best])

    # -- from workers that leave -------------------------------------------------------------------------

    def take_over(self, event: int = 0) -> None:
        """Take connections that a leaving worker gives away."""
        self.receive(min(ACCEPT_BATCH, self._columns["limit"][self._slot] - self._connections.count))
        if self.listening and self._connections.count >= self._columns["limit"][self._slot]:
            self._become_full()

    def receive(self, most: int) -> None:
        """Take up to `most` of the connections that are on their way."""
        taken = 0
        while taken < most:
            try:
                found = echo_handover.receive(self.handover)
                if found is None:
                    break
                fd, busy = found
                self._admit(fd)
            except OSError as e:
                self._columns["errors"][self._slot] += 1
                self._columns[errno_column(e.errno or 0)][self._slot] += 1
                log("a connection from another worker is lost: %s" % e.strerror)
                break
            self._connections.gain(fd)
            taken += 1
            if busy is not None:
                self._connections.resume(fd, busy)
        if taken:
            self._plan_time()
            self._connections.add(taken)
            self._columns["taken_over"][self._slot] += taken


def nudge(pid: int) -> None:
    """Wake the worker with this pid: connections wait for somebody to accept them."""
    try:
        os.kill(pid, NUDGE)
    except OSError:
        pass  # it has died; its successor will look for itself
