"""What a run leaves behind: a result per task and host, and the recap in Ansible's words."""

from __future__ import annotations

import datetime
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tcpfleet.errors import EXIT_HOST_FAILED, EXIT_OK, EXIT_UNREACHABLE, worst

Status = Literal["ok", "changed", "skipped", "failed", "ignored", "rescued", "unreachable"]
CENSORED = "the output has been hidden due to the fact that 'no_log: true' was specified for this result"


def plain(value: Any) -> Any:
    """A value as JSON can have it: dates as ISO 8601 writes them, as Ansible does.

    Of what is so already nothing is copied: of a large fleet that would be felt.

    >>> plain({"on": [datetime.datetime(2024, 3, 1, 10)]})
    {'on': ['2024-03-01T10:00:00']}
    >>> found = {"in_force": ["1 2 4"], "stat": {"exists": True}}
    >>> plain(found) is found
    True
    """
    if isinstance(value, Mapping):
        made = {plain(key): plain(one) for key, one in value.items()}
        fits = [*made] == [*value] and all(map(operator.is_, made.values(), value.values()))
        return value if fits and type(value) is dict else made
    if isinstance(value, (list, tuple)):
        listed = [plain(one) for one in value]
        return value if type(value) is list and all(map(operator.is_, listed, value)) else listed
    return value.isoformat() if isinstance(value, (datetime.date, datetime.time)) else value


@dataclass(frozen=True)
class ItemResult:
    """One item of a loop: what is shown of it, and its result as Ansible registers it."""

    label: str
    status: Status
    result: Mapping[str, Any]


@dataclass(frozen=True)
class TaskResult:
    """What one task came to on one host.

    :ivar status: ``ignored``: failed under ignore_errors; ``rescued``: failed in a block with a rescue.
    :ivar result: what ``register`` stores: the operation's fields, or ``results`` for a loop. Under no_log
        only ``censored`` and the flags.
    :ivar items: the items of a loop, in order.
    """

    host: str
    task: str
    module: str
    status: Status
    result: Mapping[str, Any]
    items: tuple[ItemResult, ...] = ()

    @property
    def message(self) -> str:
        """Why it did what it did, in one text; empty when the operation said nothing."""
        return str(self.result.get("msg", "") or "")

    @property
    def changed(self) -> bool:
        """It changed something (or would, in check mode)."""
        return bool(self.result.get("changed"))


@dataclass
class HostRecap:
    """One line of the recap; the columns are Ansible's."""

    ok: int = 0
    changed: int = 0
    unreachable: int = 0
    failed: int = 0
    skipped: int = 0
    rescued: int = 0
    ignored: int = 0

    def count(self, result: TaskResult) -> None:
        """Adds one task: an ignored failure counts as ok too, changed counts besides ok, as in Ansible."""
        if result.status in ("ok", "changed", "ignored"):
            self.ok += 1
            self.changed += result.changed
        if result.status == "ignored":
            self.ignored += 1
        elif result.status == "skipped":
            self.skipped += 1
        elif result.status == "failed":
            self.failed += 1
        elif result.status == "rescued":
            self.rescued += 1
        elif result.status == "unreachable":
            self.unreachable += 1


@dataclass(frozen=True)
class TaskRecord:
    """One task of one play with its results, host name -> result, in inventory order."""

    play: str
    task: str
    module: str
    register: str | None
    handler: bool
    results: dict[str, TaskResult] = field(default_factory=dict)


@dataclass
class Recap:
    """The outcome of a run.

    :ivar hosts: host name -> counts, for every host that a play selected.
    :ivar tasks: every task that began, in order.
    :ivar reasons: host name -> one sentence, for hosts that failed or were unreachable.
    :ivar pending: host name -> handlers that were notified and not run, since the host failed; they are kept on
        the host for the next run of the play.
    :ivar run: the id under which hosts journalled what was changed; empty when they did not.
    :ivar undo: host name -> shell commands that undo by hand what was changed there, oldest change first.
    """

    hosts: dict[str, HostRecap] = field(default_factory=dict)
    tasks: list[TaskRecord] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    pending: dict[str, list[str]] = field(default_factory=dict)
    run: str = ""
    undo: dict[str, list[str]] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0, 2 when a host failed, 4 when one was unreachable (which wins)."""
        codes = [EXIT_HOST_FAILED for one in self.hosts.values() if one.failed]
        codes += [EXIT_UNREACHABLE for one in self.hosts.values() if one.unreachable]
        return worst(codes) if codes else EXIT_OK

    @property
    def failed(self) -> list[str]:
        """Hosts that failed or were unreachable."""
        return [name for name, one in self.hosts.items() if one.failed or one.unreachable]

    def registered(self, name: str) -> dict[str, TaskResult]:
        """Host name -> the last result that was registered under a name.

        >>> Recap().registered("nothing")
        {}
        """
        found: dict[str, TaskResult] = {}
        for record in self.tasks:
            if record.register == name:
                found.update(record.results)
        return found

    def by_hand(self, host: str) -> list[str]:
        """The host's `undo` in the order to run it in: newest change first, then what is to read its files again.

        >>> undo = ["rm a", "systemctl try-restart -- x", "rm b", "systemctl try-restart -- x"]
        >>> Recap(undo={"h": undo}).by_hand("h")
        ['rm b', 'rm a', 'systemctl try-restart -- x']
        """
        lines = self.undo[host][::-1]
        again = [line for line in lines if line.startswith("systemctl") and " try-re" in line]
        return [line for line in lines if line not in again] + list(dict.fromkeys(again))

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``--json``: ``hosts``, ``reasons`` and ``tasks`` with each host's result."""
        return {
            "hosts": {name: vars(recap).copy() for name, recap in self.hosts.items()},
            "reasons": dict(self.reasons),
            "pending_handlers": dict(self.pending),
            "run": self.run,
            "undo": {name: self.by_hand(name) for name in self.undo},
            "tasks": [
                {
                    "play": record.play,
                    "task": record.task,
                    "module": record.module,
                    "handler": record.handler,
                    "hosts": {
                        name: {"status": one.status, "result": plain(one.result)}
                        for name, one in record.results.items()
                    },
                }
                for record in self.tasks
            ],
        }
