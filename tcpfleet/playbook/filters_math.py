"""Ansible's filters over numbers, sizes and sets; a set keeps the order in which its members came."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jinja2 import Environment, pass_environment
from jinja2.filters import do_unique

_SIZES = {letter: 1 << (10 * power) for power, letter in enumerate("BKMGTPEZY")}
_SIZE = re.compile(r"^([0-9]*\.?[0-9]+)(?:\s*([A-Za-z]+))?\s*$")
_LONG = {
    "B": "",
    "K": "kilo",
    "M": "mega",
    "G": "giga",
    "T": "tera",
    "P": "peta",
    "E": "exa",
    "Z": "zetta",
    "Y": "yotta",
}


def _human_readable(size: Any, isbits: bool = False, unit: str | None = None) -> str:
    for letter in reversed(_SIZES):
        if (unit is None and size >= _SIZES[letter]) or (unit is not None and unit.upper() == letter):
            break
    else:
        letter = "B"
    limit = _SIZES[letter]
    base = "bits" if isbits else "Bytes"
    return f"{size / limit:.2f} {base if limit == 1 else letter + base[0]}"


def _human_to_bytes(size: Any, default_unit: str | None = None, isbits: bool = False) -> int:
    found = _SIZE.match(str(size))
    if found is None:
        raise ValueError(f"{size!r} is no size such as 10M or 1.5 GB")
    number, unit = float(found[1]), found[2] or default_unit
    if unit is None:
        return round(number)
    letter = unit[0].upper()
    if letter not in _SIZES:
        raise ValueError(f"{size!r}: the unit must be one of {', '.join(reversed(_SIZES))}")
    last = "b" if isbits else "B"
    short = last if letter == "B" else letter + last
    long = _LONG[letter] + ("bit" if isbits else "byte")
    if len(unit) > 1 and unit != short and unit.lower() != long:
        raise ValueError(f"{size!r}: the unit must be {short} or {letter}")
    return round(number * _SIZES[letter])


def _log(value: float, base: float = math.e) -> float:
    return math.log10(value) if base == 10 else math.log(value, base)


def _root(value: float, base: float = 2) -> float:
    return math.sqrt(value) if base == 2 else math.pow(value, 1.0 / float(base))


@pass_environment
def _unique(
    environment: Environment, value: Iterable[Any], case_sensitive: bool | None = None, attribute: Any = None
) -> list[Any]:
    values = list(value)
    try:
        return list(do_unique(environment, values, bool(case_sensitive), attribute))
    except TypeError:
        if case_sensitive is False or attribute:
            raise
        return _once(values)


def _once(values: Iterable[Any]) -> list[Any]:
    """Each value once, in the order of its first use; also for values that cannot be in a set."""
    values = list(values)
    try:
        return list(dict.fromkeys(values))
    except TypeError:
        found: list[Any] = []
        for one in values:
            if one not in found:
                found.append(one)
        return found


def _holder(values: Iterable[Any]) -> Any:
    values = list(values)
    try:
        return set(values)
    except TypeError:
        return values


def _intersect(first: Iterable[Any], second: Iterable[Any]) -> list[Any]:
    wanted = _holder(second)
    return [one for one in _once(first) if one in wanted]


def _difference(first: Iterable[Any], second: Iterable[Any]) -> list[Any]:
    unwanted = _holder(second)
    return [one for one in _once(first) if one not in unwanted]


def _symmetric_difference(first: Iterable[Any], second: Iterable[Any]) -> list[Any]:
    first, second = list(first), list(second)
    return [*_difference(first, second), *_difference(second, first)]


def _union(first: Iterable[Any], second: Iterable[Any]) -> list[Any]:
    return _once([*first, *second])


def _random(end: Any, start: int | None = None, step: int | None = None, seed: Any = None) -> Any:
    source = random.SystemRandom() if seed is None else random.Random(seed)  # noqa: S311 - a seed asks for the same result each time
    if isinstance(end, int):
        return source.randrange(start or 0, end, step or 1)
    if start or step:
        raise ValueError("random: start and step are for numbers")
    return source.choice(list(end) if not isinstance(end, str) else end)


def _shuffle(values: Iterable[Any], seed: Any = None) -> list[Any]:
    found = list(values)
    (random.Random(seed) if seed else random.SystemRandom()).shuffle(found)  # noqa: S311 - as above
    return found


def _lists(function: Callable[..., Iterable[Any]]) -> Callable[..., list[list[Any]]]:
    """An itertools function whose tuples come as lists, which is what YAML and JSON have."""
    return lambda *args, **options: [list(one) for one in function(*args, **options)]


def _rekey_on_member(data: Any, key: Any, duplicates: str = "error") -> dict[Any, Any]:
    if duplicates not in ("error", "overwrite"):
        raise ValueError(f"rekey_on_member: duplicates is error or overwrite, not {duplicates!r}")
    found: dict[Any, Any] = {}
    for one in data.values() if isinstance(data, Mapping) else data:
        if not isinstance(one, Mapping) or key not in one:
            raise ValueError(f"rekey_on_member: {one!r} has no key {key!r}")
        if found.get(one[key]) and duplicates == "error":
            raise ValueError(f"rekey_on_member: {one[key]!r} is there twice")
        found[one[key]] = one
    return found


FILTERS: Mapping[str, Callable[..., Any]] = {
    "combinations": _lists(itertools.combinations),
    "difference": _difference,
    "human_readable": _human_readable,
    "human_to_bytes": _human_to_bytes,
    "intersect": _intersect,
    "log": _log,
    "permutations": _lists(itertools.permutations),
    "pow": math.pow,
    "product": _lists(itertools.product),
    "random": _random,
    "rekey_on_member": _rekey_on_member,
    "root": _root,
    "shuffle": _shuffle,
    "symmetric_difference": _symmetric_difference,
    "union": _union,
    "unique": _unique,
    "zip": _lists(zip),
    "zip_longest": _lists(itertools.zip_longest),
}
