"""The filters and tests that Ansible adds to Jinja2 and that this subset has; names and meaning are Ansible's."""

from __future__ import annotations

import base64
import json
import os.path
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import yaml
from jinja2 import Undefined, UndefinedError

from tcpfleet.playbook.catalogue import TRUE_WORDS


def _bool(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return value
    return str(value).strip().lower() in TRUE_WORDS


def _combine(*layers: Any, recursive: bool = False, list_merge: str = "replace") -> dict[Any, Any]:
    if list_merge != "replace":
        raise ValueError("combine knows list_merge='replace' only")
    flat: list[Mapping[Any, Any]] = []
    for layer in layers:
        flat.extend(layer if isinstance(layer, (list, tuple)) else [layer])
    result: dict[Any, Any] = {}
    for mapping in flat:
        if not isinstance(mapping, Mapping):
            raise TypeError(f"combine takes dicts, not {type(mapping).__name__}")
        for key, value in mapping.items():
            both = isinstance(result.get(key), Mapping) and isinstance(value, Mapping)
            result[key] = _combine(result[key], value, recursive=True) if recursive and both else value
    return result


def _dict2items(value: Any, key_name: str = "key", value_name: str = "value") -> list[dict[str, Any]]:
    if not isinstance(value, Mapping):
        raise TypeError(f"dict2items takes a dict, not {type(value).__name__}")
    return [{key_name: key, value_name: one} for key, one in value.items()]


def _items2dict(value: Any, key_name: str = "key", value_name: str = "value") -> dict[Any, Any]:
    return {one[key_name]: one[value_name] for one in value}


def _to_json(value: Any, indent: int | None = None, sort_keys: bool = False, ensure_ascii: bool = True) -> str:
    return json.dumps(_plain(value), indent=indent, sort_keys=sort_keys, ensure_ascii=ensure_ascii)


def _to_nice_json(value: Any, indent: int = 4, sort_keys: bool = True) -> str:
    return json.dumps(_plain(value), indent=indent, sort_keys=sort_keys, separators=(",", ": "))


def _to_nice_yaml(value: Any, indent: int = 4) -> str:
    return str(yaml.safe_dump(_plain(value), indent=indent, allow_unicode=True, default_flow_style=False))


def _plain(value: Any) -> Any:
    """Without the string subclasses that know their place: what serialisers are sure to take."""
    if isinstance(value, Undefined):
        raise UndefinedError(str(value._undefined_message))
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value


def _quote(value: Any) -> str:
    return shlex.quote("" if value is None else str(value))


def _ternary(value: Any, true: Any, false: Any, none: Any = None) -> Any:
    if value is None and none is not None:
        return none
    return true if bool(value) else false


def _mandatory(value: Any, msg: str | None = None) -> Any:
    if isinstance(value, Undefined):
        raise UndefinedError(msg or "a mandatory variable is not defined")
    return value


def _flags(ignorecase: bool, multiline: bool) -> int:
    return (re.IGNORECASE if ignorecase else 0) | (re.MULTILINE if multiline else 0)


def _regex_replace(
    value: Any, pattern: str = "", replacement: str = "", ignorecase: bool = False, multiline: bool = False
) -> str:
    return re.sub(pattern, replacement, str(value), flags=_flags(ignorecase, multiline))


def _regex_search(value: Any, regex: str, *groups: str, ignorecase: bool = False, multiline: bool = False) -> Any:
    found = re.search(regex, str(value), _flags(ignorecase, multiline))
    if found is None:
        return None
    if not groups:
        return found.group()
    keys = [group.lstrip("\\").removeprefix("g<").removesuffix(">") for group in groups]
    return [found.group(int(key) if key.isdigit() else key) for key in keys]


def _flatten(value: Iterable[Any], levels: int | None = None) -> list[Any]:
    flat: list[Any] = []
    for one in value:
        if isinstance(one, (list, tuple)) and levels != 0:
            flat.extend(_flatten(one, None if levels is None else levels - 1))
        elif one is not None:
            flat.append(one)
    return flat


def _difference(value: Iterable[Any], other: Iterable[Any]) -> list[Any]:
    unwanted = list(other)
    return [one for one in dict.fromkeys(value) if one not in unwanted]


FILTERS: Mapping[str, Callable[..., Any]] = {
    "b64decode": lambda value: base64.b64decode(value).decode("utf-8"),
    "b64encode": lambda value: base64.b64encode(str(value).encode("utf-8")).decode("ascii"),
    "basename": lambda value: os.path.basename(value),
    "bool": _bool,
    "combine": _combine,
    "dict2items": _dict2items,
    "difference": _difference,
    "dirname": lambda value: os.path.dirname(value),
    "flatten": _flatten,
    "from_json": lambda value: json.loads(value),
    "items2dict": _items2dict,
    "mandatory": _mandatory,
    "quote": _quote,
    "regex_replace": _regex_replace,
    "regex_search": _regex_search,
    "ternary": _ternary,
    "to_json": _to_json,
    "to_nice_json": _to_nice_json,
    "to_nice_yaml": _to_nice_yaml,
    "type_debug": lambda value: type(value).__name__,
    "zip": lambda *lists: [list(one) for one in zip(*lists, strict=False)],
}


def _of_result(field: str) -> Callable[[Any], bool]:
    """A test on a registered result, such as ``is changed``."""

    def test(result: Any) -> bool:
        if isinstance(result, Undefined):
            raise UndefinedError(str(result._undefined_message))
        if not isinstance(result, Mapping):
            raise TypeError(f"`is {field}` looks at a registered result, not at {type(result).__name__}")
        if field == "changed" and "changed" not in result:
            return any(one.get("changed", False) for one in result.get("results", ()))
        return bool(result.get(field, False))

    return test


def _not(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda result: not test(result)


def _matches(how: Callable[..., Any]) -> Callable[..., bool]:
    def test(value: Any, pattern: str, ignorecase: bool = False, multiline: bool = False) -> bool:
        return bool(how(pattern, str(value), _flags(ignorecase, multiline)))

    return test


_failed = _of_result("failed")
TESTS: Mapping[str, Callable[..., bool]] = {
    "change": _of_result("changed"),
    "changed": _of_result("changed"),
    "failed": _failed,
    "failure": _failed,
    "match": _matches(re.match),
    "regex": _matches(re.search),
    "search": _matches(re.search),
    "skip": _of_result("skipped"),
    "skipped": _of_result("skipped"),
    "succeeded": _not(_failed),
    "success": _not(_failed),
    "successful": _not(_failed),
    "unreachable": _of_result("unreachable"),
}
