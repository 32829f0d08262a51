"""One worker process of the echo server: epoll over raw descriptors.

An idle connection costs no Python object: the descriptor is known to epoll alone, and what epoll reports
is enough to serve it. Only a connection whose reader is slow has a bytes object, the unsent rest of one
read; it is not read again until that is gone.

All workers share one listener. Which one accepts is decided by the shared counters (see `_accept_turn`),
because the kernel alone fills the workers unevenly: EPOLLEXCLUSIVE wakes the same one first.
"""

import errno
import gc
import os
import select
import signal
import socket
import time
import traceback
from typing import Any, Dict, List, NamedTuple, Optional

from echo_counters import Counters
from echo_log import log, reopen
from echo_reload import exec_in_place, read_state

READ_SIZE = 16384  # bytes per read; see benchmarks/server.md for what other sizes gave
SMALL_READ = 1024  # ... while so much waits for slow readers that memory has to be saved
BUFFERED_MAX = 64 << 20  # bytes that may wait for slow readers before reads become small
MAX_EVENTS = 256  # per epoll_wait: bounds how long one turn keeps the listener waiting
ACCEPT_BATCH = 64  # accepts in a row before connections get their turn again
LEAD_SHARE, LEAD_FIXED = 0.05, 32  # how far ahead of the mean a worker may be and still accept
ASIDE_SECONDS = 0.01  # how long a worker that is ahead leaves new connections to the others
STARVED_SECONDS = 1.0  # pause after accept() failed for lack of a resource that others hold
QUIET_SECONDS = 0.5  # graceful stop: how long requests that keep coming are still answered
DRAIN_SECONDS = 5.0  # graceful stop: how long slow readers may take for what is already theirs
FULL_LOG_SECONDS = 10  # at most one line about a pause in this time

RESUME_OPTION = "--resume-worker"
BOOT_ERROR = 3  # exit status of a worker that failed before it was ready, as in gunicorn

_STARVED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_SIGNALS = (signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1)

WorkerSetup = NamedTuple(
    "WorkerSetup",
    [
        ("slot", int),
        ("slots", int),
        ("listener", int),
        ("family", int),
        ("lifeline", int),  # read end of a pipe whose other end only the supervisor has
        ("ready", int),  # write end of a pipe to the supervisor: a byte there says "booted"
        ("nudges_in", List[int]),  # read ends, one per slot; a worker keeps its own
        ("nudges_out", List[int]),
        ("counters", int),
        ("log_file", Optional[str]),
        ("program", List[str]),  # argv that runs this program anew
    ],
)
WorkerSetup.__doc__ = """What a worker is given: descriptors and plain values only, so it also survives exec."""


