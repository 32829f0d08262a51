"""Playbooks: Ansible's format, checked whole before anything runs, one agent per host.

    book = load(Path("playbooks/tune.yml"), {"profile": "article"})
    recap = book.run(fleet, inventory, hosts="lab", check=True, diff=True, reporter=ConsoleReporter(sys.stdout))

`parse` turns files into the records of `model`; `names` and `usage` find out which variables they use. `engine`
runs plays over a fleet, `walk` takes one host through them, `chain` does one task on one host. `catalogue` lists
modules and arguments, `actions` says what each does; `template`, `filters*` and `lookups` are Ansible's Jinja.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tcpfleet.errors import BadInput, LocatedError
from tcpfleet.playbook import search, syntax, template
from tcpfleet.playbook.chain import Options
from tcpfleet.playbook.engine import Fleet, Reporter, Runner, chosen_hosts
from tcpfleet.playbook.model import Play, Prepared, Task
from tcpfleet.playbook.names import Layers, barriers, check_names, given_names, needed_facts, source_names
from tcpfleet.playbook.parse import Known, parse, read_vars, shown
from tcpfleet.playbook.results import HostRecap, ItemResult, Recap, TaskRecord, TaskResult
from tcpfleet.playbook.source import PlaybookErrors, Problems, Where, where_of
from tcpfleet.playbook.variables import HostState, Inventory, RunVariables, Scope
from tcpfleet.secret import Secret

__all__ = [
    "HostRecap",
    "ItemResult",
    "Options",
    "Play",
    "Playbook",
    "PlaybookErrors",
    "Prepared",
    "Recap",
    "Reporter",
    "Task",
    "TaskRecord",
    "TaskResult",
    "load",
]


@dataclass(frozen=True)
class Playbook:
    """A playbook as far as it could be read; `prepare` and `run` refuse it when it has a mistake.

    :ivar extra: ``-e`` variables.
    :ivar problems: what is wrong in its files, as far as that can be seen without an inventory.
    :ivar given: names that tasks with mistakes would register.
    """

    path: Path
    plays: tuple[Play, ...]
    extra: Mapping[str, Any] = field(default_factory=dict)
    problems: tuple[LocatedError, ...] = ()
    given: frozenset[str] = frozenset()

    @property
    def folder(self) -> Path:
        """Where the playbook file is; a play that was imported has its own `Play.folder`."""
        return self.path.resolve().parent

    def hosts(self, inventory: Inventory, limit: str | Sequence[str] | None = None) -> list[Any]:
        """The hosts that any play would run on, each once: what a fleet is opened for.

        :raises PlaybookErrors: when a pattern means nothing in this inventory, with all other mistakes.
        :raises BadInput: when the limit means nothing.
        """
        try:
            found = {host.name: host for play in self.plays for host in chosen_hosts(play, inventory, limit)}
        except LocatedError as error:
            self.prepare(inventory, limit)
            raise error from None
        return list(found.values())

    def prepare(self, inventory: Inventory, limit: str | Sequence[str] | None = None) -> list[Prepared]:
        """Everything that can be checked once the hosts are known: host patterns, vars_files, variable names.

        :returns: each play with what is known of it now.
        :raises PlaybookErrors: with all mistakes, those of the files included.
        """
        problems = Problems(self.problems)
        known = set(self.given)
        layers: list[Layers] = []
        read: dict[Path, Mapping[str, Any]] = {}
        gathered = False
        for play in self.plays:
            try:
                hosts = chosen_hosts(play, inventory, limit)
            except LocatedError as error:
                problems.errors.append(error)
                hosts = list(inventory.hosts.values())  # for the names in it, any will do
            files = {host.name: self._vars_files(play, host, inventory, read, problems) for host in hosts}
            found = Layers(play, files, self.extra, inventory, hosts)
            known |= set(given_names(play))
            gathered = gathered or play.gather_facts or any(task.module.name == "setup" for task in play.tasks)
            if hosts:
                known |= found.names()
                check_names(found, known, gathered, problems)
                _check_files(found, problems)
            layers.append(found)
        problems.raise_if_any()
        pairs = [(one, barriers(one)) for one in layers]
        return [
            Prepared(one.play, one.files, facts, meeting)
            for (one, meeting), facts in zip(pairs, needed_facts(pairs), strict=True)
        ]

    def _vars_files(
        self,
        play: Play,
        host: Any,
        inventory: Inventory,
        read: dict[Path, Mapping[str, Any]],
        problems: Problems,
    ) -> list[Mapping[str, Any]]:
        run = RunVariables(inventory, {}, self.extra, {"playbook_dir": str(play.folder)})
        found: list[Mapping[str, Any]] = []
        for name in play.vars_files:
            where = where_of(name, play.where)
            scope = Scope(run, HostState(host), (*reversed(found), play.vars), where=where)
            try:
                path = _vars_file(str(template.render(name, scope, where)), where, play.folder)
                if path not in read:
                    read[path] = read_vars(path, problems)
                found.append(read[path])
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
        start_at: str = "",
        become_password: Secret | None = None,
        journal: Mapping[str, str] | None = None,
    ) -> Recap:
        """Runs all plays; nothing is done on any host before everything has been checked.

        :param hosts: the limit: a host pattern, or host names.
        :param check: change nothing, say what would change.
        :param diff: results carry what changes in files.
        :param start_at: name of the task to begin with; handlers and facts are as if all had run.
        :param become_password: for sudo, where the inventory gives none.
        :param journal: ``{"run", "command", "user"}``: hosts journal under it what is changed; None: nothing is.
        :raises PlaybookErrors: with all mistakes found beforehand.
        """
        prepared = self.prepare(inventory, hosts)
        picked = (frozenset(tags), frozenset(skip_tags))
        options = Options(check, diff, hosts, *picked, become_password, start_at, journal)
        recap = Runner(self.path.name, fleet, inventory, self.extra, options, reporter or Reporter()).run(prepared)
        recap.run = journal["run"] if journal and recap.undo else ""
        return recap


def load(path: str | Path, extra_vars: Mapping[str, Any] | None = None) -> Playbook:
    """Reads a playbook and all that it imports. What is wrong in it is kept for `Playbook.prepare`.

    :param extra_vars: ``-e``: strongest of all variables.
    :raises BadInput: when there is no such file.
    """
    path = Path(path)
    if path.is_dir():
        raise BadInput(f"{path} is a directory; a playbook is a file")
    if not path.exists():
        beside = sorted(one.name for one in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        raise BadInput(f"there is no playbook {path}" + (f"; there are: {', '.join(beside)}" if beside else ""))
    extra = dict(extra_vars or {})
    parsed = parse(path, extra)
    problems = Problems(parsed.problems)
    plays = tuple(
        _named(_with_hosts(play, {**extra, "playbook_dir": str(play.folder)}, problems), extra)
        for play in parsed.plays
    )
    return Playbook(path, plays, extra, tuple(problems.errors), parsed.given)


def _with_hosts(play: Play, extra: Mapping[str, Any], problems: Problems) -> Play:
    """A play whose hosts are a pattern: a template there can use -e and the play's own variables only."""
    if not template.is_template(play.hosts):
        return play
    where = play.hosts_where
    known = {**extra, "playbook_dir": str(play.folder)}
    try:
        rendered = template.render(play.hosts, Known((known, play.vars), where), where)
    except LocatedError as error:
        problems.errors.append(error)
        return replace(play, hosts="all")  # never run: there is a problem
    return replace(play, hosts=",".join(rendered) if isinstance(rendered, list) else str(rendered))


