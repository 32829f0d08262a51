"""The tests (``x is changed``) that Ansible adds to Jinja2, as far as this subset has them."""

from __future__ import annotations

import contextlib
import math
import operator
import os.path
import re
import urllib.parse
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jinja2 import Undefined, UndefinedError

from tcpfleet.playbook.catalogue import to_bool

_OPERATORS: Mapping[str, Callable[[Any, Any], bool]] = {
    **dict.fromkeys(("==", "=", "eq"), operator.eq),
    **dict.fromkeys(("!=", "<>", "ne"), operator.ne),
    **dict.fromkeys(("<", "lt"), operator.lt),
    **dict.fromkeys(("<=", "le"), operator.le),
    **dict.fromkeys((">", "gt"), operator.gt),
    **dict.fromkeys((">=", "ge"), operator.ge),
}
_STRICT_VERSION = re.compile(r"^(\d+)\.(\d+)(?:\.(\d+))?(?:([ab])(\d+))?$")
_SEMANTIC_VERSION = re.compile(
    r"^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(?:-([0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?(?:\+[0-9A-Za-z.-]+)?$"
)


def _of_result(field: str) -> Callable[[Any], bool]:
    """A test on a registered result, such as ``is failed``."""

    def test(result: Any) -> bool:
        return bool(_result(result, field).get(field))

    return test


def _result(result: Any, test: str) -> Mapping[str, Any]:
    if isinstance(result, Undefined):
        raise UndefinedError(str(result._undefined_message))
    if not isinstance(result, Mapping):
        raise TypeError(f"`is {test}` looks at a registered result, not at {type(result).__name__}")
    return result


def _changed(result: Any) -> bool:
    fields = _result(result, "changed")
    if "changed" in fields:
        return bool(fields["changed"])
    return any(isinstance(one, Mapping) and bool(one.get("changed")) for one in fields.get("results", ()))


