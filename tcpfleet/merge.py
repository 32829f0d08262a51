"""Many clients' results become one run: counts add up, histograms merge, timelines are laid over each other.

Pure functions of plain data. In: each client's result object (payload/stress_result.py), and what is known of
those that sent none. Out: the run record of run.json (schema tcpfleet.run/1). Two sums always hold:
requested = verified + failed, and echoes sent = verified + mismatched + lost.
"""

from __future__ import annotations

import datetime
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from payload import stress_threshold
from payload.histogram import Histogram, worse_row
from payload.stress_message import bracketed
from payload.stress_threshold import Threshold
from tcpfleet import walls
from tcpfleet.report_data import dig

COUNTS = ("requested", "established", "verified", "failed")
ECHOES = ("sent", "verified", "mismatched", "lost")
MOST_LATENCIES = 1200
MOST_POINTS = 2000  # timeline rows kept: a chart is about 1,000 pixels wide
HISTOGRAMS = ("connect", "first", "service", "response")
CLOCK = 60.0  # seconds between the starts of a run and of its client's ramp that only clocks can account for


def run_record(
    *,
    run_id: str,
    started: str,
    targets: Sequence[Mapping[str, Any]],
    command: str,
    version: str,
    per_client: int,
    shares: Sequence[Mapping[str, Any]],
    results: Mapping[int, Mapping[str, Any]],
    problems: Mapping[int, str],
    lost: Mapping[str, str],
    observations: Mapping[str, Mapping[str, Any]],
    interrupted: bool,
    thresholds: Sequence[Threshold] = (),
    plans: Mapping[int, Any] | None = None,
    server_plans: Mapping[str, Any] | None = None,
    samples: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What run.json holds.

    :param shares: [{"index", "host"}] for every client that was to run.
    :param results: client index -> its result.
    :param problems: client index -> why it left no result.
    :param lost: host name -> why it is out of reach; the shares of its clients without a result count as failed.
    :param observations: phase -> host -> outcome of observing it.
    :param thresholds: conditions under which the verdict is fail.
    :param plans: client index -> its plan, for those that left no result.
    :param targets: [{"host" (None outside the inventory), "address", "port"}]; the clients took them in turn.
    :param samples: host -> what its sampler saw (tcpfleet.samples/1).
    :param server_plans: HOST:PORT -> what that server's host had for the load (tcpfleet.ceilings).
    """
    missing = [share for share in shares if share["index"] not in results]
    hosts_of = {share["index"]: share["host"] for share in shares}
    ahead = {index: seconds_ahead(result, started) for index, result in results.items()}
    results = {index: _by_our_clock(result, ahead[index]) for index, result in results.items()}
    connections = {name: sum(result["connections"][name] for result in results.values()) for name in COUNTS}
    connections["requested"] += per_client * len(missing)
    connections["failed"] += per_client * len(missing)
    timeline = merge_timelines([result["timeline"] for result in results.values()])
    # Rows lie a step apart; a client's own peak may be between two.
    peaks = [result["connections"]["peak"] for result in results.values()]
    connections["peak"] = max([row["open"] for row in timeline] + peaks, default=0)
    echoes = {name: sum(result["echoes"][name] for result in results.values()) for name in ECHOES}
    errors = merge_errors(
        [row | {"host": hosts_of[index]} for index, result in results.items() for row in result["errors"]]
        + [_missing_error(share, per_client, problems, lost, started) for share in missing]
    )
    churns = [result["churn"] for result in results.values() if result.get("churn")]
    churned = sum(row["verified"] for row in churns)
    # Since the common start: clients of one host take turns in connecting.
    spans = [result["seconds"]["ramp_span"] for result in results.values() if result["seconds"]["ramp_span"]]
    begun, ramped = min((begin for begin, _ in spans), default=0.0), max((end for _, end in spans), default=0.0)
    ramp = ramped - begun
    hold = max((result["seconds"]["hold"] for result in results.values()), default=0.0)
    ended = max((row["t"] for row in timeline), default=0.0)
    cut_short = [index for index, result in sorted(results.items()) if result["interrupted"]]
    passed = (
        bool(results)
        and not cut_short
        and not interrupted
        and not missing
        and connections["verified"] == connections["requested"]
        and connections["failed"] == echoes["mismatched"] == echoes["lost"] == 0
    )
    histograms = {
        name: Histogram.merged(Histogram.from_dict(result["histograms"][name]) for result in results.values())
        for name in HISTOGRAMS
    }
    record: dict[str, Any] = {
        "schema": "tcpfleet.run/1",
        "run_id": run_id,
        "started": started,
        "ended": max((result["ended"] for result in results.values()), default=started),
        "version": version,
        "command": command,
        "interrupted": interrupted or bool(cut_short),
        "verdict": "pass" if passed else "fail",
        "target": dict(targets[0]),
        "targets": [dict(target) for target in targets],
        "connections": connections,
        "rate": {
            "connects_per_second": round((connections["established"] - churned) / ramp, 1) if ramp else 0.0,
            "echoes_per_second": _echo_rate(results, echoes, ramp),
        },
        "echoes": echoes,
        "churn": {
            "connects": sum(row["connects"] for row in churns),
            "verified": churned,
            "per_second": round(sum(row["per_second"] for row in churns), 1),
        }
        if churns
        else None,
        "seconds": {
            "ramp": round(ramp, 3),
            "hold": hold,
        },
        "latency_ms": latencies(histograms),
        "errors": errors,
        "wall": None,
        "warnings": [
            f"{hosts_of[index]}, client {index}: was stopped after {results[index]['seconds']['hold']:g} s of hold"
            for index in cut_short
        ]
        + [
            f"{hosts_of[index]}, client {index}: {text}"
            for index, result in sorted(results.items())
            for text in result["warnings"]
        ]
        + [
            f"{hosts_of[index]}, client {index}: {_clock_words(off)}; its times were moved"
            for index, off in sorted(ahead.items())
            if off
        ],
        "hosts": host_rows(shares, results, targets, lost, observations),
        "timeline": timeline,
        "latency_timeline": merge_latency_timelines(
            [result.get("latency_timeline") or [] for result in results.values()]
        ),
        "plan": {
            "clients": len(shares),
            "per_client": per_client,
            "target": ", ".join(f"{bracketed(target['address'])}:{target['port']}" for target in targets),
            "servers": dict(server_plans or {}),
            "shares": [
                dict(share)
                | {
                    "plan": results[share["index"]]["plan"]
                    if share["index"] in results
                    else (plans or {}).get(share["index"])
                }
                for share in shares
            ],
            "options": next((result["options"] for result in results.values()), {}),
        },
        "histograms": {name: histogram.to_dict() for name, histogram in histograms.items()},
    }
    record["thresholds"] = stress_threshold.judge(list(thresholds), record)
    unmet = any(row["failed"] for row in record["thresholds"])
    if unmet:
        record["verdict"] = "fail"
    # Nothing stood in the way of a run that was only ended early: ECANCELED is what it had not done by then.
    if unmet or any(row["errno"] != "ECANCELED" for row in errors):
        record["wall"] = _wall(
            targets,
            lambda target: walls.Scene(
                errors=errors,
                connections=connections,
                observations=observations,
                server=target["host"],
                clients=list(dict.fromkeys(share["host"] for share in shares)),
                lost=lost,
                said=[
                    (result["wall"], result["connections"]["failed"])
                    for result in results.values()
                    if result["wall"]
                ],
                capacity=dig(server_plans, f"{target['host']}:{target['port']}", "capacity"),
                slow_connects=sum(
                    worker.get("slow_connects", 0)
                    for result in results.values()
                    for host in result["hosts"]
                    for worker in host["workers"]
                ),
                samples=samples or {},
                phases={"of the ramp": (begun, ramped), "of the hold": (max(ramped, ended - hold), ended)},
            ),
        )
    return record


def seconds_ahead(result: Mapping[str, Any], started: str) -> float:
    """By how much the clock of a client's host is ahead of the controller's; 0 where that is not plain.

    >>> seconds_ahead({"started": "2026-01-31T12:00:01.500Z"}, "2026-01-31T11:00:00+00:00")
    3601.5
    """
    if not result.get("started"):
        return 0.0
    ahead = (_moment(result["started"]) - _moment(started)).total_seconds()
    return ahead if abs(ahead) > CLOCK else 0.0


def _clock_words(ahead: float) -> str:
    if ahead > 0:
        return f"its clock is {ahead:,.0f} s ahead of the controller's"
    return f"its clock is {-ahead:,.0f} s behind the controller's"


def _moment(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))


def _by_our_clock(result: Mapping[str, Any], ahead: float) -> Mapping[str, Any]:
    """A client's result with its moments as this machine's clock had them."""
    if not ahead:
        return result

    def moved(text: str) -> str:
        moment = _moment(text) - datetime.timedelta(seconds=ahead)
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")

    errors = [row | {"first": moved(row["first"]), "last": moved(row["last"])} for row in result["errors"]]
    return {**result, "ended": moved(result["ended"]), "errors": errors}


def _echo_rate(results: Mapping[int, Mapping[str, Any]], echoes: Mapping[str, int], ramp: float) -> float:
    """Of the steady phases, which clients have at the same time; where nothing was sent in them, of the ramp."""
    steady = [result for result in results.values() if result["echoes"]["steady"]]
    if steady:
        return round(sum(float(result["rate"]["echoes_per_second"]) for result in steady), 1)
    return round(echoes["verified"] / ramp, 1) if ramp else 0.0


def _wall(
    targets: Sequence[Mapping[str, Any]], scene: Callable[[Mapping[str, Any]], walls.Scene]
) -> dict[str, Any] | None:
    """The wall; with several targets, that of the one whose own counters say most."""
    found = [wall for target in targets if (wall := walls.diagnose(scene(target))) is not None]
    return max(found, key=lambda wall: len(wall["also"]), default=None)


def latencies(histograms: Mapping[str, Histogram]) -> dict[str, Any]:
    """Percentiles in ms from merged histograms, never averaged.

    Service and response are those of the steady phase; where nothing was sent in it, of the first echoes.
    """
    steady = histograms["service"].count > 0
    return {
        "connect": histograms["connect"].summary_ms(),
        "service": histograms["service" if steady else "first"].summary_ms(),
        "response": histograms["response" if steady else "first"].summary_ms(),
        "first_echo": histograms["first"].summary_ms(),
    }


def merge_timelines(timelines: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Lay the clients' timelines over each other by seconds since the common start.

    Between two samples of a client its last sample counts, and after its end its counters stay while its open
    connections are gone.

    :returns: rows {"t", "open", "established", "failed", "connects_per_second", "echoes_per_second"}.
    """
    timelines = [rows for rows in timelines if rows]
    if not timelines:
        return []
    end = max(rows[-1]["t"] for rows in timelines)
    step = max(_step(rows) for rows in timelines)
    step = max(step, end / MOST_POINTS)
    cursors = [0] * len(timelines)
    merged: list[dict[str, Any]] = []
    before = {"t": 0.0, "established": 0, "echoes": 0}
    count = int(end / step) + 2
    for tick in range(count):
        at = min(tick * step, end)
        row = {"t": round(at, 3), "open": 0, "established": 0, "failed": 0, "echoes": 0}
        for number, rows in enumerate(timelines):
            while cursors[number] + 1 < len(rows) and rows[cursors[number] + 1]["t"] <= at + 1e-9:
                cursors[number] += 1
            sample = rows[cursors[number]]
            if sample["t"] > at + 1e-9:
                continue  # this client had not taken its first sample yet
            for name in ("established", "failed", "echoes"):
                row[name] += sample[name]
            if at <= rows[-1]["t"] + step:  # a client that has ended holds nothing open any more
                row["open"] += sample["open"]
        if len(merged) > 1 and row["t"] - before["t"] < step / 2:
            before = merged[-2]  # a rate over a fraction of a step would be a spike that nobody saw
        span = row["t"] - before["t"]
        for name, counter in (("connects_per_second", "established"), ("echoes_per_second", "echoes")):
            row[name] = round((row[counter] - before[counter]) / span, 1) if span > 0 else 0.0
        merged.append(row)
        before = row
        if at >= end:
            break
    return merged


def merge_latency_timelines(timelines: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The clients' latencies over time in steps of half a second or more.

    Each value is that of the client that was worst in the step: percentiles cannot be merged, and what all clients
    measured together has none that is higher.

    :returns: rows {"t": end of the step, "connect": {"p50", "p99", "max", "count"} | None, "response": ...}.
    """
    rows = [row for timeline in timelines for row in timeline]
    step = max(0.5, max((row["t"] for row in rows), default=0.0) / MOST_LATENCIES)
    found: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(math.ceil(row["t"] / step - 1e-9), []).append(dict(row))
    return [worse_row(part) | {"t": round(number * step, 3)} for number, part in sorted(found.items())]


def _step(rows: Sequence[Mapping[str, Any]]) -> float:
    """A client's sampling interval: the median of its gaps, at least 0.1 s."""
    gaps = sorted(later["t"] - earlier["t"] for earlier, later in itertools.pairwise(rows))
    return max(0.1, round(float(gaps[len(gaps) // 2]), 1)) if gaps else 0.1


def merge_errors(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Add up rows of equal phase, errno and host; most frequent first; first, last and one sample are kept."""
    merged: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in rows:
        known = merged.setdefault((row["phase"], row["errno"], row["host"]), dict(row) | {"count": 0})
        known["count"] += row["count"]
        known["first"] = min(known["first"], row["first"])
        known["last"] = max(known["last"], row["last"])
    return sorted(merged.values(), key=lambda row: -int(row["count"]))


def _missing_error(
    share: Mapping[str, Any], count: int, problems: Mapping[int, str], lost: Mapping[str, str], started: str
) -> dict[str, Any]:
    reasons = (lost.get(share["host"]), problems.get(share["index"]))
    sample = "; ".join(reason for reason in reasons if reason) or "the client left no result"
    return {
        "phase": "connect",
        "errno": "UNREACHABLE" if share["host"] in lost else "CLIENT_DIED",
        "count": count,
        "host": share["host"],
        "first": started,
        "last": started,
        "sample": sample,
    }


def host_rows(
    shares: Sequence[Mapping[str, Any]],
    results: Mapping[int, Mapping[str, Any]],
    targets: Sequence[Mapping[str, Any]],
    lost: Mapping[str, str],
    observations: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """One row per host of the run: its roles, clients, workers and whether it was lost."""
    rows: dict[str, dict[str, Any]] = {}
    for share in shares:
        row = rows.setdefault(
            share["host"], {"name": share["host"], "roles": ["client"], "clients": [], "workers": []}
        )
        row["clients"].append(share["index"])
        for host in results.get(share["index"], {}).get("hosts", []):
            row["workers"] += [{"client": share["index"]} | worker for worker in host["workers"]]
    for target in targets:
        if target.get("host"):
            row = rows.setdefault(
                str(target["host"]), {"name": target["host"], "roles": [], "clients": [], "workers": []}
            )
            if "server" not in row["roles"]:
                row["roles"].insert(0, "server")
    for name, row in rows.items():
        row["lost"] = lost.get(name)
        seen: Mapping[str, Any] = next(
            (
                phase[name]["observation"]
                for phase in observations.values()
                if phase.get(name, {}).get("status") == "ok"
            ),
            {},
        )
        identity = seen.get("identity") or {}
        row["kernel"], row["boot_id"] = identity.get("kernel"), identity.get("boot_id")
    return list(rows.values())


def summary(record: Mapping[str, Any]) -> str:
    """The run in a few lines for the console."""
    counts, echoes, latency = record["connections"], record["echoes"], record["latency_ms"]
    lines = [
        f"verdict: {record['verdict']}" + (" (interrupted)" if record["interrupted"] else ""),
        f"connections: {counts['requested']:,} requested, {counts['established']:,} established, "
        f"{counts['verified']:,} verified, {counts['failed']:,} failed, peak {counts['peak']:,}",
        f"rate: {record['rate']['connects_per_second']:,.0f} connects/s over "
        f"{record['seconds']['ramp']:.1f} s of ramp; {record['rate']['echoes_per_second']:,.0f} echoes/s",
        f"echoes: {echoes['sent']:,} sent, {echoes['verified']:,} verified byte for byte, "
        f"{echoes['mismatched']:,} mismatched, {echoes['lost']:,} lost",
    ]
    if record["churn"]:
        churn = record["churn"]
        lines.append(f"churn: {churn['connects']:,} connections made anew, {churn['per_second']:,.0f}/s verified")
    for name in ("connect", "service", "response"):
        row = latency[name]
        if row.get("count"):
            lines.append(
                f"latency {name}: p50 {row['p50']:.2f} ms, p99 {row['p99']:.2f} ms, max {row['max']:.2f} ms"
            )
    for row in record["errors"][:5]:
        lines.append(f"error: {row['host']}: {row['count']:,} x {row['errno']} in {row['phase']}: {row['sample']}")
    lines += [f"warning: {text}" for text in record["warnings"][:5]]
    lines += [f"threshold {stress_threshold.sentence(row)}" for row in record["thresholds"]]
    if record["wall"]:
        lines.append(f"wall: {record['wall']['name']}: {record['wall']['evidence']}")
        lines.append(f"fix: {record['wall']['fix']}")
        lines += [f"also: {one['name']}: {one['evidence']}" for one in record["wall"].get("also", [])]
    return "\n".join(lines)
