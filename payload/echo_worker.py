"""One worker process of the echo server: epoll over raw descriptors.

An idle connection costs no Python object: the descriptor is known to epoll alone, and what epoll reports
is enough to serve it. Only a connection that owes or is owed bytes has an object (`echo_connection.Busy`); one
whose reader is slow is not read again until everything is written.

What is done with the bytes is in `echo_turn` and `echo_http`; here is what all modes share: the listener, slow
readers, timeouts, signals, reload and hand-over.

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
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

import echo_handover
import echo_log
from echo_connection import CLOSE, LINGER, OPEN, Busy, shut_write
from echo_counters import FULL_LOGGED, SLOTS, Counters, errno_column
from echo_http import http_go_on, http_turn
from echo_idle import IdleSweep
from echo_log import log, reopen
from echo_plan import RESUME_WORKER_OPTION
from echo_reload import exec_in_place, read_state
from echo_turn import echo_turn

MAX_EVENTS = 256  # per epoll_wait: bounds how long one turn keeps the listener waiting
SMALL_READ = 1024  # bytes per read while so much waits for slow readers that memory has to be saved
ACCEPT_BATCH = 64  # accepts in a row before connections get their turn again
LEAD_SHARE, LEAD_FIXED = 0.05, 32  # how far ahead of the mean a worker may be and still accept
ASIDE_SECONDS = 0.01  # how long a worker that is ahead leaves new connections to the others
STARVED_SECONDS = 1.0  # pause after accept() failed for lack of a resource that others hold
QUIET_SECONDS = 0.5  # graceful stop: how long requests that keep coming are still answered
DRAIN_SECONDS = 5.0  # graceful stop: how long slow readers may take for what is already theirs
LINGER_SECONDS = 2.0  # how long a peer may take to read a refusal before its connection is closed
LEAVE_BATCH = 256  # connections handed over in a row before the others get their turn
LEAVE_SECONDS = 0.01  # how often a leaving worker looks whether the others have room
FULL_LOG_SECONDS = 10  # at most one line about a pause in this time

BOOT_ERROR = 3  # exit status of a worker that failed before it was ready, as in gunicorn
# Wakes a worker because connections wait. Its default is to be ignored, so it does no harm to a process that
# has just got the pid of a worker that died.
NUDGE = signal.SIGURG
LEAVE = signal.SIGTTOU

_EXCLUSIVELY = select.EPOLLIN | select.EPOLLEXCLUSIVE  # one connection wakes one worker, not all of them
_STARVED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_SIGNALS = (signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, NUDGE, LEAVE)

Turn = Callable[[List[Tuple[int, int]]], None]
# Mode -> (makes the function that serves a turn's events, goes on with a connection that owes input)
PROTOCOLS = {"echo": (echo_turn, None), "http": (http_turn, http_go_on)}  # type: Dict[str, Tuple[Any, Any]]

WorkerSetup = NamedTuple(
    "WorkerSetup",
    [
        ("slot", int),
        ("listener", int),
        ("family", int),
        ("lifeline", int),  # read end of a pipe whose other end only the supervisor has
        ("ready", int),  # write end of a pipe to the supervisor: a byte there says "booted"
        ("handover_in", int),  # socket pair of all workers: connections on their way to another worker
        ("handover_out", int),
        ("counters", int),
        ("log_file", Optional[str]),
        ("mode", str),
        ("idle_timeout", float),  # seconds, 0: none
        ("verbose", bool),
        ("max_buffered", int),  # bytes that all workers together may hold for slow peers
        ("program", List[str]),  # argv that runs this program anew
    ],
)
WorkerSetup.__doc__ = """What a worker is given: descriptors and plain values only, so it also survives exec."""


class Worker:
    """The event loop of one slot. `run` serves until told to stop and returns the exit status."""

    def __init__(self, setup: WorkerSetup, state: Optional[Dict[str, Any]] = None) -> None:
        """Boot in a fresh process; `state`, left by `_reload`, makes it carry on with the connections."""
        self._setup = setup
        self.slot = setup.slot
        self._counters = Counters(setup.counters)
        self.columns = self._counters.columns
        self._in_use = 0  # slots, as far as the views below reach
        self._look_at_slots()
        self._signals = []  # type: List[int]
        self._wake_in, self._wake_out = os.pipe()
        os.set_blocking(self._wake_in, False)
        os.set_blocking(self._wake_out, False)

        self._busy = {}  # type: Dict[int, Busy]
        self._lingering = {}  # type: Dict[int, float]  # descriptor -> when it is closed at the latest; oldest first
        self._held = bytearray(1024)  # 1 where the descriptor of this number is a connection
        self._connections = 0
        self._buffered = 0
        self._backpressured = 0
        self._listening = False  # the listener is in our epoll set
        self._rejoin_at = None  # type: Optional[float]  # when it gets back there
        self._leave_at = None  # type: Optional[float]  # when a leaving worker looks again for room elsewhere
        self._due = None  # type: Optional[float]  # the earliest of all times at which something is to be done
        self._must_accept = False
        self._stopping = False
        self._reloading = False
        self._leaving = False
        if state is None:
            self._epoll = select.epoll()
            self._epoll.register(setup.lifeline, select.EPOLLIN)
        else:
            self._epoll = select.epoll.fromfd(state["epoll"])
            self._take_up(state)
        self._epoll.register(self._wake_in, select.EPOLLIN)
        self._listener = socket.socket(setup.family, socket.SOCK_STREAM, 0, setup.listener)
        self._listener.setblocking(False)
        self._handover_in = echo_handover.end(setup.handover_in)
        self._handover_out = echo_handover.end(setup.handover_out)
        self._idle = IdleSweep(setup.idle_timeout, setup.family) if setup.idle_timeout else None
        self._control = {
            setup.listener: self._accept_turn,
            setup.lifeline: self._supervisor_died,
            setup.handover_in: self._take_over,
            self._wake_in: self._signalled,
        }
        # All that is no plain connection, so that the hot path asks once per event.
        self.special = set(self._control) | set(self._busy)
        self.read = self._read_and_print if setup.verbose else os.read
        make_turn, self._go_on = PROTOCOLS[setup.mode]
        self._turn = make_turn(self)  # type: Turn

    def run(self) -> int:
        """Serve until SIGTERM (then drain) and return 0."""
        # The hot path makes no reference cycles; a collection would only be a pause.
        gc.disable()
        for number in _SIGNALS:
            signal.signal(number, lambda signum, frame: self._signals.append(signum))
        for number in (signal.SIGINT, signal.SIGTTIN):  # a terminal's signals reach all; the supervisor decides
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(self._wake_out)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        slot = self.slot
        self.columns["pid"][slot] = os.getpid()
        self.columns["since"][slot] = int(time.time())
        self.columns["connections"][slot] = self._connections
        self.columns["generation"][slot] += 1
        self._plan_time()
        if self._leaving:
            self._begin_to_leave()
        elif self._connections < self.columns["limit"][slot]:
            self._listen()
        os.write(self._setup.ready, b"r")
        while not self._stopping:
            self._serve()
            if self._reloading:
                self._reload()
        self._drain()
        return 0

    def _serve(self, timeout: Optional[float] = None) -> bool:
        """Serve until told to stop or reload; with `timeout` (seconds), for one turn.

        Returns whether the last turn had any event.
        """
        poll, turn, monotonic = self._epoll.poll, self._turn, time.monotonic
        while True:
            if timeout is not None:
                wait = timeout
            elif self._due is not None:
                wait = max(0.0, self._due - monotonic())
            else:
                wait = -1
            events = poll(wait, MAX_EVENTS)
            turn(events)
            if self._due is not None and monotonic() >= self._due:
                self._do_what_is_due(monotonic())
            if self._stopping or self._reloading or timeout is not None:
                return bool(events)

    # -- connections -------------------------------------------------------------------------------------

    def attend(self, fd: int, event: int) -> None:
        """Serve a descriptor of `special`: a control event, or a connection that is not idle."""
        control = self._control.get(fd)
        if control is not None:
            control(event)
            return
        busy = self._busy[fd]
        if busy.waits:
            self._flush(fd, busy)
        elif busy.ending == LINGER:
            self._throw_away(fd)
        else:
            self._go_on(self, fd, busy)

    def is_tight(self) -> bool:
        """Return whether this worker holds its share of what may be held for slow peers."""
        return self._buffered * self._in_use >= self._setup.max_buffered

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

    def keep(self, fd: int, busy: Busy, wait: bool = False) -> None:
        """Remember what is owed on a connection. Where bytes are unsent nothing is read until they are written."""
        self._busy[fd] = busy
        self.special.add(fd)
        self._count_held(busy.size())
        if busy.unsent or wait:
            busy.waits = True
            self._count_waiting(1)
            self._epoll.modify(fd, select.EPOLLOUT)

    def forget(self, fd: int) -> None:
        """Nothing is owed on the connection any more."""
        busy = self._busy.pop(fd, None)
        if busy is not None:
            self.special.remove(fd)
            self._count_held(-busy.size())
            self._lingering.pop(fd, None)
            if busy.waits:
                self._count_waiting(-1)

    def end(self, fd: int, busy: Busy) -> None:
        """All is sent on a connection that is to end."""
        self.forget(fd)
        if busy.ending == CLOSE:
            self.close(fd)
            return
        try:
            shut_write(fd, self._setup.family)
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
        self._lose(fd)
        if error is not None:
            number = error.errno or 0
            self.columns["resets" if number == errno.ECONNRESET else "errors"][self.slot] += 1
            self.columns[errno_column(number)][self.slot] += 1

    def _lose(self, fd: int) -> None:
        """A connection is no longer this worker's."""
        self._held[fd] = 0
        self._connections -= 1
        self.columns["connections"][self.slot] = self._connections
        if self._busy:
            self.forget(fd)
        if self.columns["full"][self.slot]:
            self._rejoin()

    def _gain(self, fd: int) -> None:
        if fd >= len(self._held):
            self._held.extend(bytes(max(fd + 1 - len(self._held), len(self._held))))
        self._held[fd] = 1

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

    def _count_held(self, change: int) -> None:
        self._buffered += change
        self.columns["buffered"][self.slot] = self._buffered

    def _count_waiting(self, change: int) -> None:
        self._backpressured += change
        self.columns["backpressured"][self.slot] = self._backpressured

    # -- times -------------------------------------------------------------------------------------------

    def _plan_time(self) -> None:
        """Work out anew when something is to be done without an event."""
        times = [self._rejoin_at, self._leave_at, self._idle.due if self._idle else None]
        if self._lingering:
            times.append(next(iter(self._lingering.values())))
        self._due = min((t for t in times if t is not None), default=None)

    def _do_what_is_due(self, now: float) -> None:
        if self._rejoin_at is not None and now >= self._rejoin_at:
            self._rejoin()
        for fd in [fd for fd, due in self._lingering.items() if due <= now]:
            self.close(fd)
        if self._idle is not None and now >= self._idle.due:
            for fd in self._idle.next_idle(now, self._held, self._busy):
                self.columns["idle_closed"][self.slot] += 1
                self.close(fd)
        if self._leave_at is not None and now >= self._leave_at:
            self._leave()
        self._plan_time()

    # -- the listener ------------------------------------------------------------------------------------

    def _listen(self) -> None:
        """Wait for new connections, as the last in the kernel's queue of waiting workers."""
        if not self._listening and not self._stopping and not self._leaving:
            self._epoll.register(self._setup.listener, _EXCLUSIVELY)
            self._epoll.register(self._setup.handover_in, _EXCLUSIVELY)
            self._listening = True

    def _unlisten(self) -> None:
        if self._listening:
            self._epoll.unregister(self._setup.listener)
            self._epoll.unregister(self._setup.handover_in)
            self._listening = False

    def _rejoin(self) -> None:
        self._rejoin_at = None
        self.columns["full"][self.slot] = 0
        self._listen()
        self._plan_time()

    def _accept_turn(self, event: int = 0) -> None:
        """Take new connections, as many as this worker's share allows; or leave them to another.

        A worker may be a little ahead of the mean. One that is further ahead wakes the worker with the
        fewest connections and stands aside for ASIDE_SECONDS; if the connections still wait then (that
        worker may be stopped), it takes a batch after all. The worker with the fewest never stands aside,
        so somebody always accepts. After each batch the listener is registered anew: the kernel wakes the
        waiting workers in the order of registration, and this makes it a round.
        """
        limit = self.columns["limit"][self.slot]
        room = limit - self._connections
        quota = min(ACCEPT_BATCH, room)
        alone = self._look_at_slots() == 1
        if not alone and not self._must_accept:
            quota = min(quota, self._line() - self._connections)
            if quota <= 0 and room > 0:
                self._unlisten()
                self._must_accept = True
                self._rejoin_at = time.monotonic() + ASIDE_SECONDS
                self._plan_time()
                self._nudge_another()
                return
        drained = self._accept(quota)
        self._must_accept = False
        if self._connections >= limit:
            self._become_full()
        elif not alone and self._listening:
            self._epoll.unregister(self._setup.listener)
            self._epoll.register(self._setup.listener, _EXCLUSIVELY)
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
            self._gain(fd)
            accepted += 1
        if accepted:
            self._connections += accepted
            self.columns["connections"][self.slot] = self._connections
            self.columns["accepted"][self.slot] += accepted
        return drained

    def _look_at_slots(self) -> int:
        """Return how many slots are in use, after fitting the views of their cells to them."""
        in_use = self._counters.globals[SLOTS]
        if in_use != self._in_use:
            self._in_use = in_use
            self._all_connections = self.columns["connections"][:in_use]
            self._all_pids = self.columns["pid"][:in_use]
            self._all_leaving = self.columns["leaving"][:in_use]
        return in_use

    def _line(self) -> int:
        """Return the number of connections up to which this worker counts as no further ahead than others."""
        workers = sum(1 for pid in self._all_pids if pid) - sum(self._all_leaving)
        mean = sum(self._all_connections) / max(1, workers)
        return int(mean * (1 + LEAD_SHARE)) + LEAD_FIXED

    def _become_full(self) -> None:
        """At the limit: leave the listener alone until a connection ends."""
        self._unlisten()
        self._rejoin_at = None
        self._plan_time()
        self.columns["full"][self.slot] = 1
        self.columns["times_full"][self.slot] += 1
        held, places = sum(self._all_connections), sum(self.columns["limit"])
        if held >= places:
            self._log_pause("all %d places are taken: new connections wait until others end" % places)

    def _log_pause(self, message: str) -> None:
        """Log why accepting pauses, at most once in FULL_LOG_SECONDS for all workers together."""
        now = int(time.monotonic())
        if now - self._counters.globals[FULL_LOGGED] >= FULL_LOG_SECONDS:
            self._counters.globals[FULL_LOGGED] = now
            log(message)

    def _starve(self, e: OSError) -> None:
        """accept() lacks a resource: try again after a pause or when a connection ends, never in a spin."""
        self._unlisten()
        self._rejoin_at = time.monotonic() + STARVED_SECONDS
        self._plan_time()
        self.columns["full"][self.slot] = 1
        self.columns["times_full"][self.slot] += 1
        self.columns[errno_column(e.errno or 0)][self.slot] += 1
        self._log_pause("accepting pauses for %g s: %s" % (STARVED_SECONDS, e.strerror))

    def _nudge_another(self) -> None:
        """Wake the worker with the fewest connections that has room: connections are waiting for it."""
        limits, best, fewest = self.columns["limit"], -1, 0
        for slot, pid in enumerate(self._all_pids):
            held = self._all_connections[slot]
            if pid and slot != self.slot and held < limits[slot] and (best < 0 or held < fewest):
                best, fewest = slot, held
        if best >= 0:
            nudge(self._all_pids[best])

    def _nudged(self) -> None:
        if self.columns["full"][self.slot] and self._connections < self.columns["limit"][self.slot]:
            self._rejoin()  # workers have left, or more connections are allowed now
        if self._listening:
            self._take_over(0)
            self._accept_turn()

    # -- hand-over ---------------------------------------------------------------------------------------

    def _take_over(self, event: int) -> None:
        """Take connections that a leaving worker gives away."""
        room = min(ACCEPT_BATCH, self.columns["limit"][self.slot] - self._connections)
        self._receive(room)
        if self._listening and self._connections >= self.columns["limit"][self.slot]:
            self._become_full()

    def _receive(self, most: int) -> None:
        taken = 0
        while taken < most:
            found = echo_handover.receive(self._handover_in)
            if found is None:
                break
            fd, busy = found
            self._epoll.register(fd, select.EPOLLIN)
            self._gain(fd)
            taken += 1
            if busy is not None:
                self._resume(fd, busy)
        if taken:
            self._plan_time()
            self._connections += taken
            self.columns["connections"][self.slot] = self._connections
            self.columns["taken_over"][self.slot] += taken

    def _resume(self, fd: int, busy: Busy, wait: bool = False) -> None:
        """Go on with a connection that was not idle in another process, or in this one before a reload."""
        self.keep(fd, busy, wait)
        if busy.ending == LINGER and not busy.unsent:
            self._lingering[fd] = time.monotonic() + LINGER_SECONDS

    def _begin_to_leave(self) -> None:
        """Accept no more. What follows closes descriptors, so it waits until this turn's events are served."""
        self._leaving = True
        self._unlisten()
        self._rejoin_at = None
        self.columns["full"][self.slot] = 0
        self._leave_at = time.monotonic()
        self._plan_time()

    def _leave(self) -> None:
        """Give the connections to workers that have room, and end without any.

        What the others have no room for stays here until it ends or room is made.
        """
        room, on_the_way = self._room_elsewhere()
        if room < 0:
            self._receive(-room)  # others have filled up meanwhile: what nobody can take comes back
        if self._connections == 0 and on_the_way == 0:
            self._stopping = True
            return
        fd, given = self._held.find(1), 0
        while fd >= 0 and given < min(room, LEAVE_BATCH):
            if not echo_handover.send(self._handover_out, fd, self._busy.get(fd)):
                break
            # The kernel's copy that is on its way keeps the connection open, and would stay in our epoll set.
            self._epoll.unregister(fd)
            os.close(fd)
            given += 1
            self.columns["handed_over"][self.slot] += 1
            self._lose(fd)
            fd = self._held.find(1, fd)
        self._leave_at = time.monotonic() + (0.0 if given else LEAVE_SECONDS)

    def _room_elsewhere(self) -> Tuple[int, int]:
        """Return (connections that others can still take, connections on their way to them)."""
        slots = range(self._look_at_slots())
        columns, limits = self.columns, self.columns["limit"]
        # The counts are off where a worker was killed between an exchange and its count; the socket never is.
        counted = sum(columns["handed_over"]) - sum(columns["taken_over"])
        on_the_way = max(1, counted) if echo_handover.is_waiting(self._handover_in) else 0
        free = [
            max(0, limits[n] - columns["connections"][n])
            for n in slots
            if n != self.slot and columns["pid"][n] and not columns["leaving"][n]
        ]
        return sum(free) - on_the_way, on_the_way

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
            elif number == LEAVE:
                self._begin_to_leave()
            elif number == NUDGE:
                self._nudged()

    def _reload(self) -> None:
        """Execute the program's present files in place; connections, epoll set and listener stay open."""
        self._reloading = False
        self._epoll.unregister(self._wake_in)
        state = {
            "setup": self._setup._asdict(),
            "epoll": self._epoll.fileno(),
            "listening": self._listening,
            "leaving": self._leaving,
            "held": [fd for fd, held in enumerate(self._held) if held],
            "busy": {str(fd): [busy.pack().hex(), busy.waits] for fd, busy in self._busy.items()},
        }
        try:
            exec_in_place(self._setup.program, RESUME_WORKER_OPTION, state, (self._wake_in, self._wake_out))
        except OSError as e:
            log("cannot reload: %s" % e.strerror)
            self._epoll.register(self._wake_in, select.EPOLLIN)

    def _take_up(self, state: Dict[str, Any]) -> None:
        """Be, after exec, where `_reload` left off."""
        self._leaving = state["leaving"]
        for fd in state["held"]:
            self._gain(fd)
        self._connections = len(state["held"])
        self.special = set()  # filled below; completed by __init__
        for text, (packed, waits) in state["busy"].items():
            self._resume(int(text), Busy.unpack(bytes.fromhex(packed)), waits)
        if state["listening"]:
            self._epoll.unregister(self._setup.listener)
            self._epoll.unregister(self._setup.handover_in)

    def _drain(self) -> None:
        """Graceful end: accept no more, answer what has arrived, give slow readers a bounded time."""
        self._unlisten()
        self._rejoin_at = None
        self._listener.close()
        now = time.monotonic()
        quiet, deadline = now + QUIET_SECONDS, now + DRAIN_SECONDS
        while now < deadline:
            busy = self._serve(timeout=0.02 if self._backpressured else 0.0)
            now = time.monotonic()
            if not self._backpressured and (not busy or now > quiet):
                break


def nudge(pid: int) -> None:
    """Wake the worker with this pid: connections wait for somebody to accept them."""
    try:
        os.kill(pid, NUDGE)
    except OSError:
        pass  # it has died; its successor will look for itself


def resume(fd: int) -> int:
    """Carry on as the worker whose state is in `fd` (see Worker._reload); return the exit status."""
    try:
        state = read_state(fd)
        worker = Worker(WorkerSetup(**state["setup"]), state)
    except BaseException:
        log("cannot take over the connections: %s" % traceback.format_exc().strip())
        return BOOT_ERROR
    return worker.run()
