"""Which charts a page has, and what is drawn in them: titles, units and lines for `charts`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from tcpfleet import charts
from tcpfleet.report_data import PERCENTILES, number_at
from tcpfleet.report_run import timeline
from tcpfleet.said import said

Speak = Callable[..., str]


class Drawn(NamedTuple):
    """One chart.

    :ivar lines: names of its lines, in the order of their colours.
    """

    svg: Markup
    lines: list[str]


class Pair(NamedTuple):
    """One run of each side of a comparison, as in run.json; None where the side has none."""

    a: Mapping[str, Any] | None
    b: Mapping[str, Any] | None


# chart of report_time -> title
OVER_TIME = {
    "cpu": said("CPU over time"),
    "memory": said("Free memory over time"),
    "tcp_memory": said("Memory of TCP buffers over time"),
    "files": said("Open files over time"),
    "server_connections": said("Connections the server counts, over time"),
    "server_cpu": said("CPU of the server over time"),
    "server_memory": said("Memory of the server over time"),
    "states_server": said("TCP states over time, server side"),
    "states_client": said("TCP states over time, client side"),
    "counters": said("Kernel counters over time"),
}


def of_report(report: Mapping[str, Any], speak: Speak) -> dict[str, Drawn]:
    """The charts of report.html by name; those without anything to draw are left out.

    :param speak: says an English text in the page's language.
    """
    rows, late = report["timeline"], report["latency_timeline"]
    found = [
        _over_time(
            "connections",
            speak("Connections over time"),
            speak("connections"),
            {speak(name): [(row["t"], row[name]) for row in rows] for name in ("open", "established", "failed")},
        ),
        _over_time(
            "connects",
            speak("Connects per second"),
            speak("connects/s"),
            {speak("connects/s"): [(row["t"], row["connects_per_second"]) for row in rows]},
        ),
        _over_time(
            "echoes",
            speak("Echoes per second"),
            speak("echoes/s"),
            {speak("echoes/s"): [(row["t"], row["echoes_per_second"]) for row in rows]},
        ),
        _percentiles(
            "latency",
            speak("Latency by percentile"),
            speak("ms, log scale"),
            {speak(row["kind"]): row for row in report["latency"]},
        ),
        _spectra(report, speak),
    ]
    for kind, title in (
        ("connect", said("Connect latency over time")),
        ("response", said("Response latency over time")),
    ):
        lines = {
            name: [(row["t"], number_at(row, kind, name)) for row in late if row[kind]]
            for name in ("p50", "p99", "max")
        }
        found.append(_over_time(f"{kind}_time", speak(title), speak("ms, log scale"), lines, logarithmic=True))
    for name, title in OVER_TIME.items():
        chart = report["over_time"].get(name)
        if chart:
            lines = {speak(line["name"]): line["points"] for line in chart["lines"]}
            found.append(_over_time(name, speak(title), speak(chart["unit"]), lines))
    return {name: drawn for name, drawn in found if drawn is not None}


def of_pair(pair: Pair, speak: Speak) -> dict[str, Drawn]:
    """The charts of compare.html: the same figure of both runs in one drawing."""
    rows = {name: timeline(run) for name, run in zip("AB", pair, strict=True)}
    found = [
        _over_time(
            name,
            speak(title),
            speak(unit),
            {side: [(row["t"], row[key]) for row in mine] for side, mine in rows.items() if mine},
        )
        for name, title, unit, key in (
            ("open", said("Open connections over time"), said("connections"), "open"),
            ("connects", said("Connects per second"), said("connects/s"), "connects_per_second"),
            ("echoes", said("Echoes per second"), said("echoes/s"), "echoes_per_second"),
        )
    ]
    for kind, title in (
        ("connect", said("Connect latency by percentile (ms)")),
        ("response", said("Response latency by percentile (ms)")),
    ):
        lines = {side: (run or {}).get("latency_ms", {}) for side, run in zip("AB", pair, strict=True)}
        values = {side: row.get(kind) for side, row in lines.items() if isinstance(row, Mapping)}
        found.append(_percentiles(kind, speak(title), speak("ms, log scale"), values))
    return {name: drawn for name, drawn in found if drawn is not None}


def _over_time(
    name: str, title: str, unit: str, lines: Mapping[str, Sequence[charts.Point]], *, logarithmic: bool = False
) -> tuple[str, Drawn | None]:
    svg = charts.time_chart(name, title, unit, lines, logarithmic=logarithmic)
    return name, Drawn(svg, list(lines)) if svg else None


def _percentiles(name: str, title: str, unit: str, rows: Mapping[str, Any]) -> tuple[str, Drawn | None]:
    lines = {legend: [number_at(row, one) for one in PERCENTILES] for legend, row in rows.items()}
    labels = ["p50", "p90", "p99", "p99.9", "max"]
    svg = charts.percentile_chart(name, title, unit, labels, lines)
    return name, Drawn(svg, list(lines)) if svg else None


def _spectra(report: Mapping[str, Any], speak: Speak) -> tuple[str, Drawn | None]:
    lines = {speak(kind): bins for kind, bins in report["spectra"].items()}
    svg = charts.spectrum_chart(
        "spectrum", speak("Latency spectrum"), speak("ms, log scale"), speak("measurements, log scale"), lines
    )
    return "spectrum", Drawn(svg, list(lines)) if svg else None
