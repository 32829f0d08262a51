"""From the workers' counters to status, result, verdict and wall: pure functions of plain data.

Two sums always hold: requested = verified + failed connections, and sent = verified + mismatched + lost
messages. A worker that was killed has its whole share counted as failed, whatever it had reached.
"""

import datetime
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

from histogram import Histogram, worse_row
from stress_slab import HISTOGRAMS, Errors

WorkerReport = NamedTuple(
    "WorkerReport",
    [
        ("index", int),
        ("pid", int),
        ("share", int),
        ("counters", Dict[str, int]),
        ("errors", Errors),
        ("died", Optional[str]),
        ("died_at", float),
    ],
)
WorkerReport.__doc__ = """What one worker left in its slab. died: None, or how it ended before its time."""

Totals = NamedTuple(
    "Totals",
    [
        ("requested", int),
        ("started", int),
        ("established", int),
        ("failed", int),
        ("open", int),
        ("sent", int),
        ("echoed", int),
        ("mismatched", int),
        ("lost", int),
        ("waiting", int),
        ("churned", int),
        ("churn_ok", int),
    ],
)
Totals.__doc__ = """Sums over all workers. established: first echo verified, ever; failed includes established ones
that broke later; waiting: messages whose reply is still awaited (0 at the end); churned: connections begun in the
steady phase, in requested too; churn_ok: of those, established."""


def add_up(reports: Sequence[WorkerReport]) -> Totals:
    """The sums over `reports`."""
    out = dict.fromkeys(Totals._fields, 0)
    for report in reports:
        c = report.counters
        waiting = c["sent"] - c["echoed"] - c["mismatched"] - c["lost"]
        out["requested"] += report.share + c["churned"]
        for name in ("started", "established", "sent", "echoed", "mismatched", "lost", "churned", "churn_ok"):
            out[name] += c[name]
        if report.died is None:
            out["failed"] += c["failed"]
            out["open"] += c["open"]
            out["waiting"] += waiting
        else:
            out["failed"] += report.share + c["churned"]
            out["lost"] += waiting
    return Totals(**out)


def error_rows(reports: Sequence[WorkerReport], host: str) -> List[Dict[str, Any]]:
    """The errors of all workers as the "errors" of run.json, most frequent first; counts sum to `failed`."""
    merged = {}  # type: Errors
    for report in reports:
        for key, (count, first, last, sample) in report.errors.items():
            _add_error(merged, key[0], key[1], count, first, last, sample)
        if report.died is not None:
            known = sum(row[0] for row in report.errors.values())
            sample = "worker {} (pid {}) {}".format(report.index, report.pid, report.died)
            at = report.died_at
            _add_error(
                merged, "echo", "WORKER_DIED", report.share + report.counters["churned"] - known, at, at, sample
            )
    rows = []
    for (phase, name), (count, first, last, sample) in merged.items():
        row = {"phase": phase, "errno": name, "count": count, "host": host}  # type: Dict[str, Any]
        row.update({"first": iso(first), "last": iso(last), "sample": sample})
        rows.append(row)
    return sorted(rows, key=lambda row: -row["count"])


def _add_error(into: Errors, phase: str, name: str, count: int, first: float, last: float, sample: str) -> None:
    if count <= 0:
        return
    row = into.setdefault((phase, name), [0, first, last, sample])
    row[0] += count
    row[1], row[2] = min(row[1], first), max(row[2], last)


