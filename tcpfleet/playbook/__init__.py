"""Playbooks: Ansible's format, checked whole before anything runs, one agent per host.

    book = load(Path("playbooks/tune.yml"), {"profile": "article"})
    recap = book.run(fleet, inventory, hosts="lab", check=True, diff=True, reporter=ConsoleReporter(sys.stdout))

`parse` turns files into the records of `model`, `engine` runs them, `actions` says what each module does,
`catalogue` which modules and arguments there are, `template` is Jinja as Ansible means it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tcpfleet.errors import LocatedError
from tcpfleet.playbook import template
from tcpfleet.playbook.actions import ActionFailed, find_file
from tcpfleet.playbook.engine import Fleet, Options, Reporter, Runner, chosen_hosts
from tcpfleet.playbook.model import Play, Task
from tcpfleet.playbook.names import check_names, given_names
from tcpfleet.playbook.parse import parse, read_vars
from tcpfleet.playbook.results import HostRecap, ItemResult, Recap, TaskRecord, TaskResult
from tcpfleet.playbook.source import PlaybookErrors, Problems, Where, where_of
from tcpfleet.playbook.variables import HostState, Inventory, RunVariables, Scope

__all__ = [
    "HostRecap",
    "ItemResult",
    "Options",
    "Play",
    "Playbook",
    "PlaybookErrors",
    "Recap",
    "Reporter",
    "Task",
    "TaskRecord",
    "TaskResult",
    "load",
]


@dataclass(frozen=True)
class Playbook:
    """A playbook without mistakes that can be seen without an inventory.

    :ivar extra: ``-e`` variables.
    """

    path: Path
    plays: tuple[Play, ...]
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """``playbook_dir``: what relative paths start from."""
        return self.path.resolve().parent

    def hosts(self, inventory: Inventory, limit: str | Sequence[str] | None = None) -> list[Any]:
        """The hosts that any play would run on, each once: what a fleet is opened for.

        :raises BadInput: when a pattern means nothing in this inventory.
        """
        found = {host.name: host for play in self.plays for host in chosen_hosts(play, inventory, limit)}
        return list(found.values())

    def prepare(
        self, inventory: Inventory, limit: str | Sequence[str] | None = None
    ) -> list[tuple[Play, dict[str, list[Mapping[str, Any]]]]]:
        """Everything that can be checked once the hosts are known: host patterns, vars_files, variable names.

        :returns: each play with its vars_files, read: host name -> mappings, weakest first.
        :raises PlaybookErrors: with all mistakes.
        """
        problems = Problems()
        known = {*self.extra, "playbook_dir", "ansible_check_mode", "ansible_diff_mode", "ansible_managed"}
        known |= {"ansible_play_hosts_all", "ansible_play_hosts", "ansible_play_batch", "ansible_play_name"}
        prepared: list[tuple[Play, dict[str, list[Mapping[str, Any]]]]] = []
        for play in self.plays:
            try:
                hosts = chosen_hosts(play, inventory, limit)
            except LocatedError as error:
                problems.errors.append(error)
                continue
            files: dict[str, list[Mapping[str, Any]]] = {}
            for host in hosts:
                files[host.name] = self._vars_files(play, host, inventory, problems)
                known |= {*host.vars, *inventory.magic_vars(host.name)}
            known |= set(given_names(play))
            if hosts:
                layers = {id(one): one for found in files.values() for one in reversed(found)}
                check_names(play, (*layers.values(), play.vars), known, problems)
            prepared.append((play, files))
        problems.raise_if_any()
        return prepared

    def _vars_files(
        self, play: Play, host: Any, inventory: Inventory, problems: Problems
    ) -> list[Mapping[str, Any]]:
        run = RunVariables(inventory, {}, self.extra, {"playbook_dir": str(self.folder)})
        found: list[Mapping[str, Any]] = []
        for name in play.vars_files:
            where = where_of(name, play.where)
            scope = Scope(run, HostState(host), (*reversed(found), play.vars), where=where)
            try:
                found.append(_read_vars_file(str(template.render(name, scope, where)), where, self.folder))
            except LocatedError as error:
                problems.errors.append(error)
        return found

    def run(
        self,
        fleet: Fleet,
        inventory: Inventory,
        hosts: str | Sequence[str] | None = None,
        *,
        check: bool = False,
        diff: bool = False,
        reporter: Reporter | None = None,
        tags: Sequence[str] = (),
        skip_tags: Sequence[str] = (),
        become_password: str | None = None,
    ) -> Recap:
        """Runs all plays; nothing is done on any host before everything has been checked.

        :param hosts: the limit: a host pattern, or host names.
        :param check: change nothing, say what would change.
        :param diff: results carry what changes in files.
        :param become_password: for sudo, where the inventory gives none.
        :raises PlaybookErrors: with all mistakes found beforehand.
        """
        prepared = self.prepare(inventory, hosts)
        options = Options(check, diff, hosts, frozenset(tags), frozenset(skip_tags), become_password)
        return Runner(self.folder, fleet, inventory, self.extra, options, reporter or Reporter()).run(prepared)


def load(path: str | Path, extra_vars: Mapping[str, Any] | None = None) -> Playbook:
    """Reads and checks a playbook.

    :param extra_vars: ``-e``: strongest of all variables.
    :raises PlaybookErrors: with every mistake, as ``file:line:column: what is wrong; what is allowed``.
    """
    path = Path(path)
    extra = dict(extra_vars or {})
    problems = Problems()
    try:
        plays = parse(path)
    except PlaybookErrors as errors:
        problems.errors.extend(errors.errors)
        plays = ()
    folder = path.resolve().parent
    known = {**extra, "playbook_dir": str(folder)}
    plays = tuple(_with_hosts(play, known, problems) for play in plays)
    for play in plays:
        _check_files(play, known, folder, problems)
    problems.raise_if_any()
    return Playbook(path, plays, extra)


def _with_hosts(play: Play, known: Mapping[str, Any], problems: Problems) -> Play:
    """A play whose hosts are a pattern: as in Ansible, a template there can use -e variables only."""
    if not template.is_template(play.hosts):
        return play
    try:
        rendered = template.render(play.hosts, _Known(known, play.hosts_where), play.hosts_where)
    except LocatedError as error:
        problems.errors.append(error)
        return play
    return replace(play, hosts=",".join(rendered) if isinstance(rendered, list) else str(rendered))


class _Known:
    """The few names whose values are known without an inventory."""

    def __init__(self, values: Mapping[str, Any], where: Where) -> None:
        self._values, self._where = values, where

    def lookup(self, name: str) -> Any:
        """A value. :raises KeyError: when it is not known yet."""
        return template.render(self._values[name], self, self._where)


def _check_files(play: Play, values: Mapping[str, Any], folder: Path, problems: Problems) -> None:
    """Templates, files and vars_files that the play names must exist and parse, as far as names are known."""
    # A play's own variable may be overridden by the inventory; a file it leads to is judged later, with hosts.
    known = _Known(values, play.where)
    for task in (*play.tasks, *play.handlers):
        source = task.args.get("src")
        if task.module.name not in ("template", "copy") or not isinstance(source, str):
            continue
        where = where_of(source, task.where)
        try:
            name = str(template.render(source, known, where))
        except LocatedError:
            continue
        try:
            found = find_file(name, "templates" if task.module.name == "template" else "files", folder)
            if task.module.name == "template":
                template.check_file_syntax(found.read_text(encoding="utf-8"), str(found))
        except ActionFailed as error:
            problems.add(where, str(error))
        except (OSError, UnicodeDecodeError) as error:
            problems.add(where, f"cannot read {name}: {error}")
        except LocatedError as error:
            problems.errors.append(error)


def _read_vars_file(name: str, where: Where, folder: Path) -> Mapping[str, Any]:
    """One of a play's vars_files.

    :raises LocatedError: when it is missing, naming what lies beside the place where it should be.
    """
    places = [Path(name)] if Path(name).is_absolute() else [folder / "vars" / name, folder / name]
    found = next((one for one in places if one.is_file()), None)
    if found is None:
        beside = sorted(one.stem for one in places[-1].parent.glob("*.yml"))
        listed = f"; there are: {', '.join(beside)}" if beside else ""
        raise where.error(f"no file {name} of variables{listed}")
    return read_vars(_shown(found))


def _shown(path: Path) -> Path:
    """A path as a user would write it: relative where it is below the current folder."""
    try:
        return path.resolve().relative_to(Path.cwd())
    except ValueError:
        return path
