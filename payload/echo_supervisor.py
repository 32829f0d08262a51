"""The supervisor of the echo server's workers, in gunicorn's manner.

Signal handlers only queue; `run` takes the names from the queue and calls handle_<name>, so the whole
life of the server reads top to bottom there. The supervisor holds the listener, the shared counters and
the pipes, and never touches a connection.
"""

import os
import select
import signal
import socket
import stat
import time
import traceback
from typing import Any, Callable, Dict, List, Optional

import echo_handover
import echo_identity
import echo_log
import echo_notify
import echo_port
import echo_status
import nofile
from daemon import DaemonError, PidFile
from echo_connection import set_keepalive
from echo_counters import SLOTS, Counters, counters_path
from echo_intake import nudge
from echo_log import log
from echo_plan import MAX_WORKERS, RESUME_SUPERVISOR_OPTION, Options, Plan, PlanError, WorkerSetup, make_plan
from echo_prefork import Workers
from echo_reload import exec_in_place, probe, read_state
from echo_worker import BOOT_ERROR, DRAIN_SECONDS, LEAVE, Worker

BOOT_SECONDS = 20.0  # a worker that is not ready by then counts as failed
WATCH_SECONDS = 1.0  # how long a connection may wait for a worker that was woken for it and does not come

_SIGNALS = ("TERM", "INT", "QUIT", "HUP", "USR1", "TTIN", "TTOU", "CHLD")


