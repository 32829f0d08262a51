"""The stress client's first process: forks the workers, leads them through the phases, watches, adds up.

In: a `Plan`, the workers' `Settings` and the `Course` of the run. Out: the result object of run.json, status on
the way. Phases: ready -> ramp -> ramped -> hold -> closing -> done; in the words of `stress_worker`, GO, HOLD and
CLOSE. Signal handlers only note the signal; the loop acts.
"""

import gc
import os
import signal
import socket
import sys
import time
import traceback
from typing import Any, Callable, Dict, List, NamedTuple, Optional

import nofile
import stress_result as results
import stress_slab as slabs
import stress_threshold
import stress_worker
from histogram import Histogram
from stress_message import bracketed
from stress_plan import HostFacts, Plan, plan_to_dict
from stress_result import Timeline, WorkerReport
from stress_slots import Slots
from stress_worker import Settings

TURN_SECONDS = 0.02
HOLD_SECONDS = 0.05
WAITING_SECONDS = 0.1  # of clients on one host most wait at any time, for their turn or for the others
STATUS_SECONDS = 0.5
STUCK_SECONDS = 2.0
KILL_SECONDS = 2.0  # from "end at once" to SIGKILL

Course = NamedTuple(
    "Course",
    [
        ("hold", float),
        ("wait_go", Optional[Callable[[], bool]]),
        ("wait_hold", Optional[Callable[[], bool]]),
        ("alone", Optional[Callable[[], bool]]),
        ("slots", Optional[Slots]),
        ("barrier_timeout", float),
        ("on_status", Callable[[Dict[str, Any]], None]),
        ("options", Dict[str, Any]),
        ("notes", List[str]),
        ("thresholds", List[stress_threshold.Threshold]),
    ],
)
Course.__doc__ = """How the run goes. hold: seconds; wait_go, wait_hold: None, or "may I?" asked until true or
barrier_timeout seconds have passed; alone: None, or whether who would answer is gone; slots: turns that clients of
one host take in connecting, or None; on_status: called with the status object twice a second and at each change of
state; options: what was asked, kept in the result so that the run can be repeated; notes: sentences, to stand
before the result's other warnings; thresholds: conditions under which the verdict is fail."""


class _Child:
    """A worker process as its supervisor sees it."""

    def __init__(self, share: Any, slab: slabs.Slab) -> None:
        self.share, self.slab = share, slab
        self.pid = 0
        self.pipe = -1
        self.begun = self.exited = False
        self.progress = 0
        self.progress_at = 0.0
        self.died = None  # type: Optional[str]
        self.died_at = 0.0


