"""Playbook files to records: everything that can be wrong in a file is found here, before any host is touched.

In: a path. Out: `model.Play`s with inheritance from play and blocks already done. All mistakes of the file
are reported together as ``file:line:column: what is wrong; what is allowed``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import yaml

from tcpfleet.errors import LocatedError
from tcpfleet.playbook import template
from tcpfleet.playbook.catalogue import MODULES, Module, coerce, short_names, suggest, to_bool
from tcpfleet.playbook.model import Block, Loop, Part, Play, Task
from tcpfleet.playbook.source import Problems, Text, Where, compose, construct, place, where_of

_BECOME = ("become", "become_user", "become_method")
_PLAY_KEYS = (
    "name", "hosts", "gather_facts", "gather_subset", "vars", "vars_files", *_BECOME, "environment", "tags",
    "pre_tasks", "tasks", "post_tasks", "handlers",
)  # fmt: skip
# What blocks may say and the tasks in them inherit.
_SHARED_KEYS = ("name", "when", "vars", *_BECOME, "check_mode", "no_log", "ignore_errors", "environment", "tags")
_BLOCK_KEYS = (*_SHARED_KEYS, "block", "rescue", "always")
_TASK_KEYS = (
    *_SHARED_KEYS, "args", "loop", "loop_control", "register", "changed_when", "failed_when", "notify",
)  # fmt: skip
_HANDLER_KEYS = (*_TASK_KEYS, "listen")
_LOOP_KEYS = ("loop_var", "index_var", "label")
_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")
# Words of a command line that are options of the module, not part of the command.
_COMMAND_OPTIONS = ("chdir", "creates", "removes", "executable", "stdin", "stdin_add_newline", "strip_empty_ends")


@dataclass(frozen=True)
class _Inherited:
    """What a task gets from its play and blocks."""

    when: tuple[Any, ...] = ()
    vars: Mapping[str, Any] = field(default_factory=dict)
    become: Any = None
    become_user: Any = None
    become_method: Any = None
    check_mode: Any = None
    no_log: Any = False
    ignore_errors: Any = False
    environment: Mapping[str, Any] = field(default_factory=dict)
    tags: frozenset[str] = frozenset()
    inside: tuple[tuple[Block, Part], ...] = ()


def parse(path: Path) -> tuple[Play, ...]:
    """The plays of a playbook file.

    :raises PlaybookErrors: with every mistake found, each with file, line and column.
    """
    problems = Problems()
    plays: list[Play] = []
    try:
        root = compose(path)
        if root is None:
            raise LocatedError(
                "is empty: a playbook is a list of plays, each with hosts and tasks", str(path), 1, 1
            )
        if not isinstance(root, yaml.SequenceNode):
            raise place(root).error("a playbook is a list of plays: begin with `- hosts: PATTERN`")
        for node in root.value:
            play = _Parser(problems).play(node)
            if play is not None:
                plays.append(play)
    except LocatedError as error:
        problems.errors.append(error)
    problems.raise_if_any()
    return tuple(plays)


def read_vars(path: Path) -> dict[str, Any]:
    """A file of variables: a YAML mapping.

    :raises LocatedError: when it is none; an empty file is an empty mapping.
    """
    node = compose(path)
    if node is None:
        return {}
    if not isinstance(node, yaml.MappingNode):
        raise place(node).error("a file of variables is a mapping of names to values")
    problems = Problems()
    values = _Parser(problems).variables(node)
    problems.raise_if_any()
    return values


class _Parser:
    """Walks the YAML nodes of one play."""

    def __init__(self, problems: Problems) -> None:
        self.problems = problems
        self._numbers = count(1)

    # ---- small tools

    def fields(self, node: yaml.Node, allowed: Iterable[str], what: str) -> dict[str, tuple[Where, yaml.Node]]:
        """Key -> (place of the key, value node) of a mapping; unknown and doubled keys become problems."""
        found = self.any_fields(node, what)
        for key in [key for key in found if key not in allowed]:
            hint = suggest(key, allowed)
            listed = ", ".join(allowed)
            self.problems.add(found.pop(key)[0], f"unknown key '{key}' in {what}{hint}; allowed: {listed}")
        return found

    def any_fields(self, node: yaml.Node, what: str) -> dict[str, tuple[Where, yaml.Node]]:
        """Key -> (place of the key, value node) of a mapping, whatever the keys."""
        if not isinstance(node, yaml.MappingNode):
            self.problems.add(place(node), f"{what} must be a mapping")
            return {}
        found: dict[str, tuple[Where, yaml.Node]] = {}
        for key_node, value in node.value:
            where = place(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.add(where, f"a key of {what} must be a word")
            elif key_node.tag == "tag:yaml.org,2002:merge":
                self.problems.add(where, f"`<<` is not supported in {what}, only inside of vars")
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
        if template.is_template(value):
            return value
        try:
            return to_bool(value)
        except ValueError as error:
            self.problems.add(place(node), f"{what} {error}")
            return False

    def name(self, node: yaml.Node, what: str) -> str:
        """The name of a variable."""
        value = self.text(node, what)
        if value and not _NAME.match(value):
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
            if not isinstance(key, str) or not _NAME.match(key):
                where = where_of(key, place(node))
                self.problems.add(where, f"'{key}' is no variable name (letters, digits, _)")
        return value

    # ---- plays

    def play(self, node: yaml.Node) -> Play | None:
        """One play, or None when it is no mapping."""
        if not isinstance(node, yaml.MappingNode):
            self.problems.add(place(node), "a play is a mapping with hosts and tasks")
            return None
        where = place(node)
        found = self.fields(node, _PLAY_KEYS, "a play")
        if "hosts" not in found:
            self.problems.add(where, "a play needs hosts: a host pattern such as all, a group, or a host")
            hosts, hosts_where = "", where
        else:
            hosts_where = place(found["hosts"][1])
            hosts = ",".join(self.words(found["hosts"][1], "hosts"))
        common = self._inherit(found, _Inherited())
        handlers = self.tasks(found, "handlers", _Inherited(), handlers=True)
        self._handler_names = {name for one in handlers for name in (one.name, *one.listen)}
        inherited = replace(common, vars={})  # play vars have a layer of their own, below vars_files
        sections = tuple(
            tuple(self.tasks(found, section, inherited)) for section in ("pre_tasks", "tasks", "post_tasks")
        )
        handlers = [self._adopt(one, common) for one in handlers]
        for one in [*(task for section in sections for task in section), *handlers]:
            self._check_notify(one)
        return Play(
            name=self.text(found["name"][1], "name") if "name" in found else "",
            hosts=hosts,
            where=where,
            hosts_where=hosts_where,
            sections=sections,
            handlers=tuple(handlers),
            gather_facts=bool(self.flag(found["gather_facts"][1], "gather_facts"))
            if "gather_facts" in found
            else True,
            gather_subset=self._subset(found),
            vars=common.vars,
            vars_files=self.words(found["vars_files"][1], "vars_files") if "vars_files" in found else (),
            become=common.become,
            become_user=common.become_user,
            become_method=common.become_method,
            environment=common.environment,
            tags=common.tags,
        )

    def _adopt(self, handler: Task, common: _Inherited) -> Task:
        """A handler with what it inherits from its play."""
        return replace(
            handler,
            become=common.become if handler.become is None else handler.become,
            become_user=common.become_user if handler.become_user is None else handler.become_user,
            become_method=common.become_method if handler.become_method is None else handler.become_method,
            environment={**common.environment, **handler.environment},
        )

    def _subset(self, found: Mapping[str, tuple[Where, yaml.Node]]) -> tuple[str, ...]:
        if "gather_subset" not in found:
            return ("all",)
        known = ("all", "min", "hardware", "network", "virtual", "tcpfleet")
        words = self.words(found["gather_subset"][1], "gather_subset")
        for word in words:
            if word.lstrip("!") not in known:
                message = f"unknown fact subset '{word}'; allowed: {', '.join(known)}, each with ! to leave it out"
                self.problems.add(where_of(word, place(found["gather_subset"][1])), message)
        return words

    def _check_notify(self, task: Task) -> None:
        for name in task.notify:
            if not template.is_template(name) and name not in self._handler_names:
                listed = ", ".join(sorted(filter(None, self._handler_names))) or "none, this play has no handlers"
                hint = suggest(name, self._handler_names)
                self.problems.add(
                    where_of(name, task.where), f"no handler is called '{name}'{hint}; there are: {listed}"
                )

    def _inherit(self, found: Mapping[str, tuple[Where, yaml.Node]], outer: _Inherited) -> _Inherited:
        """`outer` with what this play or block says on top."""
        changes: dict[str, Any] = {}
        if "when" in found:
            changes["when"] = outer.when + self.conditions(found["when"][1], "when")
        if "vars" in found:
            changes["vars"] = {**outer.vars, **self.variables(found["vars"][1])}
        if "environment" in found:
            changes["environment"] = {**outer.environment, **self._mapping(found["environment"][1], "environment")}
        if "tags" in found:
            changes["tags"] = outer.tags | self._tags(found["tags"][1])
        for key in ("become", "check_mode", "no_log", "ignore_errors"):
            if key in found:
                changes[key] = self.flag(found[key][1], key)
        if "become_user" in found:
            changes["become_user"] = self.text(found["become_user"][1], "become_user")
        if "become_method" in found:
            method = self.text(found["become_method"][1], "become_method")
            if method != "sudo":
                self.problems.add(place(found["become_method"][1]), "become_method: only sudo is supported")
            changes["become_method"] = method
        return replace(outer, **changes)

    def _mapping(self, node: yaml.Node, what: str) -> dict[str, Any]:
        value = self.value(node)
        if not isinstance(value, dict):
            self.problems.add(place(node), f"{what} must be a mapping")
            return {}
        return value

    def _tags(self, node: yaml.Node) -> frozenset[str]:
        return frozenset(
            part.strip() for word in self.words(node, "tags") for part in word.split(",") if part.strip()
        )

    # ---- tasks

    def tasks(
        self,
        found: Mapping[str, tuple[Where, yaml.Node]],
        section: str,
        inherited: _Inherited,
        handlers: bool = False,
    ) -> list[Task]:
        """All tasks of one section; blocks are flattened into tasks that know where they stand."""
        if section not in found:
            return []
        tasks: list[Task] = []
        for node in self.items(found[section][1], section):
            tasks.extend(self._task_or_block(node, inherited, handlers))
        return tasks

    def _task_or_block(self, node: yaml.Node, inherited: _Inherited, handlers: bool) -> Iterator[Task]:
        if not isinstance(node, yaml.MappingNode):
            self.problems.add(
                place(node), "a task is a mapping with a module, such as `- name: ..` / `  command: ..`"
            )
            return
        keys = {key.value for key, _value in node.value if isinstance(key, yaml.ScalarNode)}
        if keys & {"block", "rescue", "always"}:
            if handlers:
                self.problems.add(place(node), "a handler cannot be a block here")
                return
            yield from self._block(node, inherited)
            return
        task = self._task(node, inherited, handlers)
        if task is not None:
            yield task

    def _block(self, node: yaml.Node, inherited: _Inherited) -> Iterator[Task]:
        found = self.fields(node, _BLOCK_KEYS, "a block")
        if "block" not in found:
            self.problems.add(place(node), "rescue and always need a block")
            return
        name = self.text(found["name"][1], "name") if "name" in found else ""
        common = self._inherit(found, inherited)
        block = Block(next(self._numbers), name, rescues="rescue" in found)
        parts: tuple[Part, ...] = ("block", "rescue", "always")
        for part in parts:
            inner = replace(common, inside=(*common.inside, (block, part)))
            yield from self.tasks(found, part, inner)

    def _task(self, node: yaml.MappingNode, inherited: _Inherited, handler: bool) -> Task | None:
        allowed = _HANDLER_KEYS if handler else _TASK_KEYS
        found = self.any_fields(node, "a task")
        modules = [key for key in found if key in MODULES]
        unknown = [key for key in found if key not in MODULES and key not in allowed]
        for key in unknown:
            if modules:
                message = f"unknown key '{key}' in a task{suggest(key, allowed)}; allowed: {', '.join(allowed)}"
            else:
                hint = suggest(key, [*MODULES, *allowed])
                message = (
                    f"'{key}' is neither a module nor a key of a task{hint}; modules: {', '.join(short_names())}"
                )
            self.problems.add(found[key][0], message)
        if len(modules) > 1:
            first = found[modules[0]][0].line
            message = f"a task has one module: '{modules[0]}' is in line {first} already"
            self.problems.add(found[modules[1]][0], message)
        if not modules:
            if not unknown:
                self.problems.add(place(node), f"a task needs a module; there are: {', '.join(short_names())}")
            return None

        module = MODULES[modules[0]]
        where = place(node)
        common = self._inherit(found, inherited)
        task = Task(
            name=self.text(found["name"][1], "name") if "name" in found else "",
            module=module,
            args=self._arguments(module, *found[modules[0]], found.get("args")),
            where=where,
            when=common.when,
            vars=common.vars,
            loop=self._loop(found),
            register=self.name(found["register"][1], "register") if "register" in found else None,
            changed_when=self._optional_conditions(found, "changed_when"),
            failed_when=self._optional_conditions(found, "failed_when"),
            ignore_errors=common.ignore_errors,
            notify=self.words(found["notify"][1], "notify") if "notify" in found else (),
            listen=self.words(found["listen"][1], "listen") if "listen" in found else (),
            become=common.become,
            become_user=common.become_user,
            become_method=common.become_method,
            check_mode=common.check_mode,
            no_log=common.no_log,
            environment=common.environment,
            tags=common.tags,
            inside=common.inside,
        )
        if handler and not task.name and not task.listen:
            self.problems.add(where, "a handler needs a name, which is what notify calls")
        if "environment" in found and module.name not in ("command", "shell"):
            self.problems.add(found["environment"][0], "environment works for command and shell only")
        if module.name == "meta" and any(key in found for key in ("loop", "register", "notify", "when")):
            self.problems.add(where, "meta takes no when, loop, register or notify here")
        return task

    def _optional_conditions(
        self, found: Mapping[str, tuple[Where, yaml.Node]], key: str
    ) -> tuple[Any, ...] | None:
        return self.conditions(found[key][1], key) if key in found else None

    def _loop(self, found: Mapping[str, tuple[Where, yaml.Node]]) -> Loop | None:
        control: dict[str, tuple[Where, yaml.Node]] = {}
        if "loop_control" in found:
            control = self.fields(found["loop_control"][1], _LOOP_KEYS, "loop_control")
            if "loop" not in found:
                self.problems.add(found["loop_control"][0], "loop_control needs a loop")
        if "loop" not in found:
            return None
        node = found["loop"][1]
        items = self.value(node)
        if not isinstance(items, list) and not template.is_template(items):
            self.problems.add(place(node), "loop must be a list, or a template that gives one")
        return Loop(
            items=items,
            variable=self.name(control["loop_var"][1], "loop_var") if "loop_var" in control else "item",
            index=self.name(control["index_var"][1], "index_var") if "index_var" in control else None,
            label=self.text(control["label"][1], "label") if "label" in control else None,
        )

    # ---- arguments

    def _arguments(
        self, module: Module, where: Where, node: yaml.Node, more: tuple[Where, yaml.Node] | None
    ) -> dict[str, Any]:
        """The arguments under their own names, checked as far as can be without rendering templates."""
        given: dict[str, tuple[Where, Any]] = {}
        for source in [node] if more is None else [node, more[1]]:
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
            if module.open and not _NAME.match(key):
                self.problems.add(key_where, f"'{key}' is no variable name (letters, digits, _)")
            if not module.open and value is not None and not template.is_template(value):
                try:
                    value = _keeping_place(value, coerce(module.arguments[name], value))
                except ValueError as error:
                    self.problems.add(where_of(value, key_where), f"{module.name}: {name} {error}, not {value!r}")
            if value is not None:
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
    """
    found: dict[str, Any] = {}
    rest: list[str] = []
    for word in split_words(text):
        key, equals, value = word.strip().partition("=")
        if equals and (key in _COMMAND_OPTIONS if raw else _NAME.match(key.replace("-", "_"))):
            found[key] = _placed(_unquote(value), text)
        else:
            rest.append(word)
    if raw:
        line = "".join(rest).strip()
        if line:
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
    """Words of a line, each with the blanks before it; quotes and ``{{ }}`` hold together.

    >>> split_words("a 'b c' {{ d | e }}")
    ['a', " 'b c'", ' {{ d | e }}']
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
    return words
