"""What a report says from run.json alone: the verdict, the plan, rates, latencies, errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tcpfleet.charts import number
from tcpfleet.report_data import PERCENTILES, View, dig, number_at, rows_at
from tcpfleet.said import Said, said


def verdict(run: Mapping[str, Any] | None, view: View, refused: str | None = None) -> dict[str, Any]:
    """The report's first lines.

    :param refused: why the plan was refused, if it was.
    :returns: ``{"status": "pass"|"fail"|"refused"|"none", "line", "wall", "evidence", "fix", "also"}``.
    """
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
    elif status == "fail" and any(row.get("failed") for row in rows_at(run, "thresholds")) and failed == "0":
        template = "FAIL: {counts} A threshold was crossed: see below."
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
        "line": Said(template, {"counts": counts, "wall": str(wall)}),
        "wall": wall,
        "evidence": dig(run, "wall", "evidence"),
        "fix": dig(run, "wall", "fix"),
        "also": rows_at(run, "wall", "also"),
    }


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


TIMELINE = ("open", "established", "failed", "connects_per_second", "echoes_per_second")


def timeline(run: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Rows over time: t in seconds since the start, and `TIMELINE`: connections, and rates per second."""
    return [
        {"t": row["t"], **{name: number_at(row, name) for name in TIMELINE}}
        for row in rows_at(run, "timeline")
        if number_at(row, "t") is not None
    ]
