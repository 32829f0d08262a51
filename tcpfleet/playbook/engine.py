"""Runs plays over a fleet and keeps the score.

In: plays that are prepared, a fleet of sessions, an inventory. Out: a `Recap`, and events to a `Reporter`.
Each host makes its own way through a play (`walk.Walk`); where a task looks at other hosts, where a play or task
says so (serial, any_errors_fatal, run_once, strategy: linear), all hosts come to it before one goes on, as under
Ansible's linear strategy. A host that fails or is lost drops out, the others go on.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from tcpfleet.errors import BadInput
from tcpfleet.playbook import template
from tcpfleet.playbook.catalogue import MODULES
from tcpfleet.playbook.chain import GATHERING, Chain, Options
from tcpfleet.playbook.model import Play, Prepared, Task
from tcpfleet.playbook.results import HostRecap, Recap, Status, TaskRecord, TaskResult
from tcpfleet.playbook.variables import HostState, Inventory, RunVariables, Scope
from tcpfleet.playbook.walk import Entry, News, Session, Walk


class Outcome(Protocol):
    """What the engine needs of `tcpfleet.fleet.Outcome`."""

    @property
    def host(self) -> Any: ...
    @property
    def status(self) -> str: ...
    @property
    def value(self) -> Any: ...
    @property
    def error(self) -> str | None: ...


class Fleet(Protocol):
    """What the engine needs of `tcpfleet.fleet.Fleet`; both callbacks are called in the caller's thread."""

    def run(
        self,
        function: Callable[..., Any],
        hosts: Sequence[Any] | None = None,
        *,
        on_outcome: Callable[[Any], None] | None = None,
        on_news: Callable[[Any], None] | None = None,
    ) -> Mapping[str, Any]: ...


class Reporter:
    """Gets the events of a run, in the thread that runs it; this one ignores them."""

    def play_start(self, play: Play, hosts: Sequence[str]) -> None:
        """A play begins on these hosts; none: its pattern matched no host that is left."""

    def task_start(self, title: str, task: Task, handler: bool) -> None:
        """A task begins; `title` is its name with the variables in it filled in."""

    def host_result(self, task: Task, result: TaskResult) -> None:
        """One host has finished the task; results come in the order in which hosts finish."""

    def note(self, host: str, text: str) -> None:
        """Something about a host that is no result: a retry, handlers of an earlier run."""

    def play_end(self, recap: Recap) -> None:
        """The whole run is over."""


def chosen_hosts(play: Play, inventory: Inventory, limit: str | Sequence[str] | None) -> list[Any]:
    """The hosts of a play that the limit leaves, in the inventory's order.

    :raises LocatedError: when the play's own pattern means nothing in this inventory.
    :raises BadInput: when the limit does not.
    """
    try:
        hosts = list(inventory.select(play.hosts, allow_empty=True))
    except BadInput as error:
        raise play.hosts_where.error(str(error)) from None
    if limit is None:
        return hosts
    wanted = {host.name for host in inventory.select(limit)} if isinstance(limit, str) else set(limit)
    return [host for host in hosts if host.name in wanted]


def is_chosen(own: frozenset[str], options: Options) -> bool:
    """Whether ``--tags`` and ``--skip-tags`` leave in what has these tags; their special words are Ansible's."""
    tags = own or frozenset(("untagged",))
    wanted, unwanted = options.tags or frozenset(("all",)), options.skip_tags
    named = "always" in tags or bool(tags & wanted)
    picked = "all" in wanted or ("tagged" in wanted and bool(own))
    if not named and (not picked or "never" in tags):
        return False
    if "all" in unwanted:
        return "always" in tags and "always" not in unwanted
    return not (tags & unwanted) and not ("tagged" in unwanted and own)


class _Board:
    """Puts what hosts tell, each at its own pace, into the order of the tasks.

    A task is shown when every host is past the ones before it, so the output reads as if all had waited.
    """

    def __init__(
        self, entries: Sequence[Entry], first: int, hosts: Sequence[str], show: Callable[[int, Any], None]
    ):
        self._next = first
        self._end = len(entries)
        self._past = dict.fromkeys(hosts, first)  # host -> it tells nothing more of positions below
        self._waiting: dict[int, list[News]] = {}
        self._show = show

    def take(self, news: News) -> None:
        """Something came from a host."""
        self._past[news.host] = max(self._past[news.host], news.position)
        self._waiting.setdefault(news.position, []).append(news)
        self._forward()

    def done(self, host: str) -> None:
        """A host will tell nothing more."""
        self._past[host] = self._end
        self._forward()

    def _forward(self) -> None:
        slowest = min(self._past.values())
        while self._next <= slowest:
            for news in self._waiting.pop(self._next, ()):
                self._show(self._next, news)
            if self._next == slowest:
                return
            self._next += 1


