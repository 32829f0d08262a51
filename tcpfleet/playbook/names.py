"""What the variables of a play lead to, found out before anything runs.

`check_names` finds variables that nothing can define; `used_facts` and `barriers` say which facts a play can
use and which tasks look at other hosts. All three follow templates into the variables they are made of (task
vars, vars_files, play vars, inventory, -e) and into template files with all that these include.

A name counts as defined when the inventory, a play, a vars file, ``-e``, a fact, a ``register``, a ``set_fact``
or a loop may give it a value. A name that its task guards (``x | default(..)``, ``x is defined``) is left alone,
in all of the task; so is one in ``when`` that another part of the condition may keep from being looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tcpfleet.errors import LocatedError
from tcpfleet.playbook import search, syntax, template, usage
from tcpfleet.playbook.catalogue import suggest
from tcpfleet.playbook.model import Play, Task
from tcpfleet.playbook.source import Problems, Text, Where, where_of
from tcpfleet.playbook.syntax import PLAIN, FileSyntax
from tcpfleet.playbook.usage import Usage
from tcpfleet.playbook.variables import HostState, Inventory, RunVariables, Scope

# Names that exist in every template, whatever the inventory and the play say.
ALWAYS = frozenset(
    (
        "range", "dict", "namespace", "omit", "hostvars", "ansible_facts", "vars", "now", "undef", *usage.LOOKUPS,
        "playbook_dir", "ansible_check_mode", "ansible_diff_mode", "ansible_managed", "ansible_play_hosts_all",
        "ansible_play_hosts", "ansible_play_batch", "play_hosts", "ansible_play_name", "ansible_failed_task",
        "ansible_failed_result", "ansible_version", "ansible_playbook_python",
    )
)  # fmt: skip
# Below this many hosts, a template file whose name depends on the host is looked up for each.
_MANY_HOSTS = 200

# A template, an expression, an expression of `when`; `shown` and `debugged` are those whose failure is no failure.
Kind = Literal["template", "condition", "when", "shown", "debugged"]


class Layers:
    """The variables of one play whose values are templates, from all layers below the task's own.

    :param files: host name -> its vars_files, weakest first.
    """

    def __init__(
        self,
        play: Play,
        files: Mapping[str, Sequence[Mapping[str, Any]]],
        extra: Mapping[str, Any],
        inventory: Inventory,
        hosts: Sequence[Any],
    ) -> None:
        self.play, self.files, self.extra, self.inventory, self.hosts = play, files, extra, inventory, hosts
        self._cache: dict[str, list[tuple[Any, Where]]] = {}

    def names(self) -> set[str]:
        """Every name that a layer gives a value."""
        found = {*self.extra, *self.play.vars}
        for mappings in {id(one): one for one in self.files.values()}.values():
            found.update(*mappings)
        for host in self.hosts:
            found.update(host.vars)
        if self.hosts:
            found.update(self.inventory.magic_vars(self.hosts[0].name))
        return found

    def values(self, name: str) -> list[tuple[Any, Where]]:
        """The values, with their places, that a name can have on any of the hosts; each once."""
        if name not in self._cache:
            self._cache[name] = list(self._values(name))
        return self._cache[name]

    def _values(self, name: str) -> Iterator[tuple[Any, Where]]:
        if name in self.extra:
            yield self.extra[name], where_of(self.extra[name], Where("--extra-vars", 1, 1))
            return
        everywhere = bool(self.files)
        seen: dict[int, Any] = {}
        for mappings in self.files.values():
            strongest = next((one for one in reversed(mappings) if name in one), None)
            if strongest is None:
                everywhere = False
            else:
                seen[id(strongest[name])] = strongest[name]
        for value in seen.values():
            yield value, where_of(value, self.play.where)
        if everywhere and seen:
            return
        if name in self.play.vars:
            yield self.play.vars[name], where_of(self.play.vars[name], self.play.where)
            return
        given: set[int] = set()
        for host in self.hosts:
            value = host.vars.get(name)
            if value is not None and id(value) not in given:
                given.add(id(value))
                where = self.inventory.where(host.name, name)
                yield value, Where(*where) if where is not None else Where("inventory", 1, 1)

    def scope(self, host: Any, task: Task) -> Scope:
        """What a host's variables are before anything has run."""
        magic = {"playbook_dir": str(self.play.folder)}
        run = RunVariables(self.inventory, {}, self.extra, magic)
        layers = (task.vars, *reversed(self.files.get(host.name, ())), self.play.vars)
        return Scope(run, HostState(host), layers, where=task.where)


