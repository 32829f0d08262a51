"""YAML with positions: the text of one file in, a tree that knows the place of every node out.

The values are those of YAML 1.1 as PyYAML's SafeLoader (and so Ansible) types them. The tree is built
from the parser's events by a loop, not by recursion, and within bounds, because an inventory may come
from anywhere: a file that is too large, too deep, or that grows when its aliases are expanded
("billion laughs") is refused with its place. A key given twice is refused as well: Ansible warns and
takes the last one, which hides a mistake.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
import yaml.constructor
import yaml.resolver

from ..errors import LocatedError

MAX_BYTES = 8 * 1024 * 1024
MAX_DEPTH = 50
# Nodes of one document with every alias written out; a host with ten variables has about 25.
MAX_NODES = 1_000_000
# Longer numbers are no numbers that anyone configures, and int() takes quadratic time on them.
MAX_NUMBER_LENGTH = 400

_TAG = "tag:yaml.org,2002:"
_VAULT_TAGS = ("!vault", "!vault-encrypted")
VAULT = "$ANSIBLE_VAULT;"  # how an encrypted file begins
NO_VAULT = (
    "this file is encrypted with Ansible Vault, which is not supported: decrypt it, or ask for the password at "
    "run time"
)
# libyaml's parser where PyYAML has it (all wheels do): ten times faster, the same events.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_constructor = yaml.constructor.SafeConstructor()
_resolver: Any = yaml.resolver.Resolver()


class Place(NamedTuple):
    """Where something is written. `file` as the user would write it; line and column count from 1."""

    file: str
    line: int
    column: int

    def error(self, message: str) -> LocatedError:
        """A LocatedError that says `message` about this place."""
        return LocatedError(message, self.file, self.line, self.column)


@dataclass(slots=True)
class Node:
    """One YAML node. `value` holds what `kind` says.

    scalar: str, int, float, bool, None, date or datetime; seq: list of Node;
    map: dict from the key's value to (key node, value node), merge keys already applied.
    """

    kind: Literal["scalar", "seq", "map"]
    value: Any
    place: Place
    size: int = 1  # nodes below and including this one, aliases written out

    def items(self) -> Iterator[tuple[Node, Node]]:
        """The (key, value) pairs of a map, in the order written."""
        yield from self.value.values()

    def plain(self) -> Any:
        """The same data as plain dicts, lists and scalars, sharing nothing with the tree."""
        if self.kind == "map":
            return {key.value: value.plain() for key, value in self.items()}
        if self.kind == "seq":
            return [item.plain() for item in self.value]
        return self.value


@dataclass(slots=True)
class _Open:
    """A list or mapping whose end has not been met yet."""

    node: Node
    anchor: str | None
    key: Node | None = None
    is_merge: bool = False
    merges: list[Node] = field(default_factory=list)


def read_text(path: Path, shown: str) -> str:
    """The text of the regular file `path`, at most MAX_BYTES of UTF-8, without a byte order mark.

    :param shown: the path as the user would write it, for errors.
    :raises LocatedError: unreadable, not a regular file, too large, not UTF-8, or encrypted by Vault.
    """
    try:
        if not path.is_file():
            raise LocatedError("this is not a regular file", shown)
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise LocatedError(f"cannot be read: {reason}", shown) from error
    if len(data) > MAX_BYTES:
        raise LocatedError(f"this file is larger than {MAX_BYTES // 1024 // 1024} MiB", shown)
    if data.startswith(VAULT.encode()):
        raise LocatedError(NO_VAULT, shown, 1, 1)
    return decode(data, shown)


def decode(data: bytes, shown: str) -> str:
    """`data` as UTF-8 text; comment lines may hold other bytes, as Ansible allows in INI files.

    :raises LocatedError: at the first byte outside a comment line that is not UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        lines = data.split(b"\n")
    texts = []
    for number, line in enumerate(lines, 1):
        is_comment = line.lstrip()[:1] in (b"#", b";")
        try:
            texts.append(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            if not is_comment:
                raise LocatedError("this is not UTF-8 text", shown, number, error.start + 1) from error
            texts.append("#")
    return "\n".join(texts)


def parse(text: str, file: str) -> Node | None:
    """The one document in `text`, or None when there is nothing in it but comments.

    A file that is JSON is typed as JSON, as Ansible does (``1e5`` is a number there, a string in YAML).

    :param text: YAML 1.1 or JSON.
    :param file: path for the places.
    :raises LocatedError: not well-formed, a key twice, an unknown tag, beyond the bounds.
    """
    root = _build(text, file, as_json=False)
    if root is not None and root.kind == "map" and text.lstrip().startswith("{"):
        # The first pass has proved the depth, so that json cannot exhaust the stack.
        try:
            json.loads(text)
        except ValueError:
            return root
        return _build(text, file, as_json=True)
    return root


def _build(text: str, file: str, *, as_json: bool) -> Node | None:
    try:
        return _Builder(text, file, as_json).run()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        words = [part for part in (error.context, error.problem) if part]
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise LocatedError(f"not valid YAML: {', '.join(words)}", file, line, column) from error
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        column = error.position - (before.rfind("\n") + 1) + 1
        raise LocatedError(f"not valid YAML: {error.reason}", file, before.count("\n") + 1, column) from error


class _Builder:
    """Turns the events of one document into nodes; a class only to hold the state of that loop."""

    def __init__(self, text: str, file: str, as_json: bool) -> None:
        self.text, self.file, self.as_json = text, file, as_json
        self.root: Node | None = None
        self.stack: list[_Open] = []
        self.anchors: dict[str, Node] = {}

    def run(self) -> Node | None:
        documents = 0
        for event in yaml.parse(self.text, Loader=_Loader):
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise self._place(event).error("a second document starts here: one per file")
            elif isinstance(event, yaml.AliasEvent):
                self._alias(event)
            elif isinstance(event, yaml.ScalarEvent):
                self._scalar(event)
            elif isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
                self._start(event)
            elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
                self._end()
        root = self.root
        # `---` alone and a file of comments both mean "nothing".
        return None if root is None or (root.kind == "scalar" and root.value is None) else root

    def _place(self, event: Any) -> Place:
        return Place(self.file, event.start_mark.line + 1, event.start_mark.column + 1)

    def _alias(self, event: Any) -> None:
        target = self.anchors.get(event.anchor)
        place = self._place(event)
        if target is None:
            raise place.error(f"the alias *{event.anchor} has no anchor &{event.anchor} before it")
        if any(frame.node is target for frame in self.stack):
            raise place.error(f"the alias *{event.anchor} stands inside what it refers to")
        self._add(target, place)

    def _scalar(self, event: Any) -> None:
        place = self._place(event)
        tag = event.tag
        if tag is None or tag == "!":
            tag = _resolver.resolve(yaml.ScalarNode, event.value, event.implicit)
        frame = self.stack[-1] if self.stack else None
        if tag == _TAG + "merge":
            if frame and frame.node.kind == "map" and frame.key is None and not frame.is_merge:
                frame.is_merge = True
                return
            tag = _TAG + "str"
        node = Node("scalar", self._value(tag, event, place), place)
        if event.anchor:
            self.anchors[event.anchor] = node
        self._add(node, place)

    def _value(self, tag: str, event: Any, place: Place) -> Any:
        text: str = event.value
        if self.as_json and not event.style:
            return _json_scalar(text, place)
        if tag in _VAULT_TAGS:
            raise place.error("encrypted values (!vault) are not supported: ask for it at run time instead")
        if tag in (_TAG + "str", _TAG + "value"):
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise place.error("this text holds half of a surrogate pair, which is not a character")
            return text
        if tag == _TAG + "null":
            return None
        kind = tag.removeprefix(_TAG)
        if kind not in ("bool", "int", "float", "timestamp"):
            raise place.error(f"the tag {_short(tag)} is not supported here")
        if len(text) > MAX_NUMBER_LENGTH:
            raise place.error(f"this {kind} has {len(text)} characters: more than {MAX_NUMBER_LENGTH}")
        construct = getattr(_constructor, f"construct_yaml_{kind}")
        try:
            value = construct(yaml.ScalarNode(tag, text))
        except (ValueError, LookupError, ArithmeticError, AttributeError, TypeError) as error:
            # `2024-13-01`, `0x_`, `!!bool perhaps`: the resolver knows the shape, not the meaning.
            raise place.error(f"{_short(text)} is not a valid {kind}: quote it if it is text") from error
        if kind == "float" and not -float("inf") < value < float("inf"):
            raise place.error(f"{_short(text)} is not a finite number: quote it if it is text")
        return value

    def _start(self, event: Any) -> None:
        place = self._place(event)
        kind: Literal["map", "seq"] = "map" if isinstance(event, yaml.MappingStartEvent) else "seq"
        if event.tag not in (None, "!", _TAG + kind):
            raise place.error(f"the tag {_short(event.tag)} is not supported here")
        if len(self.stack) >= MAX_DEPTH:
            raise place.error(f"nested deeper than {MAX_DEPTH} levels")
        node = Node(kind, {} if kind == "map" else [], place)
        if event.anchor:
            self.anchors[event.anchor] = node
        self.stack.append(_Open(node, event.anchor))

    def _end(self) -> None:
        frame = self.stack.pop()
        node = frame.node
        if frame.merges:
            merged: dict[Any, tuple[Node, Node]] = {}
            # Earlier merges win over later ones, and the mapping's own keys over all.
            for source in reversed(frame.merges):
                merged.update(source.value)
            merged.update(node.value)
            node.value = merged
            self._count(node, sum(source.size for source in frame.merges))
        self._add(node, node.place)

    def _add(self, node: Node, place: Place) -> None:
        """Hand a finished node to the list or mapping that is open, or make it the root."""
        if not self.stack:
            self.root = node
            return
        frame = self.stack[-1]
        parent = frame.node
        if parent.kind == "seq":
            parent.value.append(node)
        elif frame.is_merge:
            frame.is_merge = False
            frame.merges.extend(_mappings_to_merge(node, place))
        elif frame.key is None:
            _check_key(node, parent, place)
            # An alias as a key is written where the alias stands.
            frame.key = Node(node.kind, node.value, place)
        else:
            parent.value[frame.key.value] = (frame.key, node)
            frame.key = None
        self._count(parent, node.size)
        # The key holds its node's place; a value that is an alias keeps its anchor's place.

    def _count(self, node: Node, more: int) -> None:
        node.size += more
        if node.size > MAX_NODES:
            raise node.place.error(f"more than {MAX_NODES:,} values, aliases written out")


def _mappings_to_merge(node: Node, place: Place) -> list[Node]:
    if node.kind == "map":
        return [node]
    if node.kind == "seq" and all(item.kind == "map" for item in node.value):
        return list(node.value)
    raise place.error("<< takes a mapping or a list of mappings")


def _check_key(node: Node, parent: Node, place: Place) -> None:
    if node.kind != "scalar" or not isinstance(node.value, Hashable):
        raise place.error("a key must be a plain word or text")
    if node.value in parent.value:
        first = parent.value[node.value][0].place
        raise place.error(f"the key {_short(str(node.value))} is given twice: first on line {first.line}")


def _json_scalar(text: str, place: Place) -> Any:
    if len(text) > MAX_NUMBER_LENGTH:
        raise place.error(f"this number has {len(text)} characters: more than {MAX_NUMBER_LENGTH}")
    try:
        value = json.loads(text)
    except ValueError as error:
        raise place.error(f"{_short(text)} is not valid JSON") from error
    if isinstance(value, float) and not -float("inf") < value < float("inf"):
        raise place.error(f"{_short(text)} is not a finite number")
    return value


def _short(text: str) -> str:
    """`text` quoted for a message, cut when it is long."""
    return repr(text if len(text) <= 60 else text[:57] + "...")
