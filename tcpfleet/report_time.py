"""What a report draws over time from the hosts' samples (tcpfleet.samples/1, docs/report.md).

In: the samples of each host, and who shares a machine or a network stack. Out: for each chart its lines, few
enough to be told apart and of at most `POINTS` points: of many hosts the lowest, the median and the highest,
servers and others apart. Pure; what cannot be used is left out.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from tcpfleet.report_data import SIDES, View, dig, number_at, rows_at
from tcpfleet.report_words import COUNTERS, STATES
from tcpfleet.said import Said, said

POINTS = 300  # a line's points: what is told apart on a page
LINES = 5  # a chart's lines
COUNTER_LINES = 6

Line = list[tuple[float, float]]
Chart = dict[str, Any]
Known = Mapping[str, list[dict[str, Any]]]  # host -> its rows, by time


class Field(NamedTuple):
    """One figure of the samples that is drawn.

    :ivar per: "machine" or "stack": what hosts may share, so that it is drawn once; "host".
    :ivar worst: of the values that fall into one point: max or min.
    """

    chart: str
    key: str
    unit: str
    factor: float
    per: str
    worst: Callable[[Iterable[float]], float]


FIELDS = (
    Field("cpu", "cpu_busy", said("% of all CPUs"), 100, "machine", max),
    Field("memory", "mem_available", said("MiB"), 1 / 2**20, "machine", min),
    Field("tcp_memory", "tcp_mem", said("MiB"), 1 / 2**20, "machine", max),
    Field("files", "files", said("open files"), 1, "machine", max),
    Field("server_connections", "server_connections", said("connections"), 1, "host", max),
    Field("server_cpu", "server_cpu", said("CPU s/s"), 1, "host", max),
    Field("server_memory", "server_rss", said("MiB"), 1 / 2**20, "host", max),
)


def charts(view: View, samples: Mapping[str, Any]) -> dict[str, Chart]:
    """The charts that the samples give.

    :param samples: host -> its samples; of a host without, ``{"unavailable": {name: reason}}``.
    :returns: chart -> ``{"unit", "lines": [{"name", "points": [(t seconds, value)]}]}``; those without a point are
        left out. "states_server" and "states_client" have a line per state, "counters" one per kernel counter (per
        second).
    """
    known = {host: rows for host in view.hosts if (rows := _rows(samples.get(host)))}
    step = max((rows[-1]["t"] for rows in known.values()), default=0.0) / POINTS
    found: dict[str, Chart] = {}
    for field in FIELDS:
        hosts = _once(view, known, field.per)
        lines = {
            host: line
            for host in hosts
            if (line := _line([(row["t"], number_at(row, field.key)) for row in known[host]], step, field.worst))
        }
        names = _names(view, known, field.per)
        scaled = {
            names[host]: [(t, round(value * field.factor, 3)) for t, value in line] for host, line in lines.items()
        }
        found[field.chart] = {"unit": field.unit, "lines": _few(view, scaled)}
    for side in SIDES:
        found[f"states_{side}"] = {"unit": said("sockets"), "lines": _states(view, known, side, step)}
    found["counters"] = {"unit": said("events/s"), "lines": _counters(view, known, step)}
    return {name: chart for name, chart in found.items() if chart["lines"]}


def gaps(view: View, samples: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the samples lack: rows as `report_hosts.unavailable_rows` has them."""
    rows = []
    for host in dict.fromkeys([*view.hosts, *samples]):
        missing = dig(samples.get(host), "unavailable")
        for name, reason in missing.items() if isinstance(missing, Mapping) else ():
            section = said("over time: {name}", name=str(name))
            rows.append({"host": host, "section": section, "reason": str(reason), "phases": []})
    return rows


def _rows(samples: Any) -> list[dict[str, Any]]:
    rows = [dict(row) for row in rows_at(samples, "rows") if number_at(row, "t") is not None]
    return sorted(rows, key=lambda row: float(row["t"]))


def _once(view: View, known: Mapping[str, Any], per: str) -> list[str]:
    """Of hosts that share a machine or a stack the first."""
    key: Callable[[str], str] = {"machine": view.machine, "stack": view.stack}.get(per, str)
    found: dict[str, str] = {}
    for host in known:
        found.setdefault(key(host), host)
    return list(found.values())


def _names(view: View, known: Known, per: str) -> dict[str, str]:
    """What the line of a host is called: by all hosts of its machine, where it is the machine's."""
    found = {host: host for host in known}
    for hosts in view.groups("machine").values() if per == "machine" else ():
        text = ", ".join(hosts[:LINES]) + (" ..." if len(hosts) > LINES else "")
        found.update({host: text for host in hosts if len(hosts) > 1})
    return found


