"""YAML files read so that every value still knows its place, for errors as ``file:line:column``.

In comes a path, out come PyYAML nodes (for the parser) and plain values whose strings are `Text`: ordinary
strings with a ``where``. YAML means here what it means to Ansible (YAML 1.1 through PyYAML), but for two
things that Ansible lets pass and that hide mistakes: a key given twice, and an unknown tag, are errors.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, cast

import yaml

from tcpfleet.errors import BadInput, LocatedError
from tcpfleet.inventory.document import NO_VAULT, VAULT


class Where(NamedTuple):
    """A place in a file; line and column are 1-based."""

    file: str
    line: int
    column: int

    def error(self, message: str) -> LocatedError:
        """The error that prints as ``file:line:column: message``."""
        return LocatedError(message, self.file, self.line, self.column)


class Text(str):
    """A string from a YAML file that knows where it stands.

    :ivar where: place of its first character.
    :ivar first_line: line of the file that its own first line is on (a block scalar starts a line below).
    """

    where: Where
    first_line: int


class PlaybookErrors(BadInput):
    """All mistakes of a playbook at once, in the order of the file.

    :ivar errors: the `LocatedError`s; ``str()`` is one per line.
    """

    def __init__(self, errors: list[LocatedError]) -> None:
        self.errors = sorted(errors, key=lambda one: (one.file, one.line or 0, one.column or 0))
        super().__init__("\n".join(dict.fromkeys(str(error) for error in self.errors)))


class Problems:
    """Collects located errors so that a user sees all of them in one run."""

    def __init__(self, errors: Iterable[LocatedError] = ()) -> None:
        self.errors: list[LocatedError] = list(errors)

    def add(self, where: Where, message: str) -> None:
        """Notes one mistake and goes on."""
        self.errors.append(where.error(message))

    def raise_if_any(self) -> None:
        """:raises PlaybookErrors: when there is at least one."""
        if self.errors:
            raise PlaybookErrors(self.errors)


def place(node: yaml.Node) -> Where:
    """Where a node starts."""
    mark = node.start_mark
    return Where(mark.name, mark.line + 1, mark.column + 1)


_MERGE = "tag:yaml.org,2002:merge"


def pairs(node: yaml.MappingNode) -> list[tuple[yaml.Node, yaml.Node]]:
    """(key, value) nodes of a mapping with ``<<`` resolved: its own keys win, then those merged first.

    :raises LocatedError: when ``<<`` does not lead to mappings.
    """
    own = [pair for pair in node.value if pair[0].tag != _MERGE]
    seen = {key.value for key, _value in own if isinstance(key, yaml.ScalarNode)}
    found = list(own)
    for key, value in node.value:
        if key.tag != _MERGE:
            continue
        for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
            if not isinstance(source, yaml.MappingNode):
                raise place(key).error("`<<` takes a mapping, or a list of mappings")
            fresh = [pair for pair in pairs(source) if pair[0].value not in seen]
            seen.update(pair[0].value for pair in fresh)
            found.extend(fresh)
    return found


class _Loader(yaml.SafeLoader):
    """SafeLoader whose strings are `Text` and which refuses doubled keys and unknown tags."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, yaml.Node] = {}
        for key_node, _value in node.value:
            if key_node.tag == _MERGE:
                continue
            key = self.construct_object(key_node, deep=True)
            try:
                doubled = key in seen
            except TypeError:
                raise place(key_node).error("a key must be text or a number") from None
            if doubled:
                raise place(key_node).error(f"'{key}' is given twice, first in line {place(seen[key]).line}")
            seen[key] = key_node
        return cast("dict[Any, Any]", super().construct_mapping(node, deep=deep))


def _construct_text(loader: _Loader, node: yaml.ScalarNode) -> Text:
    text = Text(node.value)
    text.where = place(node)
    text.first_line = text.where.line + (1 if node.style in ("|", ">") else 0)
    return text


def _refuse_tag(loader: _Loader, node: yaml.Node) -> Any:
    if node.tag == "!vault":
        raise place(node).error("encrypted values (!vault) are not supported: ask for the password at run time")
    raise place(node).error(f"the tag {node.tag} is not supported here; write plain YAML")


_Loader.add_constructor("tag:yaml.org,2002:str", _construct_text)
_Loader.add_constructor(None, _refuse_tag)


def compose(path: Path, shown: str | None = None) -> yaml.Node | None:
    """The node tree of a file with one YAML document; None when it is empty.

    :param shown: how errors name the file; default: the path itself.
    :raises LocatedError: when it cannot be read or is no YAML.
    """
    shown = str(path) if shown is None else shown
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise LocatedError(f"cannot be read: {error.strerror}", shown) from None
    except UnicodeDecodeError as error:
        raise LocatedError(f"is not UTF-8 text (byte {error.start})", shown) from None
    if text.startswith(VAULT):
        raise LocatedError(NO_VAULT, shown, 1, 1)
    node = _fast_node(text, shown)
    if node is None:
        node = _node(text, shown)
    # `---` and nothing else
    return None if node is not None and node.tag == "tag:yaml.org,2002:null" else node


def _fast_node(text: str, shown: str) -> yaml.Node | None:
    """The node tree from libyaml, ten times as fast; None for a mistake, which it cannot explain as well."""
    if not yaml.__with_libyaml__:
        return None
    stream = io.StringIO(text)
    stream.name = shown  # what its marks say
    loader = yaml.CSafeLoader(stream)
    try:
        found: yaml.Node | None = loader.get_single_node()
        return found
    except yaml.YAMLError:
        return None
    finally:
        loader.dispose()


def _node(text: str, shown: str) -> yaml.Node | None:
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        column = error.position - text.rfind("\n", 0, error.position)
        message = f"bad YAML: the character #x{ord(text[error.position]):04x} is not allowed"
        raise LocatedError(message, shown, line, column) from None
    loader.name = shown
    try:
        found: yaml.Node | None = loader.get_single_node()
        return found
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = ", ".join(part for part in (error.context, error.problem) if part)
        if mark is None:
            raise LocatedError(f"bad YAML: {what}", shown) from None
        raise LocatedError(f"bad YAML: {what}", shown, mark.line + 1, mark.column + 1) from None
    except yaml.YAMLError as error:
        raise LocatedError(f"bad YAML: {error}", shown) from None
    finally:
        loader.dispose()


def construct(node: yaml.Node) -> Any:
    """The plain value of a node; strings in it are `Text`.

    :raises LocatedError: for a doubled key, an unknown tag, or a scalar that its type cannot hold.
    """
    loader = _Loader("")
    try:
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or node.start_mark
        raise Where(mark.name, mark.line + 1, mark.column + 1).error(f"bad YAML: {error.problem}") from None
    except ValueError as error:  # such as the date 2026-13-45
        raise place(node).error(f"bad YAML value: {error}") from None
    finally:
        loader.dispose()


def where_of(value: object, otherwise: Where) -> Where:
    """Where a value stands, when it knows, or what contains it."""
    return value.where if isinstance(value, Text) and hasattr(value, "where") else otherwise