def _named(play: Play, extra: Mapping[str, Any]) -> Play:
    """A play whose name is filled in as far as -e and the play's own variables go."""
    if not template.is_template(play.name):
        return play
    try:
        name = template.render(play.name, Known((extra, play.vars), play.where), play.where)
    except LocatedError:
        return play  # shown as it is written, like a task's
    return replace(play, name="" if name is None else str(name))


def _check_files(layers: Layers, problems: Problems) -> None:
    """Templates and files that the play names must exist, and templates parse, as far as names are known."""
    for task in (*layers.play.tasks, *layers.play.handlers):
        source = task.args.get("src")
        kind = {"template": "templates", "copy": "files"}.get(task.module.name)
        if kind is None or not isinstance(source, str) or task.args.get("remote_src") not in (None, False):
            continue
        where = where_of(source, task.where)
        folders = [Path(task.where.file).resolve().parent, layers.play.folder]
        for name in source_names(layers, task) or ():
            path = search.find(name, kind, folders)
            if path is None:
                if not task.when:  # else the condition may ask for the file's existence
                    looked = ", ".join(str(one) for one in search.places(name, kind, folders))
                    problems.add(where, f"could not find '{name}' on the controller; looked at {looked}")
            elif task.module.name == "template":
                _check_template(path, task, folders, problems)


def _check_template(path: Path, task: Task, folders: Sequence[Path], problems: Problems) -> None:
    beside = search.template_folders(str(path), folders)
    wanted = syntax.of_written(task.args)
    try:
        text = path.read_text(encoding="utf-8")
        if wanted is not None:
            template.check_file_syntax(text, str(shown(path)), beside, wanted)
    except (OSError, UnicodeDecodeError) as error:
        problems.add(where_of(task.args["src"], task.where), f"cannot read {path}: {error}")
    except LocatedError as error:
        problems.errors.append(error)


def _vars_file(name: str, where: Where, folder: Path) -> Path:
    """One of a play's vars_files.

    :raises LocatedError: when it is missing, naming what lies beside the place where it should be.
    """
    found = search.find(name, "vars", [folder])
    if found is not None and found.is_file():
        return shown(found)
    beside = sorted(one.stem for one in search.places(name, "vars", [folder])[-1].parent.glob("*.yml"))
    listed = f"; there are: {', '.join(beside)}" if beside else ""
    raise where.error(f"no file {name} of variables{listed}")
