"""Ansible's INI inventory: `[group]`, `[group:children]` and `[group:vars]` sections.

Host lines are split like a shell splits words, and the values after `=` are Python literals where they
can be (numbers, True, lists), text otherwise. In a `[group:vars]` section the value is the rest of the
line, so `#` does not start a comment there. All as in Ansible.
"""

from __future__ import annotations

import ast
import re
import shlex
import warnings
from dataclasses import dataclass, field
from typing import Any

from .document import MAX_DEPTH, MAX_NUMBER_LENGTH, Place
from .draft import Draft

MAX_LINE = 65536
# Longer values are text in any case: Python's parser would take long over them.
MAX_LITERAL = 16384

_SECTION = re.compile(r"\[([^:\]\s]+)(?::(\w+))?\]\s*(?:#.*)?")
_CHILD = re.compile(r"([^:\]\s]+)\s*(?:#.*)?")
_KINDS = ("hosts", "children", "vars")


@dataclass
class _Line:
    """One line: its text without surrounding blanks, and where that starts."""

    text: str
    place: Place

    def at(self, offset: int) -> Place:
        return self.place._replace(column=self.place.column + max(offset, 0))


@dataclass
class _State:
    """What the section headers have said so far."""

    draft: Draft
    group: str = "ungrouped"
    kind: str = "hosts"
    # Groups used as a child or given variables, that no [group] or [group:children] has declared yet.
    children: dict[str, list[tuple[str, Place]]] = field(default_factory=dict)
    only_vars: dict[str, Place] = field(default_factory=dict)
    block: set[str] = field(default_factory=set)


def read(text: str, file: str, draft: Draft) -> None:
    """Add what the inventory file with the content `text` says to `draft`.

    :param file: path for the places of errors.
    :raises LocatedError: at the first line that has no meaning.
    """
    state = _State(draft)
    for number, raw in enumerate(text.split("\n"), 1):
        stripped = raw.strip()
        if not stripped or stripped[0] in "#;":
            continue
        line = _Line(stripped, Place(file, number, raw.index(stripped) + 1))
        if len(stripped) > MAX_LINE:
            raise line.place.error(f"this line is longer than {MAX_LINE} characters")
        if match := _SECTION.fullmatch(stripped):
            _start_section(match[1], match[2] or "hosts", line, state)
        elif stripped.startswith("[") and stripped.endswith("]"):
            raise line.place.error("not a section: [group], [group:children] or [group:vars], without spaces")
        elif state.kind == "hosts":
            _read_host(line, state)
        elif state.kind == "vars":
            _read_group_variable(line, state)
        else:
            _read_child(line, state)
    for name, uses in state.children.items():
        raise uses[0][1].error(f"the group {name!r} is used as a child but not defined in this file")
    for name, place in state.only_vars.items():
        raise place.error(f"[{name}:vars] is about a group that is not defined in this file")


def _start_section(group: str, kind: str, line: _Line, state: _State) -> None:
    if kind not in _KINDS:
        raise line.at(line.text.index(":") + 1).error(f"a section is one of {', '.join(_KINDS)}, not {kind!r}")
    draft = state.draft
    place = line.at(1)
    if group not in draft.groups and kind == "vars" and group not in state.children:
        # Ansible keeps the variables, but wants the group declared somewhere in the file.
        state.only_vars[group] = place
    draft.add_group(group, place)
    if kind != "vars":
        state.only_vars.pop(group, None)
        for parent, child_place in state.children.pop(group, []):
            draft.add_child(parent, group, child_place)
    state.group, state.kind = group, kind
    state.block = set()


def _read_host(line: _Line, state: _State) -> None:
    try:
        words = shlex.split(line.text, comments=True)
    except ValueError as error:
        raise line.place.error(f"this host line cannot be split into words: {error}") from error
    if not words:
        raise line.place.error("a host line starts with the name of a host")
    if words[0] == "---":
        raise line.place.error("'---' starts a YAML file: give the file the ending .yml")
    hosts = state.draft.add_hosts(words[0], state.group, line.place)
    offset = 0
    seen = set()
    for word in words[1:]:
        name, equals, value = word.partition("=")
        if match := re.compile(rf"(?<![\w.]){re.escape(name)}").search(line.text, offset + 1):
            offset = match.start()
        place = line.at(offset)
        if not equals:
            raise place.error(f"expected name=value after the host, got {word[:60]!r}")
        if name in seen:
            raise place.error(f"the variable {name!r} is given twice on this line")
        seen.add(name)
        parsed = parse_value(value, place)
        for host in hosts:
            state.draft.set_host_variable(host, name, parsed, place)


def _read_group_variable(line: _Line, state: _State) -> None:
    name, equals, value = (part.strip() for part in line.text.partition("="))
    if not equals:
        raise line.place.error(f"expected name=value in [{state.group}:vars], got {line.text[:60]!r}")
    if name in state.block:
        raise line.place.error(f"the variable {name!r} is given twice in this section")
    state.block.add(name)
    state.draft.set_group_variable(state.group, name, parse_value(value, line.place), line.place)


def _read_child(line: _Line, state: _State) -> None:
    match = _CHILD.fullmatch(line.text)
    if not match:
        raise line.place.error(f"expected the name of a group in [{state.group}:children]")
    child = match[1]
    if child in state.draft.groups and child not in state.only_vars:
        state.draft.add_child(state.group, child, line.place)
    else:
        state.children.setdefault(child, []).append((state.group, line.place))
        state.only_vars.pop(child, None)


def parse_value(text: str, place: Place) -> Any:
    """The value that `text` stands for: a Python literal where it is one, else the text itself.

    >>> parse_value("022", Place("f", 1, 1)), parse_value("22", Place("f", 1, 1))
    ('022', 22)

    :raises LocatedError: a number too large to mean anything.
    """
    if len(text) > MAX_LITERAL or not _is_shallow(text):
        return text
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "\d" in a value is not our user's Python
            value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
    return _plain(value, place)


def _plain(value: Any, place: Place) -> Any:
    """Python's literals as what YAML also has."""
    if isinstance(value, (list, tuple, set)):
        return [_plain(item, place) for item in value]
    if isinstance(value, dict):
        # A tuple can be a key in Python, in YAML and JSON it cannot.
        keys = {key: key if isinstance(key, (str, int, float, type(None))) else str(key) for key in value}
        return {_plain(keys[key], place): _plain(item, place) for key, item in value.items()}
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if value is ...:
        return "..."
    if isinstance(value, complex):
        return str(value)
    if isinstance(value, float) and not -float("inf") < value < float("inf"):
        raise place.error("this number is too large: quote it if it is text")
    if isinstance(value, int) and value.bit_length() > 4 * MAX_NUMBER_LENGTH:
        raise place.error("this number is too large: quote it if it is text")
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        raise place.error("this text holds half of a surrogate pair, which is not a character")
    return value


def _is_shallow(text: str) -> bool:
    """Can Python's recursive parser take `text` without running deep?"""
    depth = 0
    for character in text:
        if character in "([{":
            depth += 1
            if depth > MAX_DEPTH:
                return False
        elif character in ")]}":
            depth = max(depth - 1, 0)
    return not re.search(r"(?:[-+~]\s*){50}|(?:\bnot\s+){50}", text)
