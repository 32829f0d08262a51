"""Runs plays over a fleet, as Ansible's linear strategy does: every host finishes a task before the next begins.

In: parsed plays, a fleet of sessions, an inventory. Out: a `Recap`, and events to a `Reporter` as they happen.
What one host does in one task is `Chain.run`, which knows nothing of the other hosts; a host that fails or is
lost drops out, the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tcpfleet.errors import BadInput, LocatedError
from tcpfleet.link import Become
from tcpfleet.playbook import template
from tcpfleet.playbook.actions import ACTIONS, ActionFailed, Call, Setting
from tcpfleet.playbook.catalogue import MODULES, coerce, to_bool
from tcpfleet.playbook.model import Play, Task
from tcpfleet.playbook.results import CENSORED, HostRecap, ItemResult, Recap, Status, TaskRecord, TaskResult
from tcpfleet.playbook.source import where_of
from tcpfleet.playbook.variables import HostState, Inventory, RunVariables, Scope

T = TypeVar("T")


class Session(Protocol):
    """What the engine needs of `tcpfleet.link.Session`."""

    @property
    def host(self) -> Any: ...

    def call(
        self,
        op: str,
        args: dict[str, Any],
        *,
        check: bool = False,
        diff: bool = False,
        become: Become | None = None,
    ) -> dict[str, Any]: ...


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
    """What the engine needs of `tcpfleet.fleet.Fleet`; `on_outcome` is called in the caller's thread."""

    def run(
        self,
        function: Callable[[Any], Any],
        hosts: Sequence[Any] | None = None,
        *,
        on_outcome: Callable[[Any], None] | None = None,
    ) -> Mapping[str, Any]: ...


class Reporter:
    """Gets the events of a run, in the thread that runs it; this one ignores them."""

    def play_start(self, play: Play, hosts: Sequence[str]) -> None:
        """A play begins on these hosts; none: its pattern matched no host that is left."""

    def task_start(self, title: str, task: Task, handler: bool) -> None:
        """A task begins; `title` is its name with the variables in it filled in."""

    def host_result(self, task: Task, result: TaskResult) -> None:
        """One host has finished the task; results come in the order in which hosts finish."""

    def play_end(self, recap: Recap) -> None:
        """The whole run is over."""


@dataclass(frozen=True)
class Options:
    """How to run.

    :ivar limit: a host pattern, or host names, or None for all hosts of each play.
    :ivar become_password: the sudo password asked for on the command line; an inventory's wins.
    """

    check: bool = False
    diff: bool = False
    limit: str | Sequence[str] | None = None
    tags: frozenset[str] = frozenset()
    skip_tags: frozenset[str] = frozenset()
    become_password: str | None = None


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


def is_chosen(task: Task, options: Options) -> bool:
    """Whether ``--tags`` and ``--skip-tags`` leave a task in; ``always`` and ``never`` as in Ansible."""
    tags = task.tags
    if options.tags:
        picked = bool(tags & options.tags) or "always" in tags or "all" in options.tags
        picked = picked or ("tagged" in options.tags and bool(tags)) or ("untagged" in options.tags and not tags)
    else:
        picked = "never" not in tags
    return picked and not (tags & options.skip_tags)


@dataclass
class _Host:
    """One host within one play.

    :ivar failed_in: numbers of blocks whose ``block`` part failed here and are being rescued.
    :ivar failing: it has failed for good; only ``always`` parts still run, then it drops out.
    :ivar notified: names of handlers to run.
    """

    state: HostState
    failed_in: set[int] = field(default_factory=set)
    failing: frozenset[int] | None = None
    notified: set[str] = field(default_factory=set)

    def wants(self, task: Task) -> bool:
        """Whether this task is on this host's way through the blocks."""
        if not self.state.active:
            return False
        if self.failing is not None:
            # After an unrescued failure: the always parts of the blocks it fell through.
            return any(part == "always" and block.number in self.failing for block, part in task.inside)
        for block, part in task.inside:
            failed = block.number in self.failed_in
            if (part == "block" and failed) or (part == "rescue" and not failed):
                return False
        return True

    def fails(self, task: Task) -> Status:
        """Notes a failure; ``rescued`` when a block takes care of it, else ``failed``."""
        fallen = set(self.failing or ())
        if self.failing is None:
            for block, part in reversed(task.inside):
                if part == "block" and block.rescues:
                    self.failed_in.add(block.number)
                    return "rescued"
                if part != "always":
                    fallen.add(block.number)
        self.failing = frozenset(fallen)
        return "failed"