def iso(epoch: float) -> str:
    """Epoch seconds as ISO 8601 in UTC with milliseconds."""
    moment = datetime.datetime.fromtimestamp(epoch, datetime.timezone.utc)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + "%03dZ" % (moment.microsecond // 1000)


def ramp_seconds(reports: Sequence[WorkerReport]) -> float:
    """From the first connect to the last first echo, in seconds; 0 when nothing was established."""
    span = ramp_span(reports)
    return max(0.0, span[1] - span[0]) if span else 0.0


def ramp_span(reports: Sequence[WorkerReport]) -> List[float]:
    """When the first connect was begun and when the last first echo was verified (seconds, monotonic); empty when
    nothing was established."""
    begins = [r.counters["first_us"] for r in reports if r.counters["started"]]
    ends = [r.counters["last_us"] for r in reports if r.counters["established"]]
    return [min(begins) / 1e6, max(ends) / 1e6] if begins and ends else []


def begun_per_second(reports: Sequence[WorkerReport]) -> float:
    """How fast connects were begun where a rate was asked for: replies that are long in coming slow none down."""
    begins = [r.counters["first_us"] for r in reports if r.counters["begun_us"]]
    ends = [r.counters["begun_us"] for r in reports]
    started = sum(r.counters["started"] for r in reports)
    return per_second(started - 1, (max(ends) - min(begins)) / 1e6) if begins else 0.0


def latencies(histograms: Dict[str, Histogram], steady: bool) -> Dict[str, Any]:
    """The "latency_ms" of run.json. Where messages were sent in the steady phase, service and response are
    theirs alone; else those of the first echoes. "first_echo" is always the ramp's."""
    service = histograms["service"] if steady else histograms["first"]
    response = histograms["response"] if steady else histograms["first"]
    return {
        "connect": histograms["connect"].summary_ms(),
        "service": service.summary_ms(),
        "response": response.summary_ms(),
        "first_echo": histograms["first"].summary_ms(),
    }


def merge_histograms(parts: Sequence[Sequence[Histogram]]) -> Dict[str, Histogram]:
    """One histogram per name of HISTOGRAMS from each worker's."""
    return {name: Histogram.merged(row[i] for row in parts) for i, name in enumerate(HISTOGRAMS)}


def per_second(count: int, seconds: float) -> float:
    """A rate, 0 where no time passed, to a tenth."""
    return round(count / seconds, 1) if seconds > 0 else 0.0


def churn(totals: Totals, seconds: float) -> Dict[str, Any]:
    """The "churn" of run.json: connections made anew in the steady phase, and how fast (of the verified ones)."""
    rate = per_second(totals.churn_ok, seconds)
    return {"connects": totals.churned, "verified": totals.churn_ok, "per_second": rate}


def is_pass(totals: Totals) -> bool:
    """The verdict: every connection verified to the end, no echo mismatched or lost."""
    return (
        totals.failed == 0
        and totals.mismatched == 0
        and totals.lost == 0
        and totals.established == totals.requested
    )


def diagnose(rows: Sequence[Dict[str, Any]], requested: int, peak: int, target: str) -> Optional[Dict[str, str]]:
    """The wall that the client's own errors name: {"name", "evidence", "fix", "phase", "errno"}, or None.

    The most frequent error that is a wall decides. Counters of both ends say more; the controller has them.
    """
    for row in rows:
        entry = WALLS.get((row["phase"], row["errno"]))
        if entry is None:
            continue
        name, fix = entry
        evidence = "{:,} of {:,} connections failed with {} ({}), first at {}; at most {:,} were open; {}".format(
            row["count"], requested, row["errno"], row["phase"], row["first"], peak, row["sample"]
        )
        said = {"name": name, "evidence": evidence, "fix": fix.format(target=target)}
        return dict(said, phase=row["phase"], errno=row["errno"])
    return None


_NOFILE = ("open files of a client process", "raise nofile on the client host with `inv tune`")
_CLOSING = (
    "the server closes connections",
    "see the server's log, its idle and keep-alive limits, its own connection limit and its nofile limit "
    "(`inv server-status`)",
)
_TLS = ("TLS handshake", "see the sample: --tls-ca, --tls-name, --tls-insecure, or {target} does not speak TLS")
_AWAY = ("the target is out of reach", "look at the route to {target}, and at firewalls on the way and here")
_NOT_TLS = ("wrong replies", "see the sample: what came from {target} is not the TLS that was agreed on")
WALLS = {
    ("connect", "EMFILE"): _NOFILE,
    ("connect", "ENFILE"): ("open files of the client host", "raise fs.file-max with `inv tune`"),
    ("connect", "EADDRNOTAVAIL"): (
        "source ports",
        "give more --source addresses, or widen ip_local_port_range with `inv tune`",
    ),
    ("connect", "ENOBUFS"): ("memory of the client host", "use fewer connections per host, or more hosts"),
    ("connect", "ENOMEM"): ("memory of the client host", "use fewer connections per host, or more hosts"),
    ("connect", "ECONNREFUSED"): ("nothing listens", "start the server on {target}, or correct the target"),
    ("connect", "ETIMEDOUT"): (
        "handshakes unanswered",
        "look for a full accept queue (server's backlog, net.core.somaxconn), SYN drops or a firewall at {target}",
    ),
    ("echo", "ETIMEDOUT"): (
        "connected but no reply",
        "the kernel of {target} accepted: check that its program accepts and replies, and that no packets are "
        "lost on the way",
    ),
    ("echo", "CROSSED"): (
        "the server mixes up replies",
        "its program gives one message the reply of another: look for buffers that connections share",
    ),
    ("echo", "EBADMSG"): ("wrong replies", "see the sample: the server answers otherwise than was expected"),
    ("tls", "EPROTO"): _TLS,
    ("tls", "ECONNRESET"): _TLS,
    ("tls", "ETIMEDOUT"): _TLS,
    ("echo", "WORKER_DIED"): (
        "a worker of a stress client died",
        "see why it ended: what the client wrote to stderr, the kernel's log; then run again",
    ),
    ("connect", "ENETUNREACH"): _AWAY,
    ("connect", "EHOSTUNREACH"): _AWAY,
    ("connect", "EACCES"): _AWAY,
    ("connect", "EPERM"): _AWAY,
    ("echo", "EHOSTUNREACH"): _AWAY,
    ("close", "EHOSTUNREACH"): _AWAY,
    ("close", "ETIMEDOUT"): _AWAY,
    ("echo", "ECONNRESET"): _CLOSING,
    ("echo", "EPIPE"): _CLOSING,
    ("connect", "ECONNRESET"): _CLOSING,
    ("connect", "EPIPE"): _CLOSING,
    ("echo", "EOF"): _CLOSING,
    ("echo", "EPROTO"): _NOT_TLS,
    ("close", "EPROTO"): _NOT_TLS,
    ("close", "EPIPE"): _CLOSING,
    ("close", "ECONNRESET"): _CLOSING,
    ("close", "EOF"): _CLOSING,
}
"""(phase, errno) -> name and fix of the wall."""


class Timeline:
    """Cumulative samples over time, thinned as the run grows: 0.1 s apart at first, 1 s after a minute, then
    coarser so that a day stays a few thousand points."""

    MOST = 600
    LONG = 7200

    def __init__(self) -> None:
        self.step = 0.1
        self.samples = []  # type: List[Dict[str, Any]]
        self._next = 0.0

    def due(self, elapsed: float) -> bool:
        """Whether a sample should be taken at `elapsed` seconds."""
        return elapsed >= self._next

    def add(self, elapsed: float, epoch: float, totals: Totals) -> None:
        """Take a sample."""
        t = totals
        self.samples.append(
            {"t": round(elapsed, 3), "time": round(epoch, 3), "established": t.established, "open": t.open}
        )
        self.samples[-1].update({"failed": t.failed, "echoes": t.echoed})
        self._next = (int(elapsed / self.step) + 1) * self.step
        if self.step < 1.0 and len(self.samples) >= self.MOST:
            self.samples, self.step = self.samples[::-10][::-1], 1.0  # the last one stays
        elif len(self.samples) >= self.LONG:
            self.samples, self.step = self.samples[::-2][::-1], self.step * 2

    def points(self) -> List[Dict[str, Any]]:
        """The samples with rates since the one before: connects_per_second, echoes_per_second."""
        out = []
        before = {"t": 0.0, "established": 0, "echoes": 0}
        for sample in self.samples:
            span = sample["t"] - before["t"]
            point = dict(sample)
            point["connects_per_second"] = per_second(sample["established"] - before["established"], span)
            point["echoes_per_second"] = per_second(sample["echoes"] - before["echoes"], span)
            out.append(point)
            before = sample
        return out


class LatencyTimeline:
    """Latencies over time: rows of what was measured since the row before, half a second as a rule.

    Beyond MOST rows two become one, of which the worse values count: percentiles cannot be merged.
    """

    MOST = 1200

    def __init__(self) -> None:
        self.rows = []  # type: List[Dict[str, Any]]

    def add(self, elapsed: float, parts: Dict[str, Histogram]) -> None:
        """Add a row {"t": elapsed, name: {"p50", "p99", "max": ms, "count"} or None}, if anything was measured."""
        row = {"t": round(elapsed, 3)}  # type: Dict[str, Any]
        row.update((name, part.point_ms()) for name, part in parts.items())
        if any(row[name] for name in parts):
            self.rows.append(row)
        if len(self.rows) > self.MOST:
            self.rows = [worse_row(self.rows[at : at + 2]) for at in range(0, len(self.rows), 2)]


BUSY = 0.9  # share of a processor from which on a worker is taken to be the limit


def warnings(
    rate_asked: Optional[float],
    rates: Dict[str, float],
    requested: int,
    reports: Sequence[WorkerReport],
    seconds: float,
) -> List[str]:
    """Sentences about the generator itself: what makes its numbers less than they seem.

    rates: name -> connects/s that --rate was asked for; seconds: from the first connect to the end.
    """
    out = []
    for name, got in sorted(rates.items()):
        if rate_asked and requested > 1 and got and got < rate_asked * 0.98:
            text = "the asked rate of {:g} connects/s was not reached in the {}: {:g}"
            out.append(text.format(rate_asked, name, got))
    busy = [r for r in reports if seconds > 0.5 and r.counters["cpu_us"] / 1e6 > BUSY * seconds]
    if busy:
        text = "{} of {} workers kept a processor busy for {:.0f}% of the time or more: the generator, not the "
        text += "server, may have been the limit (more --workers or hosts)"
        out.append(text.format(len(busy), len(reports), 100 * BUSY))
    slowest = max([r.counters["lag_us"] for r in reports] or [0])
    if slowest > 100000:
        text = (
            "a worker was busy or held up for {:.0f} ms in one turn: latencies up to that are the generator's own"
        )
        out.append(text.format(slowest / 1000.0))
    drops = sum(r.counters["drops"] for r in reports)
    if drops:
        text = "{:,} connects took 1 s or more, a SYN retransmission: a full accept queue, or lost packets"
        out.append(text.format(drops))
    return out


def worker_rows(reports: Sequence[WorkerReport]) -> List[Dict[str, Any]]:
    """Health of the generator: one row per worker."""
    return [
        {
            "index": r.index,
            "pid": r.pid,
            "connections": r.share,
            "established": r.counters["established"],
            "failed": r.share + r.counters["churned"] if r.died is not None else r.counters["failed"],
            "cpu_seconds": round(r.counters["cpu_us"] / 1e6, 3),
            "longest_turn_ms": r.counters["lag_us"] / 1000.0,
            "window": r.counters["window"],
            "slow_connects": r.counters["drops"],
            "ports_skipped": r.counters["skipped"],
            "died": r.died,
        }
        for r in reports
    ]