class Supervisor:
    """One run. `start` forks, `run` leads to the result."""

    def __init__(self, plan: Plan, facts: HostFacts, settings: Settings, course: Course) -> None:
        self.plan, self.facts, self.settings, self.course = plan, facts, settings, course
        memory = slabs.allocate(len(plan.workers))
        self.children = [_Child(share, slabs.Slab(memory, share.index)) for share in plan.workers]
        self.state = "ready"
        self.message = ""
        self.peak = 0
        self.timeline = Timeline()
        self.latencies = results.LatencyTimeline()
        self._signals = []  # type: List[int]
        self._stopping = 0
        self._kill_at = None  # type: Optional[float]
        self._began = self._began_wall = 0.0
        self._hold_began = None  # type: Optional[float]
        self._hold_seconds = 0.0
        self._next_status = 0.0
        self._leading = False  # workers of ours are connecting
        self._before = None  # type: Any

    def start(self) -> None:
        """Raise the limit and fork the workers. Raises OSError when a process cannot be had (none is left)."""
        nofile.raise_nofile(self.plan.nofile)
        gc.collect()
        freeze = getattr(gc, "freeze", None)
        if freeze:
            freeze()  # 3.7: the collector would write to every page shared with the workers
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            signal.signal(getattr(signal, name), lambda number, frame: self._signals.append(number))
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            for child in self.children:
                self._fork(child)
        except OSError:
            self._kill()
            self._reap(wait=True)
            raise

    def _fork(self, child: _Child) -> None:
        receive, send = os.pipe()
        pid = os.fork()
        if pid:
            os.close(receive)
            child.pid, child.pipe = pid, send
            return
        status = 1
        try:
            os.close(send)
            for other in self.children:
                if other.pipe >= 0:
                    os.close(other.pipe)  # or its end of file would not come when the supervisor is gone
            # A console, timeout(1) and systemd send these to all processes: the supervisor decides.
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                signal.signal(getattr(signal, name), signal.SIG_IGN)
            gc.disable()  # the loop makes no cycles
            stress_worker.Worker(child.share, self.settings, child.slab, receive).run()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def run(self, on_result: Optional[Callable[[Dict[str, Any]], None]] = None) -> Dict[str, Any]:
        """Lead the run to its end and return the result (the object of --json). Leaves no process.

        :param on_result: called with the result before the last status says done (or failed): who waits for that
            state finds the result.
        """
        try:
            self._run()
        finally:
            self._finish()
        if self.state != "failed":
            self._sample()  # what the workers did after the sample before it
            self.state = "done"
        result = self.result()
        if on_result:
            on_result(result)
        self._enter(self.state)
        return result

    def _run(self) -> None:
        self._began, self._began_wall = time.monotonic(), time.time()
        self._enter("ready")
        if self.course.wait_go and not self._await(self.course.wait_go):
            if not self._stopping:
                self.message = "no go within {:g} s".format(self.course.barrier_timeout)
                if self.course.alone and self.course.alone():
                    self.message = "no go: who started this client is gone"
            self.state = "failed"
            return
        self._began, self._began_wall = time.monotonic(), time.time()
        self._enter("ramp")
        self._go()
        while not self._stopping and self._slowest() < slabs.RAMPED:
            self._turn()
            self._go()
        self._leading = False
        if self.course.slots:
            self.course.slots.keep(0)
        if not self._stopping:
            self._enter("ramped")
            if self.course.wait_hold:
                self._await(self.course.wait_hold)
        if not self._stopping:
            self._hold_began = time.monotonic()
            self._tell(stress_worker.HOLD)
            self._enter("hold")
            while not self._stopping and time.monotonic() < self._hold_began + self.course.hold and self._alive():
                self._turn(until=self._hold_began + self.course.hold)
            self._hold_seconds = time.monotonic() - self._hold_began
        self._sample()
        if not self._stopping:
            self._tell(stress_worker.CLOSE)
        self._enter("closing")
        while self._alive():
            self._turn()

    def _go(self) -> None:
        """Let waiting workers begin while fewer than `at_once` are getting on with their ramp.

        One that got nothing verified for STUCK_SECONDS holds up nobody, unless --in-flight bounds the whole.
        """
        now = time.monotonic()
        busy = 0
        for child in self.children:
            if child.begun and not child.exited:
                counters = child.slab.counters()
                if counters["last_us"] != child.progress:
                    child.progress, child.progress_at = counters["last_us"], now
                stuck = now - child.progress_at > STUCK_SECONDS and self.settings.in_flight is None
                busy += counters["state"] < slabs.RAMPED and not stuck
        self._leading = busy > 0
        slots = self.course.slots
        if slots:
            slots.keep(busy)
        for child in self.children:
            if busy >= self.settings.at_once:
                return
            if not child.begun and not child.exited and slots and slots.held <= busy and not slots.take():
                return  # another client's turn
            if not child.begun and not child.exited:
                child.begun, child.progress_at = True, now
                self._tell(stress_worker.GO, child)
                self._leading = True
                busy += 1

    def _await(self, question: Callable[[], bool]) -> bool:
        """Ask until yes (True), the timeout, a stop, or until nobody is left who would say yes."""
        end = time.monotonic() + self.course.barrier_timeout
        while not self._stopping and time.monotonic() < end and self._alive():
            if question():
                return True
            if self.course.alone and self.course.alone():
                return False
            self._turn()
        return False

    # -- one turn ----------------------------------------------------------------------------------------

    def _turn(self, until: Optional[float] = None) -> None:
        now = time.monotonic()
        waiting = not self._leading and self.state in ("ready", "ramp", "ramped")
        turn = WAITING_SECONDS if waiting else TURN_SECONDS if self._leading else HOLD_SECONDS
        pause = turn if until is None else max(0.0, min(turn, until - now))
        time.sleep(pause)
        while self._signals:
            self._signals.pop(0)
            self._stopping += 1
            if self._stopping == 1:
                self.message = "stopped by a signal"
                if self.state != "ready":
                    self._sample()
                self._tell(stress_worker.STOP)
            else:
                self._tell(stress_worker.NOW)
                self._kill_at = time.monotonic() + KILL_SECONDS
        now = time.monotonic()
        if self._kill_at is not None and now >= self._kill_at:
            self._kill()
            self._kill_at = None
        self._reap()
        if self.state not in ("ready", "failed") and self.timeline.due(now - self._began):
            self._sample()
        if now >= self._next_status:
            self._report(now)

    def _sample(self) -> None:
        totals = results.add_up(self._reports())
        self.peak = max(self.peak, totals.open)
        self.timeline.add(time.monotonic() - self._began, time.time(), totals)

    def _enter(self, state: str) -> None:
        self.state = state
        self._report(time.monotonic())

    def _report(self, now: float) -> None:
        self._next_status = now + STATUS_SECONDS
        self.course.on_status(self.status())

    def _reap(self, wait: bool = False) -> None:
        for child in self.children:
            if child.exited or not child.pid:
                continue
            pid, status = os.waitpid(child.pid, 0 if wait else os.WNOHANG)
            if pid:
                child.exited = True
                os.close(child.pipe)
                child.pipe = -1
                if os.WIFSIGNALED(status):
                    child.died = "was killed by signal {}".format(os.WTERMSIG(status))
                elif os.WEXITSTATUS(status) or child.slab.counters()["state"] != slabs.DONE:
                    child.died = "ended with status {}".format(os.WEXITSTATUS(status))
                child.died_at = time.time()

    def _tell(self, command: bytes, only: Optional[_Child] = None) -> None:
        for child in self.children:
            if child.pipe >= 0 and only in (None, child):
                try:
                    os.write(child.pipe, command)
                except BrokenPipeError:
                    pass  # it died; _reap says how

    def _kill(self) -> None:
        for child in self.children:
            if child.pid and not child.exited:
                os.kill(child.pid, signal.SIGKILL)

    def _finish(self) -> None:
        """Every worker gone: by the end of file of its pipe, or by force."""
        end = time.monotonic() + KILL_SECONDS
        for child in self.children:
            if child.pipe >= 0 and not child.exited:
                self._tell(stress_worker.NOW)
        while self._alive() and time.monotonic() < end:
            self._reap()
            time.sleep(0.01)
        self._kill()
        self._reap(wait=True)

    def _alive(self) -> int:
        return sum(1 for child in self.children if not child.exited)

    def _slowest(self) -> int:
        states = [child.slab.counters()["state"] for child in self.children if not child.exited]
        return min(states) if states else slabs.DONE

    def _reports(self) -> List[WorkerReport]:
        return [
            WorkerReport(
                child.share.index,
                child.pid,
                child.share.connections,
                child.slab.counters(),
                child.slab.errors(),
                child.died,
                child.died_at,
            )
            for child in self.children
        ]

    def _histograms(self) -> Dict[str, Histogram]:
        names = range(len(slabs.HISTOGRAMS))
        return results.merge_histograms([[child.slab.histogram(n) for n in names] for child in self.children])

    # -- what it says ------------------------------------------------------------------------------------

    def status(self) -> Dict[str, Any]:
        """The object of status.json: how far the run is. Rates and p99 are those since the last status."""
        now = time.monotonic()
        reports = self._reports()
        totals = results.add_up(reports)
        self.peak = max(self.peak, totals.open)
        rates = {"connects_per_second": 0.0, "echoes_per_second": 0.0}
        since = {}  # type: Dict[str, Histogram]
        before = self._before
        if before is not None and totals == before[1]:
            # Nothing to add up: of many clients on a host most wait at any time, and histograms take milliseconds.
            self._before = (now, *before[1:])
        else:
            histograms = self._histograms()
            current = {"connect": histograms["connect"]}
            for name in ("service", "response"):
                current[name] = Histogram.merged([histograms["first"], histograms[name]])
            self._before = (now, totals, current)
            since = current
            if before is not None:
                span = now - before[0]
                rates["connects_per_second"] = results.per_second(totals.established - before[1].established, span)
                rates["echoes_per_second"] = results.per_second(totals.echoed - before[1].echoed, span)
                since = {name: current[name].differences(before[2][name]) for name in current}
        if since and self.state not in ("ready", "failed"):
            self.latencies.add(now - self._began, {name: since[name] for name in ("connect", "response")})
        p99 = {name: since[name].percentile(99) if since else None for name in ("connect", "service")}
        return {
            "state": self.state,
            "pid": os.getpid(),
            "elapsed": round(now - self._began, 3),
            "connections": {
                "requested": totals.requested,
                "established": totals.established,
                "verified": sum(r.counters["established"] - r.counters["broken"] for r in reports if not r.died),
                "failed": totals.failed,
                "open": totals.open,
            },
            "rate": rates,
            "echoes": {
                "sent": totals.sent,
                "verified": totals.echoed,
                "mismatched": totals.mismatched,
                "lost": totals.lost,
            },
            "p99_ms": {name: None if us is None else us / 1000.0 for name, us in p99.items()},
            "errors": results.error_rows(reports, socket.gethostname()),
            "message": self.message,
        }

    def result(self) -> Dict[str, Any]:
        """The object of --json and result.json; only after the workers are gone."""
        reports = self._reports()
        totals = results.add_up(reports)
        host = socket.gethostname()
        errors = results.error_rows(reports, host)
        histograms = self._histograms()
        steady_echoes = histograms["service"].count
        seconds = results.ramp_seconds(reports)
        connects = results.per_second(totals.established - totals.churn_ok, seconds)
        steady = self._hold_seconds > 0 and steady_echoes > 0
        if steady:
            echoes = results.per_second(steady_echoes, self._hold_seconds)
        else:
            echoes = results.per_second(totals.echoed, seconds)
        passed = results.is_pass(totals)
        churn = results.churn(totals, self._hold_seconds) if self.settings.mode == "churn" else None
        rates = {"ramp": results.begun_per_second(reports)}
        if churn and self._hold_seconds > 0:
            rates["churn"] = churn["per_second"]
        target = "{}:{}".format(bracketed(self.settings.target[0]), self.settings.target[1])
        asked = self.settings.rate
        record = {
            "schema": "tcpfleet.run/1",
            "run_id": "{}-{}".format(time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self._began_wall)), os.getpid()),
            "started": results.iso(self._began_wall),
            "ended": results.iso(time.time()),
            "state": self.state,
            "message": self.message,
            "interrupted": self._stopping > 0,
            "verdict": "pass" if passed else "fail",
            "target": target,
            "connections": {
                "requested": totals.requested,
                "established": totals.established,
                "verified": totals.requested - totals.failed,
                "failed": totals.failed,
                "peak": max(self.peak, totals.open),
            },
            "rate": {"connects_per_second": connects, "echoes_per_second": echoes, "asked": asked},
            "churn": churn,
            "echoes": {
                "sent": totals.sent,
                "verified": totals.echoed,
                "mismatched": totals.mismatched,
                "lost": totals.lost,
                "steady": steady_echoes,
            },
            "seconds": {
                "ramp": round(seconds, 3),
                "hold": round(self._hold_seconds, 3),
                "ramp_span": [round(at - self._began, 3) for at in results.ramp_span(reports)],
            },
            "latency_ms": results.latencies(histograms, steady),
            "errors": errors,
            "wall": results.diagnose(errors, totals.requested, self.peak, target),
            "warnings": self.course.notes
            + results.warnings(asked, rates, totals.requested, reports, seconds + self._hold_seconds),
            "hosts": [{"host": host, "pid": os.getpid(), "workers": results.worker_rows(reports)}],
            "timeline": self.timeline.points(),
            "latency_timeline": self.latencies.rows,
            "plan": plan_to_dict(self.plan, self.facts),
            "histograms": {name: h.to_dict() for name, h in histograms.items()},
            "options": self.course.options,
        }  # type: Dict[str, Any]
        record["thresholds"] = stress_threshold.judge(self.course.thresholds, record)
        if any(row["failed"] for row in record["thresholds"]):
            record["verdict"] = "fail"
        return record