class Runner:
    """Drives plays over a fleet and keeps the score.

    :param book: name of the playbook file; with a play's title, the name under which its handlers are kept.
    """

    def __init__(
        self,
        book: str,
        fleet: Fleet,
        inventory: Inventory,
        extra: Mapping[str, Any],
        options: Options,
        reporter: Reporter,
    ) -> None:
        self._book, self._fleet, self._inventory, self._extra = book, fleet, inventory, extra
        self._options, self._reporter = options, reporter
        self._states: dict[str, HostState] = {}
        self._recap = Recap()

    def run(self, plays: Sequence[Prepared]) -> Recap:
        """Runs plays in order.

        :raises BadInput: when no task is called as ``--start-at-task`` says; nothing has been done then.
        """
        for prepared, entries in zip(plays, self._programs(plays), strict=True):
            if not self._play(prepared, entries):
                break
        self._reporter.play_end(self._recap)
        return self._recap

    def _programs(self, plays: Sequence[Prepared]) -> list[list[Entry]]:
        """What each play does, entry by entry, after tags and ``--start-at-task``."""
        wanted = self._options.start_at
        names = [task.title for one in plays for task in one.play.tasks]
        if wanted and not any(_is_called(name, wanted) for name in names):
            listed = ", ".join(repr(name) for name in dict.fromkeys(names))
            raise BadInput(f"--start-at-task: no task is called {wanted!r}; there are: {listed}")
        programs, started = [], not wanted
        for one in plays:
            entries, started = _entries(one, self._options, started)
            programs.append(entries)
        return programs

    def _play(self, prepared: Prepared, entries: list[Entry]) -> bool:
        """One play, batch by batch; returns whether the next play may run."""
        play = prepared.play
        hosts = chosen_hosts(play, self._inventory, self._options.limit)
        for host in hosts:
            self._states.setdefault(host.name, HostState(host))
            self._recap.hosts.setdefault(host.name, HostRecap())
        magic: dict[str, Any] = {
            "playbook_dir": str(play.folder),
            "ansible_check_mode": self._options.check,
            "ansible_diff_mode": self._options.diff,
            "ansible_run_tags": sorted(self._options.tags) or ["all"],
            "ansible_skip_tags": sorted(self._options.skip_tags),
            "ansible_play_hosts_all": [host.name for host in hosts],
            "ansible_play_name": play.name,
        }
        run = RunVariables(self._inventory, self._states, self._extra, magic)
        if not hosts:
            self._reporter.play_start(play, [])
        for batch in self._batches(play, hosts, run):
            left = [host for host in batch if self._states[host.name].active]
            self._reporter.play_start(play, [host.name for host in left])
            key = f"{self._book}: {play.title}"
            walks = []
            for host in left:
                files = prepared.files.get(host.name, ())
                chain = Chain(play, self._options, run, files, prepared.facts)
                walks.append(Walk(self._states[host.name], chain, key, keeps=any(one.last for one in entries)))
            self._through(play, entries, walks, magic)
            for walk in walks:
                walk.drop_if_failing()
                if walk.undo:
                    self._recap.undo.setdefault(walk.state.host.name, []).extend(walk.undo)
                if walk.notified and walk.keeps and not walk.state.active:
                    self._recap.pending[walk.state.host.name] = sorted(walk.notified)
            # As in Ansible: when a whole batch is lost, what was to come after it does not happen.
            if len(left) == len(batch) and not any(walk.state.active for walk in walks):
                return False
        return True

    def _batches(self, play: Play, hosts: list[Any], run: RunVariables) -> list[list[Any]]:
        """The hosts in batches of ``serial``; the last size holds for all that remain."""
        if not hosts:
            return []
        scope = Scope(run, HostState(hosts[0]), (play.vars,), where=play.where)
        rendered = [template.render(one, scope, play.where) for one in play.serial]
        flat = [one for size in rendered for one in (size if isinstance(size, list) else [size])]
        sizes = [_batch_size(one, len(hosts), play) for one in flat] or [len(hosts)]
        batches: list[list[Any]] = []
        start = 0
        while start < len(hosts):
            size = sizes[min(len(batches), len(sizes) - 1)]
            batches.append(hosts[start : start + size])
            start += size
        return batches

    def _through(self, play: Play, entries: list[Entry], walks: list[Walk], magic: dict[str, Any]) -> None:
        """All entries of a play for one batch: in stretches that need no host to wait for another."""
        position = 0
        while position < len(entries):
            end = position + 1
            if not entries[position].barrier:
                while end < len(entries) and not entries[end].barrier:
                    end += 1
            gone = {name for name, state in self._states.items() if not state.active}
            gone |= {walk.state.host.name for walk in walks if walk.failing is not None}
            magic["ansible_play_hosts"] = [name for name in magic["ansible_play_hosts_all"] if name not in gone]
            batch = [walk.state.host.name for walk in walks if walk.state.host.name not in gone]
            magic["ansible_play_batch"] = magic["play_hosts"] = batch
            taking_part = [walk for walk in walks if any(walk.takes(one) for one in entries[position:end])]
            once = False
            task = entries[position].task
            if taking_part and end == position + 1 and task is not None and task.run_once is not False:
                once = taking_part[0].chain.flag(task.run_once, taking_part[0].state, task)
            self._stretch(play, entries, position, end, taking_part[:1] if once else taking_part, walks, once)
            position = end

    def _stretch(
        self,
        play: Play,
        entries: list[Entry],
        first: int,
        end: int,
        walks: list[Walk],
        everyone: list[Walk],
        once: bool,
    ) -> None:
        """Entries that hosts go through each at its own pace; returns when all are through or out."""
        if not walks:
            return
        if entries[first].barrier:
            for walk in walks:
                walk.prepare(entries[first])
        records: dict[int, TaskRecord] = {}
        failures: list[str] = []
        by_name = {walk.state.host.name: walk for walk in walks}

        def show(position: int, news: News) -> None:
            entry, result = entries[position], news.result
            if result is None:
                self._reporter.note(news.host, news.text)
                return
            assert entry.task is not None
            if position not in records:
                task, handler = entry.task, entry.kind == "handler"
                module = task.module.full_name
                records[position] = TaskRecord(play.title, result.task, module, task.register, handler)
                self._recap.tasks.append(records[position])
                self._reporter.task_start(result.task, task, handler)
            records[position].results[news.host] = result
            if entry.kind != "flush" or result.status != "skipped":
                self._recap.hosts[news.host].count(result)
            if result.status in ("failed", "rescued", "unreachable"):
                failures.append(news.host)
            if result.status == "failed":
                self._recap.reasons[news.host] = f"{result.task}: {_reason(result)}"
            self._reporter.host_result(entry.task, result)

        board = _Board(entries, first, list(by_name), show)

        def one(session: Session, tell: Callable[[News], None]) -> None:
            walk = by_name[session.host.name]
            others = (
                [other.state for other in everyone if other is not walk and other.state.active] if once else []
            )
            walk.run(session, entries, first, end, tell, others)

        def arrived(outcome: Outcome) -> None:
            name = outcome.host.name
            if outcome.status != "ok":
                board.take(self._lost(by_name[name], outcome, entries, first, end))
            board.done(name)

        self._fleet.run(one, [walk.state.host for walk in walks], on_outcome=arrived, on_news=board.take)
        for record in records.values():
            ordered = {name: record.results[name] for name in by_name if name in record.results}
            record.results.clear()
            record.results.update(ordered)
        task = entries[first].task
        if once and task is not None and entries[first].kind == "handler":
            for walk in everyone:
                walk.has_run(task)
        if failures and task is not None and entries[first].barrier:
            self._fail_all(play, task, everyone, failures, once)

    def _fail_all(self, play: Play, task: Task, walks: list[Walk], failures: list[str], once: bool) -> None:
        """any_errors_fatal, and run_once, where one host's failure is everyone's."""
        left = [walk for walk in walks if walk.state.active and walk.state.host.name not in failures]
        if not left or task.ignore_errors is True:
            return
        fatal = once
        for flag in (task.any_errors_fatal, play.any_errors_fatal):
            fatal = fatal or (flag is not False and left[0].chain.flag(flag, left[0].state, task))
        if fatal:
            for walk in left:
                if walk.fails(walk.flushing or task.inside) == "failed":
                    name = walk.state.host.name
                    self._recap.reasons[name] = f"stopped, since '{task.title}' failed on {', '.join(failures)}"

    def _lost(self, walk: Walk, outcome: Outcome, entries: list[Entry], first: int, end: int) -> News:
        """What it means that a host gave no answer: unreachable, or reached and no agent there."""
        status: Status = "unreachable" if outcome.status == "unreachable" else "failed"
        message = outcome.error or status
        position = max(first, walk.at)
        while position < end - 1 and not (entries[position].does and walk.takes(entries[position])):
            position += 1
        task = entries[position].task if entries[position].does else None
        if status == "unreachable":
            walk.state.unreachable = True
        else:
            walk.state.failed = True
        name = walk.state.host.name
        self._recap.reasons[name] = message
        fields = {"changed": False, status: True, "msg": message}
        if task is None:  # while handlers were looked up: nothing of the playbook's own was under way
            self._recap.hosts[name].unreachable += status == "unreachable"
            self._recap.hosts[name].failed += status == "failed"
            return News(name, position, text=f"{status}: {message}")
        result = TaskResult(name, task.title, task.module.full_name, status, fields)
        return News(name, position, result)