class _Piece(NamedTuple):
    """A template or expression of a task.

    :ivar per_item: it is evaluated once per item of the loop.
    """

    source: str
    kind: Kind
    where: Where
    per_item: bool = True

    @property
    def usage(self) -> Usage:
        """What it uses."""
        return usage.of_text(self.source, self.kind in ("condition", "when", "debugged"))


class _Origin(NamedTuple):
    """Where a template starts: its place, and the line of the file that its first line is on."""

    where: Where
    first_line: int

    def line(self, number: int) -> Where:
        """The place of one of its lines."""
        line = self.first_line + number - 1
        return self.where if line == self.where.line else Where(self.where.file, line, 1)


def _origin(source: object, where: Where) -> _Origin:
    return _Origin(where, source.first_line if isinstance(source, Text) else where.line)


@dataclass
class _Reach:
    """What a task leads to.

    :ivar facts: None: any.
    """

    facts: set[str] | None = field(default_factory=set)
    others: bool = False

    def any(self) -> None:
        """It may lead to everything."""
        self.facts, self.others = None, True


def check_names(layers: Layers, known: set[str], facts: bool, problems: Problems) -> None:
    """Adds a problem for every use of a name that nothing defines.

    :param known: names that earlier plays' registers and the like define.
    :param facts: facts have been gathered, so that a name ``ansible_*`` may be one.
    """
    play = layers.play
    everywhere = ALWAYS | known | layers.names() | set(given_names(play))
    for task in (*play.tasks, *play.handlers):
        if not any(condition is False for condition in task.when):  # `when: false` switches a task off
            _Trace(layers, task, everywhere, facts, problems).run()


def given_names(play: Play) -> Iterator[str]:
    """Names that the tasks of a play define: register and set_fact."""
    for task in (*play.tasks, *play.handlers):
        if task.register:
            yield task.register
        if task.module.name == "set_fact":
            yield from task.args


def used_facts(layers: Layers) -> frozenset[str] | None:
    """Names, without ``ansible_``, of facts that anything in the play can use; None: any."""
    found: set[str] = set()
    for task in (*layers.play.tasks, *layers.play.handlers):
        reach = _Trace(layers, task).run()
        if reach.facts is None:
            return None
        found |= reach.facts
    return frozenset(found)


def needed_facts(plays: Sequence[tuple[Layers, frozenset[int]]]) -> list[frozenset[str] | None]:
    """For each play, the facts that it must gather: those it uses, and those that plays after it use.

    :param plays: each with its `barriers`.

    A later play that does not gather uses what was gathered before; one that looks at other hosts may look at
    what any play before it has gathered there.
    """
    needed: list[frozenset[str] | None] = []
    later: frozenset[str] | None = frozenset()
    for layers, looks_at_others in reversed(plays):
        own = used_facts(layers)
        both = None if own is None or later is None else own | later
        needed.append(both)
        if not layers.play.gather_facts or looks_at_others:
            later = both
    return needed[::-1]


def barriers(layers: Layers) -> frozenset[int]:
    """Numbers of the tasks that look at other hosts."""
    tasks = (*layers.play.tasks, *layers.play.handlers)
    return frozenset(task.number for task in tasks if _Trace(layers, task).run().others)


