"""Hosts that are folders of this process: sessions that call payload operations directly, and a fleet of them."""

from __future__ import annotations

import collections
import importlib
import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import wire
from operations import TABLE, OperationError

from tcpfleet.errors import HostFailed, Unreachable
from tcpfleet.inventory import Inventory
from tcpfleet.link import Step

Completed = collections.namedtuple("Completed", "returncode stdout stderr timed_out")


class Context:
    """What agent.Context offers to operations."""

    def __init__(self, check: bool, diff: bool) -> None:
        self.check, self.diff = check, diff

    def progress(self, data: dict[str, Any]) -> None:
        """Dropped."""

    def stopping(self) -> bool:
        """Never."""
        return False

    def run_command(
        self,
        argv: list[str],
        stdin: bytes = b"",
        timeout: float | None = None,
        env: dict[str, str] | None = None,
        cwd: str | None = None,
    ) -> Completed:
        """As the agent's, without its supervision."""
        done = subprocess.run(
            argv, input=stdin, capture_output=True, timeout=timeout, env=env, cwd=cwd, check=False
        )
        return Completed(done.returncode, done.stdout, done.stderr, False)


@dataclass
class Call:
    """One call that arrived at a host."""

    op: str
    args: dict[str, Any]
    check: bool
    diff: bool
    become: Any


@dataclass
class FakeSession:
    """A session whose operations run in this process.

    :ivar canned: operation -> result or exception to answer with instead of running it.
    :ivar calls: every step that was run; `messages`: how many of them came together.
    :ivar owed: what the operation ``handlers`` keeps: play -> names.
    """

    host: Any
    canned: dict[str, Any] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    messages: list[int] = field(default_factory=list)
    owed: dict[str, list[str]] = field(default_factory=dict)
    busy: bool = False

    def run(self, steps: Sequence[Step], on_result: Callable[[int, dict[str, Any]], None]) -> None:
        """Runs steps as the agent does: later tasks are left out after one that failed."""
        assert not self.busy, "a session has one channel: no message while another is answered"
        self.busy = True
        self.messages.append(0)
        failed_in = None
        for index, step in enumerate(steps):
            if failed_in is not None and step.task != failed_in:
                break
            wire.pack(step.message())  # must be sendable
            result = json.loads(json.dumps(self._perform(step)))
            wire.check_result(result)
            if step.notify and result.get("changed") and not result.get("failed"):
                self._handlers({**step.notify, "action": "add"})
            on_result(index, result)
            if result.get("failed") and not step.go_on:
                failed_in = step.task
        self.busy = False

    def call(self, op: str, args: dict[str, Any]) -> dict[str, Any]:
        """One operation by itself."""
        results: list[dict[str, Any]] = []
        self.run([Step(op, args)], lambda _, result: results.append(result))
        return results[0]

    def _perform(self, step: Step) -> dict[str, Any]:
        if step.op == "handlers" and step.op not in self.canned:
            return self._handlers(step.args)
        self.messages[-1] += 1
        self.calls.append(Call(step.op, step.args, step.check, step.diff, step.become))
        answer = self.canned.get(step.op)
        if isinstance(answer, Exception):
            raise answer
        if answer is not None:
            return dict(answer(step.args)) if callable(answer) else dict(answer)
        module = importlib.import_module("operations." + TABLE[step.op])
        try:
            return module.run(step.args, Context(step.check, step.diff))
        except OperationError as error:
            return {"changed": False, **error.fields, "failed": True, "msg": error.msg}

    def _handlers(self, args: dict[str, Any]) -> dict[str, Any]:
        names = self.owed.setdefault(args["play"], [])
        if args["action"] == "add":
            names += [name for name in args["names"] if name not in names]
        elif args["action"] == "done":
            names[:] = [name for name in names if name not in args["names"]]
        return {"changed": False, "names": list(names), "msg": ""}


@dataclass
class Outcome:
    """As tcpfleet.fleet.Outcome."""

    host: Any
    status: str
    value: Any = None
    error: str | None = None


class FakeFleet:
    """Runs one host after the other; hosts named in `gone` cannot be reached."""

    def __init__(
        self, inventory: Inventory, canned: dict[str, Any] | None = None, gone: Sequence[str] = ()
    ) -> None:
        self.sessions = {
            name: FakeSession(host, {} if canned is None else canned) for name, host in inventory.hosts.items()
        }
        self.gone = set(gone)

    def run(
        self,
        function: Callable[..., Any],
        hosts: Sequence[Any] | None = None,
        *,
        on_outcome: Callable[[Any], None] | None = None,
        on_news: Callable[[Any], None] | None = None,
    ) -> dict[str, Outcome]:
        """As tcpfleet.fleet.Fleet.run."""
        outcomes = {}
        told = (on_news,) if on_news is not None else ()
        for host in hosts or ():
            try:
                if host.name in self.gone:
                    raise Unreachable(f"{host.name}: no answer")
                outcome = Outcome(host, "ok", function(self.sessions[host.name], *told))
            except Unreachable as error:
                self.gone.add(host.name)
                outcome = Outcome(host, "unreachable", error=str(error))
            except HostFailed as error:
                outcome = Outcome(host, "failed", error=str(error))
            outcomes[host.name] = outcome
            if on_outcome is not None:
                on_outcome(outcome)
        return outcomes


def inventory_of(folder: Path, text: str) -> Inventory:
    """An inventory from its YAML text."""
    path = folder / "hosts.yml"
    path.write_text(text, encoding="utf-8")
    return Inventory.load(path)