def _entries(prepared: Prepared, options: Options, started: bool) -> tuple[list[Entry], bool]:
    """What a play does, in order, and whether ``--start-at-task`` has been found."""
    play = prepared.play
    all_wait = bool(play.strategy or play.serial) or play.any_errors_fatal is not False
    entries: list[Entry] = []

    def waits(task: Task) -> bool:
        alone = all_wait or task.number in prepared.barriers
        return alone or task.run_once is not False or task.any_errors_fatal is not False

    def flush(task: Task | None = None, last: bool = False) -> None:
        if play.handlers:
            entries.append(Entry("flush", task, last=last, barrier=task is not None and waits(task)))
            entries.extend(Entry("handler", handler, barrier=waits(handler)) for handler in play.handlers)
            entries.append(Entry("flushed"))

    def begins(task: Task) -> bool:
        return _is_called(task.title, options.start_at) and is_chosen(task.tags, options)

    # As in Ansible, a play without the task to begin with does nothing at all.
    gathering = _gathering(play, prepared.facts)
    if play.gather_facts and is_chosen(gathering.tags, options) and (started or any(map(begins, play.tasks))):
        entries.append(Entry("task", gathering))
    # The flushes at the ends of sections are tagged `always`, so that they can be skipped; handlers have no tags.
    flushes = is_chosen(play.tags | {"always"}, options)
    if play.handlers and flushes:
        entries.append(Entry("recall"))
    for number, section in enumerate(play.sections, 1):
        for task in section:
            started = started or begins(task)
            if not started or not is_chosen(task.tags, options):
                continue
            if task.module.name != "meta":
                entries.append(Entry("task", task, barrier=waits(task)))
            elif task.args["action"] == "flush_handlers":
                flush(task)
        if flushes:
            flush(last=number == len(play.sections))
    return entries, started


