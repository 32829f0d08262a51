"""The inventory for people and for other tools: `ansible-inventory --graph` and `--list`."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import BadInput
from .connection import SECRETS
from .model import Inventory

HIDDEN = "********"
# A group with two parents is drawn below both, which can double at every level.
MAX_LINES = 200_000


def graph(inventory: Inventory, group: str = "all", *, show_vars: bool = False) -> str:
    """The tree of groups and hosts, as `ansible-inventory --graph [--vars]` draws it.

    :param group: where to start.
    :param show_vars: also the merged variables of each host and the own ones of each group; passwords
        are hidden.
    :raises BadInput: no such group, or a tree of more than MAX_LINES lines.
    """
    if group not in inventory.groups:
        raise BadInput(f"there is no group {group!r}: {', '.join(list(inventory.groups)[:10])}")
    lines = []
    for line in _draw(inventory, group, 0, show_vars):
        lines.append(line)
        if len(lines) > MAX_LINES:
            raise BadInput(f"the graph of {group!r} has more than {MAX_LINES:,} lines: name a smaller group")
    return "\n".join(lines)


def to_json(inventory: Inventory) -> dict[str, Any]:
    """The inventory in the form of `ansible-inventory --list`, as plain data for json.dumps.

    :returns: group -> {"hosts": [...], "children": [...]} (empty ones left out) and
        "_meta" -> "hostvars" -> host -> merged variables. Passwords are hidden; dates are ISO 8601 text.
    """
    result: dict[str, Any] = {}
    for name, group in inventory.groups.items():
        parts = {"children": list(group.children)}
        if name != "all":
            # `all` has every host through its children, where Ansible lists them.
            parts["hosts"] = list(group.own_hosts)
        if filled := {key: value for key, value in parts.items() if value}:
            result[name] = filled
    result["_meta"] = {
        "hostvars": {
            name: {key: _plain(value) for key, value in _public(host.vars).items()}
            for name in inventory.groups["all"].hosts
            if (host := inventory.hosts[name]).vars
        }
    }
    return result


def _draw(inventory: Inventory, name: str, depth: int, show_vars: bool) -> Iterator[str]:
    group = inventory.groups[name]
    yield _indented(f"@{name}:", depth)
    for child in group.children:
        yield from _draw(inventory, child, depth + 1, show_vars)
    if name != "all":
        for host in group.own_hosts:
            yield _indented(host, depth + 1)
            if show_vars:
                yield from _settings(inventory.hosts[host].vars, depth + 2)
    if show_vars:
        yield from _settings(group.vars, depth + 1)


def _settings(values: Mapping[str, Any], depth: int) -> Iterator[str]:
    for name, value in sorted(_public(values).items()):
        yield _indented(f"{{{name} = {value}}}", depth)


def _indented(text: str, depth: int) -> str:
    return "  |" * depth + "--" + text if depth else text


def _public(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: HIDDEN if name in SECRETS else value for name, value in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {_key(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, (datetime.date, datetime.datetime)):
        return value.isoformat()
    return value


def _key(key: Any) -> Any:
    return key.isoformat() if isinstance(key, (datetime.date, datetime.datetime)) else key
