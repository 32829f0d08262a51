"""Playbook files to records: everything that can be wrong in a file is found here, before any host is touched.

In: a path. Out: `Parsed`: `model.Play`s with inheritance from play and blocks already done and imports followed,
and all mistakes of all files as ``file:line:column: what is wrong; what is allowed``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import yaml

from tcpfleet.errors import LocatedError
from tcpfleet.playbook import outside, template
from tcpfleet.playbook.arguments import ArgumentReader
from tcpfleet.playbook.catalogue import MODULES, short_names, suggest
from tcpfleet.playbook.model import Block, Loop, Part, Play, Task
from tcpfleet.playbook.nodes import Fields, Reader
from tcpfleet.playbook.source import Problems, Where, compose, pairs, place, where_of

_BECOME = ("become", "become_user", "become_method")
# What plays, blocks and imports may say and the tasks in them inherit.
_INHERITED_KEYS = (
    "vars", *_BECOME, "check_mode", "no_log", "ignore_errors", "run_once", "any_errors_fatal", "environment",
    "tags",
)  # fmt: skip
_SECTIONS = ("pre_tasks", "tasks", "post_tasks")
_PLAY_KEYS = (
    "name", "hosts", "gather_facts", "gather_subset", "vars_files", "serial", "strategy", *_INHERITED_KEYS,
    *_SECTIONS, "handlers",
)  # fmt: skip
_IMPORT_PLAYBOOK = ("import_playbook", "ansible.builtin.import_playbook", "ansible.legacy.import_playbook")
_IMPORT_PLAYBOOK_KEYS = ("name", "vars", "when", "tags")
_SHARED_KEYS = ("name", "when", *_INHERITED_KEYS)
_BLOCK_KEYS = (*_SHARED_KEYS, "notify", "block", "rescue", "always")
_IMPORT_TASKS = ("import_tasks", "ansible.builtin.import_tasks", "ansible.legacy.import_tasks")
_TASK_KEYS = (
    *_SHARED_KEYS, "args", "loop", "loop_control", "register", "changed_when", "failed_when", "until", "retries",
    "delay", "notify",
)  # fmt: skip
_HANDLER_KEYS = (*_TASK_KEYS, "listen")
_LOOP_KEYS = ("loop_var", "index_var", "label")
_FACT_SUBSETS = ("all", "min", "hardware", "network", "virtual", "tcpfleet")


@dataclass(frozen=True)
class Parsed:
    """What a playbook file and all it imports say.

    :ivar plays: as far as they could be read.
    :ivar problems: every mistake; empty when there is none.
    :ivar given: names that tasks which could not be read would register.
    """

    plays: tuple[Play, ...]
    problems: tuple[LocatedError, ...] = ()
    given: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Inherited:
    """What a task gets from its play, blocks and imports.

    :ivar files: the files it stands in: the playbook, then each import_tasks on the way.
    """

    when: tuple[Any, ...] = ()
    vars: Mapping[str, Any] = field(default_factory=dict)
    become: Any = None
    become_user: Any = None
    become_method: Any = None
    check_mode: Any = None
    no_log: Any = False
    ignore_errors: Any = False
    run_once: Any = False
    any_errors_fatal: Any = False
    environment: Mapping[str, Any] = field(default_factory=dict)
    tags: frozenset[str] = frozenset()
    notify: tuple[str, ...] = ()
    inside: tuple[tuple[Block, Part], ...] = ()
    files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class _Outer:
    """What a play gets from the import_playbook that brings it in.

    :ivar files: the playbook, then each import_playbook on the way to this play's file.
    """

    files: tuple[Path, ...]
    vars: Mapping[str, Any] = field(default_factory=dict)
    when: tuple[Any, ...] = ()
    tags: frozenset[str] = frozenset()


def parse(path: Path, extra: Mapping[str, Any] | None = None) -> Parsed:
    """Reads a playbook file and everything it imports.

    :param extra: ``-e`` variables, which names of imported files may use.
    """
    problems = Problems()
    parser = _Parser(problems, extra or {})
    plays = parser.playbook(path, str(path), _Outer((path.resolve(),)))
    return Parsed(tuple(plays), tuple(problems.errors), frozenset(parser.given))


def read_vars(path: Path, problems: Problems | None = None) -> dict[str, Any]:
    """A file of variables: a YAML mapping; an empty file is an empty mapping.

    :param problems: takes what is wrong in the file, so that the rest of it can be used.
    :raises PlaybookErrors: with all that is wrong in it, when there is no `problems`.
    """
    found = Problems()
    values: dict[str, Any] = {}
    try:
        node = compose(path)
        if isinstance(node, yaml.MappingNode):
            values = Reader(found).variables(node)
        elif node is not None:
            found.add(place(node), "a file of variables is a mapping of names to values")
    except LocatedError as error:
        found.errors.append(error)
    if problems is None:
        found.raise_if_any()
    else:
        problems.errors.extend(found.errors)
    return values


def shown(path: Path) -> Path:
    """A path as a user would write it: relative where it is below the current folder."""
    try:
        return path.resolve().relative_to(Path.cwd())
    except ValueError:
        return path


class Known:
    """The few names whose values are known when files are read: -e, and what the playbook itself says."""

    def __init__(self, layers: Sequence[Mapping[str, Any]], where: Where) -> None:
        self._layers, self._where = layers, where
        self.folders = [Path(where.file).resolve().parent]
        self._open: list[str] = []

    def lookup(self, name: str) -> Any:
        """A value. :raises KeyError: when it is not known yet.

        :raises LocatedError: when it is made of what is not known, or of itself.
        """
        value = next((layer[name] for layer in self._layers if name in layer), None)
        if value is None and not any(name in layer for layer in self._layers):
            raise KeyError(name)
        if name in self._open:
            raise where_of(value, self._where).error(f"the variable '{name}' is made of itself")
        self._open.append(name)
        try:
            return template.render(value, self, self._where)
        finally:
            self._open.pop()


class _Parser(ArgumentReader):
    """Walks the YAML nodes of a playbook and of what it imports.

    :ivar given: names that tasks with mistakes would register.
    """

    def __init__(self, problems: Problems, extra: Mapping[str, Any]) -> None:
        super().__init__(problems)
        self.given: set[str] = set()
        self._extra = extra
        self._blocks, self._numbers = count(1), count(1)
        self._play_vars: Mapping[str, Any] = {}
        self._handler_names: set[str] = set()

    # ---- files

    def playbook(self, path: Path, name: str, outer: _Outer) -> list[Play]:
        """The plays of a file.

        :param name: how errors name the file.
        """
        plays: list[Play] = []
        try:
            root = compose(path, name)
            if root is None:
                raise Where(name, 1, 1).error("is empty: a playbook is a list of plays, each with hosts and tasks")
            if not isinstance(root, yaml.SequenceNode):
                raise place(root).error("a playbook is a list of plays: begin with `- hosts: PATTERN`")
            for node in root.value:
                plays.extend(self._play_or_import(node, outer))
        except LocatedError as error:
            self.problems.errors.append(error)
        return plays

    def _play_or_import(self, node: yaml.Node, outer: _Outer) -> Iterator[Play]:
        if not isinstance(node, yaml.MappingNode):
            self.problems.add(place(node), "a play is a mapping with hosts and tasks")
            return
        keys = [key.value for key, _value in pairs(node) if isinstance(key, yaml.ScalarNode)]
        how = next((key for key in keys if key in _IMPORT_PLAYBOOK), None)
        if how is not None:
            yield from self._import_playbook(node, how, outer)
        elif "include" in keys:
            self.problems.add(place(node), "include is gone from Ansible: use import_playbook")
        else:
            yield self._play(node, outer)

    def _import_playbook(self, node: yaml.MappingNode, how: str, outer: _Outer) -> Iterator[Play]:
        found = self.fields(node, (how, *_IMPORT_PLAYBOOK_KEYS), "import_playbook")
        own = self.variables(found["vars"][1]) if "vars" in found else {}
        path = self._imported(found[how][1], "import_playbook", outer.files, (outer.vars, own), stop_at=1)
        when = self.conditions(found["when"][1], "when") if "when" in found else ()
        tags = self._tags(found["tags"][1]) if "tags" in found else frozenset()
        if path is not None:
            inner = _Outer(
                (*outer.files, path.resolve()), {**own, **outer.vars}, outer.when + when, outer.tags | tags
            )
            yield from self.playbook(path, str(shown(path)), inner)

    def _imported(
        self,
        node: yaml.Node,
        what: str,
        files: Sequence[Path],
        layers: Sequence[Mapping[str, Any]],
        stop_at: int | None = None,
    ) -> Path | None:
        """The file that an import names, searched beside the importing file, then beside the playbook.

        :param files: the chain of files so far, innermost last.
        :param layers: variables that its name may use beside -e, strongest first.
        :param stop_at: 1: only beside the importing file.
        """
        name = self.text(node, what)
        if not name:
            return None
        where = place(node)
        folder = {"playbook_dir": str(files[0].parent)}
        try:
            name = str(template.render(name, Known((self._extra, folder, *layers), where), where))
        except LocatedError as error:
            message = f"{error.message}; the file of {what} can depend on -e and the playbook's own vars only"
            self.problems.errors.append(LocatedError(message, error.file, error.line, error.column))
            return None
        folders = list(dict.fromkeys((files[-1].parent, files[0].parent)))[:stop_at]
        places = [folder / name for folder in folders]
        path = next((one for one in places if one.is_file()), None)
        if path is None:
            beside = sorted(one.name for one in places[0].parent.glob("*.y*ml")) if places else []
            listed = f"; there are: {', '.join(beside)}" if beside else ""
            self.problems.add(where, f"{what}: there is no file {shown(places[0])}{listed}")
            return None
        if path.resolve() in files:
            chain = " -> ".join(str(shown(one)) for one in [*files[files.index(path.resolve()) :], path])
            self.problems.add(where, f"{what}: a file cannot import itself: {chain}")
            return None
        return Path(os.path.normpath(path))

    # ---- plays

    def _play(self, node: yaml.MappingNode, outer: _Outer) -> Play:
        """One play; what could not be read of it is left out, and noted as a problem."""
        where = place(node)
        found = self._supported(node, _PLAY_KEYS, "a play", outside.PLAY_KEYS)
        if "hosts" not in found:
            self.problems.add(where, "a play needs hosts: a host pattern such as all, a group, or a host")
            hosts, hosts_where = "all", where  # so that the rest can be checked
        else:
            hosts_where = place(found["hosts"][1])
            hosts = ",".join(self.words(found["hosts"][1], "hosts"))
        common = self._inherit(found, _Inherited(files=(outer.files[-1],)))
        common = replace(common, tags=common.tags | outer.tags)
        play_vars = {**common.vars, **outer.vars}
        self._play_vars = play_vars
        inherited = replace(common, vars={})  # play vars have a layer of their own, below vars_files
        self._handler_names = set()
        conditional = replace(inherited, when=outer.when)
        sections = tuple(tuple(self._tasks(found, section, conditional)) for section in _SECTIONS)
        handlers = _first_of_each_name(self._tasks(found, "handlers", inherited, handlers=True))
        self._handler_names |= {name for one in handlers for name in (one.name, *one.listen)}
        for task in [*(task for section in sections for task in section), *handlers]:
            self._check_notify(task)
        return Play(
            name=self.text(found["name"][1], "name") if "name" in found else "",
            hosts=hosts,
            where=where,
            hosts_where=hosts_where,
            sections=sections,
            handlers=tuple(handlers),
            gather_facts=self._gather_facts(found),
            gather_when=outer.when,
            gather_subset=self._subset(found),
            vars=play_vars,
            vars_files=self._vars_files(found),
            become=common.become,
            become_user=common.become_user,
            become_method=common.become_method,
            environment=common.environment,
            tags=common.tags,
            serial=self._serial(found),
            any_errors_fatal=common.any_errors_fatal,
            strategy=self._strategy(found),
            folder=outer.files[-1].parent,
        )

    def _supported(
        self, node: yaml.MappingNode, allowed: Sequence[str], what: str, advice: Mapping[str, str]
    ) -> Fields:
        """As `fields`; a key that only Ansible has is told apart from one that nobody has."""
        found = self.any_fields(node, what)
        for key in [key for key in found if key not in allowed]:
            self.problems.add(found.pop(key)[0], _unknown_key(key, what, allowed, advice))
        return found

    def _early(self, node: yaml.Node, what: str) -> Any:
        """A value that must be known before hosts are: rendered with -e and the play's own vars."""
        value = self.value(node)
        where = place(node)
        try:
            return template.render(value, Known((self._extra, self._play_vars), where), where)
        except LocatedError as error:
            if template.is_template(value) and not self._broken(value, where):
                message = f"{error.message}; {what} can depend on -e and the play's own vars only"
                self.problems.errors.append(LocatedError(message, error.file, error.line, error.column))
            return None

    @staticmethod
    def _broken(value: str, where: Where) -> bool:
        """Whether a template does not even compile, which `value` has reported."""
        try:
            template.check_syntax(value, where)
        except LocatedError:
            return True
        return False

    def _gather_facts(self, found: Fields) -> bool:
        if "gather_facts" not in found:
            return True
        node = found["gather_facts"][1]
        value = self._early(node, "gather_facts")
        return True if value is None else bool(self.to_flag(value, node, "gather_facts"))

    def _vars_files(self, found: Fields) -> tuple[str, ...]:
        if "vars_files" not in found:
            return ()
        node = found["vars_files"][1]
        for one in node.value if isinstance(node, yaml.SequenceNode) else []:
            if isinstance(one, yaml.SequenceNode):
                message = "vars_files takes one name each, no lists of which the first that exists counts"
                self.problems.add(place(one), f"{message}; use a variable in the name")
                return ()
        return self.words(node, "vars_files")

    def _serial(self, found: Fields) -> tuple[int | str, ...]:
        """Batch sizes: whole numbers, or text such as ``30%``."""
        if "serial" not in found:
            return ()
        node = found["serial"][1]
        value = self._early(node, "serial")
        sizes: list[int | str] = []
        for one in value if isinstance(value, list) else [] if value is None else [value]:
            text = str(one).strip()
            number = text.removesuffix("%")
            if isinstance(one, (bool, float)) or not number.isascii() or not number.isdigit():
                message = "serial must be a number of hosts, a percentage such as '30%', or a list of these"
                self.problems.add(where_of(one, place(node)), f"{message}, not {one!r}")
            elif text.endswith("%"):
                sizes.append(text)
            else:
                sizes.append(int(text))
        return tuple(sizes)

    def _strategy(self, found: Fields) -> str:
        if "strategy" not in found:
            return ""
        node = found["strategy"][1]
        value = self.text(node, "strategy").removeprefix("ansible.builtin.")
        if value == "linear":
            return value
        otherwise = "each host goes on its own, or with `linear` all wait at every task"
        advice = outside.STRATEGIES.get(value, otherwise)
        self.problems.add(place(node), f"strategy: only linear is supported, not '{value}'; {advice}")
        return ""

    def _subset(self, found: Fields) -> tuple[str, ...]:
        if "gather_subset" not in found:
            return ("all",)
        words = self.words(found["gather_subset"][1], "gather_subset")
        for word in words:
            if word.lstrip("!") not in _FACT_SUBSETS:
                listed = ", ".join(_FACT_SUBSETS)
                message = f"unknown fact subset '{word}'; allowed: {listed}, each with ! to leave it out"
                self.problems.add(where_of(word, place(found["gather_subset"][1])), message)
        return words

    def _check_notify(self, task: Task) -> None:
        if any(template.is_template(name) for name in self._handler_names):
            return  # only the run knows what they are called
        for name in task.notify:
            if not template.is_template(name) and name not in self._handler_names:
                listed = ", ".join(sorted(filter(None, self._handler_names))) or "none, this play has no handlers"
                hint = suggest(name, self._handler_names)
                self.problems.add(
                    where_of(name, task.where), f"no handler is called '{name}'{hint}; there are: {listed}"
                )

    def _inherit(self, found: Fields, outer: _Inherited) -> _Inherited:
        """`outer` with what this play, block, import or task says on top."""
        changes: dict[str, Any] = {}
        if "when" in found:
            changes["when"] = outer.when + self.conditions(found["when"][1], "when")
        if "vars" in found:
            changes["vars"] = {**outer.vars, **self.variables(found["vars"][1])}
        if "environment" in found:
            changes["environment"] = {**outer.environment, **self._environment(found["environment"][1])}
        if "tags" in found:
            changes["tags"] = outer.tags | self._tags(found["tags"][1])
        if "notify" in found:
            changes["notify"] = self.words(found["notify"][1], "notify")
        for key in ("become", "check_mode", "no_log", "ignore_errors", "run_once", "any_errors_fatal"):
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

    def _environment(self, node: yaml.Node) -> dict[str, Any]:
        """A mapping, or as in Ansible a list of them; later ones win."""
        if isinstance(node, yaml.SequenceNode):
            merged: dict[str, Any] = {}
            for one in node.value:
                merged |= self._environment(one)
            return merged
        value = self.value(node)
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.problems.add(place(node), "environment must be a mapping of names to values")
            return {}
        return value

    def _tags(self, node: yaml.Node) -> frozenset[str]:
        found = frozenset(
            part.strip() for word in self.words(node, "tags") for part in word.split(",") if part.strip()
        )
        for tag in found:
            if template.is_template(tag):
                self.problems.add(place(node), f"a tag is a word here, not a template: {tag}")
        return found

    # ---- tasks

    def _tasks(self, found: Fields, section: str, inherited: _Inherited, handlers: bool = False) -> list[Task]:
        """All tasks of one section; blocks and imports are flattened into tasks that know where they stand."""
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
        keys = {key.value for key, _value in pairs(node) if isinstance(key, yaml.ScalarNode)}
        how = next((key for key in _IMPORT_TASKS if key in keys), None)
        if keys & {"block", "rescue", "always"}:
            if handlers:
                self.problems.add(place(node), "a handler cannot be a block here")
                return
            yield from self._block(node, inherited)
        elif how is not None:
            yield from self._import_tasks(node, how, inherited, handlers)
        else:
            task = self._task(node, inherited, handlers)
            if task is not None:
                yield task

    def _block(self, node: yaml.MappingNode, inherited: _Inherited) -> Iterator[Task]:
        found = self._supported(node, _BLOCK_KEYS, "a block", outside.TASK_KEYS)
        if "block" not in found:
            self.problems.add(place(node), "rescue and always need a block")
            return
        name = self.text(found["name"][1], "name") if "name" in found else ""
        common = self._inherit(found, inherited)
        block = Block(next(self._blocks), name, rescues="rescue" in found)
        parts: tuple[Part, ...] = ("block", "rescue", "always")
        for part in parts:
            inner = replace(common, inside=(*common.inside, (block, part)))
            yield from self._tasks(found, part, inner)

    def _import_tasks(
        self, node: yaml.MappingNode, how: str, inherited: _Inherited, handlers: bool
    ) -> Iterator[Task]:
        found = self.any_fields(node, "import_tasks")
        allowed = (*_SHARED_KEYS, how, "args")
        for key in [key for key in found if key not in allowed]:
            where = found.pop(key)[0]
            if key == "loop" or key.startswith("with_"):
                self.problems.add(where, "import_tasks takes no loop: it is done once, before anything runs; "
                                  "put the loop on the tasks in the file")  # fmt: skip
            else:
                self.problems.add(where, _unknown_key(key, "import_tasks", allowed[:-1], outside.TASK_KEYS))
        common = self._inherit(found, inherited)
        target: yaml.Node | None = found[how][1]
        if "args" in found or isinstance(target, yaml.MappingNode):
            source = found["args"][1] if "args" in found else target
            assert source is not None
            inner = self.fields(source, ("file",), "the arguments of import_tasks")
            target = inner["file"][1] if "file" in inner else None
        if target is None:
            self.problems.add(found[how][0], "import_tasks needs a file")
            return
        path = self._imported(target, "import_tasks", common.files, (common.vars, self._play_vars))
        if path is None:
            return
        common = replace(common, files=(*common.files, path.resolve()))
        try:
            root = compose(path, str(shown(path)))
        except LocatedError as error:
            self.problems.errors.append(error)
            return
        if root is None:
            return  # as in Ansible: a file without tasks
        if not isinstance(root, yaml.SequenceNode):
            self.problems.add(place(root), "a file of tasks is a list: begin with `- name: ..`")
            return
        for one in root.value:
            yield from self._task_or_block(one, common, handlers)

    def _task(self, node: yaml.MappingNode, inherited: _Inherited, handler: bool) -> Task | None:
        allowed = _HANDLER_KEYS if handler else _TASK_KEYS
        found = self.any_fields(node, "a task")
        modules = [key for key in found if key in MODULES]
        unknown = [key for key in found if key not in MODULES and key not in allowed]
        for key in unknown:
            self.problems.add(found[key][0], _unknown_in_task(key, allowed, bool(modules)))
        if len(modules) > 1:
            first = found[modules[0]][0].line
            message = f"a task has one module: '{modules[0]}' is in line {first} already"
            self.problems.add(found[modules[1]][0], message)
        where = place(node)
        if not modules:
            if not unknown:
                self.problems.add(where, f"a task needs a module; there are: {', '.join(short_names())}")
            self._salvage(found, inherited, handler)
            return None

        module = MODULES[modules[0]]
        common = self._inherit(found, inherited)
        task = Task(
            name=self.text(found["name"][1], "name") if "name" in found else "",
            module=module,
            args=self.arguments(module, *found[modules[0]], found.get("args")),
            where=where,
            when=common.when,
            vars=common.vars,
            loop=self._loop(found),
            register=self.name(found["register"][1], "register") if "register" in found else None,
            changed_when=self._optional_conditions(found, "changed_when"),
            failed_when=self._optional_conditions(found, "failed_when"),
            ignore_errors=common.ignore_errors,
            until=self._optional_conditions(found, "until"),
            retries=self._count(found, "retries", whole=True),
            delay=self._count(found, "delay", whole=False),
            run_once=common.run_once,
            any_errors_fatal=common.any_errors_fatal,
            notify=common.notify,
            listen=self.words(found["listen"][1], "listen") if "listen" in found else (),
            become=common.become,
            become_user=common.become_user,
            become_method=common.become_method,
            check_mode=common.check_mode,
            no_log=common.no_log,
            environment=common.environment,
            tags=common.tags,
            inside=common.inside,
            number=next(self._numbers),
            called=modules[0],
        )
        if handler and not task.name and not task.listen:
            self.problems.add(where, "a handler needs a name, which is what notify calls")
        if "environment" in found and module.name not in ("command", "shell"):
            self.problems.add(found["environment"][0], "environment works for command and shell only")
        if module.name == "meta":
            never = ("loop", "register", "notify", "until", "failed_when", "changed_when")
            for key in never if task.args.get("action") == "flush_handlers" else (*never, "when"):
                if key in found:
                    self.problems.add(found[key][0], f"meta takes no {key} here")
        return task

    def _salvage(self, found: Fields, inherited: _Inherited, handler: bool) -> None:
        """Of a task without a known module: its other mistakes, and the names that other tasks rely on."""
        self._inherit({key: one for key, one in found.items() if key in _SHARED_KEYS}, inherited)
        if "register" in found:
            self.given.add(self.name(found["register"][1], "register"))
        for key in ("changed_when", "failed_when", "until"):
            self._optional_conditions(found, key)
        self._loop(found)
        if handler:
            for key in ("name", "listen"):
                if key in found:
                    self._handler_names.update(self.words(found[key][1], key))

    def _optional_conditions(self, found: Fields, key: str) -> tuple[Any, ...] | None:
        return self.conditions(found[key][1], key) if key in found else None

    def _count(self, found: Fields, key: str, whole: bool) -> Any:
        """A number that is not negative, or a template for one; None when it is not given."""
        if key not in found:
            return None
        node = found[key][1]
        value = self.value(node)
        if template.is_template(value):
            return value
        try:
            if isinstance(value, bool):
                raise ValueError
            number = int(value) if whole else float(value)
            if not 0 <= number < float("inf"):
                raise ValueError
        except (TypeError, ValueError):
            kind = "whole number" if whole else "number of seconds"
            self.problems.add(place(node), f"{key} must be a {kind}, 0 or more, not {value!r}")
            return None
        return number

    def _loop(self, found: Fields) -> Loop | None:
        control: Fields = {}
        if "loop_control" in found:
            control = self.fields(found["loop_control"][1], _LOOP_KEYS, "loop_control")
            if "loop" not in found and not any(key.startswith("with_") for key in found):
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