def _is_called(name: str, wanted: str) -> bool:
    """Whether ``--start-at-task`` means this task: its name, or a glob of it."""
    return name == wanted or fnmatch.fnmatchcase(name, wanted)


def _batch_size(size: Any, hosts: int, play: Play) -> int:
    """A ``serial`` as a number of hosts: 3, "3", "30%" (at least one host); 0 and less: all."""
    text = str(size).strip()
    try:
        if text.endswith("%"):
            return int(float(text[:-1]) / 100 * hosts) or 1
        number = int(text)
    except ValueError:
        raise play.where.error(f"serial must be a number of hosts or a percentage, not {size!r}") from None
    return number if number > 0 else hosts


def _reason(result: TaskResult) -> str:
    """Why a task failed, in one sentence, with the first failing item of a loop."""
    for item in result.items:
        if item.status == "failed":
            return f"({item.label}) {item.result.get('msg') or 'failed'}"
    reason = result.message or "failed"
    if result.result.get("rc") is not None:
        said = str(result.result.get("stderr") or result.result.get("stdout") or "").strip().splitlines()
        reason += f" (rc {result.result['rc']})" + (f": {said[-1]}" if said else "")
    return reason


def _gathering(play: Play, facts: frozenset[str] | None) -> Task:
    wanted = {} if facts is None else {"filter": sorted(facts)}
    return Task(
        name="Gathering Facts",
        module=MODULES["setup"],
        args={"gather_subset": list(play.gather_subset), **wanted},
        where=play.where,
        when=play.gather_when,
        become=play.become,
        become_user=play.become_user,
        become_method=play.become_method,
        tags=play.tags or frozenset(("always",)),
        number=GATHERING,
    )
