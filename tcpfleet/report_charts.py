"""Which charts a page has, and what is drawn in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from markupsafe import Markup

from tcpfleet import charts
from tcpfleet.report_data import PERCENTILES, number_at
from tcpfleet.report_run import timeline

Drawn = dict[str, Markup | None]


class Pair(NamedTuple):
    """One run of each side of a comparison, as in run.json; None where the side has none."""

    a: Mapping[str, Any] | None
    b: Mapping[str, Any] | None


def of_report(report: Mapping[str, Any]) -> Drawn:
    """The charts of report.html by name; None where there is nothing to draw."""
    rows = report["timeline"]

    def points(name: str) -> list[charts.Point]:
        return [(row["t"], row[name]) for row in rows]

    kinds = report["latency"]
    return {
        "connections": charts.time_chart(
            "connections",
            "Connections over time",
            "connections",
            {name: points(name) for name in ("established", "failed", "open")},
        ),
        "connects": charts.time_chart(
            "connects", "Connects per second", "connects/s", {"connects/s": points("connects_per_second")}
        ),
        "echoes": charts.time_chart(
            "echoes", "Echoes per second", "echoes/s", {"echoes/s": points("echoes_per_second")}
        ),
        "latency": charts.percentile_chart(
            "latency",
            "Latency by percentile",
            "ms, log scale",
            PERCENTILES,
            {row["kind"]: [number_at(row, name) for name in PERCENTILES] for row in kinds},
        ),
    }


def of_pair(pair: Pair) -> Drawn:
    """The charts of compare.html: the same figure of both runs in one drawing."""
    rows = {name: timeline(run) for name, run in zip("AB", pair, strict=True)}

    def over_time(name: str, title: str, unit: str, key: str) -> Markup | None:
        points = {side: [(row["t"], row[key]) for row in mine] for side, mine in rows.items() if mine}
        return charts.time_chart(name, title, unit, points)

    latencies = {
        f"{kind}-{side}": [number_at(run, "latency_ms", kind, name) for name in PERCENTILES]
        for kind in ("connect", "response")
        for side, run in zip("AB", pair, strict=True)
    }
    return {
        "open": over_time("open", "Open connections over time", "connections", "open"),
        "connects": over_time("connects", "Connects per second", "connects/s", "connects_per_second"),
        "echoes": over_time("echoes", "Echoes per second", "echoes/s", "echoes_per_second"),
    } | {
        kind: charts.percentile_chart(
            kind,
            f"Latency by percentile: {kind}",
            "ms, log scale",
            PERCENTILES,
            {side: latencies[f"{kind}-{side}"] for side in "AB"},
        )
        for kind in ("connect", "response")
    }
