"""What the controller counts on in each operation's answer: one table, which every result is held against.

A host may send any JSON. What does not have the shape below is nonsense, named by its place, before anything that
reads it can trip over it; fields that are not listed are nobody's business here.

A shape is a type (of numbers: no NaN, and none that JSON cannot carry exactly); None; a set of allowed values; a
function that raises ValueError; ``[shape]`` for a list and ``[shape, shape]`` for one of that length; an object of
fields, those with a final ``?`` may be missing, and ``*`` is the shape of all others; or a tuple of alternatives.
Among alternatives that are objects the first counts whose first field is there.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

LARGEST = 2**53
NUMBER = (float, int)
_TEXT = (str, None)
_COUNTS = {"*": (*NUMBER, None)}
_PLACE = ({"file": str, "line": int, "value": str}, None)
_ENTRY = {"what": str, "status": str, "msg": str}
_POINT = ({"p50": NUMBER, "p99": NUMBER, "max": NUMBER, "count": int}, None)
_CLIENT = {
    "index": int, "state": str, "alive": bool, "message?": str, "connections?": _COUNTS, "rate?": _COUNTS,
    "p99_ms?": (_COUNTS, None),
}  # fmt: skip
_PLAN = {
    "connections": int, "sources": [str], "ports": str, "usable_ports": int, "busy_ports": int,
    "workers": [{"connections": int}], "host": {"memory_available": (int, None)},
    "nofile": {"soft": int, "hard": int, "reachable": int},
}  # fmt: skip


def _histogram(value: Any) -> None:
    from payload.histogram import Histogram  # late: most commands see none

    Histogram.from_dict(value)


def _moment(value: Any) -> None:
    moment = datetime.datetime.fromisoformat(str(value).replace("Z", "+00:00"))
    if moment.tzinfo is None or not 1970 <= moment.year < 2400:
        raise ValueError(f"{value!r:.60} is no moment of a run")


_RESULT = {  # of a stress client, payload/stress_supervisor.py
    "connections": {"requested": int, "established": int, "verified": int, "failed": int, "peak": int},
    "rate": {"echoes_per_second": NUMBER},
    "echoes": {"sent": int, "verified": int, "mismatched": int, "lost": int, "steady": int},
    "churn?": ({"connects": int, "verified": int, "per_second": NUMBER}, None),
    "seconds": {"hold": NUMBER, "ramp_span": ([NUMBER, NUMBER], [])},
    "interrupted": bool, "started?": _moment, "ended": _moment, "warnings": [str], "options": {}, "plan": {},
    "errors": [{"phase": str, "errno": str, "count": int, "first": _moment, "last": _moment, "sample": str}],
    "wall": ({"name": str, "evidence": str, "fix": str}, None),
    "hosts": [{"workers": [{"slow_connects?": int}]}],
    "timeline": [{"t": NUMBER, "open": int, "established": int, "failed": int, "echoes": int}],
    "latency_timeline?": ([{"t": NUMBER, "*": _POINT}], None),
    "histograms": dict.fromkeys(("connect", "first", "service", "response"), _histogram),
}  # fmt: skip
_SAMPLE = (
    {"epoch": NUMBER, "interval": NUMBER, "states_share": NUMBER},
    {"ended": str},
    {"unavailable": {"*": str}},
    {
        "t": NUMBER, "cpu_busy?": NUMBER, "server_cpu?": NUMBER, "counters?": {"*": NUMBER}, "states?": {},
        "count?": {"t": NUMBER, "cpu": NUMBER, "source": str, "not_used": [{"source": str, "reason": str}]},
    },
)  # fmt: skip
_RUN = {
    "run": str, "state": frozenset(("damaged", "under way", "can be undone", "undone")), "msg": str,
    "entries": int, "not_reversible": int, "command?": _TEXT, "user?": _TEXT, "started?": (*NUMBER, None),
}  # fmt: skip
_SETTING = {
    "exists": bool, "writeable?": bool, "value?": _TEXT, "boot?": _PLACE, "system?": _PLACE, "listed?": _PLACE,
    "near?": [str],
}  # fmt: skip

# Operation, or operation and its argument `action` -> shape of a result that did not fail.
RESULTS: dict[str, Any] = {
    "ping": {"ping": str},
    "setup": {"ansible_facts": {}},
    "stat": {"stat": {"exists": bool, "writeable?": bool}},
    "handlers": {"names": [str]},
    "sysctl": {"status?": str, "before?": _TEXT, "errno?": _TEXT},
    "sysctl_read": {
        "settings": {"*": _SETTING}, "profile": _TEXT, "processes": {"*": int},
        "limits": [{"file": str, "line": int, "text": str}],
    },
    "copy": ({"need": bool, "dest": str}, {}),
    "copy_tree": {"changed": bool, "src": _TEXT, "dest": str, "done": [str], "need?": [str], "msg": str,
        "diff?": [{}]},
    "fetch": (
        {"missing": str},
        {"directory": bool},
        {"content_b64": str, "last": bool, "source": str, "checksum?": str},
        {"source": str, "checksum": str},
    ),
    "observe": {"observation": {}, "raw": {"*": str}},
    "follow": {"lines": [str]},
    "clean": {"uid": int, "entries": [_ENTRY]},
    "rollback list": {"place": str, "runs": [_RUN]},
    "rollback undo": {"undone": bool, "entries": [{**_ENTRY, "diff?": {}}]},
    "sample read": {
        "offset": int, "lines": [_SAMPLE], "alive": bool, "now": NUMBER, "log": str,
    },
    "stress start": {"clients": [{"index": int, "code": int, "message": str, "plan": (_PLAN, None)}]},
    "stress poll": {"clients": [_CLIENT]},
    "stress list": {"runs": {"*": [_CLIENT]}},
    "stress stop": {"stopped": int},
    "stress result": {"clients": [{"index": int, "message": str, "result": (_RESULT, None)}]},
}  # fmt: skip
PROGRESS: dict[str, Any] = {"follow": {"lines": [str]}}
HELLO = {"nofile": [int, int]}
_WORKER = {
    "pid": int, "connections": int, "limit": int, "accepted": int, "echoes": int, "bytes": int, "full": int,
    "backpressured": int, "leaving?": int, "errors_by_errno?": {"*": int},
}  # fmt: skip
SERVER_STATUS = {  # what `echo_server.py status` prints of a server that runs
    "running": bool, "started": str, "pid": int, "listening": [str], "connections": int, "capacity": int,
    "accepted": int, "nofile": int, "version": str, "workers": [_WORKER],
}  # fmt: skip


def wrong_result(op: str, args: Mapping[str, Any], result: Mapping[str, Any]) -> str | None:
    """What is wrong with an operation's result, or None.

    >>> wrong_result("follow", {}, {"lines": ["a", 5]})
    'lines[1] is a int'

    One that failed or was skipped may lack fields, and those that it has are of the same shapes.
    """
    shape = RESULTS.get(op) or RESULTS.get(f"{op} {args.get('action')}")
    if isinstance(shape, dict) and (result.get("failed") or result.get("skipped")):
        shape = {name if name.endswith("?") else f"{name}?": one for name, one in shape.items()}
    return None if shape is None else misfit(shape, result)


def misfit(shape: Any, value: Any, at: str = "it") -> str | None:
    """Where and how a value does not have a shape, in a few words; None when it has."""
    if isinstance(shape, tuple):
        return _no_alternative(shape, value, at)
    if isinstance(shape, frozenset):
        return None if isinstance(value, str) and value in shape else f"{at} is {value!r:.60}"
    if isinstance(shape, (dict, list)) and type(value) is not type(shape):
        return f"{at} is a {type(value).__name__}"
    if isinstance(shape, dict):
        return _wrong_field(shape, value, at)
    if isinstance(shape, list):
        if len(shape) != 1 and len(value) != len(shape):
            return f"{at} has {len(value)} values"
        shapes = shape * len(value) if len(shape) == 1 else shape
        found = (misfit(one, part, f"{at}[{n}]") for n, (one, part) in enumerate(zip(shapes, value, strict=True)))
        return next((wrong for wrong in found if wrong), None)
    if callable(shape) and not isinstance(shape, type):
        try:
            shape(value)
        except ValueError as error:
            return f"{at}: {error}"
        return None
    if type(value) is not (type(None) if shape is None else shape):
        return f"{at} is a {type(value).__name__}"
    if isinstance(value, NUMBER) and not abs(value) <= LARGEST:
        return f"{at} is no number to count with"
    return None


def _no_alternative(shapes: tuple[Any, ...], value: Any, at: str) -> str | None:
    objects = [shape for shape in shapes if isinstance(shape, dict)]
    if len(objects) > 1 and isinstance(value, dict):
        # By a field that is there, so that the complaint is about what was meant.
        meant = next((shape for shape in objects if next(iter(shape), None) in value), objects[-1])
        return misfit(meant, value, at)
    found = [misfit(shape, value, at) for shape in shapes]
    return None if None in found else next(filter(None, found), None)


def _wrong_field(shape: Mapping[str, Any], value: Mapping[str, Any], at: str) -> str | None:
    def place(name: str) -> str:
        return f"{name:.40}" if at == "it" else f"{at}.{name:.40}"

    for name, one in shape.items():
        key = name.removesuffix("?")
        if key != "*" and key in value:
            wrong = misfit(one, value[key], place(key))
        else:
            wrong = f"{place(name)} is missing" if name == key != "*" else None
        if wrong:
            return wrong
    named = {name.removesuffix("?") for name in shape}
    rest = [name for name in value if name not in named] if "*" in shape else []
    return next(filter(None, (misfit(shape["*"], value[name], place(name)) for name in rest)), None)
