"""Two runs, or two groups of repeated runs, side by side: what was set differently, and what came of it.

In: the loaded runs of both sides. Out: one dictionary (compare.json), from which the page and the Markdown are
rendered. Pure.

When is a difference one? Runs that are set alike differ too: on a busy machine of two processors the rate of
connects by a factor of 2, the 99th percentile of an echo by 5, its maximum by 10. So a figure differs only

* with three runs or more on each side, when the ranges of the two sides do not overlap, and their medians are
  further apart than `ranges_apart` times the larger range, and than `LEAST` of the smaller median. Of figures
  that only scatter, about one in a thousand passes this, with any number of runs (normal and lognormal noise);
* with fewer runs the spread is unknown: then only what is beyond the `ALLOWANCES` is named, as "beyond the
  allowance", and maxima never.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tcpfleet import report_hosts
from tcpfleet.charts import number
from tcpfleet.report_data import Observations, View, dig, number_at, rows_at, why_missing
from tcpfleet.said import Said, said

SCHEMA = "tcpfleet.compare/1"
ENOUGH = 3  # runs on a side from which on their spread is known
LEAST = 0.05  # and than this share of the smaller median: less is not worth a word
CLAIMS = ("difference", "beyond allowance")  # status of a figure that is named as different
# A server that has just been started takes so much by itself (11 MiB measured with 15 workers).
MEMORY_NOISE = 64 * 2**20
COUNT_SHARE = 0.001  # of the connections asked for: fewer failures, errors or events are chance

ALLOWANCES: dict[str, float | None] = {
    "rate": 2.5,
    "seconds": 2.5,
    "median": 4.0,
    "tail": 10.0,
    "worst": None,
    "memory": 2.0,
    "machine": 4.0,  # with all that goes on on it
    "counter": 10.0,
}
"""Kind of figure -> the factor within which single runs that were set alike may differ; None: any."""


class Metric(NamedTuple):
    """One figure that is compared.

    :ivar better: "higher", "lower", or "" where neither is.
    :ivar kind: of ALLOWANCES, or "count": of connections or messages, out of what was asked for.
    """

    group: str
    name: str
    unit: str
    better: str
    kind: str
    value: Callable[[Loaded], float | None]


@dataclass(frozen=True)
class Loaded:
    """One run as it is kept.

    :ivar run: run.json; None when the plan was refused, or when the run did not end.
    :ivar plan: plan.json; None when there is none.
    """

    run_id: str
    run: Mapping[str, Any] | None
    observations: Observations
    plan: Mapping[str, Any] | None = None

    @property
    def refused(self) -> str | None:
        """Why nothing was started."""
        reason = dig(self.plan, "refused")
        return str(reason) if reason else None

    @property
    def view(self) -> View:
        return View(self.run or self.plan, self.observations)

    @property
    def requested(self) -> float | None:
        """Connections asked for."""
        found = number_at(self.run, "connections", "requested")
        if found is None:
            clients, each = number_at(self.plan, "clients"), number_at(self.plan, "per_client")
            found = clients * each if clients is not None and each is not None else None
        return found


def compare(a: Sequence[Loaded], b: Sequence[Loaded]) -> dict[str, Any]:
    """Everything a comparison says.

    :param a: the runs of the first side, one or more; `b`: of the second.
    :returns: ``{"schema", "sides": {"a": {"runs"}, "b"}, "answer": [sentence], "rule": sentence, "notes":
        [sentence], "settings": [setting], "results": [result]}``; see `settings`, `results`.
    """
    changed = settings(a, b)
    figures = results(a, b)
    known = min(len(_finished(a)), len(_finished(b))) >= ENOUGH
    return {
        "schema": SCHEMA,
        "sides": {"a": _side(a), "b": _side(b)},
        "answer": _answer(a, b, changed, figures, known),
        "rule": _rule(min(len(_finished(a)), len(_finished(b)))),
        "notes": _notes(a, b, changed),
        "settings": changed,
        "results": figures,
    }


def _finished(side: Sequence[Loaded]) -> list[Loaded]:
    return [one for one in side if one.run is not None]


def _side(side: Sequence[Loaded]) -> dict[str, Any]:
    return {
        "runs": [
            {
                "run_id": one.run_id,
                "started": dig(one.run, "started") or dig(one.plan, "started"),
                "command": dig(one.run, "command") or dig(one.plan, "command"),
                "verdict": _verdict(one),
                "wall": dig(one.run, "wall", "name"),
                "refused": one.refused,
            }
            for one in side
        ]
    }


def _verdict(one: Loaded) -> str:
    """pass, fail, refused, or none."""
    if one.run is None:
        return "refused" if one.refused else "none"
    status = dig(one.run, "verdict")
    return status if status in ("pass", "fail") else "none"


# ---------------------------------------------------------------- settings

# Options of the client that say nothing about what was tested: how it was led, and what its plan says better.
_NOT_SETTINGS = frozenset(
    {
        "barrier",
        "barrier_timeout",
        "connections",
        "fail_if",
        "first_conn",
        "host",
        "port",
        "seed",
        "slice",
        "source",
        "json",
    }
)


def settings(a: Sequence[Loaded], b: Sequence[Loaded]) -> list[dict[str, Any]]:
    """What was set on both sides.

    :returns: ``[{"group", "name", "where": [host], "a": [text], "b": [text], "differ": bool}]``, those that differ
        first; a and b are the distinct values of a side, more than one where its runs are not set alike.
    """
    whole = [_plan_settings(side, _options_known(a, b)) for side in (a, b)]
    rows = [
        _setting(group, name, [], whole[0].get((group, name), []), whole[1].get((group, name), []))
        for group, name in dict.fromkeys([*whole[0], *whole[1]])
    ]
    rows += _host_settings(a, b)
    return sorted(rows, key=lambda row: not row["differ"])


def _setting(group: str, name: str, where: list[str], a: Iterable[str], b: Iterable[str]) -> dict[str, Any]:
    left, right = sorted(set(a)), sorted(set(b))
    return {"group": group, "name": name, "where": where, "a": left, "b": right, "differ": left != right}


def _options_known(a: Sequence[Loaded], b: Sequence[Loaded]) -> bool:
    """Whether every run tells all options with their defaults; a refused one tells only those that were typed."""
    return all(isinstance(dig(one.run, "plan", "options"), Mapping) for one in (*a, *b))


def _plan_settings(side: Sequence[Loaded], all_options: bool) -> dict[tuple[str, str], list[str]]:
    found: dict[tuple[str, str], list[str]] = {}

    def put(group: str, name: str, value: Any) -> None:
        found.setdefault((group, name), []).append("–" if value is None else _text(value))

    for one in side:
        plan = dig(one.run, "plan") or one.plan or {}
        put("plan", "clients", dig(plan, "clients"))
        put("plan", "connections of each client", dig(plan, "per_client"))
        targets = rows_at(one.run, "targets") or rows_at(one.plan, "targets")
        put("plan", "target", ", ".join(f"{row.get('address')}:{row.get('port')}" for row in targets) or None)
        put("plan", "--fail-if", ", ".join(_conditions(one)) or None)
        put("plan", "hosts", ", ".join(sorted(one.view.hosts)) or None)
        put("version", "tcpfleet", dig(one.run, "version") or dig(one.plan, "version"))
        options = dig(plan, "options") if all_options else dict(_typed(one.plan))
        for name, value in options.items() if isinstance(options, Mapping) else ():
            if name not in _NOT_SETTINGS:
                put("option", f"--{str(name).replace('_', '-')}", value)
        servers = dig(plan, "servers")
        for name, facts in servers.items() if isinstance(servers, Mapping) else ():
            for key in ("capacity", "processes", "nofile_per_process", "backlog"):
                put("server", f"{name}: {key.replace('_', ' ')}", dig(facts, key))
        shares = rows_at(plan, "shares")
        for name, path in (("nofile reachable", ("nofile", "reachable")), ("source ports", ("ports",))):
            values = {_text(value) for share in shares if (value := dig(share, "plan", *path)) is not None}
            put("client", name, ", ".join(sorted(values)) or None)
    return found


def _conditions(one: Loaded) -> list[str]:
    rows = [str(row.get("text")) for row in rows_at(one.run, "thresholds")]
    typed = dig(one.plan, "thresholds")
    return rows or ([str(text) for text in typed] if isinstance(typed, list) else [])


def _typed(plan: Mapping[str, Any] | None) -> Iterable[tuple[str, Any]]:
    pairs = dig(plan, "client_options")
    for pair in pairs if isinstance(pairs, list) else ():
        if isinstance(pair, (list, tuple)) and len(pair) == 2:
            yield str(pair[0]).removeprefix("--").replace("-", "_"), pair[1] or True


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


def _host_settings(a: Sequence[Loaded], b: Sequence[Loaded]) -> list[dict[str, Any]]:
    """Kernel, sysctls and nofile in force: host by host where both sides have the host, else role by role."""
    left, right = _in_force(a), _in_force(b)
    common = [host for host in left if host in right]
    places: list[tuple[str, list[dict[str, str]], list[dict[str, str]]]] = [
        (host, left[host], right[host]) for host in common
    ]
    for role in ("server", "client"):
        mine, theirs = _of_role(a, left, role), _of_role(b, right, role)
        if mine and theirs and not set(mine) & set(theirs):
            places.append(
                (role, [v for host in mine for v in left[host]], [v for host in theirs for v in right[host]])
            )
    found: dict[tuple[str, tuple[str, ...], tuple[str, ...]], list[str]] = {}
    for place, mine_values, their_values in places:
        keys = dict.fromkeys(key for values in (*mine_values, *their_values) for key in values)
        for key in keys:
            pair = [tuple(sorted({v.get(key, "–") for v in side})) for side in (mine_values, their_values)]
            found.setdefault((key, pair[0], pair[1]), []).append(place)
    return [
        _setting("host" if key in ("kernel", "nofile") else "sysctl", key, where, mine, theirs)
        for (key, mine, theirs), where in found.items()
    ]


def _of_role(side: Sequence[Loaded], known: Mapping[str, Any], role: str) -> list[str]:
    return [host for host in known if any(role in one.view.roles.get(host, []) for one in side)]


def _in_force(side: Sequence[Loaded]) -> dict[str, list[dict[str, str]]]:
    """host -> for each run of the side that observed it, setting -> value."""
    found: dict[str, list[dict[str, str]]] = {}
    for one in side:
        view = one.view
        for host in view.hosts:
            best = view.best(host)
            if best is None:
                continue
            seen = best[1]
            values = {"kernel": str(dig(seen, "identity", "kernel"))}
            soft, hard = dig(seen, "nofile", "soft"), dig(seen, "nofile", "hard")
            values["nofile"] = f"{_text(soft)} / {_text(hard)}"
            sysctls = dig(seen, "sysctls")
            for key, value in sysctls.items() if isinstance(sysctls, Mapping) else ():
                if key != "unavailable":
                    values[str(key)] = "absent" if why_missing(value) else str(value)
            found.setdefault(host, []).append(values)
    return found


# ---------------------------------------------------------------- results


def _at(*path: str) -> Callable[[Loaded], float | None]:
    return lambda one: number_at(one.run, *path)


def _metrics(runs: Sequence[Loaded]) -> list[Metric]:
    """The figures to compare; errors and counters are those that any run has."""
    found = [
        Metric("connections", name, "connections", better, "count", _at("connections", name))
        for name, better in (
            ("established", "higher"),
            ("verified", "higher"),
            ("failed", "lower"),
            ("peak", "higher"),
        )
    ]
    found += [
        Metric("rate", "connects/s", "connects/s", "higher", "rate", _at("rate", "connects_per_second")),
        Metric("rate", "echoes/s", "echoes/s", "higher", "rate", _at("rate", "echoes_per_second")),
        Metric("rate", "churn", "connections/s", "higher", "rate", _at("churn", "per_second")),
        Metric("rate", "ramp", "s", "lower", "seconds", _at("seconds", "ramp")),
        Metric("echoes", "mismatched", "echoes", "lower", "count", _at("echoes", "mismatched")),
        Metric("echoes", "lost", "echoes", "lower", "count", _at("echoes", "lost")),
    ]
    # Where nothing was sent after the ramp, response times are those of the first echoes: the service times again.
    twice = all(dig(one.run, "latency_ms", "response") == dig(one.run, "latency_ms", "service") for one in runs)
    for kind in ("connect", "service") if twice else ("connect", "service", "response"):
        for name, allowed in (
            ("p50", "median"),
            ("p90", "tail"),
            ("p99", "tail"),
            ("p999", "tail"),
            ("max", "worst"),
        ):
            label = said("{kind} {point}", kind=kind, point="p99.9" if name == "p999" else name)
            found.append(Metric("latency", label, "ms", "lower", allowed, _at("latency_ms", kind, name)))
    for what in report_hosts.MEMORY:
        kind = "machine" if what == report_hosts.MACHINE_MEMORY else "memory"
        found.append(Metric("memory", what, "bytes/connection", "lower", kind, _memory(what)))
    errors = dict.fromkeys(
        (str(row.get("phase")), str(row.get("errno"))) for one in runs for row in rows_at(one.run, "errors")
    )
    for phase, errno in errors:
        found.append(
            Metric(
                "errors",
                said("{phase}: {errno}", phase=phase, errno=errno),
                "connections",
                "lower",
                "count",
                _errors(phase, errno),
            )
        )
    grown = {one.run_id: _counters(one) for one in runs}
    for name in dict.fromkeys(name for counts in grown.values() for name in counts or ()):
        found.append(Metric("counters", name, "events", "lower", "counter", _counter(grown, name)))
    return found


def _memory(what: str) -> Callable[[Loaded], float | None]:
    return lambda one: report_hosts.memory_per_connection(one.view).get(what)


def _errors(phase: str, errno: str) -> Callable[[Loaded], float | None]:
    def count(one: Loaded) -> float | None:
        rows = rows_at(one.run, "errors")
        mine = [row for row in rows if (str(row.get("phase")), str(row.get("errno"))) == (phase, errno)]
        return None if one.run is None else sum(number_at(row, "count") or 0 for row in mine)

    return count


def _counters(one: Loaded) -> dict[str, float] | None:
    """Counters that tell of trouble and rose, over all hosts; None when no host was seen before and after."""
    view = one.view
    if not any(view.get("before", host) and view.get("after", host) for host in view.hosts):
        return None
    found: dict[str, float] = {}
    for row in report_hosts.counter_rows(view):
        if row.get("trouble"):
            found[row["counter"]] = found.get(row["counter"], 0) + row["delta"]
    return found


def _counter(grown: Mapping[str, Mapping[str, float] | None], name: str) -> Callable[[Loaded], float | None]:
    def count(one: Loaded) -> float | None:
        counts = grown[one.run_id]
        return None if counts is None else counts.get(name, 0)

    return count


def results(a: Sequence[Loaded], b: Sequence[Loaded]) -> list[dict[str, Any]]:
    """Every figure of both sides.

    :returns: ``[{"group", "name", "unit", "better", "a": {"values", "median", "low", "high"} | None, "b",
        "difference": b - a of the medians, "percent", "status", "words"}]``. status: "difference" (beyond the
        spread), "beyond allowance" (spread unknown), "none" (within the spread or the allowance), "same" (equal
        figures), "not comparable" (words say why).
    """
    asked = [{one.requested for one in side} for side in (a, b)]
    rows = []
    for metric in _metrics([*a, *b]):
        sides = [[value for one in side if (value := metric.value(one)) is not None] for side in (a, b)]
        if not sides[0] and not sides[1]:
            continue
        most = max((count or 0 for side in asked for count in side), default=0)
        least = MEMORY_NOISE / most if metric.group == "memory" and most else COUNT_SHARE * most
        row: dict[str, Any] = {
            "group": metric.group,
            "name": metric.name,
            "unit": metric.unit,
            "better": metric.better,
        }
        row |= {name: _spread(values) for name, values in zip("ab", sides, strict=True)}
        row |= {"difference": None, "percent": None}
        if not sides[0] or not sides[1]:
            row |= {"status": "not comparable", "words": said("only one side has this figure")}
            rows.append(row)
            continue
        left, right = (statistics.median(values) for values in sides)
        row["difference"] = round(right - left, 6)
        row["percent"] = round(100 * (right - left) / left, 2) if left else None
        row["status"], row["words"] = judge(sides[0], sides[1], metric.kind, least, len(asked[0] | asked[1]) == 1)
        rows.append(row)
    return rows


def _spread(values: Sequence[float]) -> dict[str, Any] | None:
    if not values:
        return None
    return {
        "values": list(values),
        "median": statistics.median(values),
        "low": min(values),
        "high": max(values),
    }


def ranges_apart(runs: int) -> float:
    """So many times the larger range the medians of two sides must be apart; a range of few runs says little.

    :param runs: on the side that has fewer.
    """
    return {3: 3.0, 4: 2.0, 5: 1.5}.get(runs, 1.0)


def judge(
    a: Sequence[float], b: Sequence[float], kind: str, least: float, asked_alike: bool = True
) -> tuple[str, Said]:
    """Whether two groups of values of one figure differ: (status, words), see `results`.

    :param kind: of `Metric`.
    :param least: a difference of counts, or of memory, up to this much is none.
    :param asked_alike: both sides were asked for the same number of connections.
    """
    left, right = statistics.median(a), statistics.median(b)
    apart = abs(left - right)
    if {*a} == {*b}:
        return "same", said("equal")
    if kind == "count" and not asked_alike:
        return "not comparable", said("the sides were asked for different numbers of connections")
    if kind in ("count", "counter", "memory", "machine") and apart <= least:
        return "none", said("no measurable effect: as little as chance makes")
    if min(len(a), len(b)) >= ENOUGH:
        overlap = max(a) >= min(b) and max(b) >= min(a)
        spread = max(max(a) - min(a), max(b) - min(b))
        if overlap:
            return "none", said("no measurable effect: the ranges of the two sides overlap")
        if apart <= ranges_apart(min(len(a), len(b))) * spread or apart <= LEAST * min(abs(left), abs(right)):
            return "none", said("no measurable effect: not further apart than the runs of one side")
        return "difference", said("beyond the run-to-run spread")
    if kind == "count":
        return "beyond allowance", said("more than chance makes of it; the spread is unknown")
    allowed = ALLOWANCES[kind]
    if allowed is None:
        return "none", said("not judged: one event of one run")
    low, high = sorted((left, right))
    if high <= allowed * low or low < 0:
        return "none", said(
            "within the allowance of a factor of {factor:g}; the spread is unknown", factor=allowed
        )
    return "beyond allowance", said(
        "beyond the allowance of a factor of {factor:g}; the spread is unknown", factor=allowed
    )


# ---------------------------------------------------------------- sentences


def _answer(
    a: Sequence[Loaded],
    b: Sequence[Loaded],
    changed: Sequence[Mapping[str, Any]],
    figures: Sequence[Mapping[str, Any]],
    known: bool,
) -> list[Said]:
    """What to take away, most important first."""
    out = []
    for name, side in (("A", a), ("B", b)):
        for one in side:
            if one.refused:
                out.append(said("{side} ({run}) was refused before anything connected: {reason}", side=name,
                                run=one.run_id, reason=one.refused))  # fmt: skip
            elif one.run is None:
                out.append(said("{side} ({run}) has no result: the run did not end", side=name, run=one.run_id))
    verdicts = [[_verdict(one) for one in side] for side in (a, b)]
    if set(verdicts[0]) != set(verdicts[1]):
        out.append(said("Verdicts: A {a}; B {b}.", a=", ".join(verdicts[0]), b=", ".join(verdicts[1])))
    differ = sum(bool(row["differ"]) for row in changed)
    out.append(
        said("Settings that differ: {n}.", n=differ) if differ else said("All settings that were seen are equal.")
    )
    if not _finished(a) or not _finished(b):
        out.append(said("There are no results to compare: one side has none."))
        return out
    named = [row for row in figures if row["status"] in CLAIMS]
    judged = [row for row in figures if row["status"] != "not comparable"]
    if named and known:
        out.append(
            said("Figures that differ beyond the run-to-run spread: {n} of {of}.", n=len(named), of=len(judged))
        )
    elif named:
        out.append(
            said(
                "Figures beyond the allowance (the spread is unknown): {n} of {of}.", n=len(named), of=len(judged)
            )
        )
    elif known:
        out.append(
            said(
                "No measurable effect: none of {of} figures differs beyond the run-to-run spread.", of=len(judged)
            )
        )
    else:
        out.append(
            said(
                "No measurable effect with so few runs: none of {of} figures is beyond the allowance.",
                of=len(judged),
            )
        )
    return out


def change(row: Mapping[str, Any]) -> str:
    """One result in a line: `rate connects/s: 12,000 -> 15,000 connects/s (+25.0%)`."""
    percent = "" if row["percent"] is None else f" ({row['percent']:+.1f}%)"
    a, b = number(row["a"]["median"]), number(row["b"]["median"])
    return f"{row['group']} {row['name']}: {a} -> {b} {row['unit']}{percent}"


def _rule(runs: int) -> Said:
    if runs >= ENOUGH:
        return said(
            "A figure differs when the ranges of the two sides do not overlap and their medians are further apart "
            "than {times:g} times the larger range (and than 5%); with this many runs about one figure in a "
            "thousand does so by chance.",
            times=ranges_apart(runs),
        )
    return said(
        "With fewer than three runs on a side the run-to-run spread is unknown: only what is beyond a generous "
        "allowance is named, and it may still be chance. Repeat the runs and compare A1,A2,A3 with B1,B2,B3."
    )


def _notes(a: Sequence[Loaded], b: Sequence[Loaded], changed: Sequence[Mapping[str, Any]]) -> list[Said]:
    notes = []
    if {one.run_id for one in a} & {one.run_id for one in b}:
        notes.append(said("Both sides hold the same run."))
    for name, key in (("A", "a"), ("B", "b")):
        mixed = [str(row["name"]) for row in changed if len(row[key]) > 1]
        if mixed:
            names = ", ".join(mixed[:8]) + (" ..." if len(mixed) > 8 else "")
            notes.append(said("The runs of {side} are not set alike: {names}.", side=name, names=names))
    return notes