def _first_of_each_name(handlers: Sequence[Task]) -> list[Task]:
    """As in Ansible, of several handlers with one name only the first answers to it, or to a topic of theirs."""
    names: set[str] = set()
    heard: set[tuple[str, str]] = set()
    found = []
    for one in handlers:
        topics = tuple(topic for topic in one.listen if not one.name or (topic, one.name) not in heard)
        found.append(replace(one, listen=topics, deaf=bool(one.name) and one.name in names))
        heard |= {(topic, one.name) for topic in topics}
        names.add(one.name)
    return found


def _unknown_key(key: str, what: str, allowed: Sequence[str], advice: Mapping[str, str]) -> str:
    if key in advice:
        return f"'{key}' of Ansible is not supported in {what}: {advice[key]}"
    return f"unknown key '{key}' in {what}{suggest(key, allowed)}; allowed: {', '.join(allowed)}"


def _unknown_in_task(key: str, allowed: Sequence[str], has_module: bool) -> str:
    """What is wrong with a key of a task that is neither a module nor a task's key."""
    if key in outside.TASK_KEYS:
        return f"'{key}' of Ansible is not supported in a task: {outside.TASK_KEYS[key]}"
    if key.startswith("with_"):
        return f"'{key}' of Ansible is not supported in a task: use loop"
    advice = outside.module_advice(key)
    if advice is not None:
        return f"the module '{key}' of Ansible is not supported: {advice}"
    if has_module:
        return f"unknown key '{key}' in a task{suggest(key, allowed)}; allowed: {', '.join(allowed)}"
    hint = suggest(key, [*MODULES, *allowed])
    return f"'{key}' is neither a module nor a key of a task{hint}; modules: {', '.join(short_names())}"
