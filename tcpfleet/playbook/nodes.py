"""YAML nodes to checked values: what every part of the playbook parser is made of.

A `Reader` turns nodes into plain values of the kind that is wanted and notes each mistake with its place, so
that parsing goes on and a user sees all mistakes at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import yaml

from tcpfleet.errors import LocatedError
from tcpfleet.playbook import template
from tcpfleet.playbook.catalogue import suggest, to_bool
from tcpfleet.playbook.source import Problems, Where, construct, pairs, place, where_of

NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")
# Key -> (place of the key, value node).
Fields = dict[str, tuple[Where, yaml.Node]]


class Reader:
    """Reads nodes; `problems` collects what is wrong with them."""

    def __init__(self, problems: Problems) -> None:
        self.problems = problems

    def fields(self, node: yaml.Node, allowed: Iterable[str], what: str) -> Fields:
        """Key -> (place of the key, value node) of a mapping; unknown and doubled keys become problems."""
        found = self.any_fields(node, what)
        for key in [key for key in found if key not in allowed]:
            hint = suggest(key, allowed)
            listed = ", ".join(allowed)
            self.problems.add(found.pop(key)[0], f"unknown key '{key}' in {what}{hint}; allowed: {listed}")
        return found

    def any_fields(self, node: yaml.Node, what: str) -> Fields:
        """Key -> (place of the key, value node) of a mapping, whatever the keys."""
        if not isinstance(node, yaml.MappingNode):
            self.problems.add(place(node), f"{what} must be a mapping")
            return {}
        found: Fields = {}
        for key_node, value in pairs(node):
            where = place(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.add(where, f"a key of {what} must be a word")
            elif key_node.value in found:
                first = found[key_node.value][0].line
                self.problems.add(where, f"'{key_node.value}' is given twice, first in line {first}")
            else:
                found[key_node.value] = (where, value)
        return found

    def items(self, node: yaml.Node, what: str) -> list[yaml.Node]:
        """The items of a list; nothing at all counts as none, as in Ansible."""
        if isinstance(node, yaml.SequenceNode):
            return list(node.value)
        if not (isinstance(node, yaml.ScalarNode) and node.value in ("", "~", "null")):
            self.problems.add(place(node), f"{what} must be a list")
        return []

    def value(self, node: yaml.Node) -> Any:
        """The value of a node with every template in it compiled once, so that bad ones are found now."""
        try:
            value = construct(node)
        except LocatedError as error:
            self.problems.errors.append(error)
            return None
        self._check_templates(value, place(node))
        return value

    def _check_templates(self, value: Any, where: Where) -> None:
        if isinstance(value, str) and template.is_template(value):
            try:
                template.check_syntax(value, where_of(value, where))
            except LocatedError as error:
                self.problems.errors.append(error)
        elif isinstance(value, dict):
            for key, one in value.items():
                self._check_templates(key, where)
                self._check_templates(one, where_of(key, where))
        elif isinstance(value, list):
            for one in value:
                self._check_templates(one, where)

    def text(self, node: yaml.Node, what: str) -> str:
        """Plain text; numbers and the like become text."""
        value = self.value(node)
        if isinstance(value, (dict, list)) or value is None:
            self.problems.add(place(node), f"{what} must be text")
            return ""
        return value if isinstance(value, str) else str(value)

    def flag(self, node: yaml.Node, what: str) -> Any:
        """true, false, or a template that renders to one."""
        value = self.value(node)
        return value if template.is_template(value) else self.to_flag(value, node, what)

    def to_flag(self, value: Any, node: yaml.Node, what: str) -> bool:
        """A value that should be one of Ansible's words for true and false; false and a problem otherwise."""
        try:
            return to_bool(value)
        except ValueError as error:
            self.problems.add(place(node), f"{what} {error}")
            return False

    def name(self, node: yaml.Node, what: str) -> str:
        """The name of a variable."""
        value = self.text(node, what)
        if value and not NAME.match(value):
            self.problems.add(place(node), f"{what} must be a variable name (letters, digits, _), not '{value}'")
        return value

    def words(self, node: yaml.Node, what: str) -> tuple[str, ...]:
        """One text or a list of texts."""
        if isinstance(node, yaml.SequenceNode):
            return tuple(self.text(one, what) for one in node.value)
        return (self.text(node, what),) if self.value(node) is not None else ()

    def conditions(self, node: yaml.Node, what: str) -> tuple[Any, ...]:
        """One expression or a list of them, all of which must hold."""
        found = []
        for one in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            try:
                value = construct(one)
            except LocatedError as error:
                self.problems.errors.append(error)
                continue
            if template.is_template(value):
                self.problems.add(place(one), f"{what} is an expression already: write it without {{{{ }}}}")
            elif isinstance(value, str):
                try:
                    template.check_syntax(value, place(one), condition=True)
                except LocatedError as error:
                    self.problems.errors.append(error)
            elif not isinstance(value, bool):
                self.problems.add(place(one), f"{what} must be an expression, true or false")
                continue
            found.append(value)
        return tuple(found)

    def variables(self, node: yaml.Node) -> dict[str, Any]:
        """A mapping of variable names to values."""
        value = self.value(node)
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.problems.add(place(node), "vars must be a mapping of names to values")
            return {}
        for key in value:
            if not isinstance(key, str) or not NAME.match(key):
                where = where_of(key, place(node))
                self.problems.add(where, f"'{key}' is no variable name (letters, digits, _)")
        return {key: one for key, one in value.items() if isinstance(key, str)}
