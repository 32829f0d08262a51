"""The supervisor of the echo server's workers, in gunicorn's manner.

Signal handlers only queue; `run` takes the names from the queue and calls handle_<name>, so the whole
life of the server reads top to bottom there. The supervisor holds the listener, the shared counters and
the pipes, and never touches a connection.
"""

import errno
import os
import select
import signal
import socket
import stat
import time
import traceback
from typing import Any, Callable, Dict, List, Optional, Set

import echo_handover
import echo_identity
import echo_log
import echo_notify
import nofile
from daemon import DaemonError, PidFile
from echo_connection import set_keepalive
from echo_counters import SLOTS, Counters, counters_path
from echo_log import log
from echo_plan import MAX_WORKERS, RESUME_SUPERVISOR_OPTION, Options, Plan, PlanError, make_plan
from echo_port import port_owner
from echo_reload import exec_in_place, probe, read_state
from echo_worker import BOOT_ERROR, DRAIN_SECONDS, LEAVE, Worker, WorkerSetup, nudge

BOOT_SECONDS = 20.0  # a worker that is not ready by then counts as failed
BACKOFF_FIRST, BACKOFF_MOST = 0.1, 30.0  # seconds until a dead worker is replaced: doubles each time
HEALTHY_SECONDS = 10.0  # a worker that lived so long starts again at BACKOFF_FIRST
BACKLOG_MOST = 65535
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
        self._pids = {}  # type: Dict[int, int]  # pid -> slot
        self._born = {}  # type: Dict[int, float]  # slot -> when its worker was started
        self._failures = {}  # type: Dict[int, int]  # slot -> deaths in a row
        self._respawn_at = {}  # type: Dict[int, float]
        self._leaving: Set[int] = set()  # slots whose workers have been told to leave
        self._stopping = False

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
            while self._queue:
                getattr(self, "handle_" + self._queue.pop(0).lower())()
            self._respawn()
            if not self._stopping:
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
            columns = self.counters.columns
            for pid, slot in self._pids.items():
                # Only one that has booted: before that it has no handler, and needs no waking.
                if columns["pid"][slot] == pid and not columns["full"][slot] and slot not in self._leaving:
                    nudge(pid)

    def _end(self, pid_file: Optional[PidFile]) -> None:
        self._kill_all()
        if self.options.pid_file:
            _unlink(counters_path(self.options.pid_file))
        if pid_file is not None:
            pid_file.release()

    # -- boot --------------------------------------------------------------------------------------------

    def _boot(self) -> None:
        self._identity = echo_identity.find(self.options.user) if self.options.user else None
        self.nofile = nofile.raise_nofile(nofile.reachable())
        self.plan = self._plan(self.options.workers)
        if self.plan.note:
            log(self.plan.note)
        self.listener = _bind(self.options.bind, self.options.port)
        set_keepalive(self.listener, self.options.keepalive)
        slots = len(self.plan.limits)
        path = counters_path(self.options.pid_file) if self.options.pid_file else None
        try:
            self.counters = Counters.create(path)
        except OSError as e:
            raise DaemonError("cannot write %s: %s" % (path, e.strerror))
        for slot, limit in enumerate(self.plan.limits):
            self.counters.columns["limit"][slot] = limit
        self.counters.globals[SLOTS] = slots
        # Workers have the read end: when the supervisor is gone, however it ended, they see the end of it.
        self._lifeline_in, self._lifeline_out = os.pipe()
        self._ready_in, self._ready_out = os.pipe()
        os.set_blocking(self._ready_in, False)
        self._handover_in, self._handover_out = echo_handover.pair()
        self._catch_signals()
        self.counters.write_header(self._header())
        if self.options.log_file:
            self._give_log_to_workers()
        for slot in range(slots):
            self._spawn(slot)
        if self._respawn_at:
            raise DaemonError(
                "only %d of %d workers could be started: no more processes" % (len(self._pids), slots)
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
                    for slot, status in self._reap():
                        raise DaemonError("worker %d failed to start: %s" % (slot, _how(status)))
                elif name in ("TERM", "INT", "QUIT"):
                    raise DaemonError("stopped by SIG%s while starting" % name)
            if time.monotonic() > deadline:
                raise DaemonError("the workers were not ready within %g s" % BOOT_SECONDS)

    def _header(self) -> Dict[str, object]:
        o = self.options
        address = self.listener.getsockname()
        host = "[%s]" % address[0] if ":" in address[0] else address[0]
        return {
            "pid": os.getpid(),
            "started": self.started,
            "reload": self._reloads,
            "version": self.version,
            "manager": "systemd" if echo_notify.is_asked_for() else "none",
            "options": {
                "bind": o.bind,
                "port": o.port,
                "mode": o.mode,
                "workers": "auto" if o.workers is None else o.workers,
                "max_connections": o.max_connections,
                "user": o.user,
                "idle_timeout": o.idle_timeout,
                "keepalive": list(o.keepalive),
                "max_buffered": o.max_buffered,
                "verbose": o.verbose,
            },
            "listening": ["%s:%d" % (host, address[1])],
            "backlog": _backlog(),
            "nofile": self.nofile,
            "note": self.plan.note,
            "log_file": o.log_file,
        }

    def _describe(self) -> str:
        header = self._header()
        return "listening on %s: %s (open files %d, accept queue %d)%s" % (
            ", ".join(header["listening"]),  # type: ignore
            self._capacity(),
            self.nofile,
            _backlog(),
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
        due = min([deadline, *self._respawn_at.values()])
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
                exec_in_place(
                    self.program, RESUME_SUPERVISOR_OPTION, self._state(), (self._wake_in, self._wake_out)
                )
            except OSError as e:
                error = "cannot run the new code: %s" % e.strerror
        log("not reloaded: %s" % error)
        echo_notify.notify("READY=1", "STATUS=not reloaded: %s" % error)
        self._reloads["error"] = error
        self.counters.write_header(self._header())

    def handle_usr1(self) -> None:
        """Reopen the log (after a rotation), here and in the workers."""
        if self.options.log_file:
            echo_log.reopen(self.options.log_file)
            self._give_log_to_workers()
        self._signal_all(signal.SIGUSR1)

    def handle_ttin(self) -> None:
        """One worker more."""
        active = self._active()
        if len(active) >= MAX_WORKERS:
            log("no more workers: %d is the most" % MAX_WORKERS)
            return
        slot = next(n for n in range(MAX_WORKERS) if n not in active and n not in self._leaving)
        self._set_workers([*active, slot])
        self._spawn(slot)

    def handle_ttou(self) -> None:
        """One worker less: it hands its connections over and ends; what the others cannot take stays with it."""
        active = self._active()
        if len(active) == 1:
            log("the last worker stays")
            return
        slot = active[-1]
        self._respawn_at.pop(slot, None)
        pids = [pid for pid, its in self._pids.items() if its == slot]  # none where its worker has just died
        self.counters.columns["leaving"][slot] = len(pids)
        self._set_workers(active[:-1])
        for pid in pids:
            self._leaving.add(slot)
            os.kill(pid, LEAVE)

    def _active(self) -> List[int]:
        """Return the slots that have a worker, or will have one again, and keep it."""
        found = set(self._pids.values()) | set(self._respawn_at)
        return sorted(found - self._leaving)

    def _set_workers(self, slots: List[int]) -> None:
        """Share the connections out anew over the workers of these slots."""
        columns = self.counters.columns
        self.plan = self._plan(len(slots))
        limits = {slot: self.plan.limits[n] for n, slot in enumerate(sorted(slots))}
        self._count_slots(slots)
        for slot in range(self.counters.globals[SLOTS]):
            columns["limit"][slot] = limits.get(slot, 0)
        self.counters.write_header(self._header())
        log("%s%s" % (self._capacity(), "; " + self.plan.note if self.plan.note else ""))
        for pid, slot in self._pids.items():
            if columns["pid"][slot] == pid:
                nudge(pid)  # one that was full may take connections now

    def _count_slots(self, slots: List[int]) -> None:
        self.counters.globals[SLOTS] = max([*slots, *self._pids.values()]) + 1

    def handle_chld(self) -> None:
        """Plan the replacement of dead workers."""
        for slot, status in self._reap():
            if slot in self._leaving:
                self._leaving.remove(slot)
                log("worker %d has left (%s)" % (slot, _how(status)))
                self._count_slots(self._active())
                continue
            lived = time.monotonic() - self._born[slot]
            failures = 0 if lived > HEALTHY_SECONDS else self._failures.get(slot, 0)
            delay = min(BACKOFF_MOST, BACKOFF_FIRST * 2**failures)
            self._failures[slot] = failures + 1
            self._respawn_at[slot] = time.monotonic() + delay
            log("worker %d ended (%s) after %.1f s; next one in %.1f s" % (slot, _how(status), lived, delay))

    def _reap(self) -> List[tuple]:
        """Collect dead workers; return (slot, wait status) of each."""
        dead = []
        for pid in list(self._pids):
            try:
                gone, status = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                gone, status = pid, 0
            if gone:
                slot = self._pids.pop(pid)
                self.counters.clear(slot)
                dead.append((slot, status))
        return dead

    def _respawn(self) -> None:
        now = time.monotonic()
        for slot, due in list(self._respawn_at.items()):
            if due <= now and not self._stopping:
                del self._respawn_at[slot]
                self._spawn(slot)

    def _give_log_to_workers(self) -> None:
        """Let the user that the workers run as reopen the log; it was created by ours."""
        # Only a file of its own: /dev/null stays root's.
        if self._identity is not None and stat.S_ISREG(os.fstat(2).st_mode):
            try:
                os.fchown(2, self._identity.uid, self._identity.gid)
            except OSError as e:
                log("cannot give the log to user %s: %s" % (self._identity.name, e.strerror))

    def _spawn(self, slot: int) -> None:
        """Fork the worker of `slot`."""
        self._born[slot] = time.monotonic()
        # No signal may reach the child before its own handlers are in place.
        old = signal.pthread_sigmask(signal.SIG_BLOCK, [getattr(signal, "SIG" + n) for n in _SIGNALS])
        try:
            pid = os.fork()
        except OSError as e:
            signal.pthread_sigmask(signal.SIG_SETMASK, old)
            log("cannot start worker %d: %s" % (slot, e.strerror))
            self._respawn_at[slot] = time.monotonic() + BACKOFF_MOST
            return
        if pid == 0:
            os._exit(self._be_worker(slot))
        self._pids[pid] = slot
        signal.pthread_sigmask(signal.SIG_SETMASK, old)

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

    def _state(self) -> Dict[str, Any]:
        """Return what the next image of this process needs to carry on; descriptors stay open across exec."""
        return {
            "options": self.options._asdict(),
            "started": self.started,
            "reload": self._reloads,
            "plan": self.plan._asdict(),
            "nofile": self.nofile,
            "listener": self.listener.fileno(),
            "family": int(self.listener.family),
            "counters": self.counters.fd,
            "lifeline": [self._lifeline_in, self._lifeline_out],
            "ready": [self._ready_in, self._ready_out],
            "handover": [self._handover_in, self._handover_out],
            "leaving": sorted(self._leaving),
            "pids": list(self._pids.items()),
            "born": list(self._born.items()),
            "failures": list(self._failures.items()),
            "respawn_at": list(self._respawn_at.items()),
        }

    def _restore(self, state: Dict[str, Any]) -> None:
        self.plan = Plan(**state["plan"])
        self.nofile = state["nofile"]
        self.listener = socket.socket(state["family"], socket.SOCK_STREAM, 0, state["listener"])
        self.counters = Counters(state["counters"])
        self._lifeline_in, self._lifeline_out = state["lifeline"]
        self._ready_in, self._ready_out = state["ready"]
        self._handover_in, self._handover_out = state["handover"]
        self._leaving = set(state["leaving"])
        self._identity = echo_identity.find(self.options.user) if self.options.user else None
        self._pids, self._born = dict(state["pids"]), dict(state["born"])
        self._failures, self._respawn_at = dict(state["failures"]), dict(state["respawn_at"])
        self.started, self._reloads = state["started"], state["reload"]
        self._catch_signals()
        self._queue.append("CHLD")  # a worker may have died while nobody listened for it

    def _reload_workers(self) -> None:
        """Let the workers execute the new code one after another, so that the others keep accepting."""
        generations = self.counters.columns["generation"]
        error = ""
        for pid, slot in list(self._pids.items()):
            before, deadline = generations[slot], time.monotonic() + BOOT_SECONDS
            if self._stop_is_asked():
                break
            try:
                os.kill(pid, signal.SIGHUP)
            except OSError:
                continue  # it is dead: its replacement runs the new code
            while generations[slot] == before and pid in self._pids:
                self._wait(deadline)
                if "CHLD" in self._queue:
                    self._queue.remove("CHLD")
                    self.handle_chld()
                if self._stop_is_asked() or time.monotonic() > deadline:
                    break
            if generations[slot] == before and pid in self._pids:
                error = "worker %d did not reload" % slot
        self._reloads["at"], self._reloads["error"] = _now(), error
        self.counters.write_header(self._header())
        log(error or "reloaded: version %s" % self.version)
        echo_notify.notify("READY=1", "STATUS=" + (error or self._describe()))

    def _stop_is_asked(self) -> bool:
        return any(name in self._queue for name in ("TERM", "INT", "QUIT"))

    # -- stopping ----------------------------------------------------------------------------------------

    def _stop(self, number: int, seconds: float) -> None:
        """Signal all workers and wait for their end; whoever is still there after `seconds` is killed."""
        self._stopping = True
        self._respawn_at.clear()
        self.listener.close()
        self._signal_all(number)
        deadline = time.monotonic() + seconds
        while self._pids and time.monotonic() < deadline:
            self._wait(deadline)
            self._reap()
            if "QUIT" in self._queue or "INT" in self._queue:
                break  # asked again, more firmly
        log("stopped" if not self._pids else "killing %d workers that do not end" % len(self._pids))

    def _signal_all(self, number: int) -> None:
        for pid in self._pids:
            try:
                os.kill(pid, number)
            except OSError:
                pass

    def _kill_all(self) -> None:
        self._signal_all(signal.SIGKILL)
        for pid in self._pids:
            try:
                os.waitpid(pid, 0)
            except OSError:
                pass
        self._pids.clear()


def _bind(host: str, port: int) -> socket.socket:
    """Return a bound TCP socket that does not listen yet; raise DaemonError naming who has the port."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as e:
        raise DaemonError("cannot bind %s: %s" % (host, e.strerror))
    except UnicodeError:  # what no name can look like, such as "a..b"
        raise DaemonError("cannot bind %s: it is neither an address nor a name" % host)
    family, kind, protocol, _, address = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Connections inherit it. Else a second echo would wait for the acknowledgement of the first (Nagle).
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # `::` serves IPv4 as well
        sock.bind(address)
        # bind() succeeds beside a socket that is bound but not listening yet; listen() settles it.
        sock.listen(_backlog())
    except OSError as e:
        sock.close()
        where = "%s port %d" % (host, port)
        if e.errno == errno.EADDRINUSE:
            owner = port_owner(port)
            raise DaemonError("%s is in use%s" % (where, " by " + owner if owner else ""))
        raise DaemonError("cannot listen on %s: %s" % (where, e.strerror))
    return sock


def _backlog() -> int:
    """Return the accept queue's length: what the kernel allows (net.core.somaxconn), at most 65535."""
    try:
        with open("/proc/sys/net/core/somaxconn") as f:
            return min(int(f.read()), BACKLOG_MOST)
    except (OSError, ValueError):
        return socket.SOMAXCONN


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


def _how(status: int) -> str:
    """Describe a wait status in words."""
    if os.WIFSIGNALED(status):
        return "killed by " + signal.Signals(os.WTERMSIG(status)).name
    return "exit status %d" % os.WEXITSTATUS(status)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass
