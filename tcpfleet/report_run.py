"""What a report says from run.json alone: the verdict, the plan, rates, latencies, errors."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from payload import histogram
from tcpfleet.charts import number
from tcpfleet.report_data import LARGEST, PERCENTILES, View, dig, number_at, rows_at
from tcpfleet.said import Said, said


def verdict(run: Mapping[str, Any] | None, view: View, refused: str | None = None) -> dict[str, Any]:
    """The report's first lines.

    :param refused: why the plan was refused, if it was.
    :returns: ``{"status": "pass"|"fail"|"refused"|"none", "line", "wall", "evidence", "fix", "also"}``.
    """
    why: Said | None = None
    out: dict[str, Any] = {"status": "none", "wall": None, "evidence": None, "fix": None, "also": []}
    if run is None:
        if refused:
            line = said("REFUSED: {reason}", reason=str(refused))
            return out | {"status": "refused", "line": line}
        line = said(
            "No verdict: no run was made; this is the present state of the hosts ({n}).", n=len(view.hosts)
        )
        return out | {"line": line}
    status = dig(run, "verdict")
    wall = dig(run, "wall", "name")
    requested, verified, failed = (
        number(number_at(run, "connections", name)) for name in ("requested", "verified", "failed")
    )
    if status == "pass" and wall:
        template = "PASS: {counts} First limit in sight: {wall}."
    elif status == "pass":
        template = "PASS: {counts} No wall was met."
    elif status == "fail" and wall:
        template = "FAIL: {counts} The wall: {wall}."
    elif status == "fail" and (why := fail_reason(run)):
        template = "FAIL: {counts} {why}"
    elif status == "fail":
        template = "FAIL: {counts} The wall was not identified: see the errors and counters below."
    else:
        status, template = "none", "No verdict in run.json. {counts}"
    counts = said(
        "{verified} of {requested} connections held, every first echo verified; {failed} failed.",
        verified=verified,
        requested=requested,
        failed=failed,
    )
    return out | {
        "status": status,
        "line": Said(template, {"counts": counts, "wall": str(wall), "why": why}),
        "wall": wall,
        "evidence": dig(run, "wall", "evidence"),
        "fix": dig(run, "wall", "fix"),
        "also": rows_at(run, "wall", "also"),
    }


INTERRUPTED = said("The run was stopped before its end.")
CROSSED = said("A threshold was crossed: see below.")
ALTERED = said("Echoes were lost or came back altered: see below.")


def fail_reason(run: Mapping[str, Any] | None) -> Said | None:
    """Why a run without a wall failed, where it was not because of connections that failed."""
    if dig(run, "interrupted"):
        return INTERRUPTED
    if number_at(run, "connections", "failed") != 0:
        return None
    if any(number_at(run, "echoes", name) for name in ("mismatched", "lost")):
        return ALTERED
    return CROSSED if any(row.get("failed") for row in rows_at(run, "thresholds")) else None


def plan_rows(run: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """``[{"name", "value"}]`` of run.json's plan: its own fields, then one row per client."""
    plan = dig(run, "plan")
    if not isinstance(plan, Mapping):
        return []
    rows = []
    for name, value in plan.items():
        if name == "servers" and isinstance(value, Mapping):
            for server, facts in value.items():
                known = facts.items() if isinstance(facts, Mapping) else ()
                words = (f"{str(key).replace('_', ' ')} {_count(one)}" for key, one in known if one is not None)
                rows.append({"name": f"server {server}", "value": ", ".join(words)})
            continue
        if name == "shares":
            continue
        if isinstance(value, Mapping):
            value = ", ".join(f"{key} {inner}" for key, inner in value.items() if inner is not None)
        elif isinstance(value, list):
            value = ", ".join(str(one) for one in value)
        rows.append({"name": str(name).replace("_", " "), "value": value})
    for share in rows_at(plan, "shares"):
        own = share.get("plan")
        name = f"client {share.get('index')} on {share.get('host')}"
        if not isinstance(own, Mapping):
            rows.append({"name": name, "value": "left no plan"})
            continue
        sources = own.get("sources")
        workers = own.get("workers")
        rows.append(
            {
                "name": name,
                "value": f"{_count(own.get('connections'))} connections from "
                f"{', '.join(map(str, sources)) if isinstance(sources, list) else sources}, "
                f"ports {own.get('ports')} ({_count(own.get('usable_ports'))} usable, "
                f"{_count(own.get('busy_ports'))} busy), "
                f"{len(workers) if isinstance(workers, list) else workers} processes, "
                f"nofile {_count(dig(own, 'nofile', 'reachable'))}",
            }
        )
    return rows


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


def latency_rows(run: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Percentiles in milliseconds per kind of latency, from run.json unchanged."""
    rows = []
    for kind in ("connect", "service", "response"):
        values = dig(run, "latency_ms", kind)
        if isinstance(values, Mapping):
            rows.append({"kind": kind, **{name: values.get(name) for name in (*PERCENTILES, "count")}})
    return rows


def thresholds(run: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The conditions of --fail-if: ``[{"text", "value": measured or None, "unit", "failed"}]``."""
    return [
        {
            "text": str(row.get("text")),
            "value": number_at(row, "value"),
            "unit": _threshold_unit(str(row.get("text"))),
            "failed": bool(row.get("failed")),
        }
        for row in rows_at(run, "thresholds")
    ]


def _threshold_unit(text: str) -> str:
    name = text.split("<")[0].split(">")[0].strip()
    endings = {"_ms": "ms", "_percent": "%", "_per_second": "/s", "_seconds": "s"}
    return next((unit for ending, unit in endings.items() if name.endswith(ending)), "")


def facts(run: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The run card: ``[{"name", "value", "unit"}]`` of what is known."""
    plan = dig(run, "plan") or run  # plan.json has the same keys
    found = [
        (said("started"), dig(run, "started"), ""),
        (said("ended"), dig(run, "ended"), ""),
        (said("ramp"), number_at(run, "seconds", "ramp"), "s"),
        (said("hold"), number_at(run, "seconds", "hold"), "s"),
        (said("stress clients"), number_at(plan, "clients"), ""),
        (said("connections of each client"), number_at(plan, "per_client"), ""),
        (said("target"), dig(plan, "target"), ""),
        (said("mode"), dig(plan, "options", "mode"), ""),
        (said("tcpfleet"), dig(run, "version"), ""),
    ]
    return [{"name": name, "value": value, "unit": unit} for name, value, unit in found if value is not None]


def warnings(run: Mapping[str, Any] | None) -> list[str]:
    """What the clients say about their own part in the figures."""
    found = dig(run, "warnings")
    return [_warning(str(one)) for one in found] if isinstance(found, list) else []


def _warning(text: str) -> str:
    """A warning as `merge` writes it, taken apart again."""
    parts = re.fullmatch(r"(.+?), client (\d+): (.+)", text, re.DOTALL)
    if not parts:
        return text
    host, index, warning = parts.groups()
    return said("{host}, client {index}: {warning}", host=host, index=index, warning=warning)


BINS = 10  # per factor of 10: what can be told apart on a page


def spectra(run: Mapping[str, Any] | None) -> dict[str, list[tuple[float, int]]]:
    """How many measurements took how long, from the merged histograms of run.json.

    :returns: kind of latency -> (upper end of the bin in ms, measurements in it), every bin between the first and
        the last that hold any. Where nothing was sent after the ramp, service is of the first echoes, as in the
        table of percentiles, and response, the same figures again, is left out.
    """
    found = {}
    steady = bool(_buckets(run, "service"))
    names = {"connect": "connect", "service": "service" if steady else "first"}
    if steady:
        names["response"] = "response"
    for kind, name in names.items():
        bins: dict[int, int] = {}
        for index, count in _buckets(run, name):
            milliseconds = max(histogram.middle(index), 1) / 1000
            place = math.floor(math.log10(milliseconds) * BINS)
            bins[place] = bins.get(place, 0) + count
        if bins:
            found[kind] = [
                (float(f"{10 ** ((place + 1) / BINS):.4g}"), bins.get(place, 0))
                for place in range(min(bins), max(bins) + 1)
            ]
    return found


def _buckets(run: Mapping[str, Any] | None, name: str) -> list[tuple[int, int]]:
    """The buckets of one of run.json's histograms: (index, count); empty when it is not in our scheme."""
    data = dig(run, "histograms", name)
    buckets = dig(data, "buckets")
    if dig(data, "scheme") != histogram.SCHEME or not isinstance(buckets, list):
        return []
    pairs = [pair for pair in buckets if isinstance(pair, list) and len(pair) == 2]
    return [
        (index, count)
        for index, count in pairs
        if isinstance(index, int)
        and isinstance(count, int)
        and 0 <= index < histogram.SIZE
        and 0 < count <= LARGEST
    ]


def latency_timeline(run: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Latencies over time, of the client that was worst at the time: ``[{"t", "connect": {"p50", "p99", "max":
    ms} | None, "response"}]``."""
    found = []
    for row in rows_at(run, "latency_timeline"):
        if number_at(row, "t") is None:
            continue
        point: dict[str, Any] = {"t": row["t"]}
        for kind in ("connect", "response"):
            values = {name: number_at(row, kind, name) for name in ("p50", "p99", "max")}
            point[kind] = values if any(value is not None for value in values.values()) else None
        found.append(point)
    return found


def errors(run: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Errors by phase and errno, most frequent first: ``[{"phase", "errno", "count", "first", "last", "sample",
    "hosts": [{"host", "count"}]}]``, the hosts with most first."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows_at(run, "errors"):
        key = (str(row.get("phase")), str(row.get("errno")))
        known = found.setdefault(
            key, {"phase": key[0], "errno": key[1], "count": 0, "first": None, "last": None, "hosts": []}
        )
        count = number_at(row, "count") or 0
        known["count"] += count
        known.setdefault("sample", row.get("sample"))
        known["hosts"].append({"host": str(row.get("host")), "count": count})
        for name, pick in (("first", min), ("last", max)):
            value = row.get(name)
            if isinstance(value, str):
                known[name] = value if known[name] is None else pick(known[name], value)
    for row in found.values():
        row["hosts"].sort(key=lambda one: -one["count"])
    return sorted(found.values(), key=lambda row: -row["count"])


def balance(run: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """How evenly the stress clients' workers were loaded, host by host.

    :returns: ``[{"host", "side": "client", "workers": [{"name", "connections", "descriptors", "cpu_seconds",
        "longest_turn_ms", "failed", "died"}], "by": "cpu_seconds", "mean", "busiest", "ratio": busiest / mean}]``.
    """
    found = []
    for host in rows_at(run, "hosts"):
        workers = [
            {
                "name": f"{row.get('client')}/{row.get('index')}",
                "connections": number_at(row, "connections"),
                "descriptors": None,
                "cpu_seconds": number_at(row, "cpu_seconds"),
                "longest_turn_ms": number_at(row, "longest_turn_ms"),
                "failed": number_at(row, "failed"),
                "died": str(row["died"]) if row.get("died") else None,
            }
            for row in rows_at(host, "workers")
        ]
        if workers:
            found.append({"host": str(host.get("name")), "side": "client"} | spread(workers, "cpu_seconds"))
    return found


def spread(workers: list[dict[str, Any]], key: str) -> dict[str, Any]:
    """Busiest worker against the mean, by `key`: ``{"workers", "by", "mean", "busiest", "ratio"}``."""
    values = [row[key] for row in workers if row[key] is not None]
    mean = sum(values) / len(values) if values else None
    busiest = max(values, default=None)
    return {
        "workers": workers,
        "by": key,
        "mean": None if mean is None else round(mean, 3),
        "busiest": busiest,
        "ratio": round(busiest / mean, 2) if mean and busiest is not None else None,
    }


TIMELINE = ("open", "established", "failed", "connects_per_second", "echoes_per_second")


def timeline(run: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Rows over time: t in seconds since the start, and `TIMELINE`: connections, and rates per second."""
    return [
        {"t": row["t"], **{name: number_at(row, name) for name in TIMELINE}}
        for row in rows_at(run, "timeline")
        if number_at(row, "t") is not None
    ]