def _not(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda result: not test(result)


def _timedout(result: Any) -> bool:
    period = _result(result, "timedout").get("timedout")
    return bool(period and period.get("period"))


def _done(field: str) -> Callable[[Any], bool]:
    """``started`` and ``finished``: true of what was not started in the background."""
    return lambda result: bool(_result(result, field).get(field, True))


def _regex(
    value: Any = "",
    pattern: str = "",
    ignorecase: bool = False,
    multiline: bool = False,
    match_type: str = "search",
) -> bool:
    if isinstance(value, Undefined):
        raise UndefinedError(str(value._undefined_message))
    flags = (re.IGNORECASE if ignorecase else 0) | (re.MULTILINE if multiline else 0)
    how = {"search": re.search, "match": re.match, "fullmatch": re.fullmatch}[match_type]
    return bool(how(pattern, str(value), flags))


def _match(value: Any, pattern: str = "", ignorecase: bool = False, multiline: bool = False) -> bool:
    return _regex(value, pattern, ignorecase, multiline, "match")


def _search(value: Any, pattern: str = "", ignorecase: bool = False, multiline: bool = False) -> bool:
    return _regex(value, pattern, ignorecase, multiline)


def _loose(version: str) -> Any:
    """Numbers and words in turn; comparing one with the other is an error, as in Ansible."""
    parts = [part for part in re.split(r"(\d+|[a-z]+|\.)", version) if part and part != "."]
    return [int(part) if part.isdigit() else part for part in parts]


def _strict(version: str) -> Any:
    found = _STRICT_VERSION.match(version)
    if found is None:
        raise ValueError(f"invalid version number '{version}'")
    numbers = tuple(int(part or 0) for part in found.group(1, 2, 3))
    return (*numbers, (found[4], int(found[5])) if found[4] else ("z", 0))  # a and b come before the release


def _semantic(version: str) -> Any:
    found = _SEMANTIC_VERSION.match(version)
    if found is None:
        raise ValueError(f"invalid semantic version '{version}'")
    before = found[4]
    words = [(0, int(word), "") if word.isdigit() else (1, 0, word) for word in (before or "").split(".")]
    return (*(int(part) for part in found.group(1, 2, 3)), before is None, words if before else [])


_VERSIONS: Mapping[str, Callable[[str], Any]] = {
    "loose": _loose,
    "strict": _strict,
    "semver": _semantic,
    "semantic": _semantic,
}


def _version(
    value: Any, version: Any, operator: str = "eq", strict: bool | None = None, version_type: str | None = None
) -> bool:
    for one in (value, version):
        if isinstance(one, Undefined):
            raise UndefinedError(str(one._undefined_message))
    if strict is not None and version_type is not None:
        raise ValueError("version takes strict or version_type, not both")
    if not value or not version:
        raise ValueError("version compares two versions, and one is empty")
    if operator not in _OPERATORS:
        raise ValueError(f"version: the operator is one of {', '.join(_OPERATORS)}, not {operator!r}")
    kind = version_type or ("strict" if strict else "loose")
    if kind not in _VERSIONS:
        raise ValueError(f"version: version_type is one of {', '.join(_VERSIONS)}, not {kind!r}")
    read = _VERSIONS[kind]
    try:
        return _OPERATORS[operator](read(str(value)), read(str(version)))
    except (TypeError, ValueError) as error:
        raise ValueError(f"version comparison failed: {error}") from None


def _truthy(value: Any, convert_bool: bool = False) -> bool:
    if convert_bool:
        with contextlib.suppress(ValueError):
            value = to_bool(value)
    return bool(value)


def _falsy(value: Any, convert_bool: bool = False) -> bool:
    return not _truthy(value, convert_bool)


def _nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _subset(value: Iterable[Any], other: Iterable[Any]) -> bool:
    return set(value) <= set(other)


def _superset(value: Iterable[Any], other: Iterable[Any]) -> bool:
    return set(value) >= set(other)


def _contains(value: Any, member: Any) -> bool:
    return member in value


def _uri(value: Any, schemes: Sequence[str] | None = None) -> bool:
    try:
        parts = urllib.parse.urlparse(value)
    except (ValueError, AttributeError):
        return False
    return not schemes or parts.scheme in schemes


def _url(value: Any, schemes: Sequence[str] | None = None) -> bool:
    if not _uri(value, schemes):
        return False
    parts = urllib.parse.urlparse(value)
    return bool(parts.netloc or parts.scheme == "file")


_failed = _of_result("failed")
_skipped = _of_result("skipped")
_unreachable = _of_result("unreachable")
TESTS: Mapping[str, Callable[..., bool]] = {
    **dict.fromkeys(("abs", "is_abs"), os.path.isabs),
    "all": all,
    "any": any,
    **dict.fromkeys(("change", "changed"), _changed),
    "contains": _contains,
    **dict.fromkeys(("directory", "is_dir"), os.path.isdir),
    "exists": os.path.exists,
    **dict.fromkeys(("failed", "failure"), _failed),
    "falsy": _falsy,
    **dict.fromkeys(("file", "is_file"), os.path.isfile),
    "finished": _done("finished"),
    **dict.fromkeys(("issubset", "subset"), _subset),
    **dict.fromkeys(("issuperset", "superset"), _superset),
    **dict.fromkeys(("link", "is_link"), os.path.islink),
    "link_exists": os.path.lexists,
    "match": _match,
    **dict.fromkeys(("mount", "is_mount"), os.path.ismount),
    **dict.fromkeys(("nan", "isnan"), _nan),
    "reachable": _not(_unreachable),
    "regex": _regex,
    **dict.fromkeys(("same_file", "is_same_file"), os.path.samefile),
    "search": _search,
    **dict.fromkeys(("skip", "skipped"), _skipped),
    "started": _done("started"),
    **dict.fromkeys(("succeeded", "success", "successful"), _not(_failed)),
    "timedout": _timedout,
    "truthy": _truthy,
    "unreachable": _unreachable,
    "uri": _uri,
    "url": _url,
    "urn": lambda value: _uri(value, ["urn"]),
    **dict.fromkeys(("version", "version_compare"), _version),
}
