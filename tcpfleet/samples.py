"""What a run's hosts looked like over time: a sampler on each (payload/observe_sampler.py), its rows as they come.

Out: reports/RUN_ID/samples/HOST.json of schema tcpfleet.samples/1 (docs/report.md). Rows are fetched while the run
goes on, so those of a host that dies are here up to a few seconds before. A long run's rows are merged by pairs:
there are never more than MOST_ROWS of a host.
"""

from __future__ import annotations

import datetime
import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcpfleet import deploy, runs
from tcpfleet.report import safe_name
from tcpfleet.report_words import COUNTERS

if TYPE_CHECKING:
    from tcpfleet.link import Session

SCHEMA = "tcpfleet.samples/1"
MOST_ROWS = 1200
AFTERWARDS = 10.0  # seconds of rows kept after the end of a load that nobody followed
_RATES = ("cpu_busy", "server_cpu")

Row = dict[str, Any]


def merged(rows: Sequence[Row], begin: float) -> Row:
    """Several rows as one: gauges and states of the latest that has them, rates by their time, counters added.

    :param begin: t of the row before the first.
    """
    row: Row = {}
    for one in rows:
        row.update(one)
    times = [begin, *(one["t"] for one in rows)]
    spans = [later - earlier for earlier, later in itertools.pairwise(times)]
    for name in _RATES:
        parts = [(one[name], span) for one, span in zip(rows, spans, strict=True) if name in one and span > 0]
        if parts:
            row[name] = round(sum(value * span for value, span in parts) / sum(span for _, span in parts), 4)
    counters: dict[str, int] = {}
    for one in rows:
        for name, more in one.get("counters", {}).items():
            counters[name] = counters.get(name, 0) + more
    if counters or "counters" in row:
        row["counters"] = counters
    return row


class Series:
    """One host's samples: `take` what it sent, in order.

    :ivar offset: of the byte in the host's file that is wanted next.
    :ivar ended: nothing more will come.
    :ivar asked: when it was last asked for, on the monotonic clock.
    """

    def __init__(self, host: str) -> None:
        self.host = host
        self.offset = 0
        self.ended = False
        self.asked = 0.0
        self._shift = 0.0  # what the host's t lacks to ours
        self._interval = 1.0
        self._orderly = False
        self._rows: list[Row] = []
        self._step, self._pending = 1, []  # type: int, list[Row]
        self._unavailable: dict[str, str] = {}
        self._counts: dict[str, Any] = {"times": 0, "cpu_seconds": 0.0}

    def missing(self, name: str, reason: str) -> None:
        """Say why something is not in the rows; the first reason stays."""
        self._unavailable.setdefault(name, reason)

    def take(self, answer: Mapping[str, Any], since_start: float) -> None:
        """The answer of the operation `sample`, action `read`.

        :param since_start: seconds from the run's start, the zero of t, to now, by this machine's clock.
        """
        self.offset = answer["offset"]
        for line in answer["lines"]:
            if "epoch" in line:
                # Clocks of hosts differ; what counts is how far the host's was from this one when it was asked.
                self._shift = since_start - (answer["now"] - line["epoch"])
                self._interval = line["interval"]
                self._counts["cpu_share_at_most"] = line["states_share"]
            elif "ended" in line:
                self._orderly = True
            elif "unavailable" in line:
                for name, reason in line["unavailable"].items():
                    self.missing(name, reason)
            else:
                self._add(line)
        if not answer["alive"] and not answer["lines"]:
            self.ended = True
            if not self._orderly:
                self.lost(f"the sampler died: {answer['log'] or 'its log is empty'}")

    def lost(self, reason: str) -> None:
        """The host is gone: from here on there are no rows."""
        last = [*self._rows[-1:], *self._pending[-1:]]
        self.missing(f"rows after {last[-1]['t']:.1f} s" if last else "samples", reason)

    def _add(self, row: Row) -> None:
        row["t"] = round(max(0.0, row["t"] + self._shift), 3)  # the first row may be from a moment before
        count = row.pop("count", None)
        if count:
            self._counts["times"] += 1
            self._counts["cpu_seconds"] = round(self._counts["cpu_seconds"] + count["cpu"], 3)
            self._counts["source"] = count["source"]
            for one in count["not_used"]:
                self.missing(f"states by {one['source']}", f"{one['reason']}; counted by {count['source']}")
        self._pending.append(row)
        if count:  # A count may take long: its place is the row nearest to its middle.
            at = count["t"] + self._shift
            near = min([*self._rows[-60:], *self._pending], key=lambda one: abs(one["t"] - at))
            near["states"] = row.pop("states")
        if len(self._pending) < self._step:
            return
        self._rows.append(merged(self._pending, self._end()))
        self._pending = []
        if len(self._rows) >= MOST_ROWS:
            pairs = [self._rows[at : at + 2] for at in range(0, len(self._rows), 2)]
            ends = [self._rows[0]["t"], *(pair[-1]["t"] for pair in pairs)]
            self._rows = [merged(pair, begin) for pair, begin in zip(pairs, ends, strict=False)]
            self._step *= 2

    def _end(self) -> float:
        return float(self._rows[-1]["t"]) if self._rows else float(self._pending[0]["t"])

    def to_dict(self, until: float | None = None) -> dict[str, Any]:
        """The content of the file.

        :param until: rows later than that t are left out.
        """
        rows = [*self._rows, merged(self._pending, self._end())] if self._pending else list(self._rows)
        return {
            "schema": SCHEMA,
            "host": self.host,
            "interval_seconds": self._interval * self._step,
            "rows": [row for row in rows if until is None or row["t"] <= until],
            "unavailable": dict(self._unavailable),
            "states_counting": self._counts,
        }

    def save(self, folder: Path, until: float | None = None) -> None:
        """Write samples/HOST.json of a run's folder; rows that are there already are not replaced by none."""
        path = folder / "samples" / f"{safe_name(self.host)}.json"
        if path.exists() and not (self._rows or self._pending):
            return
        path.parent.mkdir(exist_ok=True)
        runs.write_json(path, self.to_dict(until), indent=None)


