"""One worker process of the echo server: epoll over raw descriptors.

`Worker` is the loop and the life of the process: times, signals, reload, leaving, draining. The connections it
holds are in `echo_connections`, how it comes by them in `echo_intake`, what is done with their bytes in
`echo_turn` and `echo_http`.
"""

import gc
import os
import select
import signal
import time
import traceback
from typing import Any, Callable, Dict, List, Optional, Tuple

import echo_handover
from echo_connection import Busy
from echo_connections import Connections
from echo_counters import Counters
from echo_http import http_go_on, http_turn
from echo_idle import IdleSweep
from echo_intake import NUDGE, Intake
from echo_log import log, reopen
from echo_plan import RESUME_WORKER_OPTION, WorkerSetup
from echo_reload import exec_in_place, read_state
from echo_turn import echo_turn

MAX_EVENTS = 32  # per epoll_wait: what so many touch stays in the cache; see benchmarks/server.md
QUIET_SECONDS = 0.5  # graceful stop: how long requests that keep coming are still answered
DRAIN_SECONDS = 5.0  # graceful stop: how long slow readers may take for what is already theirs
LEAVE_BATCH = 256  # connections handed over in a row before the others get their turn
LEAVE_SECONDS = 0.01  # how often a leaving worker looks whether the others have room

BOOT_ERROR = 3  # exit status of a worker that failed before it was ready, as in gunicorn
LEAVE = signal.SIGTTOU

_SIGNALS = (signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, NUDGE, LEAVE)

Turn = Callable[[List[Tuple[int, int]]], None]
# Mode -> (makes the function that serves a turn's events, goes on with a connection that owes input)
PROTOCOLS = {"echo": (echo_turn, None), "http": (http_turn, http_go_on)}  # type: Dict[str, Tuple[Any, Any]]


