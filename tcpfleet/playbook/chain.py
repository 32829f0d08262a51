"""One task on one host in two halves: `Chain.prepare` renders what is to be done, `finish` judges what came.

Between the two lies the host. Nothing here knows other hosts or tasks, so a task can be prepared while earlier
ones are still under way; when it needs what they will bring, `prepare` raises `NotYet`.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tcpfleet.errors import LocatedError
from tcpfleet.link import Become, Step
from tcpfleet.playbook import template
from tcpfleet.playbook.actions import ACTIONS, ActionFailed, Call, Conversation, Setting
from tcpfleet.playbook.catalogue import coerce, to_bool
from tcpfleet.playbook.model import Play, Task
from tcpfleet.playbook.names import strings
from tcpfleet.playbook.results import CENSORED, ItemResult, Status, TaskResult
from tcpfleet.playbook.source import where_of
from tcpfleet.playbook.variables import ANY_FACT, HostState, RunVariables, Scope
from tcpfleet.secret import Secret

GATHERING = 0  # number of the task that gathers facts; those of a playbook begin with 1
_RETRIES, _DELAY = 3, 5.0  # Ansible's defaults: further attempts, seconds between them


@dataclass(frozen=True)
class Options:
    """How to run.

    :ivar limit: a host pattern, or host names, or None for all hosts of each play.
    :ivar become_password: the sudo password asked for on the command line; an inventory's wins.
    :ivar start_at: glob of the name of the first task to run; empty: the first one.
    :ivar journal: ``{"run", "command", "user"}``: hosts journal under it what tasks change; None: they do not.
    """

    check: bool = False
    diff: bool = False
    limit: str | Sequence[str] | None = None
    tags: frozenset[str] = frozenset()
    skip_tags: frozenset[str] = frozenset()
    become_password: Secret | None = None
    start_at: str = ""
    journal: Mapping[str, str] | None = None


@dataclass
class Piece:
    """One run of a task's module: the task itself, or one item of its loop.

    Exactly one of `step`, `talk` and `result` says what is to come: an operation on the host, several of them
    in conversation, or nothing, since the result is known.

    :ivar judged: `result` is final: ``changed_when`` and ``failed_when`` have no say in it.
    :ivar item: loop variables, and what the result says of them.
    :ivar unlabelled: why the loop's label cannot be rendered, which fails the item.
    :ivar hidden: no_log: nobody is to see its arguments.
    """

    scope: Scope
    step: Step | None = None
    talk: Conversation | None = None
    result: dict[str, Any] | None = None
    judged: bool = False
    item: dict[str, Any] = field(default_factory=dict)
    label: str = ""
    unlabelled: str = ""
    become: Become | None = None
    check: bool = False
    hidden: bool = False


@dataclass
class Ready:
    """A task that is prepared for one host.

    :ivar pieces: in order; without a loop there is one.
    :ivar whole: the result of the task as a whole, when it is known: its loop cannot be evaluated.
    :ivar defines: names that its end will give a value.
    :ivar in_turn: items of its loop look at the result of the one before: each is prepared by `Chain.next_item`.
    :ivar carried: what items of such a loop have set so far.
    """

    task: Task
    title: str
    scope: Scope
    hidden: bool = False
    pieces: list[Piece] = field(default_factory=list)
    whole: dict[str, Any] | None = None
    defines: frozenset[str] = frozenset()
    in_turn: bool = False
    carried: dict[str, Any] = field(default_factory=dict)

    @property
    def alone(self) -> bool:
        """It cannot be sent together with others: it goes back and forth."""
        return self.in_turn or tries_again(self.task) or any(piece.talk is not None for piece in self.pieces)

    @property
    def fails(self) -> bool:
        """Its failure is known before anything is sent."""
        return bool(self.whole and self.whole.get("failed")) or any(
            piece.unlabelled or (piece.result is not None and piece.result.get("failed")) for piece in self.pieces
        )


def tries_again(task: Task) -> bool:
    """Whether a task has until or retries."""
    return task.until is not None or task.retries is not None


def never_changes(task: Task) -> bool:
    """Whether the playbook says in so many words that a task changes nothing."""
    return task.changed_when is not None and any(one is False for one in task.changed_when)


def goes_on(task: Task) -> bool:
    """Whether later tasks run even when this one fails, as far as the playbook's text says so."""
    never_fails = task.failed_when is not None and any(one is False for one in task.failed_when)
    return task.ignore_errors is True or never_fails


def needs_answer(task: Task) -> bool:
    """Whether expressions over its result decide what comes next, so that nothing can be sent ahead of it."""
    conditions = [*(task.changed_when or ()), *(task.failed_when or ())]
    return (
        any(not isinstance(one, bool) for one in conditions)
        or (task.failed_when is not None and all(one is True for one in task.failed_when))
        or template.is_template(task.ignore_errors)
        or any(template.is_template(name) for name in task.notify)
    )


