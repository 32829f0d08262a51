"""One host's way through the entries of a play: which tasks it takes part in, and what is sent together.

A host prepares task after task and sends them as one message. It stops to wait for results where the next step
depends on them: a template needs what a task under way will define, an expression judges a result, a handler may
have been notified. So a slow line costs a round trip for each dependency, not for each task.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from tcpfleet.errors import LocatedError
from tcpfleet.link import Step
from tcpfleet.playbook.actions import ActionFailed
from tcpfleet.playbook.chain import Chain, Piece, Ready, failure, goes_on, needs_answer, never_changes, tries_again
from tcpfleet.playbook.model import Block, Part, Task
from tcpfleet.playbook.results import Status, TaskResult
from tcpfleet.playbook.variables import HostState, NotYet

# Handlers: the number of each, and what it answers to.
_Called = Sequence[tuple[int, Set[str]]]
Inside = tuple[tuple[Block, Part], ...]
# Characters of arguments after which a batch is sent: far below wire.MAX_FRAME, far above what tasks usually hold.
_MOST = 4 * 1024 * 1024


class Session(Protocol):
    """What is needed of `tcpfleet.link.Session`."""

    @property
    def host(self) -> Any: ...

    def run(self, steps: Sequence[Step], on_result: Callable[[int, dict[str, Any]], None]) -> None: ...


@dataclass(frozen=True)
class Entry:
    """One thing a play does, in order.

    :ivar kind: ``task``; ``handler``: for hosts that it was notified on; ``recall``: read which handlers an
        earlier run left; ``flush`` and ``flushed``: around the handlers.
    :ivar task: of a flush: the ``meta: flush_handlers`` that asks for it; None at the end of a section.
    :ivar last: the play's last flush, where handlers of earlier runs run too.
    :ivar barrier: all hosts come here before one goes on.
    """

    kind: Literal["task", "handler", "recall", "flush", "flushed"]
    task: Task | None = None
    last: bool = False
    barrier: bool = False

    @property
    def does(self) -> bool:
        """It runs a module."""
        return self.kind in ("task", "handler")


@dataclass(frozen=True)
class News:
    """What a host did at a position; it will tell nothing more of earlier ones.

    :ivar text: for people only: a retry, handlers kept from an earlier run.
    """

    host: str
    position: int
    result: TaskResult | None = None
    text: str = ""


@dataclass
class _Under:
    """A task on its way.

    :ivar inside: the blocks that take care of its failure: for a handler, those of the ``meta`` that called it.
    """

    position: int
    ready: Ready
    inside: Inside
    handler: bool = False

    @property
    def complete(self) -> bool:
        return all(piece.result is not None for piece in self.ready.pieces)


@dataclass
class _Quiet:
    """The engine's own word with the host about handlers, on its way; nobody is told.

    :ivar action: read (which are owed), done (`names` have run, called by `handlers`).
    :ivar step: None where there is nothing to say to the host.
    """

    action: Literal["read", "done"]
    step: Step | None
    names: frozenset[str] = frozenset()
    handlers: _Called = ()
    result: dict[str, Any] | None = None


@dataclass
class Walk:
    """One host within one play.

    :ivar play_key: under which name handlers are kept on the host.
    :ivar at: every position below has been told of.
    :ivar failed_in: numbers of blocks whose ``block`` part failed here and are being rescued.
    :ivar fallen: numbers of blocks that it left by a failure on the way to a rescue further out.
    :ivar failing: it has failed for good; only ``always`` parts still run, then it drops out.
    :ivar notified: name of a handler or topic -> numbers of the handlers that have answered to it already.
    :ivar owed: names that an earlier run left.
    :ivar keeps: names that are notified and not answered are written down on the host.
    :ivar flushing: handlers run now; for those that a task of the play called, with the blocks it stands in.
    :ivar undo: shell commands that undo by hand what was changed, oldest change first.
    """

    state: HostState
    chain: Chain
    play_key: str
    keeps: bool = True
    at: int = 0
    failed_in: set[int] = field(default_factory=set)
    fallen: set[int] = field(default_factory=set)
    failing: frozenset[int] | None = None
    notified: dict[str, set[int]] = field(default_factory=dict)
    flushing: Inside | None = None
    owed: set[str] = field(default_factory=set)
    undo: list[str] = field(default_factory=list)
    _ahead: Ready | None = None
    _flush_ahead: dict[str, Any] | None = None
    _unkept: list[str] = field(default_factory=list)
    _batch: list[_Under | _Quiet] = field(default_factory=list)
    _size: int = 0

    # ---- blocks and handlers

    def takes(self, entry: Entry) -> bool:
        """Whether this host has a part in an entry, as things stand."""
        if entry.kind == "recall":
            return self.state.active
        if entry.kind == "flush" and entry.task is None:
            return self.state.active and (self.failing is not None or entry.last or bool(self.notified))
        if entry.kind == "flushed":
            return self.state.active and self.flushing is not None
        assert entry.task is not None
        if entry.kind == "handler":
            return self.state.active and self.flushing is not None and self._is_due(entry.task)
        return self._wants(entry.task)

    def _is_due(self, handler: Task) -> bool:
        return bool(self.notified) and any(
            handler.number not in self.notified.get(name, (handler.number,)) for name in self._names_of(handler)
        )

    def _names_of(self, handler: Task) -> set[str]:
        """What a handler answers to on this host; a name that cannot be rendered yet stands for itself."""
        if handler.deaf or not handler.name:
            return set(handler.listen)
        try:
            return {self.chain.title(self.state, handler), handler.name, *handler.listen}
        except NotYet:
            return {handler.name, *handler.listen}

    def has_run(self, handler: Task) -> None:
        """A handler has run for this host, here or once for all."""
        for name in self.notified.keys() & self._names_of(handler):
            self.notified[name].add(handler.number)

    def _wants(self, task: Task) -> bool:
        """Whether this task is on this host's way through the blocks."""
        if not self.state.active:
            return False
        if self.failing is not None:
            # After an unrescued failure: the always parts of the blocks it fell through.
            return any(part == "always" and block.number in self.failing for block, part in task.inside)
        for depth, (block, part) in enumerate(task.inside):
            failed = block.number in self.failed_in
            if part == "rescue" and not failed:
                return False
            # On the way to a rescue, the always parts of the blocks within still run.
            inner = task.inside[depth + 1 :]
            if part == "block" and failed:
                return any(way == "always" and one.number in self.fallen for one, way in inner)
        return True

    def fails(self, inside: Inside) -> Status:
        """Notes a failure within these blocks; ``rescued`` when one takes care of it, else ``failed``."""
        fallen = set(self.failing or ())
        self.flushing = None
        if self.failing is None:
            for block, part in reversed(inside):
                if part == "block" and block.rescues:
                    self.failed_in.add(block.number)
                    self.fallen |= fallen
                    return "rescued"
                if part != "always":
                    fallen.add(block.number)
        self.failing = frozenset(fallen)
        return "failed"

    def drop_if_failing(self) -> None:
        """Where handlers run and where a play ends, a host that failed leaves."""
        if self.failing is not None:
            self.state.failed = True

    # ---- the way

    def prepare(self, entry: Entry) -> None:
        """Prepares the one task of the next `run`, while no host is under way: all see the same of one another."""
        assert entry.task is not None
        if entry.kind == "flush":
            self._flush_ahead = self.chain.left_out(self.state, entry.task)
        else:
            self._ahead = self.chain.prepare(self.state, entry.task)

    def run(
        self,
        session: Session,
        entries: Sequence[Entry],
        first: int,
        end: int,
        tell: Callable[[News], None],
        others: Sequence[HostState] = (),
    ) -> None:
        """Does what entries `first` to `end` (exclusive) ask of this host.

        :param others: hosts that get the results too (run_once).
        :raises Unreachable: when the host is gone; `at` is then the position it was lost at.
        """
        self._session, self._tell, self._states = session, tell, [self.state, *others]
        self._batch, self._size = [], 0
        self._entries = entries
        position = self.at = first
        while True:
            entry = entries[position] if position < end else None
            failed_at = self._send() if self._waits(entry) else None
            if failed_at is not None:
                position = failed_at + 1
            elif entry is None:
                self.at = end
                return
            elif not self.takes(entry):
                position += 1
            elif entry.does:
                position = self._do(entry, position)
            else:
                try:
                    self._mark(entry, position)
                    position += 1
                except NotYet:  # as in `_do`; nothing of its own is under way
                    time.sleep(0.01)

    def _waits(self, entry: Entry | None) -> bool:
        """Whether what is under way decides what this entry means. (A failure under way leads back before it.)"""
        if entry is None:
            return True
        notifies = any(isinstance(one, _Under) and one.ready.task.notify for one in self._batch)
        if entry.kind == "flush":
            quiet = [one.action for one in self._batch if isinstance(one, _Quiet)]
            conditional = entry.task is not None and bool(entry.task.when)
            return notifies or conditional or "done" in quiet or (entry.last and "read" in quiet)
        return entry.kind == "handler" and self.flushing is not None and notifies

    def _do(self, entry: Entry, position: int) -> int:
        """Adds a task to the batch, or does it at once; returns the position to go on at."""
        task = entry.task
        assert task is not None
        handler = entry.kind == "handler"
        inside = (self.flushing or ()) if handler else task.inside
        try:
            ready, self._ahead = self._ahead or self.chain.prepare(self.state, task), None
        except NotYet:
            if not self._batch:  # another host's value that it is about to get, where no barrier was foreseen
                time.sleep(0.01)
            failed_at = self._send()
            return position if failed_at is None else failed_at + 1
        if ready.alone:
            failed_at = self._send()
            if failed_at is None:
                self._alone(ready, position)
                failed_at = position if self._commit(_Under(position, ready, inside, handler)) else None
                self._keep()
            return position + 1 if failed_at is None else failed_at + 1
        self._batch.append(_Under(position, ready, inside, handler))
        self.state.pending |= ready.defines
        for piece in ready.pieces:
            if piece.step is not None:
                piece.step = self._marked(piece, piece.step, task)
                self._size += sum(len(value) for value in piece.step.args.values() if isinstance(value, str))
        if ready.fails or needs_answer(task) or self._size > _MOST:
            failed_at = self._send()
            if failed_at is not None:
                return failed_at + 1
        return position + 1

    def _marked(self, piece: Piece, step: Step, task: Task) -> Step:
        """A step that the agent knows what to do after."""
        notify = None
        if self.keeps and task.notify and not piece.check and not needs_answer(task) and not never_changes(task):
            notify = {"play": self.play_key, "names": list(task.notify)}
        return step._replace(go_on=goes_on(task), notify=notify)

    def _mark(self, entry: Entry, position: int) -> None:
        """What is not a task."""
        if entry.kind == "recall":
            self._batch.append(_Quiet("read", self._owed_step("read")))
        elif entry.kind == "flush" and entry.task is not None:
            self._flush_if(entry.task, position)
        elif entry.kind == "flush":
            self.drop_if_failing()
            self.flushing = () if self.state.active else None
            if entry.last and self.state.active and self.owed - self.notified.keys():
                kept = ", ".join(sorted(self.owed - self.notified.keys()))
                self._tell(News(self.state.host.name, position, text=f"handlers kept from an earlier run: {kept}"))
                for name in self.owed:
                    self.notified.setdefault(name, set())
        else:
            self.flushing = None
            handlers = self._handlers_before(position)
            coming = {one.ready.task.number for one in self._batch if isinstance(one, _Under)}
            names = frozenset(name for name in self.notified if self._is_answered(name, handlers, coming))
            if names:
                silent = self.chain.check or not self.keeps
                step = None if silent else self._owed_step("done", sorted(names))
                self._batch.append(_Quiet("done", step, names, handlers, {} if silent else None))

    def _flush_if(self, task: Task, position: int) -> None:
        """``meta: flush_handlers``; as in Ansible, a host that it leaves out is shown and not counted."""
        left_out, self._flush_ahead = self._flush_ahead or self.chain.left_out(self.state, task), None
        self.flushing = None if left_out else task.inside
        if not left_out:
            return
        name = self.state.host.name
        result = TaskResult(name, task.title, task.module.full_name, "skipped", left_out)
        if left_out.get("failed"):
            result = replace(result, status=self.fails(task.inside))
        self.at = position + 1
        self._tell(News(name, position, result))

    def _handlers_before(self, position: int) -> _Called:
        """The handlers of the flush that ends here: number and names of each."""
        found = []
        while self._entries[position - 1].kind == "handler":
            position -= 1
            task = self._entries[position].task
            assert task is not None
            found.append((task.number, self._names_of(task)))
        return found

    def _is_answered(self, name: str, handlers: _Called, coming: Set[int] = frozenset()) -> bool:
        """Whether all handlers that a name calls have run since it was notified, or are `coming`."""
        done = self.notified.get(name, set()) | coming
        return all(number in done for number, called in handlers if name in called)

    def _owed_step(self, action: str, names: Sequence[str] = ()) -> Step:
        args = {"play": self.play_key, "action": action, "names": list(names)}
        return Step("handlers", args, task=-1, go_on=True)  # it only warns when it fails

    # ---- to the host and back

    def _send(self) -> int | None:
        """Sends what is prepared and takes in the results; returns the position of a task that failed, or None."""
        batch, self._batch, self._size = self._batch, [], 0
        steps: list[Step] = []
        owners: list[Piece | _Quiet] = []
        for one in batch:
            for owner in [one] if isinstance(one, _Quiet) else one.ready.pieces:
                if owner.step is not None:
                    steps.append(owner.step)
                    owners.append(owner)
        failed_at: int | None = None

        def settle() -> None:
            nonlocal failed_at
            while batch and failed_at is None:
                if isinstance(batch[0], _Quiet):
                    if batch[0].result is None:
                        return
                    self._take_quiet(batch[0])
                elif not batch[0].complete:
                    return
                elif self._commit(batch[0]):
                    failed_at = batch[0].position
                batch.pop(0)

        def arrived(index: int, result: dict[str, Any]) -> None:
            self.undo += result.pop("undo_by_hand", ())
            owners[index].result = result
            settle()

        settle()
        if steps and failed_at is None:
            self._session.run(steps, arrived)
        self._keep()
        self.state.pending.clear()
        if batch and failed_at is None:
            raise RuntimeError(f"the agent of {self.state.host.name} left out a task without a failure")
        return failed_at

    def _take_quiet(self, quiet: _Quiet) -> None:
        result = quiet.result or {}
        if result.get("failed"):
            self._tell(News(self.state.host.name, self.at, text=f"warning: {result.get('msg')}"))
        elif quiet.action == "read":
            self.owed = set(result["names"])
        if quiet.action == "done":
            for name in quiet.names:
                if self._is_answered(name, quiet.handlers):  # else one of the handlers has notified it again
                    self.notified.pop(name, None)
            self.owed -= quiet.names

    def _commit(self, under: _Under) -> bool:
        """Judges and tells a task all of whose results are there; returns whether it failed."""
        ready, task = under.ready, under.ready.task
        kept = False  # the agent has written down what is to be notified
        for piece in ready.pieces:
            if not piece.judged:
                raw = piece.result or {}
                told = piece.step is not None and piece.step.notify is not None
                kept = kept or (told and bool(raw.get("changed")) and not raw.get("failed"))
                piece.result, piece.judged = self.chain.judge(task, piece, raw), True
                for text in raw.get("warnings") or ():
                    self._tell(News(self.state.host.name, under.position, text=f"warning: {text}"))
        result = self.chain.finish(ready, self._states)
        if under.handler:
            self.has_run(task)
        if result.status == "changed" and task.notify:
            result = self._notify(ready, result, kept)
        if result.status == "failed":
            if not ready.hidden:
                self.state.results["ansible_failed_result"] = dict(result.result)
            self.state.results["ansible_failed_task"] = {"name": task.name, "action": task.module.full_name}
            result = replace(result, status=self.fails(under.inside))
        self.at = under.position + 1
        self._tell(News(self.state.host.name, under.position, result))
        return result.status in ("failed", "rescued")

    def _notify(self, ready: Ready, result: TaskResult, kept: bool) -> TaskResult:
        try:
            names = self.chain.notified(ready)
        except LocatedError as error:
            return replace(result, status="failed", result={**result.result, **failure(error)})
        for name in names:
            self.notified[name] = set()
        if self.keeps and not kept and any(not piece.check for piece in ready.pieces):
            self._unkept.extend(names)
        return result

    def _keep(self) -> None:
        """Has the host write down what is owed, where its agent could not know that by itself."""
        names, self._unkept = self._unkept, []
        if names:
            answer = self._call(self._owed_step("add", names))
            if answer.get("failed"):
                self._tell(News(self.state.host.name, self.at, text=f"warning: {answer.get('msg')}"))

    # ---- tasks that go back and forth

    def _alone(self, ready: Ready, position: int) -> None:
        """Does all pieces of a task, one after the other, each as often as until asks."""
        for number, piece in enumerate(ready.pieces):
            if ready.in_turn:
                self.chain.next_item(ready, self.state, number)
            if not piece.judged:
                piece.result = self._with_retries(ready, piece, position)
                piece.judged = True
            if ready.in_turn:
                self.chain.label_item(ready, piece)

    def _with_retries(self, ready: Ready, piece: Piece, position: int) -> dict[str, Any]:
        task = ready.task
        if not tries_again(task):
            return self.chain.judge(task, piece, self._once(task, piece))
        try:
            most, delay = self.chain.attempts(self.state, task)
            for attempt in range(1, most + 1):
                result = self.chain.judge(task, piece, self._once(task, piece), attempt if most > 1 else 0)
                if most == 1 or self.chain.until(task, piece, result):
                    return result
                if attempt < most:
                    name, left = self.state.host.name, most - attempt
                    text = f"FAILED - RETRYING: [{name}]: {ready.title} ({left} retries left)."
                    self._tell(News(name, position, text=text))
                    time.sleep(delay)
                    again = self.chain.piece(self.state, task, piece.scope)
                    piece.step, piece.talk, piece.result = again.step, again.talk, again.result
        except LocatedError as error:
            return failure(error)
        return {**result, "attempts": most - 1, "failed": True}

    def _once(self, task: Task, piece: Piece) -> dict[str, Any]:
        """The raw result of one attempt."""
        if piece.step is not None:
            return self._call(piece.step)
        if piece.talk is None:
            return piece.result or {}
        answer: dict[str, Any] | None = None
        try:
            while True:
                call = piece.talk.send(answer) if answer is not None else next(piece.talk)
                answer = self._call(self.chain.step(piece, call, task))
        except StopIteration as end:
            result: dict[str, Any] = end.value
            return result
        except (LocatedError, ActionFailed) as error:
            return failure(error)

    def _call(self, step: Step) -> dict[str, Any]:
        answers: list[dict[str, Any]] = []
        self._session.run([step], lambda _, result: answers.append(result))
        self.undo += answers[0].pop("undo_by_hand", ())
        return answers[0]
