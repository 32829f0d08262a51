"""Arguments of modules: a mapping or free-form text, checked against the catalogue without rendering templates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from tcpfleet.errors import LocatedError
from tcpfleet.playbook import template
from tcpfleet.playbook.catalogue import Module, coerce, suggest
from tcpfleet.playbook.nodes import NAME, Reader
from tcpfleet.playbook.source import Text, Where, place, where_of

# Words of a command line that are options of the module, not part of the command.
_COMMAND_OPTIONS = (
    "chdir",
    "creates",
    "removes",
    "executable",
    "stdin",
    "stdin_add_newline",
    "strip_empty_ends",
    "expand_argument_vars",
)


class ArgumentReader(Reader):
    """Reads the arguments of a task's module."""

    def arguments(
        self, module: Module, where: Where, node: yaml.Node, more: tuple[Where, yaml.Node] | None
    ) -> dict[str, Any]:
        """The arguments under their own names, checked as far as can be without rendering templates."""
        given: dict[str, tuple[Where, Any]] = {}
        for source in [node] if more is None else [more[1], node]:  # as in Ansible, args gives way
            if isinstance(source, yaml.MappingNode):
                values = self.value(source)
                for key, (key_where, _value) in self.any_fields(source, f"the arguments of {module.name}").items():
                    given[key] = (key_where, (values or {}).get(key))
            elif isinstance(source, yaml.SequenceNode):
                self.problems.add(place(source), f"the arguments of {module.name} must be a mapping")
            else:
                value = self.value(source)
                if value is not None:
                    text = value if isinstance(value, str) else str(value)
                    for key, one in free_form(text, module.free_form).items():
                        given[key] = (place(source), one)
                        if one is None and module.open:
                            self.problems.add(place(source), f"'{key}' is no key=value")
        return self._checked(module, where, given)

    def _checked(self, module: Module, where: Where, given: Mapping[str, tuple[Where, Any]]) -> dict[str, Any]:
        arguments: dict[str, Any] = {}
        for key, (key_where, value) in given.items():
            name = key if module.open else module.canonical(key)
            if name is None:
                known = sorted(module.arguments)
                listed = ", ".join(known) or "none"
                message = f"{module.name} has no argument '{key}'{suggest(key, known)}; allowed: {listed}"
                self.problems.add(key_where, message)
                continue
            if name in arguments:
                self.problems.add(key_where, f"'{key}' gives the argument '{name}' a second time")
            if module.open and key == "cacheable":
                self.problems.add(key_where, "set_fact keeps facts for this run: leave cacheable out")
            elif module.open and not NAME.match(key):
                self.problems.add(key_where, f"'{key}' is no variable name (letters, digits, _)")
            if name == "that" and module.name == "assert" and isinstance(value, (str, bool)):
                value = [value]  # one condition, whatever commas are in it
            elif not module.open and value is not None and not template.is_template(value):
                try:
                    value = _keeping_place(value, coerce(module.arguments[name], value))
                except ValueError as error:
                    self.problems.add(where_of(value, key_where), f"{module.name}: {name} {error}, not {value!r}")
            if value is not None or module.open:
                arguments[name] = value
        missing = [name for name, row in module.arguments.items() if row.required and name not in arguments]
        if missing:
            self.problems.add(where, f"{module.name} needs {' and '.join(missing)}")
        for group in module.one_of:
            if not any(name in arguments for name in group):
                self.problems.add(where, f"{module.name} needs one of: {', '.join(group)}")
        for group in module.exclusive:
            both = [name for name in group if name in arguments]
            if len(both) > 1:
                self.problems.add(where, f"{module.name} takes {' or '.join(both)}, not both")
        if module.name == "sysctl" and arguments.get("state", "present") == "present" and "value" not in arguments:
            self.problems.add(where, "sysctl needs value, unless state is absent")
        if module.name == "assert":
            for condition in arguments.get("that", ()) if isinstance(arguments.get("that"), list) else ():
                if isinstance(condition, str):
                    try:
                        template.check_syntax(condition, where_of(condition, where), condition=True)
                    except LocatedError as error:
                        self.problems.errors.append(error)
        return arguments


def _keeping_place(value: Any, converted: Any) -> Any:
    """A converted value; text stays the `Text` that it was."""
    return value if isinstance(value, Text) and converted == value else converted


def free_form(text: str, raw: str | None) -> dict[str, Any]:
    """Arguments of ``module: text``.

    :param raw: the argument that takes the text itself (command), or None when all must be ``key=value``.
    :returns: argument -> text. A word that is no ``key=value`` is under its own name with the value None.

    >>> free_form("creates=/tmp/x touch '/tmp/a b'", "cmd")
    {'creates': '/tmp/x', 'cmd': "touch '/tmp/a b'"}
    >>> free_form("path=/tmp/x mode=0644", None)
    {'path': '/tmp/x', 'mode': '0644'}
    >>> free_form("a\\n", "cmd")  # what ends a script stays
    {'cmd': 'a\\n'}
    """
    found: dict[str, Any] = {}
    rest: list[str] = []
    words = split_words(text)
    for word in words:
        key, equals, value = word.strip().partition("=")
        if equals and (key in _COMMAND_OPTIONS if raw else NAME.match(key.replace("-", "_"))):
            found[key] = _placed(_unquote(value), text)
        else:
            rest.append(word)
    if raw:
        # As in Ansible, blanks stay as they are but for those around what is taken out.
        line = "".join(rest).rstrip() if found else text
        if rest[:1] != words[:1]:
            line = line.lstrip()
        if line.strip():
            found[raw] = _placed(line, text)
    else:
        found.update((word.strip(), None) for word in rest)
    return found


def _placed(part: str, whole: str) -> str:
    if not isinstance(whole, Text):
        return part
    text = Text(part)
    text.where, text.first_line = whole.where, whole.first_line
    return text


def _unquote(value: str) -> str:
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value


def split_words(text: str) -> list[str]:
    """Words of a line, each with the blanks before it, the last with those behind it too; quotes and ``{{ }}``
    hold together.

    >>> split_words("a 'b c' {{ d | e }} ")
    ['a', " 'b c'", ' {{ d | e }} ']
    """
    words: list[str] = []
    word, quote, depth, index = "", "", 0, 0
    while index < len(text):
        pair, char = text[index : index + 2], text[index]
        if not quote and pair in ("{{", "{%"):
            depth += 1
            word, index = word + pair, index + 2
            continue
        if not quote and pair in ("}}", "%}"):
            depth = max(0, depth - 1)
            word, index = word + pair, index + 2
            continue
        if char == "\\" and quote != "'":
            word, index = word + pair, index + 2
            continue
        if char in "'\"":
            quote = "" if quote == char else quote or char
        if char.isspace() and not quote and not depth and word.strip():
            words.append(word)
            word = ""
        word, index = word + char, index + 1
    if word.strip():
        words.append(word)
    elif words:
        words[-1] += word
    return words