class Worker:
    """The event loop of one slot. `run` serves until told to stop and returns the exit status."""

    def __init__(self, setup: WorkerSetup, state: Optional[Dict[str, Any]] = None) -> None:
        """Boot in a fresh process; `state`, left by `_reload`, makes it carry on with the connections."""
        self._setup = setup
        self._counters = Counters(setup.counters)
        self._columns = self._counters.columns
        self._signals = [] if state is None else state["signals"]  # type: List[int]
        self._wake_in, self._wake_out = os.pipe()
        os.set_blocking(self._wake_in, False)
        os.set_blocking(self._wake_out, False)
        self._leave_at = None  # type: Optional[float]  # when a leaving worker looks again for room elsewhere
        self._due = None  # type: Optional[float]  # the earliest of all times at which something is to be done
        self._stopping = False
        self._reloading = False
        self._leaving = state is not None and state["leaving"]
        self._epoll = select.epoll() if state is None else select.epoll.fromfd(state["epoll"])
        make_turn, go_on = PROTOCOLS[setup.mode]
        self._connections = Connections(
            setup, self._counters, self._epoll, go_on, self._plan_time, lambda: self._intake.rejoin()
        )
        if state is None:
            self._epoll.register(setup.lifeline, select.EPOLLIN)
        else:
            self._take_up(state)
        self._epoll.register(self._wake_in, select.EPOLLIN)
        self._intake = Intake(setup, self._counters, self._epoll, self._connections, self._plan_time)
        self._handover_out = echo_handover.end(setup.handover_out)
        self._idle = IdleSweep(setup.idle_timeout, setup.family) if setup.idle_timeout else None
        self._connections.control.update(
            {
                setup.listener: self._intake.accept_turn,
                setup.handover_in: self._intake.take_over,
                setup.lifeline: self._supervisor_died,
                self._wake_in: self._signalled,
            }
        )
        self._connections.special.update(self._connections.control)
        self._turn = make_turn(self._connections)  # type: Turn

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
        slot = self._setup.slot
        self._columns["pid"][slot] = os.getpid()
        self._columns["since"][slot] = int(time.time())
        self._columns["generation"][slot] += 1
        self._plan_time()
        if self._leaving:
            self._begin_to_leave()
        else:
            self._intake.open()
        self._signalled()  # what came while the former image was about to reload
        os.write(self._setup.ready, b"r")
        while not self._stopping:
            self._serve()
            if self._reloading and not self._stopping:
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

    # -- times -------------------------------------------------------------------------------------------

    def _plan_time(self) -> None:
        """Work out anew when something is to be done without an event."""
        times = [self._intake.rejoin_at, self._leave_at, self._connections.next_due()]
        times.append(self._idle.due if self._idle else None)
        self._due = min((t for t in times if t is not None), default=None)

    def _do_what_is_due(self, now: float) -> None:
        connections = self._connections
        if self._intake.rejoin_at is not None and now >= self._intake.rejoin_at:
            self._intake.rejoin()
        connections.close_due(now)
        if self._idle is not None and now >= self._idle.due:
            for fd in self._idle.next_idle(now, connections.held, connections.busy):
                self._columns["idle_closed"][self._setup.slot] += 1
                connections.close(fd)
        if self._leave_at is not None and now >= self._leave_at:
            self._leave()
        self._plan_time()

    # -- leaving -----------------------------------------------------------------------------------------

    def _begin_to_leave(self) -> None:
        """Accept no more. What follows closes descriptors, so it waits until this turn's events are served."""
        self._leaving = True
        self._intake.close()
        self._leave_at = time.monotonic()
        self._plan_time()

    def _leave(self) -> None:
        """Give the connections to workers that have room, and end without any.

        What the others have no room for stays here until it ends or room is made.
        """
        connections = self._connections
        room, on_the_way = self._room_elsewhere()
        if room < 0:
            self._intake.receive(-room)  # others have filled up meanwhile: what nobody can take comes back
        if connections.count == 0 and on_the_way == 0:
            self._stopping = True
            return
        fd, given = connections.held.find(1), 0
        while fd >= 0 and given < min(room, LEAVE_BATCH):
            if not echo_handover.send(self._handover_out, fd, connections.busy.get(fd)):
                break
            # The kernel's copy that is on its way keeps the connection open, and would stay in our epoll set.
            self._epoll.unregister(fd)
            os.close(fd)
            given += 1
            self._columns["handed_over"][self._setup.slot] += 1
            connections.lose(fd)
            fd = connections.held.find(1, fd)
        self._leave_at = time.monotonic() + (0.0 if given else LEAVE_SECONDS)

    def _room_elsewhere(self) -> Tuple[int, int]:
        """Return (connections that others can still take, connections on their way to them)."""
        slots = range(self._counters.look())
        columns, limits = self._columns, self._columns["limit"]
        # The counts are off where a worker was killed between an exchange and its count; the socket never is.
        counted = sum(columns["handed_over"]) - sum(columns["taken_over"])
        on_the_way = max(1, counted) if echo_handover.is_waiting(self._intake.handover) else 0
        free = [
            max(0, limits[n] - columns["connections"][n])
            for n in slots
            if n != self._setup.slot and columns["pid"][n] and not columns["leaving"][n]
        ]
        return sum(free) - on_the_way, on_the_way

    # -- life and death ----------------------------------------------------------------------------------

    def _supervisor_died(self, event: int) -> None:
        log("the supervisor is gone: ending")
        os._exit(1)

    def _signalled(self, event: int = 0) -> None:
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
                self._intake.nudged()

    def _reload(self) -> None:
        """Execute the program's present files in place; connections, epoll set and listener stay open."""
        self._reloading = False
        self._epoll.unregister(self._wake_in)
        connections = self._connections
        state = {
            "setup": self._setup._asdict(),
            "epoll": self._epoll.fileno(),
            "listening": self._intake.listening,
            "leaving": self._leaving,
            "signals": self._signals,
            "held": connections.all(),
            "busy": {str(fd): [busy.pack().hex(), busy.waits] for fd, busy in connections.busy.items()},
        }
        setup = self._setup
        keep = [setup.listener, setup.lifeline, setup.ready, setup.handover_in, setup.handover_out, setup.counters]
        try:
            exec_in_place(
                setup.program, RESUME_WORKER_OPTION, state, [*keep, self._epoll.fileno(), *state["held"]]
            )
        except OSError as e:
            log("cannot reload: %s" % e.strerror)
            self._epoll.register(self._wake_in, select.EPOLLIN)

    def _take_up(self, state: Dict[str, Any]) -> None:
        """Hold, after exec, what `_reload` has left."""
        for fd in state["held"]:
            self._connections.gain(fd)
        self._connections.add(len(state["held"]))
        for text, (packed, waits) in state["busy"].items():
            self._connections.resume(int(text), Busy.unpack(bytes.fromhex(packed)), waits)
        if state["listening"]:
            self._epoll.unregister(self._setup.listener)
            self._epoll.unregister(self._setup.handover_in)

    def _drain(self) -> None:
        """Graceful end: accept no more, answer what has arrived, give slow readers a bounded time."""
        self._intake.close_listener()
        now = time.monotonic()
        quiet, deadline = now + QUIET_SECONDS, now + DRAIN_SECONDS
        while now < deadline:
            waiting = self._connections.backpressured
            busy = self._serve(timeout=0.02 if waiting else 0.0)
            now = time.monotonic()
            if not self._connections.backpressured and (not busy or now > quiet):
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