def _looks_at_itself(task: Task) -> bool:
    """Whether items of a task's loop may look at what the task registers: at the result of the item before."""
    if task.loop is None or not task.register:
        return False
    name = re.compile(rf"\b{task.register}\b")
    plain = (task.args, task.vars, task.loop.label, task.environment, task.become_user, task.check_mode)
    texts = [text for value in plain for text, _where in strings(value, task.where)]
    if task.module.name in ("assert", "debug"):  # they take expressions
        texts.append(str(dict(task.args)))
    return any(name.search(str(one)) for one in (*task.when, *texts))


class Chain:
    """One host's way through one task, from arguments to result; independent of all other hosts.

    :param files: the play's ``vars_files`` for this host, weakest first.
    :param facts: names of the facts that the play uses; None for all.
    """

    def __init__(
        self,
        play: Play,
        options: Options,
        run: RunVariables,
        files: Sequence[Mapping[str, Any]],
        facts: frozenset[str] | None,
    ):
        self._play, self._options, self._run = play, options, run
        self._layers = (*reversed(files), play.vars)
        self._facts = facts

    @property
    def check(self) -> bool:
        """The run changes nothing."""
        return self._options.check

    def scope(self, state: HostState, task: Task) -> Scope:
        """The variables of a host at a task."""
        return Scope(self._run, state, (task.vars, *self._layers), where=task.where)

    def title(self, state: HostState, task: Task) -> str:
        """What a task is called on a host. :raises NotYet: when its name needs what is under way."""
        return _title(task, self.scope(state, task))

    def prepare(self, state: HostState, task: Task) -> Ready:
        """Renders everything of a task that can be known before it runs.

        :raises NotYet: when it needs what a task under way will define.
        """
        scope = self.scope(state, task)
        ready = Ready(task, _title(task, scope), scope)
        if task.number == GATHERING and self._facts is not None and not self._facts and not task.when:
            result = {"changed": False, "ansible_facts": {}, "msg": "this playbook uses no facts"}
            ready.pieces.append(Piece(scope, result=result))
            return ready
        try:
            ready.hidden = self._flag(task.no_log, scope, task)
        except LocatedError as error:
            ready.hidden, ready.whole = True, failure(error)
            return ready
        if task.loop is None:
            ready.pieces.append(self.piece(state, task, scope))
        else:
            self._loop(ready, state)
        ready.defines = self._defines(ready)
        return ready

    def _loop(self, ready: Ready, state: HostState) -> None:
        task, scope = ready.task, ready.scope
        assert task.loop is not None
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
            ready.whole = skipped if skipped is not None and not skipped.get("failed") else failure(error)
            return
        ready.in_turn = _looks_at_itself(task)
        set_before: dict[str, Any] = {}  # what set_fact set for one item, the next one sees
        for index, value in enumerate(values):
            loop_vars = {task.loop.variable: value, "ansible_loop_var": task.loop.variable}
            if task.loop.index:
                loop_vars |= {task.loop.index: index, "ansible_index_var": task.loop.index}
            inner = scope.with_item({**set_before, **loop_vars})
            piece = Piece(inner) if ready.in_turn else self.piece(state, task, inner)
            piece.item = loop_vars
            if not ready.in_turn:
                self._label(piece, task, ready.hidden)
            if task.module.name == "set_fact" and piece.result is not None:
                set_before.update(piece.result.get("ansible_facts") or {})
            ready.pieces.append(piece)

    def next_item(self, ready: Ready, state: HostState, number: int) -> None:
        """Prepares an item of a loop whose items look at the result of the one before."""
        piece, task = ready.pieces[number], ready.task
        if number:
            before = ready.pieces[number - 1]
            result = before.result or {}
            if task.module.name == "set_fact":
                ready.carried.update(result.get("ansible_facts") or {})
            if task.register:
                ready.carried[task.register] = {**result, **before.item}
        piece.scope = piece.scope.with_item({**ready.carried, **piece.item})
        new = self.piece(state, task, piece.scope)
        piece.step, piece.talk, piece.result, piece.judged = new.step, new.talk, new.result, new.judged
        piece.become, piece.check, piece.hidden = new.become, new.check, new.hidden

    def label_item(self, ready: Ready, piece: Piece) -> None:
        """Labels an item of such a loop; its own result is there."""
        if ready.task.register:
            piece.scope = piece.scope.with_item({ready.task.register: piece.result})
        self._label(piece, ready.task, ready.hidden)

    def _label(self, piece: Piece, task: Task, hidden: bool) -> None:
        assert task.loop is not None
        if hidden:
            piece.label = "(censored due to no_log)"
        elif task.loop.label is None:
            piece.label = str(piece.item[task.loop.variable])
        else:
            try:
                piece.label = str(template.render(task.loop.label, piece.scope, task.where))
            except LocatedError as error:
                piece.label, piece.unlabelled = task.loop.label, f"the label of the loop: {error}"

    def _defines(self, ready: Ready) -> frozenset[str]:
        task = ready.task
        names = {task.register} if task.register else set()
        for piece in ready.pieces:
            if task.module.name == "set_fact" and piece.result is not None:
                names.update(piece.result.get("ansible_facts") or ())
        if task.module.name == "setup":
            names.add("ansible_facts")
            names.update((ANY_FACT,) if self._facts is None else (f"ansible_{name}" for name in self._facts))
        return frozenset(names)

    def left_out(self, state: HostState, task: Task) -> dict[str, Any] | None:
        """The result of a task whose `when` leaves this host out, or cannot be evaluated; None when it holds.

        :raises NotYet: when that needs what is under way.
        """
        return self._skips(task, self.scope(state, task))

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
                return failure(error)
        return None

    def piece(self, state: HostState, task: Task, scope: Scope) -> Piece:
        """One task, or one item of its loop, with what is to be done for it."""
        skipped = self._skips(task, scope)
        if skipped is not None:
            return Piece(scope, result=skipped, judged=True)
        check = self._options.check
        try:
            if task.check_mode is not None:
                check = self._flag(task.check_mode, scope, task)
            piece = Piece(scope, check=check, hidden=self._flag(task.no_log, scope, task))
            args = self._arguments(task, scope)
            if task.environment and task.module.name in ("command", "shell"):
                args["environment"] = template.render(dict(task.environment), scope, task.where)
            setting = Setting(scope, task.where, self._play.folder, state.host.name, check, self._options.diff)
            done = ACTIONS[task.module.name](args, setting)
            if isinstance(done, dict):
                piece.result = done
                return piece
            piece.become = self._become(task, scope)
            if isinstance(done, Call):
                piece.step = self.step(piece, done, task)
            else:
                piece.talk = done
        except (LocatedError, ActionFailed) as error:
            return Piece(scope, result=failure(error), judged=True)
        return piece

    def step(self, piece: Piece, call: Call, task: Task) -> Step:
        """A call as what is sent to the host."""
        journal = self._options.journal
        if piece.check or (task.module.name in ("command", "shell") and never_changes(task)):
            journal = None
        diff, number = self._options.diff, task.number
        step = Step(call.operation, call.args, piece.check, diff, piece.become, number, journal=journal)
        return step._replace(hidden=piece.hidden) if journal else step

    def _arguments(self, task: Task, scope: Scope) -> dict[str, Any]:
        if task.module.name == "assert":
            # Its conditions are expressions, evaluated one by one, not templates.
            rest = {key: value for key, value in task.args.items() if key != "that"}
            return {**template.render(rest, scope, task.where), "that": task.args["that"]}
        rendered: dict[str, Any] = template.render(dict(task.args), scope, task.where)
        if task.module.open:
            return rendered
        wanted = [*((name,) for name, one in task.module.arguments.items() if one.required), *task.module.one_of]
        for names in wanted:
            if not any(rendered.get(name) is not None for name in names):  # what `omit` or null has left out
                raise task.where.error(f"{task.module.name} needs {' or '.join(names)}")
        for name, value in list(rendered.items()):
            if value is None:
                if name != "msg" or task.module.name not in ("debug", "fail"):  # shown whatever it is
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

    def flag(self, value: Any, state: HostState, task: Task) -> bool:
        """A flag of a task, such as run_once, for a host. :raises LocatedError: when it is none."""
        return self._flag(value, self.scope(state, task), task)

    def attempts(self, state: HostState, task: Task) -> tuple[int, float]:
        """(most attempts, seconds between them) of a task with until or retries.

        :raises LocatedError: when they are no numbers.
        """
        scope = self.scope(state, task)
        given = task.retries if task.retries is not None else _RETRIES
        try:
            more = int(template.render(given, scope, task.where))
            delay = float(template.render(_DELAY if task.delay is None else task.delay, scope, task.where))
        except (TypeError, ValueError) as error:
            raise task.where.error(f"retries and delay must be numbers: {error}") from None
        return 1 + max(0, more), delay if delay >= 0 else 1.0

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
            password=self._options.become_password if password is None else Secret(str(password)),
            exe=str(setting("ansible_become_exe") or "sudo"),
        )

    # ---- the second half

    def judge(self, task: Task, piece: Piece, result: dict[str, Any], attempt: int = 0) -> dict[str, Any]:
        """What a module's result means: changed_when and failed_when over it, unless it was skipped.

        :param attempt: number of the attempt, for a task that is tried again.
        """
        result = copy.copy(result)
        result.setdefault("changed", False)
        result.setdefault("failed", False)
        if attempt:
            result["attempts"] = attempt
        if result.get("skipped") or not (task.changed_when or task.failed_when):
            return result
        judging = "changed"
        try:
            if task.changed_when:
                seen = self._seen(task, piece, result)
                result["changed"] = all(template.holds(one, seen, task.where) for one in task.changed_when)
            judging = "failed"
            if task.failed_when:
                seen = self._seen(task, piece, result)
                failed = all(template.holds(one, seen, task.where) for one in task.failed_when)
                result["failed"] = result["failed_when_result"] = failed
        except LocatedError as error:
            result.update({"failed": True, f"{judging}_when_result": str(error), "msg": str(error)})
        return result

    def _seen(self, task: Task, piece: Piece, result: dict[str, Any]) -> Scope:
        """The variables of expressions over a result."""
        return piece.scope.with_item({task.register: result} if task.register else {})

    def until(self, task: Task, piece: Piece, result: dict[str, Any]) -> bool:
        """Whether a judged result ends the retry loop. :raises LocatedError: when that cannot be evaluated."""
        if task.until is None:
            return not result["failed"]
        seen = self._seen(task, piece, result)
        return all(template.holds(one, seen, task.where) for one in task.until)

    def finish(self, ready: Ready, states: Sequence[HostState]) -> TaskResult:
        """Registers a task's result and gives it its status.

        :param ready: every piece of it has a judged result.
        :param states: the host's own first; with run_once those of all hosts, which get the same.
        """
        task = ready.task
        items: list[ItemResult] = []
        if ready.whole is not None:
            result = ready.whole
        elif task.loop is None:
            result = ready.pieces[0].result or {}
            self._take_facts(task, states, result)
        else:
            for piece in ready.pieces:
                one = piece.result or {}
                self._take_facts(task, states, one)
                one = {**one, **piece.item}
                one.setdefault("failed", False)
                if piece.unlabelled:
                    one.update(failed=True, msg=piece.unlabelled)
                items.append(ItemResult(piece.label, status_of(one), one))
            result = _loop_result(items)
        status = status_of(result)
        if status == "failed":
            seen = ready.scope.with_item({task.register: result} if task.register else {})
            try:
                if self._flag(task.ignore_errors, seen, task):
                    status = "ignored"
            except LocatedError as error:
                result = failure(error)
        if task.register:
            for state in states:
                state.results[task.register] = result
        shown: Mapping[str, Any] = result
        if ready.hidden:
            shown = {"censored": CENSORED, "msg": CENSORED, **_flags(result)}
            items = [
                ItemResult(item.label, item.status, {"censored": CENSORED, **_flags(item.result)})
                for item in items
            ]
        return TaskResult(states[0].host.name, ready.title, task.module.full_name, status, shown, tuple(items))

    def _take_facts(self, task: Task, states: Sequence[HostState], result: dict[str, Any]) -> None:
        facts = result.get("ansible_facts")
        if not isinstance(facts, dict) or result.get("failed"):
            return
        for state in states:
            if task.module.name == "setup":
                state.facts.update(facts)
            elif task.module.name == "set_fact":
                state.results.update(facts)
        if task.module.name == "setup":
            result["ansible_facts"] = {f"ansible_{name}": value for name, value in facts.items()}

    def notified(self, ready: Ready) -> tuple[str, ...]:
        """Names that a changed task notifies; as in Ansible, each item of a loop that is not left out has its own.

        :raises LocatedError: when they cannot be rendered.
        """
        task = ready.task
        scopes = [piece.scope for piece in ready.pieces if not (piece.result or {}).get("false_condition")]
        return tuple(
            dict.fromkeys(str(template.render(one, scope, task.where)) for scope in scopes for one in task.notify)
        )


def failure(error: Exception) -> dict[str, Any]:
    """The result of a task that failed on the controller."""
    return {"changed": False, "failed": True, "msg": str(error)}


def status_of(result: Mapping[str, Any]) -> Status:
    """The status that a result's flags mean."""
    if result.get("failed"):
        return "failed"
    if result.get("skipped"):
        return "skipped"
    return "changed" if result.get("changed") else "ok"


def _flags(result: Mapping[str, Any]) -> dict[str, Any]:
    return {key: result[key] for key in ("changed", "failed", "skipped") if key in result}


def _loop_result(items: Sequence[ItemResult]) -> dict[str, Any]:
    """What ``register`` stores for a loop, in Ansible's fields."""
    results = [item.result for item in items]  # of a large fleet and long loops, copies would be felt
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


def _title(task: Task, scope: Scope) -> str:
    """The name with its variables, or as written where they have no value yet."""
    if not template.is_template(task.name):
        return task.title
    try:
        rendered = template.render(task.name, scope, task.where)
        return replace(task, name="" if rendered is None else str(rendered)).title
    except LocatedError:
        return task.title