class _Trace:
    """Follows everything that one task evaluates.

    :param known: names that may be defined; None: report nothing.
    """

    def __init__(
        self,
        layers: Layers,
        task: Task,
        known: Set[str] | None = None,
        facts: bool = True,
        problems: Problems | None = None,
    ) -> None:
        self._layers, self._task, self._facts = layers, task, facts
        self._known, self._problems = known, problems
        self._reach = _Reach()
        self._seen: set[tuple[str, bool]] = set()
        self._files: set[Path] = set()
        self._used = PLAIN
        self._folders = [Path(task.where.file).resolve().parent, layers.play.folder]
        self._syntax = syntax.of_written(task.args) if task.module.name == "template" else PLAIN

    def run(self) -> _Reach:
        """Everything the task leads to; mistakes are added to the problems."""
        task = self._task
        known = None if self._known is None else self._known | set(task.vars)
        items = known
        if known is not None and task.loop is not None:
            items = known | {task.loop.variable, "ansible_loop_var"}
            items |= {task.loop.index, "ansible_index_var"} if task.loop.index else set()
        pieces = list(_pieces(task))
        guarded: frozenset[str] = frozenset()
        for piece in pieces:
            guarded |= piece.usage.guarded
        texts = list(self._template_files())
        for path, text in texts:
            guarded |= self._file_guards(path, text)
        for piece in pieces:
            allowed = items if piece.per_item else known
            if piece.kind in ("shown", "debugged"):
                allowed = None
            origin = _origin(piece.source, piece.where)
            self._follow(piece.usage, origin, allowed, guarded, piece.kind == "when", self._folders)
        for path, text in texts:
            body, used, first = self._whole(text, self._syntax or PLAIN)
            self._file(path, body, items, guarded, used, first)
        if task.module.name == "debug" and template.is_template(task.args.get("var")):
            self._reach.any()
        return self._reach

    # ---- variables

    def _follow(
        self,
        found: Usage,
        origin: _Origin,
        known: Set[str] | None,
        guarded: frozenset[str],
        only_always: bool,
        folders: Sequence[Path],
    ) -> None:
        """What one template uses, and the variables that is made of."""
        reach = self._reach
        if found.opaque:
            reach.any()
        reach.others = reach.others or found.others
        if found.facts is None:
            reach.facts = None
        elif reach.facts is not None:
            reach.facts |= found.facts
        if known is not None and found.facts and not self._facts and "ansible_facts" not in guarded:
            assert self._problems is not None
            listed = ", ".join(sorted(found.facts))
            self._problems.add(
                origin.where, f"no facts are gathered ({listed}): gather_facts is off, and no task runs setup"
            )
        for use in found.uses:
            report = known if use.always or not only_always else None
            self._name(use.name, origin.line(use.line), report, guarded)
        for name in found.indirect:
            self._name(name, origin.where, None, guarded)
        for one in found.files:
            self._included(one, origin, known, guarded | found.guarded, found.bound, folders)

    def _name(self, name: str, where: Where, known: Set[str] | None, guarded: frozenset[str]) -> None:
        if name in guarded:
            known = None
        if (name, known is not None) in self._seen:
            return
        self._seen.add((name, known is not None))
        if name.startswith("ansible_") and name not in ALWAYS and self._reach.facts is not None:
            self._reach.facts.add(name.removeprefix("ansible_"))
        if known is not None and name not in known and not (self._facts and name.startswith("ansible_")):
            assert self._problems is not None
            hint = suggest(name, known)
            self._problems.add(
                where, f"'{name}' is undefined: no vars, inventory, fact, register or -e gives it{hint}"
            )
            return
        own = self._task.vars
        values = [(own[name], where_of(own[name], where))] if name in own else self._layers.values(name)
        for value, value_where in values:
            for text, text_where in strings(value, value_where):
                inner = usage.of_text(text)
                self._follow(
                    inner, _origin(text, text_where), known, guarded | inner.guarded, False, self._folders
                )

    # ---- template files

    def _template_files(self) -> Iterator[tuple[Path, str]]:
        """The files that a template task can render; unknown ones may use anything."""
        task = self._task
        if task.module.name != "template":
            return
        names = source_names(self._layers, task)
        if names is None or self._syntax is None:
            self._reach.any()
            return
        for name in names:
            path = search.find(name, "templates", self._folders)
            text = None if path is None else _read(path)
            if path is None or text is None:
                self._reach.any()  # reported by the check of files, or when the task runs
            else:
                yield path, text

    def _file_guards(self, path: Path, text: str) -> frozenset[str]:
        body, used, _first = self._whole(text, self._syntax or PLAIN)
        return usage.of_file(body, used).guarded

    @staticmethod
    def _whole(text: str, wanted: FileSyntax) -> tuple[str, FileSyntax, int]:
        """The text of a file without its line of options, how it is to be read, and its first line's number."""
        try:
            body, used = syntax.split(text, wanted)
        except ValueError:
            return "", wanted, 1  # reported where it is compiled
        return body, used, 1 if body == text else 2

    def _file(
        self,
        path: Path,
        text: str,
        known: Set[str] | None,
        guarded: frozenset[str],
        used: FileSyntax,
        first: int = 1,
    ) -> None:
        """What a template file uses.

        :param used: how it and what it includes are read.
        :param first: the number of the first line of `text` in the file.
        """
        if path in self._files:
            return
        self._files.add(path)
        outer, self._used = self._used, used
        found = usage.of_file(text, used)
        known = None if known is None else known | template.FILE_NAMES | found.bound
        folders = search.template_folders(str(path), self._folders)
        origin = _Origin(Where(str(path), first, 1), first)
        self._follow(found, origin, known, guarded | found.guarded, False, folders)
        self._used = outer

    def _included(
        self,
        use: usage.FileUse,
        origin: _Origin,
        known: Set[str] | None,
        guarded: frozenset[str],
        bound: frozenset[str],
        folders: Sequence[Path],
    ) -> None:
        if use.names is None:
            self._reach.any()
            return
        paths = [search.find(name, "templates", folders) for name in use.names]
        path = next((one for one in paths if one is not None), None)
        text = None if path is None else _read(path)
        if path is None or text is None:
            self._reach.any()
            if not use.may_miss and known is not None and self._problems is not None:
                listed = " or ".join(f"'{name}'" for name in use.names)
                self._problems.add(origin.line(use.line), f"could not find the template {listed}")
            return
        used = self._used if use.part else PLAIN
        if known is not None and self._problems is not None:
            try:
                template.check_file_syntax(text, str(path), syntax=used, included=use.part)
            except LocatedError as error:
                self._problems.errors.append(error)
        body, used, first = (text, used, 1) if use.part else self._whole(text, used)
        self._file(path, body, None if known is None else known | bound, guarded, used, first)