class Supervisor:
    """Runs the workers of one server: `run` returns the exit status once it has stopped."""

    def __init__(self, options: Options, version: str, program: List[str]) -> None:
        """`program` is the argv that runs the program's files anew, for a reload."""
        self.options = options
        self.version = version
        self.program = program
        self.started = _now()
        self._reloads = {"attempts": 0, "at": None, "error": ""}  # type: Dict[str, Any]
        self._queue = []  # type: List[str]
        self._workers = Workers(self._be_worker, lambda slot: self.counters.clear(slot))
        self._stopping = False
        self._counters_file = None  # type: Optional[str]  # ours, to be removed at the end

    def run(self, ready: Callable[[str], None]) -> int:
        """Boot, call ready(message) once all workers accept, serve until told to stop.

        Raises DaemonError with one sentence if the server cannot start; nothing is left behind then.
        """
        pid_file = PidFile(self.options.pid_file) if self.options.pid_file else None
        if pid_file is not None:
            pid_file.acquire()
        try:
            self._boot()
            message = self._describe()
            log(message)
            ready(message)
            echo_notify.notify("READY=1", "STATUS=" + message)
            return self._live()
        finally:
            self._end(pid_file)

    def carry_on(self, state: Dict[str, Any]) -> int:
        """Be, after exec, the supervisor that left `state`; reload the workers and serve on as `run` does."""
        pid_file = PidFile(self.options.pid_file) if self.options.pid_file else None
        if pid_file is not None:
            pid_file.adopt()
        try:
            self._restore(state)
            self._reload_workers()
            return self._live()
        finally:
            self._end(pid_file)

    def _live(self) -> int:
        while not self._stopping:
            while self._queue and not self._stopping:
                getattr(self, "handle_" + self._queue.pop(0).lower())()
            if not self._stopping:
                self._workers.respawn()
                self._wait(time.monotonic() + WATCH_SECONDS)
                self._watch_listener()
        return 0

    def _watch_listener(self) -> None:
        """Wake every worker that has room if connections wait.

        The kernel wakes one worker per connection; if that one is stopped or killed in this very moment,
        nobody else learns of it.
        """
        poll = select.poll()
        poll.register(self.listener.fileno(), select.POLLIN)
        if poll.poll(0):
            if not self.listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                self._listen_again()
            columns = self.counters.columns
            for pid, slot in self._workers.pids.items():
                # Only one that has booted: before that it has no handler, and needs no waking.
                if columns["pid"][slot] == pid and not columns["full"][slot] and slot not in self._workers.leaving:
                    nudge(pid)

    def _listen_again(self) -> None:
        """The listener was ended from outside, as `ss -K` does; it still has its port."""
        try:
            self.listener.listen(echo_port.backlog())
            # Shut by that, it would hand this on to each new connection. Disconnecting a listener clears it.
            self.listener.shutdown(socket.SHUT_RD)
            self.listener.listen(echo_port.backlog())
        except OSError as e:
            log("the listener was ended from outside, and cannot listen again: %s" % e.strerror)
        else:
            log("the listener was ended from outside: it listens again")

    def _end(self, pid_file: Optional[PidFile]) -> None:
        self._workers.kill()
        if self._counters_file:
            _unlink(self._counters_file)
        if pid_file is not None:
            pid_file.release()

    # -- boot --------------------------------------------------------------------------------------------

    def _boot(self) -> None:
        self._identity = None if self.options.user is None else echo_identity.find(self.options.user)
        self.nofile = nofile.raise_nofile(nofile.reachable())
        self.plan = self._plan(self.options.workers)
        if self.plan.note:
            log(self.plan.note)
        self.listener = echo_port.listen(self.options.bind, self.options.port)
        set_keepalive(self.listener, self.options.keepalive)
        slots = len(self.plan.limits)
        path = counters_path(self.options.pid_file) if self.options.pid_file else None
        try:
            self.counters = Counters.create(path)
        except OSError as e:
            raise DaemonError("cannot write %s: %s" % (path or "the counters", e.strerror))
        self._counters_file = path
        for slot, limit in enumerate(self.plan.limits):
            self.counters.columns["limit"][slot] = limit
        self.counters.globals[SLOTS] = slots
        # Workers have the read end: when the supervisor is gone, however it ended, they see the end of it.
        self._lifeline_in, self._lifeline_out = os.pipe()
        self._ready_in, self._ready_out = os.pipe()
        os.set_blocking(self._ready_in, False)
        self._handover_in, self._handover_out = echo_handover.pair()
        self._catch_signals()
        self._write_status()
        if self.options.log_file:
            self._give_log_to_workers()
        for slot in range(slots):
            self._workers.spawn(slot)
        if self._workers.respawn_at:
            raise DaemonError(
                "only %d of %d workers could be started: no more processes" % (len(self._workers.pids), slots)
            )
        self._await_workers(slots)

    def _catch_signals(self) -> None:
        self._wake_in, self._wake_out = os.pipe()
        os.set_blocking(self._wake_in, False)
        os.set_blocking(self._wake_out, False)
        for name in _SIGNALS:
            signal.signal(getattr(signal, "SIG" + name), self._signalled)
        signal.set_wakeup_fd(self._wake_out)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])

    def _plan(self, workers: Optional[int]) -> Plan:
        try:
            return make_plan(len(os.sched_getaffinity(0)), self.nofile, workers, self.options.max_connections)
        except PlanError as e:
            raise DaemonError(str(e))

    def _await_workers(self, count: int) -> None:
        deadline = time.monotonic() + BOOT_SECONDS
        booted = 0
        while booted < count:
            booted += self._wait(deadline)
            while self._queue:
                name = self._queue.pop(0)
                if name == "CHLD":
                    for slot, how in self._workers.reap():
                        raise DaemonError("worker %d failed to start: %s" % (slot, how))
                elif name in ("TERM", "INT", "QUIT"):
                    raise DaemonError("stopped by SIG%s while starting" % name)
            if time.monotonic() > deadline:
                raise DaemonError("the workers were not ready within %g s" % BOOT_SECONDS)

    def _write_status(self) -> None:
        self.counters.write_header(
            echo_status.header(
                self.options, self.plan, self.listener, self.nofile, self.started, self.version, self._reloads
            )
        )

    def _describe(self) -> str:
        return "listening on %s: %s (open files %d, accept queue %d)%s" % (
            echo_status.address(self.listener),
            self._capacity(),
            self.nofile,
            echo_port.backlog(),
            "; " + self.plan.note if self.plan.note else "",
        )

    def _capacity(self) -> str:
        return "%d workers for %d connections" % (len(self.plan.limits), sum(self.plan.limits))

    # -- the main loop's parts ---------------------------------------------------------------------------

    def _signalled(self, number: int, frame: object) -> None:
        name = signal.Signals(number).name[3:]
        if name != "CHLD" or name not in self._queue:
            self._queue.append(name)

    def _wait(self, deadline: float) -> int:
        """Sleep until a signal, a booted worker, the next respawn or `deadline` (monotonic seconds).

        Returns how many workers have booted.
        """
        due = min([deadline, *self._workers.respawn_at.values()])
        poll = select.poll()
        poll.register(self._wake_in, select.POLLIN)
        poll.register(self._ready_in, select.POLLIN)
        poll.poll(int(max(0.0, due - time.monotonic()) * 1000) + 1)
        _drain(self._wake_in)
        return _drain(self._ready_in)

    def handle_term(self) -> None:
        """Graceful stop: workers answer what has arrived and end."""
        log("stopping")
        echo_notify.notify("STOPPING=1")
        self._stop(signal.SIGTERM, DRAIN_SECONDS + 2.0)

    def handle_int(self) -> None:
        """Ctrl-C: the same as TERM."""
        self.handle_term()

    def handle_quit(self) -> None:
        """Stop at once."""
        log("stopping at once")
        self._stop(signal.SIGQUIT, 1.0)

    def handle_hup(self) -> None:
        """Reload: this process and then each worker executes the program's present files in place."""
        self._reloads["attempts"] += 1
        error = probe(self.program, self._identity)
        if error is None:
            log("reloading")
            echo_notify.reloading()
            try:
                exec_in_place(self.program, RESUME_SUPERVISOR_OPTION, self._state(), self._lasting())
            except OSError as e:
                error = "cannot run the new code: %s" % e.strerror
        log("not reloaded: %s" % error)
        echo_notify.notify("READY=1", "STATUS=not reloaded: %s" % error)
        self._reloads["error"] = error
        self._write_status()

    def handle_usr1(self) -> None:
        """Reopen the log (after a rotation), here and in the workers."""
        if self.options.log_file:
            echo_log.reopen(self.options.log_file)
            self._give_log_to_workers()
        self._workers.signal(signal.SIGUSR1)

    def handle_ttin(self) -> None:
        """One worker more."""
        active = self._workers.active()
        if len(active) >= MAX_WORKERS:
            log("no more workers: %d is the most" % MAX_WORKERS)
            return
        slot = next(n for n in range(MAX_WORKERS) if n not in active and n not in self._workers.leaving)
        self._set_workers([*active, slot])
        self._workers.spawn(slot)

    def handle_ttou(self) -> None:
        """One worker less: it hands its connections over and ends; what the others cannot take stays with it."""
        active = self._workers.active()
        if len(active) == 1:
            log("the last worker stays")
            return
        slot = active[-1]
        self._workers.respawn_at.pop(slot, None)
        # None where its worker has just died.
        pids = [pid for pid, its in self._workers.pids.items() if its == slot]
        self.counters.columns["leaving"][slot] = len(pids)
        self._set_workers(active[:-1])
        for pid in pids:
            self._workers.leaving.add(slot)
            os.kill(pid, LEAVE)

    def _set_workers(self, slots: List[int]) -> None:
        """Share the connections out anew over the workers of these slots."""
        columns = self.counters.columns
        self.plan = self._plan(len(slots))
        limits = {slot: self.plan.limits[n] for n, slot in enumerate(sorted(slots))}
        self._count_slots(slots)
        for slot in range(self.counters.globals[SLOTS]):
            columns["limit"][slot] = limits.get(slot, 0)
        self._write_status()
        log("%s%s" % (self._capacity(), "; " + self.plan.note if self.plan.note else ""))
        for pid, slot in self._workers.pids.items():
            if columns["pid"][slot] == pid:
                nudge(pid)  # one that was full may take connections now

    def _count_slots(self, slots: List[int]) -> None:
        self.counters.globals[SLOTS] = max([*slots, *self._workers.pids.values()]) + 1

    def handle_chld(self) -> None:
        """Plan the replacement of dead workers."""
        for slot, how in self._workers.reap():
            if slot in self._workers.leaving:
                self._workers.leaving.remove(slot)
                log("worker %d has left (%s)" % (slot, how))
                self._count_slots(self._workers.active())
                continue
            self._workers.plan_next(slot, how)

    def _give_log_to_workers(self) -> None:
        """Let the user that the workers run as reopen the log; it was created by ours."""
        # Only a file of its own: /dev/null stays root's, and so does a file that has a second name somewhere.
        log_is = os.fstat(2)
        if self._identity is not None and stat.S_ISREG(log_is.st_mode) and log_is.st_nlink == 1:
            try:
                os.fchown(2, self._identity.uid, self._identity.gid)
            except OSError as e:
                log("cannot give the log to user %s: %s" % (self._identity.name, e.strerror))

    def _be_worker(self, slot: int) -> int:
        booted = False
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for fd in (self._lifeline_out, self._ready_in, self._wake_in, self._wake_out):
                os.close(fd)
            if self._identity is not None:
                echo_identity.become(self._identity)
            setup = WorkerSetup(
                slot=slot,
                listener=self.listener.detach(),
                family=int(self.listener.family),
                lifeline=self._lifeline_in,
                ready=self._ready_out,
                handover_in=self._handover_in,
                handover_out=self._handover_out,
                counters=self.counters.fd,
                log_file=self.options.log_file,
                mode=self.options.mode,
                idle_timeout=self.options.idle_timeout,
                verbose=self.options.verbose,
                max_buffered=self.options.max_buffered,
                program=self.program,
            )
            worker = Worker(setup)
            booted = True
            return worker.run()
        except BaseException:
            log("worker %d: %s" % (slot, traceback.format_exc().strip()))
            return 1 if booted else BOOT_ERROR

    # -- reload ------------------------------------------------------------------------------------------

    def _lasting(self) -> List[int]:
        """Return the descriptors that the next image of this process goes on with."""
        pipes = [self._lifeline_in, self._lifeline_out, self._ready_in, self._ready_out]
        return [self.listener.fileno(), self.counters.fd, *pipes, self._handover_in, self._handover_out]

    def _state(self) -> Dict[str, Any]:
        """Return what the next image of this process needs to carry on."""
        return {
            "options": self.options._asdict(),
            "started": self.started,
            "reload": self._reloads,
            "queue": self._queue,  # what was asked meanwhile
            "plan": self.plan._asdict(),
            "nofile": self.nofile,
            "listener": self.listener.fileno(),
            "family": int(self.listener.family),
            "counters": self.counters.fd,
            "lifeline": [self._lifeline_in, self._lifeline_out],
            "ready": [self._ready_in, self._ready_out],
            "handover": [self._handover_in, self._handover_out],
            **self._workers.state(),
        }

    def _restore(self, state: Dict[str, Any]) -> None:
        self.plan = Plan(**state["plan"])
        self.nofile = state["nofile"]
        self.listener = socket.socket(state["family"], socket.SOCK_STREAM, 0, state["listener"])
        self.counters = Counters(state["counters"])
        self._counters_file = counters_path(self.options.pid_file) if self.options.pid_file else None
        self._lifeline_in, self._lifeline_out = state["lifeline"]
        self._ready_in, self._ready_out = state["ready"]
        self._handover_in, self._handover_out = state["handover"]
        self._workers.restore(state)
        self._identity = None if self.options.user is None else echo_identity.find(self.options.user)
        self.started, self._reloads = state["started"], state["reload"]
        self._queue.extend(state["queue"])
        self._catch_signals()
        self._queue.append("CHLD")  # a worker may have died while nobody listened for it

    def _reload_workers(self) -> None:
        """Let the workers execute the new code one after another, so that the others keep accepting."""
        generations = self.counters.columns["generation"]
        error = ""
        for pid, slot in list(self._workers.pids.items()):
            before, deadline = generations[slot], time.monotonic() + BOOT_SECONDS
            if self._stop_is_asked():
                break
            try:
                os.kill(pid, signal.SIGHUP)
            except OSError:
                continue  # it is dead: its replacement runs the new code
            while generations[slot] == before and pid in self._workers.pids:
                self._wait(deadline)
                if "CHLD" in self._queue:
                    self._queue.remove("CHLD")
                    self.handle_chld()
                if self._stop_is_asked() or time.monotonic() > deadline:
                    break
            if generations[slot] == before and pid in self._workers.pids:
                error = "worker %d did not reload" % slot
        self._reloads["at"], self._reloads["error"] = _now(), error
        self._write_status()
        log(error or "reloaded: version %s" % self.version)
        echo_notify.notify("READY=1", "STATUS=" + (error or self._describe()))

    def _stop_is_asked(self) -> bool:
        return any(name in self._queue for name in ("TERM", "INT", "QUIT"))

    # -- stopping ----------------------------------------------------------------------------------------

    def _stop(self, number: int, seconds: float) -> None:
        """Signal all workers and wait for their end; whoever is still there after `seconds` is killed."""
        self._stopping = True
        self._workers.respawn_at.clear()
        self.listener.close()
        self._workers.signal(number)
        deadline = time.monotonic() + seconds
        while self._workers.pids and time.monotonic() < deadline:
            self._wait(deadline)
            self._workers.reap()
            if "QUIT" in self._queue or "INT" in self._queue:
                break  # asked again, more firmly
        left = len(self._workers.pids)
        log("killing %d workers that do not end" % left if left else "stopped")


def resume(fd: int, version: str, program: List[str]) -> int:
    """Carry on, after exec, as the supervisor whose state is in `fd`; return the exit status."""
    state = read_state(fd)
    return Supervisor(Options(**state["options"]), version, program).carry_on(state)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _drain(fd: int) -> int:
    """Empty a pipe; return how many bytes were in it (4096 at most)."""
    try:
        return len(os.read(fd, 4096))
    except BlockingIOError:
        return 0


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass
