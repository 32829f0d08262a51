"""What a template would look at, read off its syntax tree without running it.

Everything here is about one template on its own; `names` follows variables and files from there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from jinja2 import TemplateSyntaxError, meta, nodes

from tcpfleet.playbook import template
from tcpfleet.playbook.syntax import FileSyntax

_GUARD_FILTERS = ("default", "d")
_GUARD_TESTS = ("defined", "undefined")
LOOKUPS = ("lookup", "query", "q")
# Names that depend on which other hosts are still in the play.
_OF_OTHERS = ("ansible_play_hosts", "ansible_play_batch", "play_hosts")
_DICT_METHODS = ("keys", "values", "items", "copy", "update", "pop", "setdefault")


class Use(NamedTuple):
    """A variable that a template takes from outside.

    :ivar line: 1-based line of the template.
    :ivar always: whatever the values of other variables, it is looked at.
    """

    name: str
    line: int
    always: bool


class FileUse(NamedTuple):
    """A template that another includes, imports, extends or looks up.

    :ivar names: candidates, the first that exists counts; None when only the run knows the name.
    :ivar part: it becomes a part of the one that names it, and is read as that is.
    """

    names: tuple[str, ...] | None
    line: int
    may_miss: bool = False
    part: bool = True


@dataclass(frozen=True)
class Usage:
    """What a template uses.

    :ivar uses: free variables.
    :ivar guarded: names under ``default`` or ``is defined``.
    :ivar bound: names that it sets itself, which included files may use.
    :ivar facts: facts it takes from ``ansible_facts``; None when it uses that as a whole.
    :ivar indirect: names it takes from ``hostvars[..]``, ``vars`` or ``lookup('vars', ..)``.
    :ivar opaque: it may use any variable.
    :ivar others: it looks at other hosts, or at who they are.
    """

    uses: tuple[Use, ...] = ()
    guarded: frozenset[str] = frozenset()
    bound: frozenset[str] = frozenset()
    facts: frozenset[str] | None = frozenset()
    indirect: frozenset[str] = frozenset()
    opaque: bool = False
    others: bool = False
    files: tuple[FileUse, ...] = ()


@lru_cache(maxsize=4096)
def of_text(source: str, condition: bool = False) -> Usage:
    """Of a template, or of an expression such as ``when`` has; nothing for one that does not parse."""
    try:
        return _usage(template.parse_tree(source, condition))
    except TemplateSyntaxError:
        return Usage()  # reported where it is compiled


@lru_cache(maxsize=256)
def of_file(source: str, syntax: FileSyntax) -> Usage:
    """Of a template file's text, without a first line of options; nothing for one that does not parse."""
    try:
        return _usage(template.parse_file_tree(source, syntax))
    except TemplateSyntaxError:
        return Usage()


def _usage(tree: nodes.Template) -> Usage:
    with template.as_mistake():  # to find its variables, Jinja compiles it
        found = _Walk(frozenset(meta.find_undeclared_variables(tree)))
    found.visit(tree, True)
    return Usage(
        uses=tuple(found.uses.values()),
        guarded=frozenset(_guards(tree)),
        bound=frozenset(_bound(tree)),
        facts=None if found.all_facts else frozenset(found.facts),
        indirect=frozenset(found.indirect),
        opaque=found.opaque,
        others=found.others,
        files=tuple(found.files),
    )


class _Walk:
    """Collects what a tree uses; `visit` does the work."""

    def __init__(self, free: frozenset[str]) -> None:
        self._free = free
        self.uses: dict[str, Use] = {}
        self.facts: set[str] = set()
        self.indirect: set[str] = set()
        self.files: list[FileUse] = []
        self.all_facts = self.opaque = self.others = False

    def visit(self, node: nodes.Node, always: bool) -> None:
        """Notes what the node and all below it use.

        :param always: it is evaluated whatever the values of variables are.
        """
        path = _path(node)
        if path is not None:
            self._path(*path, always)
            for inner in _subscripts(node):
                self.visit(inner, always)
            return
        if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Name) and node.node.name in LOOKUPS:
            self._lookup(node, always)
        if isinstance(node, (nodes.Filter, nodes.Call)):
            node = self._extracting(node)
        if isinstance(node, (nodes.Include, nodes.Extends, nodes.Import, nodes.FromImport)):
            may_miss = isinstance(node, nodes.Include) and node.ignore_missing
            self.files.append(FileUse(_constants(node.template), node.lineno, may_miss))
        first = _unconditional(node)
        for child in node.iter_child_nodes():
            self.visit(child, always and (first is None or child is first))

    def _path(self, root: nodes.Name, keys: list[str | None], called: bool, always: bool) -> None:
        """A variable and the keys looked up in it, None for those that only the run knows."""
        name = root.name
        if root.ctx != "load" or name not in self._free:
            return
        key = keys[0] if keys else None
        if called and len(keys) == 1 and key in _DICT_METHODS:
            key, keys = None, []
        if name == "ansible_facts":
            self._fact(key)
        elif name == "hostvars":
            self.others = True
            if len(keys) < 2 or keys[1] is None:
                self.opaque = True
            elif keys[1] == "ansible_facts":
                self._fact(keys[2] if len(keys) > 2 else None)
            else:
                self.indirect.add(keys[1])
        elif name == "vars":
            if key is None:
                self.opaque = True
            else:
                self.indirect.add(key)
        else:
            self.others = self.others or name in _OF_OTHERS
            seen = self.uses.get(name)
            if seen is None or (always and not seen.always):
                self.uses[name] = Use(name, seen.line if seen else root.lineno, always)

    def _fact(self, name: str | None) -> None:
        if name is None:
            self.all_facts = True
        else:
            self.facts.add(name)

    def _lookup(self, node: nodes.Call, always: bool) -> None:
        kind = node.args[0] if node.args else None
        if not isinstance(kind, nodes.Const):
            self.opaque = True
            return
        wanted = [_constants(one) for one in node.args[1:]]
        lookup = str(kind.value).rsplit(".", 1)[-1]
        if lookup == "vars":
            for one in wanted:
                if one is None:
                    self.opaque = True
                elif any(keyword.key == "default" for keyword in node.kwargs):
                    self.indirect.update(one)
                else:
                    for name in one:
                        self.uses.setdefault(name, Use(name, node.lineno, always))
        elif lookup == "template":
            self.files.extend(FileUse(one, node.lineno, part=False) for one in wanted)

    def _extracting(self, node: nodes.Filter | nodes.Call) -> nodes.Node:
        """``extract(hostvars, 'x')``, also as ``map('extract', ..)``, takes one name from hostvars, not all."""
        if not isinstance(node, nodes.Filter):
            return node
        args = node.args
        for index, one in enumerate(args[:-1]):
            if isinstance(one, nodes.Name) and one.name == "hostvars":
                after = args[index + 1]
                keys = [_constant(part) for part in after.items] if isinstance(after, nodes.List) else [
                    _constant(after)
                ]  # fmt: skip
                self._path(one, [None, *keys], False, True)
                rest = [*args[:index], *args[index + 1 :]]
                inner = [] if node.node is None else [node.node]
                return nodes.List([*inner, *rest], lineno=node.lineno)
        return node


def _path(node: nodes.Node) -> tuple[nodes.Name, list[str | None], bool] | None:
    """``a.b['c'].get('d')`` as (a, [b, c, d], whether it is called); None for anything that starts otherwise."""
    keys: list[str | None] = []
    called = False
    while True:
        if isinstance(node, nodes.Name):
            return node, keys[::-1], called
        if isinstance(node, nodes.Getattr):
            keys.append(node.attr)
            node = node.node
        elif isinstance(node, nodes.Getitem):
            keys.append(_constant(node.arg))
            node = node.node
        elif isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr):
            called = called or not keys
            if node.node.attr == "get":
                keys.append(_constant(node.args[0]) if node.args else None)
                node = node.node.node
            else:
                keys = []  # what a method returns has no name
                node = node.node
        else:
            return None


def _subscripts(node: nodes.Node) -> Iterator[nodes.Node]:
    """The expressions in brackets and parentheses along a path."""
    while not isinstance(node, nodes.Name):
        if isinstance(node, nodes.Getitem):
            yield node.arg
            node = node.node
        elif isinstance(node, nodes.Call):
            yield from node.args
            yield from node.kwargs
            node = node.node
        elif isinstance(node, nodes.Getattr):
            node = node.node


def _constant(node: nodes.Node) -> str | None:
    if not isinstance(node, nodes.Const) or not isinstance(node.value, (str, int)):
        return None
    # Python writes out no number of 4,301 digits; nothing is called that.
    return None if isinstance(node.value, int) and abs(node.value) > 1 << 64 else str(node.value)


def _constants(node: nodes.Node) -> tuple[str, ...] | None:
    """Texts of a constant or of a list of constants; None when they are not all constant."""
    parts: Iterable[nodes.Node] = node.items if isinstance(node, (nodes.List, nodes.Tuple)) else [node]
    found = [_constant(one) for one in parts]
    return None if None in found else tuple(one for one in found if one is not None)


def _unconditional(node: nodes.Node) -> nodes.Node | None:
    """The one child that is evaluated in any case, for nodes of which others may not be; else None."""
    if isinstance(node, (nodes.And, nodes.Or)):
        return node.left
    if isinstance(node, (nodes.CondExpr, nodes.If)):
        return node.test
    if isinstance(node, nodes.For):
        return node.iter
    if isinstance(node, (nodes.Macro, nodes.CallBlock)):
        return node  # none of its children
    return None


def _guards(tree: nodes.Template) -> Iterator[str]:
    guards: list[Any] = [node.node for node in tree.find_all(nodes.Filter) if node.name in _GUARD_FILTERS]
    guards += [node.node for node in tree.find_all(nodes.Test) if node.name in _GUARD_TESTS]
    for guard in guards:
        for inner in _leading(guard):
            path = _path(inner)
            if path is None:
                continue
            root, keys, _called = path
            if root.name == "vars" and keys and keys[0]:
                yield keys[0]
            elif root.name == "hostvars" and len(keys) > 1 and keys[1]:
                yield keys[1]
            else:
                yield root.name
    for compare in tree.find_all(nodes.Compare):
        held = compare.ops[0].expr if compare.ops else None
        name = _constant(compare.expr)
        if name and isinstance(held, nodes.Name) and held.name == "vars":
            yield name  # 'x' in vars


def _leading(node: Any) -> Iterator[nodes.Node]:
    """The values whose being undefined a guard sees: through filters it reaches what they are applied to."""
    while isinstance(node, nodes.Filter):
        node = node.node
    if isinstance(node, nodes.CondExpr):
        yield from _leading(node.expr1)
        yield from _leading(node.expr2)
    elif node is not None:
        yield node


def _bound(tree: nodes.Template) -> Iterator[str]:
    """Names that are assigned anywhere: set, for, with, macro, import."""
    for name in tree.find_all(nodes.Name):
        if name.ctx in ("store", "param"):
            yield name.name
    for macro in tree.find_all(nodes.Macro):
        yield macro.name
    for one in tree.find_all(nodes.Import):
        yield one.target
    for many in tree.find_all(nodes.FromImport):
        yield from (name if isinstance(name, str) else name[1] for name in many.names)