class Chain:
    """One host's way through one task, from arguments to result; independent of all other hosts."""

    def __init__(
        self, play: Play, options: Options, run: RunVariables, files: Sequence[Mapping[str, Any]], folder: Path
    ):
        self._play, self._options, self._run = play, options, run
        self._layers = (*reversed(files), play.vars)
        self._folder = folder

    def scope(self, state: HostState, task: Task) -> Scope:
        """The variables of a host at a task."""
        return Scope(self._run, state, (task.vars, *self._layers), where=task.where)

    def run(self, session: Session, state: HostState, task: Task) -> TaskResult:
        """Runs the task on one host.

        :raises Unreachable: when the host is gone.
        """
        scope = self.scope(state, task)
        items: list[ItemResult] = []
        try:
            hidden = self._flag(task.no_log, scope, task)
        except LocatedError as error:
            return self._finish(task, state, _failure(error), [], True, scope)
        if task.loop is None:
            return self._finish(task, state, self._once(session, state, task, scope), items, hidden, scope)
        try:
            values = template.render(task.loop.items, scope, task.where)
            if not isinstance(values, list):
                kind = type(values).__name__
                raise where_of(task.loop.items, task.where).error(
                    f"loop needs a list, and this is {values!r} ({kind})"
                )
        except LocatedError as error:
            # As in Ansible, a loop that cannot be evaluated is no failure where `when` leaves it out.
            skipped = self._skips(task, scope)
            result = skipped if skipped is not None and not skipped.get("failed") else _failure(error)
            return self._finish(task, state, result, [], hidden, scope)
        for index, value in enumerate(values):
            loop_vars = {task.loop.variable: value}
            if task.loop.index:
                loop_vars[task.loop.index] = index
            inner = scope.with_item(loop_vars)
            result = self._once(session, state, task, inner)
            result.update({task.loop.variable: value, "ansible_loop_var": task.loop.variable})
            if task.loop.index:
                result[task.loop.index] = index
            result.setdefault("failed", False)
            items.append(ItemResult(self._label(task, inner, value, hidden), _status(result), result))
        return self._finish(task, state, _loop_result(items), items, hidden, scope)

    def _label(self, task: Task, scope: Scope, value: Any, hidden: bool) -> str:
        if hidden:
            return "(censored due to no_log)"
        assert task.loop is not None
        if task.loop.label is None:
            return str(value)
        try:
            return str(template.render(task.loop.label, scope, task.where))
        except LocatedError as error:
            return str(error)

    def _skips(self, task: Task, scope: Scope) -> dict[str, Any] | None:
        """A skipped result when a condition does not hold, a failed one when it cannot be evaluated."""
        for condition in task.when:
            try:
                if not template.holds(condition, scope, task.where):
                    return {
                        "changed": False,
                        "skipped": True,
                        "skip_reason": "Conditional result was False",
                        "false_condition": condition,
                        "msg": f"skipped, since not: {condition}",
                    }
            except LocatedError as error:
                return _failure(error)
        return None

    def _once(self, session: Session, state: HostState, task: Task, scope: Scope) -> dict[str, Any]:
        """One task, or one item of its loop; the result is registered under the task's name for conditions."""
        skipped = self._skips(task, scope)
        if skipped is not None:
            return skipped
        try:
            args = self._arguments(task, scope)
            check = self._options.check
            if task.check_mode is not None:
                check = self._flag(task.check_mode, scope, task)
            if task.environment and task.module.name in ("command", "shell"):
                args["environment"] = template.render(dict(task.environment), scope, task.where)
            done = ACTIONS[task.module.name](args, Setting(scope, task.where, self._folder))
            if isinstance(done, Call):
                become = self._become(task, scope)
                result = dict(
                    session.call(done.operation, done.args, check=check, diff=self._options.diff, become=become)
                )
            else:
                result = done
        except (LocatedError, ActionFailed) as error:
            return _failure(error)
        result.setdefault("changed", False)
        result.setdefault("failed", False)
        self._take_facts(task, state, result)
        return self._judge(task, scope, result)

    def _take_facts(self, task: Task, state: HostState, result: dict[str, Any]) -> None:
        facts = result.get("ansible_facts")
        if not isinstance(facts, dict) or result["failed"]:
            return
        if task.module.name == "setup":
            state.facts.update(facts)
            result["ansible_facts"] = {f"ansible_{name}": value for name, value in facts.items()}
        elif task.module.name == "set_fact":
            state.results.update(facts)

    def _judge(self, task: Task, scope: Scope, result: dict[str, Any]) -> dict[str, Any]:
        """changed_when and failed_when over a result."""
        if task.changed_when is None and task.failed_when is None:
            return result
        seen = scope.with_item({task.register: result}) if task.register else scope
        try:
            if task.changed_when is not None:
                result["changed"] = all(template.holds(one, seen, task.where) for one in task.changed_when)
                seen = seen.with_item({})
            if task.failed_when is not None:
                failed = all(template.holds(one, seen, task.where) for one in task.failed_when)
                result["failed"] = result["failed_when_result"] = failed
        except LocatedError as error:
            result.update(_failure(error))
        return result

    def _arguments(self, task: Task, scope: Scope) -> dict[str, Any]:
        if task.module.name == "assert":
            # Its conditions are expressions, evaluated one by one, not templates.
            rest = {key: value for key, value in task.args.items() if key != "that"}
            return {**template.render(rest, scope, task.where), "that": task.args["that"]}
        rendered: dict[str, Any] = template.render(dict(task.args), scope, task.where)
        if task.module.open:
            return rendered
        for name, value in list(rendered.items()):
            if value is None:
                del rendered[name]
                continue
            try:
                rendered[name] = coerce(task.module.arguments[name], value)
            except ValueError as error:
                where = where_of(task.args.get(name), task.where)
                raise where.error(f"{task.module.name}: {name} {error}, not {value!r}") from None
        return rendered

    def _flag(self, value: Any, scope: Scope, task: Task) -> bool:
        rendered = template.render(value, scope, task.where)
        try:
            return to_bool(rendered)
        except ValueError as error:
            raise where_of(value, task.where).error(f"this {error}, not {rendered!r}") from None

    def _become(self, task: Task, scope: Scope) -> Become | None:
        """The identity to take on; as in Ansible, the host's ansible_become* win over the playbook's words."""

        def setting(*names: str) -> Any:
            for name in names:
                try:
                    return scope.lookup(name)
                except KeyError:
                    continue
            return None

        wanted = setting("ansible_become")
        if wanted is None:
            wanted = task.become if task.become is not None else False
        if not self._flag(wanted, scope, task):
            return None
        user = setting("ansible_become_user") or template.render(task.become_user, scope, task.where) or "root"
        password = setting("ansible_become_password", "ansible_become_pass", "ansible_sudo_pass")
        return Become(
            user=str(user),
            method=str(setting("ansible_become_method") or task.become_method or "sudo"),
            password=self._options.become_password if password is None else str(password),
            exe=str(setting("ansible_become_exe") or "sudo"),
        )

    def _finish(
        self,
        task: Task,
        state: HostState,
        result: dict[str, Any],
        items: list[ItemResult],
        hidden: bool,
        scope: Scope,
    ) -> TaskResult:
        """Registers the result and gives it its status."""
        status = _status(result)
        if status == "failed":
            try:
                if self._flag(task.ignore_errors, scope, task):
                    status = "ignored"
            except LocatedError as error:
                result = _failure(error)
        if task.register:
            state.results[task.register] = result
        shown: Mapping[str, Any] = result
        if hidden:
            shown = {"censored": CENSORED, "msg": CENSORED, **_flags(result)}
            items = [
                ItemResult(item.label, item.status, {"censored": CENSORED, **_flags(item.result)})
                for item in items
            ]
        return TaskResult(state.host.name, task.title, task.module.full_name, status, shown, tuple(items))