class Worker:
    """The event loop of one slot. `run` serves until told to stop and returns the exit status."""

    def __init__(self, setup: WorkerSetup, state: Optional[Dict[str, Any]] = None) -> None:
        """Boot in a fresh process; `state`, left by `_reload`, makes it carry on with the connections."""
        self._setup = setup
        self._counters = Counters(setup.counters, setup.slots)
        columns = self._counters.columns
        self._columns = columns
        self._all_connections = columns["connections"]
        self._slot = setup.slot
        self._limit = columns["limit"][setup.slot]
        self._alone = setup.slots == 1
        self._signals = []  # type: List[int]
        self._wake_in, self._wake_out = os.pipe()
        os.set_blocking(self._wake_in, False)
        os.set_blocking(self._wake_out, False)
        self._nudge_in = setup.nudges_in[setup.slot]

        self._pending = {}  # type: Dict[int, bytes]
        self._buffered = 0
        self._connections = 0
        self._listening = False  # the listener is in our epoll set
        self._rejoin_at = None  # type: Optional[float]  # when it gets back there
        self._must_accept = False
        self._stopping = False
        self._reloading = False
        if state is None:
            self._epoll = select.epoll()
            self._epoll.register(setup.lifeline, select.EPOLLIN)
            self._epoll.register(self._nudge_in, select.EPOLLIN)
        else:
            self._epoll = select.epoll.fromfd(state["epoll"])
            self._connections = state["connections"]
            self._pending = {int(fd): bytes.fromhex(rest) for fd, rest in state["pending"].items()}
            self._buffered = sum(map(len, self._pending.values()))
            if state["listening"]:
                self._epoll.unregister(setup.listener)
        self._epoll.register(self._wake_in, select.EPOLLIN)
        self._listener = socket.socket(setup.family, socket.SOCK_STREAM, 0, setup.listener)
        self._listener.setblocking(False)
        self._control = {
            setup.listener: self._accept_turn,
            setup.lifeline: self._supervisor_died,
            self._nudge_in: self._nudged,
            self._wake_in: self._signalled,
        }
        # All that is no plain connection, so that the hot path asks once per event.
        self._special = set(self._control) | set(self._pending)

    def run(self) -> int:
        """Serve until SIGTERM (then drain) and return 0."""
        # The hot path makes no reference cycles; a collection would only be a pause.
        gc.disable()
        for number in _SIGNALS:
            signal.signal(number, lambda signum, frame: self._signals.append(signum))
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the supervisor decides
        signal.set_wakeup_fd(self._wake_out)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        self._columns["pid"][self._slot] = os.getpid()
        self._columns["connections"][self._slot] = self._connections
        self._columns["generation"][self._slot] += 1
        if self._connections < self._limit:
            self._listen()
        os.write(self._setup.ready, b"r")
        while not self._stopping:
            self._serve()
            if self._reloading:
                self._reload()
        self._drain()
        return 0

    def _serve(self, timeout: Optional[float] = None) -> bool:
        """Serve until a control event may have changed what to do; with `timeout`, for one turn.

        Returns whether the last turn had any event.
        """
        poll, read, write = self._epoll.poll, os.read, os.write
        pending, control, special = self._pending, self._control, self._special
        slot = self._slot
        echo_cell, byte_cell = self._columns["echoes"], self._columns["bytes"]
        echoes, total = echo_cell[slot], byte_cell[slot]
        while True:
            if timeout is not None:
                wait = timeout
            elif self._rejoin_at is not None:
                wait = max(0.0, self._rejoin_at - time.monotonic())
            else:
                wait = -1
            events = poll(wait, MAX_EVENTS)
            size = READ_SIZE if self._buffered < BUFFERED_MAX else SMALL_READ
            turned = False
            for fd, event in events:
                if fd in special:
                    if fd in pending:
                        self._flush(fd)
                    else:
                        control[fd](event)
                        turned = True
                    continue
                try:
                    data = read(fd, size)
                except BlockingIOError:
                    continue
                except OSError as e:
                    self._close(fd, "resets" if e.errno == errno.ECONNRESET else "errors")
                    continue
                if not data:
                    self._close(fd)
                    continue
                try:
                    sent = write(fd, data)
                except BlockingIOError:
                    sent = 0
                except OSError:
                    self._close(fd, "errors")
                    continue
                echoes += 1
                total += len(data)
                if sent != len(data):
                    self._keep(fd, data[sent:])
            echo_cell[slot] = echoes
            byte_cell[slot] = total
            if self._rejoin_at is not None and time.monotonic() >= self._rejoin_at:
                self._rejoin()
            if timeout is not None or (turned and (self._stopping or self._reloading)):
                return bool(events)

    # -- connections -------------------------------------------------------------------------------------

    def _keep(self, fd: int, rest: bytes) -> None:
        """The peer does not read: keep the rest and read nothing more until it is written."""
        self._pending[fd] = rest
        self._special.add(fd)
        self._buffered += len(rest)
        self._columns["backpressured"][self._slot] = len(self._pending)
        self._epoll.modify(fd, select.EPOLLOUT)

    def _flush(self, fd: int) -> None:
        rest = self._pending[fd]
        try:
            sent = os.write(fd, rest)
        except BlockingIOError:
            return
        except OSError:
            self._close(fd, "errors")
            return
        self._buffered -= sent
        if sent < len(rest):
            self._pending[fd] = rest[sent:]
            return
        del self._pending[fd]
        self._special.remove(fd)
        self._columns["backpressured"][self._slot] = len(self._pending)
        self._epoll.modify(fd, select.EPOLLIN)

    def _close(self, fd: int, count_as: Optional[str] = None) -> None:
        """Forget a connection; `count_as`: "resets" or "errors" where it did not end with the peer's FIN.

        A reset where nothing is owed is a normal end: it is how a client ends without TIME_WAIT.
        """
        os.close(fd)  # leaves the epoll set by itself: nobody else has this descriptor
        self._connections -= 1
        self._all_connections[self._slot] = self._connections
        if count_as:
            self._columns[count_as][self._slot] += 1
        rest = self._pending.pop(fd, None)
        if rest is not None:
            self._special.remove(fd)
            self._buffered -= len(rest)
            self._columns["backpressured"][self._slot] = len(self._pending)
        if self._columns["full"][self._slot]:
            self._rejoin()

    # -- the listener ------------------------------------------------------------------------------------

    def _listen(self) -> None:
        """Wait for new connections, as the last in the kernel's queue of waiting workers."""
        if not self._listening and not self._stopping:
            # Exclusive: one connection wakes one worker, not all of them.
            self._epoll.register(self._setup.listener, select.EPOLLIN | select.EPOLLEXCLUSIVE)
            self._listening = True

    def _unlisten(self) -> None:
        if self._listening:
            self._epoll.unregister(self._setup.listener)
            self._listening = False

    def _rejoin(self) -> None:
        self._rejoin_at = None
        self._columns["full"][self._slot] = 0
        self._listen()

    def _accept_turn(self, event: int = 0) -> None:
        """Take new connections, as many as this worker's share allows; or leave them to another.

        A worker may be a little ahead of the mean. One that is further ahead wakes the worker with the
        fewest connections and stands aside for ASIDE_SECONDS; if the connections still wait then (that
        worker may be stopped), it takes a batch after all. The worker with the fewest never stands aside,
        so somebody always accepts. After each batch the listener is registered anew: the kernel wakes the
        waiting workers in the order of registration, and this makes it a round.
        """
        room = self._limit - self._connections
        quota = min(ACCEPT_BATCH, room)
        if not self._alone and not self._must_accept:
            quota = min(quota, self._line() - self._connections)
            if quota <= 0 and room > 0:
                self._unlisten()
                self._must_accept = True
                self._rejoin_at = time.monotonic() + ASIDE_SECONDS
                self._nudge_another()
                return
        drained = self._accept(quota)
        self._must_accept = False
        if self._connections >= self._limit:
            self._become_full()
        elif not self._alone and self._listening:
            self._unlisten()
            self._listen()
        if not drained and not self._listening:
            self._nudge_another()

    def _accept(self, quota: int) -> bool:
        """Accept up to `quota` connections; return whether no more are waiting."""
        accept, register, set_blocking = self._listener._accept, self._epoll.register, os.set_blocking
        drained, accepted = False, 0
        while accepted < quota:
            try:
                fd, _ = accept()  # socket.accept() without the socket object
            except BlockingIOError:
                drained = True
                break
            except OSError as e:
                if e.errno in _STARVED:
                    self._starve(e)
                    break
                continue  # ECONNABORTED and the network errors of accept(2): that connection is gone
            set_blocking(fd, False)
            register(fd, select.EPOLLIN)
            accepted += 1
        if accepted:
            self._connections += accepted
            self._all_connections[self._slot] = self._connections
            self._columns["accepted"][self._slot] += accepted
        return drained

    def _line(self) -> int:
        """Return the number of connections up to which this worker counts as no further ahead than others."""
        workers = sum(1 for pid in self._columns["pid"] if pid)
        mean = sum(self._all_connections) / max(1, workers)
        return int(mean * (1 + LEAD_SHARE)) + LEAD_FIXED

    def _become_full(self) -> None:
        """At the limit: leave the listener alone until a connection ends."""
        self._unlisten()
        self._rejoin_at = None
        self._columns["full"][self._slot] = 1
        self._columns["times_full"][self._slot] += 1
        held, places = sum(self._all_connections), sum(self._columns["limit"])
        if held >= places:
            self._log_pause("all %d places are taken: new connections wait until others end" % places)

    def _log_pause(self, message: str) -> None:
        """Log why accepting pauses, at most once in FULL_LOG_SECONDS for all workers together."""
        now = int(time.monotonic())
        if now - self._counters.globals[0] >= FULL_LOG_SECONDS:
            self._counters.globals[0] = now
            log(message)

    def _starve(self, e: OSError) -> None:
        """accept() lacks a resource: try again after a pause or when a connection ends, never in a spin."""
        self._unlisten()
        self._rejoin_at = time.monotonic() + STARVED_SECONDS
        self._columns["full"][self._slot] = 1
        self._columns["times_full"][self._slot] += 1
        self._log_pause("accepting pauses for %g s: %s" % (STARVED_SECONDS, e.strerror))

    def _nudge_another(self) -> None:
        """Wake the worker with the fewest connections that has room: connections are waiting for it."""
        columns, best, fewest = self._columns, -1, 0
        for slot, pid in enumerate(columns["pid"]):
            held = self._all_connections[slot]
            if pid and slot != self._slot and held < columns["limit"][slot] and (best < 0 or held < fewest):
                best, fewest = slot, held
        if best >= 0:
            try:
                os.write(self._setup.nudges_out[best], b"n")
            except OSError:
                pass  # its pipe is full of nudges already

    def _nudged(self, event: int) -> None:
        try:
            os.read(self._nudge_in, 65536)
        except BlockingIOError:
            return
        if self._listening:
            self._accept_turn()

    # -- life and death ----------------------------------------------------------------------------------

    def _supervisor_died(self, event: int) -> None:
        log("the supervisor is gone: ending")
        os._exit(1)

    def _signalled(self, event: int) -> None:
        try:
            os.read(self._wake_in, 4096)
        except BlockingIOError:
            pass
        while self._signals:
            number = self._signals.pop(0)
            if number == signal.SIGQUIT:
                os._exit(0)
            elif number == signal.SIGTERM:
                self._stopping = True
            elif number == signal.SIGHUP:
                self._reloading = True
            elif number == signal.SIGUSR1 and self._setup.log_file:
                reopen(self._setup.log_file)

    def _reload(self) -> None:
        """Execute the program's present files in place; connections, epoll set and listener stay open."""
        self._reloading = False
        self._epoll.unregister(self._wake_in)
        state = {
            "setup": self._setup._asdict(),
            "epoll": self._epoll.fileno(),
            "connections": self._connections,
            "listening": self._listening,
            "pending": {str(fd): rest.hex() for fd, rest in self._pending.items()},
        }
        try:
            exec_in_place(self._setup.program, RESUME_OPTION, state, (self._wake_in, self._wake_out))
        except OSError as e:
            log("cannot reload: %s" % e.strerror)
            self._epoll.register(self._wake_in, select.EPOLLIN)

    def _drain(self) -> None:
        """Graceful end: accept no more, answer what has arrived, give slow readers a bounded time."""
        self._unlisten()
        self._rejoin_at = None
        self._listener.close()
        now = time.monotonic()
        quiet, deadline = now + QUIET_SECONDS, now + DRAIN_SECONDS
        while now < deadline:
            busy = self._serve(timeout=0.02 if self._pending else 0.0)
            now = time.monotonic()
            if not self._pending and (not busy or now > quiet):
                break


def resume(fd: int) -> int:
    """Carry on as the worker whose state is in `fd` (see Worker._reload); return the exit status."""
    try:
        state = read_state(fd)
        worker = Worker(WorkerSetup(**state["setup"]), state)
    except BaseException:
        log("cannot take over the connections: %s" % traceback.format_exc().strip())
        return BOOT_ERROR
    return worker.run()
