"""--fail-if: conditions under which a run's verdict is fail, such as "p99_response_ms > 50".

In: a text, and a run's record (run.json, or one client's result: they have the same keys). Out: whether it is met.
Pure. To add a name, add a row to NAMES.
"""

import operator
import re
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional

Threshold = NamedTuple("Threshold", [("text", str), ("name", str), ("operator", str), ("limit", float)])
Threshold.__doc__ = """name of NAMES, operator of OPERATORS, limit; text: as given."""

OPERATORS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_FORM = re.compile(r"^\s*([a-z][a-z0-9_]*)\s*(<=|>=|<|>)\s*([0-9]+(?:\.[0-9]*)?)\s*(%?)\s*$")


class ThresholdError(ValueError):
    """The text is no condition; the exception's text is one sentence."""


def parse(text: str) -> Threshold:
    """The threshold of `NAME OPERATOR NUMBER`. Raises ThresholdError."""
    found = _FORM.match(text)
    if not found:
        raise ThresholdError(
            "--fail-if {!r} is not NAME, one of < <= > >=, NUMBER, such as 'p99_response_ms > 50'".format(text)
        )
    name, sign, limit, percent = found.groups()
    if name not in NAMES:
        raise ThresholdError("--fail-if: {} is not known; known are {}".format(name, ", ".join(sorted(NAMES))))
    if percent and not name.endswith("_percent"):
        raise ThresholdError("--fail-if: {} is no percentage".format(name))
    return Threshold(text.strip(), name, sign, float(limit))


def judge(thresholds: List[Threshold], record: Mapping[str, Any]) -> List[Dict[str, Any]]:
    """The "thresholds" of run.json: {"text", "value" (None: nothing was measured), "failed"}. What could not be
    measured is failed: it was not shown to hold."""
    rows = []  # type: List[Dict[str, Any]]
    for one in thresholds:
        value = NAMES[one.name](record)
        met = value is None or OPERATORS[one.operator](value, one.limit)
        rows.append({"text": one.text, "value": value, "failed": bool(met)})
    return rows


def sentence(row: Mapping[str, Any]) -> str:
    """One row of `judge` in words."""
    value = "nothing was measured" if row["value"] is None else "it is {:g}".format(row["value"])
    return "{} {}: {}".format("failed:" if row["failed"] else "not met:", row["text"], value)


def _at(*keys: str) -> Callable[[Mapping[str, Any]], Optional[float]]:
    def value(record: Mapping[str, Any]) -> Optional[float]:
        found = record  # type: Any
        for key in keys:
            found = found.get(key) if found is not None else None
        return None if found is None else float(found)

    return value


def _failed_percent(record: Mapping[str, Any]) -> Optional[float]:
    counts = record["connections"]
    return 100.0 * counts["failed"] / counts["requested"] if counts["requested"] else None


NAMES = {
    "connects_per_second": _at("rate", "connects_per_second"),
    "echoes_per_second": _at("rate", "echoes_per_second"),
    "churn_per_second": _at("churn", "per_second"),
    "failed_percent": _failed_percent,
    "ramp_seconds": _at("seconds", "ramp"),
}  # type: Dict[str, Callable[[Mapping[str, Any]], Optional[float]]]
NAMES.update(
    (name, _at("connections", name)) for name in ("requested", "established", "verified", "failed", "peak")
)
NAMES.update((name, _at("echoes", name)) for name in ("sent", "mismatched", "lost"))
for _kind in ("connect", "service", "response", "first_echo"):
    for _point in ("p50", "p90", "p99", "p999", "max"):
        NAMES["{}_{}_ms".format(_point, _kind)] = _at("latency_ms", _kind, _point)