def _flags(result: Mapping[str, Any]) -> dict[str, Any]:
    return {key: result[key] for key in ("changed", "failed", "skipped") if key in result}


def _status(result: Mapping[str, Any]) -> Status:
    if result.get("failed"):
        return "failed"
    if result.get("skipped"):
        return "skipped"
    return "changed" if result.get("changed") else "ok"


def _failure(error: Exception) -> dict[str, Any]:
    return {"changed": False, "failed": True, "msg": str(error)}


def _loop_result(items: Sequence[ItemResult]) -> dict[str, Any]:
    """What ``register`` stores for a loop, in Ansible's fields."""
    results = [dict(item.result) for item in items]
    result: dict[str, Any] = {
        "results": results,
        "changed": any(one.get("changed") for one in results),
        "failed": any(one.get("failed") for one in results),
        "msg": "All items completed",
    }
    if not items:
        result.update(skipped=True, skipped_reason="No items in the list", msg="No items in the list")
    elif all(one.get("skipped") for one in results):
        result.update(skipped=True, msg="All items skipped")
    elif result["failed"]:
        result["msg"] = "One or more items failed"
    return result


class Runner:
    """Drives plays over a fleet and keeps the score."""

    def __init__(
        self,
        folder: Path,
        fleet: Fleet,
        inventory: Inventory,
        extra: Mapping[str, Any],
        options: Options,
        reporter: Reporter,
    ) -> None:
        self._folder, self._fleet, self._inventory = folder, fleet, inventory
        self._options, self._reporter = options, reporter
        self._states: dict[str, HostState] = {}
        self._recap = Recap()
        magic = {
            "playbook_dir": str(folder),
            "ansible_check_mode": options.check,
            "ansible_diff_mode": options.diff,
        }
        self._extra, self._magic = extra, magic

    def run(self, plays: Sequence[tuple[Play, Mapping[str, Sequence[Mapping[str, Any]]]]]) -> Recap:
        """Runs plays in order.

        :param plays: each with its ``vars_files``, read: host name -> mappings, weakest first.
        """
        for play, files in plays:
            self._play(play, files)
        self._reporter.play_end(self._recap)
        return self._recap

    def _play(self, play: Play, files: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        hosts = []
        for host in chosen_hosts(play, self._inventory, self._options.limit):
            state = self._states.setdefault(host.name, HostState(host))
            self._recap.hosts.setdefault(host.name, HostRecap())
            if state.active:
                hosts.append(_Host(state))
        names = [one.state.host.name for one in hosts]
        self._reporter.play_start(play, names)
        magic = {
            **self._magic,
            "ansible_play_hosts_all": names,
            "ansible_play_hosts": names,
            "ansible_play_batch": names,
            "ansible_play_name": play.name,
        }
        run = RunVariables(self._inventory, self._states, self._extra, magic)
        chains = {name: Chain(play, self._options, run, files.get(name, ()), self._folder) for name in names}
        if play.gather_facts:
            self._task(play, _gathering(play), hosts, chains, False)
        for section in play.sections:
            for task in section:
                if task.module.name == "meta":
                    if task.args["action"] == "flush_handlers":
                        self._flush(play, hosts, chains)
                elif is_chosen(task, self._options):
                    self._task(play, task, hosts, chains, False)
            self._flush(play, hosts, chains)
        self._drop_failing(hosts)

    def _flush(self, play: Play, hosts: Sequence[_Host], chains: Mapping[str, Chain]) -> None:
        """Runs the handlers that were notified, in the order in which the play lists them."""
        self._drop_failing(hosts)
        for handler in play.handlers:
            wanted = {handler.name, *handler.listen}
            notified = [host for host in hosts if host.notified & wanted]
            if notified:
                self._task(play, handler, notified, chains, True)
        for host in hosts:
            host.notified.clear()

    def _drop_failing(self, hosts: Sequence[_Host]) -> None:
        for host in hosts:
            if host.failing is not None:
                host.state.failed = True

    def _task(
        self, play: Play, task: Task, hosts: Sequence[_Host], chains: Mapping[str, Chain], handler: bool
    ) -> None:
        """One task on all hosts that it is for; returns when each has an outcome."""
        taking_part = {host.state.host.name: host for host in hosts if host.wants(task)}
        if not taking_part:
            return
        record = TaskRecord(play.title, task.title, task.module.full_name, task.register, handler)
        self._recap.tasks.append(record)
        first = next(iter(taking_part.values()))
        self._reporter.task_start(
            _title(task, chains[first.state.host.name].scope(first.state, task)), task, handler
        )

        def one(session: Session) -> TaskResult:
            name = session.host.name
            return chains[name].run(session, taking_part[name].state, task)

        def arrived(outcome: Outcome) -> None:
            name = outcome.host.name
            result = self._settle(task, taking_part[name], outcome, chains[name])
            record.results[name] = result
            self._recap.hosts[name].count(result)
            self._reporter.host_result(task, result)

        self._fleet.run(one, [host.state.host for host in taking_part.values()], on_outcome=arrived)
        ordered = {name: record.results[name] for name in taking_part}
        record.results.clear()
        record.results.update(ordered)

    def _settle(self, task: Task, host: _Host, outcome: Outcome, chain: Chain) -> TaskResult:
        """What an outcome means for the host's part in the play."""
        name = host.state.host.name
        if outcome.status != "ok":
            status: Status = "unreachable" if outcome.status == "unreachable" else "failed"
            message = outcome.error or f"{name}: {status}"
            fields = {"changed": False, status: True, "msg": message}
            if status == "unreachable":
                host.state.unreachable = True
            else:
                host.state.failed = True
            self._recap.reasons[name] = message
            return TaskResult(name, task.title, task.module.full_name, status, fields)
        result: TaskResult = outcome.value
        if result.status == "failed":
            status = host.fails(task)
            if status == "failed":
                self._recap.reasons[name] = f"{task.title}: {_reason(result)}"
            result = TaskResult(name, result.task, result.module, status, result.result, result.items)
        elif result.status in ("changed", "ignored") and result.changed and task.notify:
            scope = chain.scope(host.state, task)
            host.notified.update(str(template.render(one, scope, task.where)) for one in task.notify)
        return result


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


def _title(task: Task, scope: Scope) -> str:
    """The name with its variables, or as written where they have no value on the first host."""
    try:
        return str(template.render(task.name, scope, task.where)) or task.module.full_name
    except LocatedError:
        return task.title


def _gathering(play: Play) -> Task:
    return Task(
        name="Gathering Facts",
        module=MODULES["setup"],
        args={"gather_subset": list(play.gather_subset)},
        where=play.where,
        become=play.become,
        become_user=play.become_user,
        become_method=play.become_method,
        tags=frozenset(("always",)),
    )