def source_names(layers: Layers, task: Task) -> list[str] | None:
    """Names of a task's ``src``, on every host and for every item; None when they cannot be known yet."""
    source = task.args.get("src")
    if not isinstance(source, str):
        return None
    if not template.is_template(source):
        return [source]
    if not 0 < len(layers.hosts) <= _MANY_HOSTS:
        return None
    found: dict[str, None] = {}
    try:
        for host in layers.hosts:
            scope = layers.scope(host, task)
            for item in items_of(task, scope):
                found[str(template.render(source, scope.with_item(item), task.where))] = None
    except LocatedError:
        return None
    return list(found)


def items_of(task: Task, scope: Scope) -> Iterator[Mapping[str, Any]]:
    """The loop variables of each item; one empty mapping for a task without loop.

    :raises LocatedError: when the loop cannot be known yet.
    """
    if task.loop is None:
        yield {}
        return
    values = template.render(task.loop.items, scope, task.where)
    for index, value in enumerate(values if isinstance(values, list) else []):
        item = {task.loop.variable: value}
        yield {**item, task.loop.index: index} if task.loop.index else item


def _pieces(task: Task) -> Iterator[_Piece]:
    """Everything a task evaluates."""
    for condition in task.when:
        if isinstance(condition, str):
            yield _Piece(condition, "when", where_of(condition, task.where))
    conditions = [*(task.changed_when or ()), *(task.failed_when or ()), *(task.until or ())]
    args: Any = task.args
    if task.module.name == "assert":
        that = task.args.get("that", ())
        conditions += that if isinstance(that, list) else [that]
        args = {key: value for key, value in task.args.items() if key != "that"}
    for condition in conditions:
        if isinstance(condition, str):
            yield _Piece(condition, "condition", where_of(condition, task.where))
    if task.module.name == "debug" and isinstance(task.args.get("var"), str):
        # As in Ansible, an undefined one is said to be so and is no failure.
        yield _Piece(task.args["var"], "debugged", where_of(task.args["var"], task.where))
    plain = [args, task.become, task.become_user, task.check_mode, task.ignore_errors, task.no_log]
    plain += [task.run_once, task.any_errors_fatal, task.retries, task.delay, list(task.notify)]
    plain.append(dict(task.environment))
    if task.loop is not None:
        plain.append(task.loop.label)
        for text, where in strings(task.loop.items, task.where):
            yield _Piece(text, "template", where, per_item=False)
    for value in plain:
        for text, where in strings(value, task.where):
            yield _Piece(text, "template", where)
    for text, where in strings(task.name, task.where):
        yield _Piece(text, "shown", where)  # shown as it is written where it cannot be rendered


def strings(value: Any, where: Where) -> Iterator[tuple[str, Where]]:
    """Every template within a value, with its place."""
    if template.is_template(value):
        yield value, where_of(value, where)
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from strings(key, where)
            yield from strings(one, where_of(key, where))
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from strings(one, where)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