def _line(points: Iterable[tuple[float, float | None]], step: float, worst: Callable[..., float]) -> Line:
    """Points with a value, those within one step as one: its last t, its worst value."""
    found: list[tuple[float, float]] = []
    for t, value in points:
        if value is None:
            continue
        if found and step > 0 and int(found[-1][0] / step) == int(t / step):
            found[-1] = (t, worst((found[-1][1], value)))
        else:
            found.append((t, value))
    return found


def _few(view: View, lines: Mapping[str, Line]) -> list[dict[str, Any]]:
    """At most about LINES lines: host by host, or where there are more, groups of hosts by role."""
    if len(lines) <= LINES:
        return [{"name": host, "points": line} for host, line in lines.items()]
    found: list[dict[str, Any]] = []
    serving = set(view.servers())
    servers = [name for name in lines if serving & {name, *name.split(", ")}]
    groups = [(said("servers"), servers), (said("other hosts"), [host for host in lines if host not in servers])]
    for name, hosts in groups:
        if len(hosts) <= 2:
            found += [{"name": host, "points": lines[host]} for host in hosts]
            continue
        picks: tuple[tuple[Said, Callable[[list[float]], float]], ...] = (
            (said("{group}: highest", group=name), max),
            (said("{group}: median", group=name), statistics.median),
            (said("{group}: lowest", group=name), min),
        )
        together = _together([lines[host] for host in hosts])
        found += [
            {"name": label, "points": [(t, round(pick(values), 3)) for t, values in together]}
            for label, pick in picks
        ]
    return found


def _together(lines: Sequence[Line]) -> list[tuple[float, list[float]]]:
    """(t, the value of each line that has begun and not ended) at the points of the line that has most."""
    grid = max(lines, key=len)
    places = [0] * len(lines)
    # Of a host that died the last value does not go on; a line may have gaps as wide as those it had.
    ends = [line[-1][0] + 2 + 2 * max((b[0] - a[0] for a, b in pairwise(line)), default=0.0) for line in lines]
    out = []
    for t, _ in grid:
        values = []
        for number, line in enumerate(lines):
            while places[number] + 1 < len(line) and line[places[number] + 1][0] <= t:
                places[number] += 1
            if line is grid or line[0][0] <= t <= ends[number]:
                values.append(line[places[number]][1])
        out.append((t, values))
    return out


def _states(view: View, known: Known, side: str, step: float) -> list[dict[str, Any]]:
    """A line for each of the states with most sockets, summed over network stacks, in the table's order."""
    totals: dict[str, Line] = {}
    hosts = _once(view, known, "stack")
    for state in STATES:
        lines = []
        for host in hosts:
            points = [(row["t"], number_at(row, "states", side, state)) for row in known[host]]
            line = _line(points, step, max)
            if line:
                lines.append(line)
        if lines and any(value for line in lines for _, value in line):
            totals[state] = [(t, sum(values)) for t, values in _together(lines)]
    most = sorted(totals, key=lambda state: -max(value for _, value in totals[state]))[:COUNTER_LINES]
    return [{"name": state, "points": totals[state]} for state in totals if state in most]


def _counters(view: View, known: Known, step: float) -> list[dict[str, Any]]:
    """Per second, of the counters that tell of trouble and grew most; each kernel is counted once."""
    grown: dict[str, dict[int, float]] = {}
    width = max(step, 1.0)
    packets = set(_once(view, known, "machine"))
    for host in _once(view, known, "stack"):
        for row in known[host]:
            counters = row.get("counters")
            for name in counters if isinstance(counters, Mapping) else ():
                more = number_at(counters, name)
                short = str(name).rpartition(".")[2]
                words = COUNTERS.get(short)
                if words is None or not words.trouble or more is None:
                    continue
                if short in ("dropped", "time_squeeze") and host not in packets:
                    continue  # of the whole machine
                places = grown.setdefault(str(name), {})
                place = int(row["t"] // width)
                places[place] = places.get(place, 0) + more
    last = int(max((rows[-1]["t"] for rows in known.values()), default=0.0) // width)
    most = sorted(grown, key=lambda name: -sum(grown[name].values()))[:COUNTER_LINES]
    return [
        {
            "name": name,
            "points": [
                (round(place * width, 3), round(grown[name].get(place, 0) / width, 3)) for place in range(last + 1)
            ],
        }
        for name in most
    ]