def _ask(session: Session, run_id: str, action: str, **more: Any) -> dict[str, Any]:
    name = safe_name(session.host.name)
    return session.call(
        "sample", {"action": action, "run_id": run_id, "name": name, **more}, become=session.become
    )


def start(session: Session, run_id: str, series: Series, port: int, *, server: bool) -> None:
    """Start the host's sampler; where it cannot run there is a gap in the report, and the load goes on.

    :param server: whether the host has the server of `port`.
    """
    config = {"port": port, "server": server, "counters": sorted(COUNTERS)}
    config["pid_file"] = deploy.place(session, "server_pid_file") if server else None
    answer = _ask(session, run_id, "start", config=config)
    if answer.get("failed"):
        series.missing("samples", str(answer.get("msg")))
        series.ended = True


def read(session: Session, run_id: str, series: Series, started: str, *, to_the_end: bool = False) -> None:
    """Fetch what the host's sampler has written since the last time.

    :param started: of the run, ISO 8601.
    :param to_the_end: the sampler has ended: ask until there is nothing more. One that is at work has written
        more by the time that a slow line's next answer comes, for ever.
    """
    zero = datetime.datetime.fromisoformat(started).timestamp()
    series.asked = time.monotonic()
    while not series.ended:
        since = series.offset
        answer = _ask(session, run_id, "read", offset=since)
        if series.offset != since:
            return  # the thread of a stage that was interrupted came after that of the next one
        if answer.get("failed"):
            series.lost(str(answer.get("msg")))
            series.ended = True
            return
        series.take(answer, time.time() - zero)
        if not (answer["lines"] and to_the_end):
            return


def finish(session: Session, run_id: str, series: Series, started: str) -> None:
    """End the host's sampler, fetch the rest, and leave nothing of it there."""
    _ask(session, run_id, "end")
    read(session, run_id, series, started, to_the_end=True)
    _ask(session, run_id, "remove")


def discard(session: Session, run_id: str) -> None:
    """End the host's sampler, if there is one, and leave nothing of it there."""
    _ask(session, run_id, "end")
    _ask(session, run_id, "remove")
