"""The supervisor's worker processes: forked, reaped, replaced with back-off, ended.

A slot is a worker's place in the shared counters; its successor gets the same one.
"""

import os
import signal
import time
from typing import Any, Callable, Dict, List, Set, Tuple

from echo_log import log

BACKOFF_FIRST, BACKOFF_MOST = 0.1, 30.0  # seconds until a dead worker is replaced: doubles each time
HEALTHY_SECONDS = 10.0  # a worker that lived so long starts again at BACKOFF_FIRST


class Workers:
    """Who runs in which slot, and who is to run there again."""

    def __init__(self, be_worker: Callable[[int], int], clear: Callable[[int], None]) -> None:
        """be_worker(slot) runs in the new process and returns its exit status; clear(slot) follows a death."""
        self.pids: Dict[int, int] = {}  # pid -> slot
        self.respawn_at: Dict[int, float] = {}  # slot -> when its next worker is due
        self.leaving: Set[int] = set()  # slots whose workers have been told to leave
        self._be_worker, self._clear = be_worker, clear
        self._born: Dict[int, float] = {}  # slot -> when its worker was started
        self._failures: Dict[int, int] = {}  # slot -> deaths in a row

    def state(self) -> Dict[str, Any]:
        """Return what the next image of this process needs to `restore` all this."""
        return {
            "leaving": sorted(self.leaving),
            "pids": list(self.pids.items()),
            "born": list(self._born.items()),
            "failures": list(self._failures.items()),
            "respawn_at": list(self.respawn_at.items()),
        }

    def restore(self, state: Dict[str, Any]) -> None:
        """Mind the processes of `state`."""
        self.leaving = set(state["leaving"])
        self.pids, self._born = dict(state["pids"]), dict(state["born"])
        self._failures, self.respawn_at = dict(state["failures"]), dict(state["respawn_at"])

    def active(self) -> List[int]:
        """Return the slots that have a worker, or will have one again, and keep it."""
        return sorted((set(self.pids.values()) | set(self.respawn_at)) - self.leaving)

    def spawn(self, slot: int) -> None:
        """Fork the worker of `slot`; where that fails it is tried again later."""
        self._born[slot] = time.monotonic()
        # No signal may reach the child before its own handlers are in place.
        old = signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP})
        try:
            pid = os.fork()
        except OSError as e:
            signal.pthread_sigmask(signal.SIG_SETMASK, old)
            log("cannot start worker %d: %s" % (slot, e.strerror))
            self.respawn_at[slot] = time.monotonic() + BACKOFF_MOST
            return
        if pid == 0:
            os._exit(self._be_worker(slot))
        self.pids[pid] = slot
        signal.pthread_sigmask(signal.SIG_SETMASK, old)

    def respawn(self) -> None:
        """Start the workers that are due."""
        now = time.monotonic()
        for slot, due in list(self.respawn_at.items()):
            if due <= now:
                del self.respawn_at[slot]
                self.spawn(slot)

    def reap(self) -> List[Tuple[int, str]]:
        """Collect dead workers; return (slot, how it ended) of each."""
        dead = []
        for pid in list(self.pids):
            try:
                gone, status = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                gone, status = pid, 0
            if gone:
                slot = self.pids.pop(pid)
                self._clear(slot)
                dead.append((slot, _how(status)))
        return dead

    def plan_next(self, slot: int, how: str) -> None:
        """A worker has died (`how`) that is to be replaced."""
        lived = time.monotonic() - self._born[slot]
        failures = 0 if lived > HEALTHY_SECONDS else self._failures.get(slot, 0)
        delay = min(BACKOFF_MOST, BACKOFF_FIRST * 2**failures)
        self._failures[slot] = failures + 1
        self.respawn_at[slot] = time.monotonic() + delay
        log("worker %d ended (%s) after %.1f s; next one in %.1f s" % (slot, how, lived, delay))

    def signal(self, number: int) -> None:
        """Send a signal to all."""
        for pid in self.pids:
            try:
                os.kill(pid, number)
            except OSError:
                pass  # it has died and will be reaped

    def kill(self) -> None:
        """End all, and wait for it."""
        self.signal(signal.SIGKILL)
        for pid in self.pids:
            try:
                os.waitpid(pid, 0)
            except OSError:
                pass
        self.pids.clear()


def _how(status: int) -> str:
    """Describe a wait status in words."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        # Most real-time signals have no name in `signal`.
        return "killed by " + next((s.name for s in signal.Signals if s == number), "signal %d" % number)
    return "exit status %d" % os.WEXITSTATUS(status)
