"""Which value a variable has for one host at one task: Ansible's precedence, and its magic variables.

Values that people wrote (inventory, plays, ``-e``) are templates and are rendered when they are used. Values
that hosts sent (facts, registered results) are data and are never rendered: a host cannot make the controller
evaluate anything.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tcpfleet.playbook import template
from tcpfleet.playbook.source import Where, where_of

# The ansible-core whose playbooks these are: what playbooks ask for when they insist on a version.
_VERSION = {"full": "2.19.0", "string": "2.19.0", "major": 2, "minor": 19, "revision": 0}


class Host(Protocol):
    """What is needed of an inventory's host."""

    @property
    def name(self) -> str: ...
    @property
    def vars(self) -> Mapping[str, Any]: ...


class Inventory(Protocol):
    """What is needed of an inventory."""

    def select(self, pattern: str, *, allow_empty: bool = False) -> Sequence[Any]: ...
    def magic_vars(self, host: str, /) -> Mapping[str, Any]: ...
    def where(self, host: str, variable: str, /) -> tuple[str, int, int] | None: ...
    @property
    def hosts(self) -> Mapping[str, Any]: ...


ANY_FACT = "ansible_*"
# Names that look like facts and are settings of the connection: no task ever defines them.
_NO_FACTS = frozenset(
    f"ansible_{name}"
    for name in (
        "become", "become_user", "become_method", "become_exe", "become_password", "become_pass", "sudo_pass",
        "connection", "host", "port", "user", "password", "python_interpreter", "ssh_private_key_file",
        "ssh_common_args",
    )
)  # fmt: skip


class NotYet(BaseException):
    """A template needs a value that a task under way will define; the task must come back first.

    No Exception: nothing between the template and the engine may take it for a failure of the template.
    """


@dataclass
class HostState:
    """What a run has learnt about one host so far.

    :ivar facts: fact name without ``ansible_`` -> value.
    :ivar results: registered results and set_fact values.
    :ivar pending: names that tasks under way will define; `ANY_FACT` among them stands for all ``ansible_*``.
    :ivar failed, unreachable: it takes no further part.
    """

    host: Host
    facts: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    pending: set[str] = field(default_factory=set)
    failed: bool = False
    unreachable: bool = False

    @property
    def active(self) -> bool:
        """It still takes part."""
        return not (self.failed or self.unreachable)


@dataclass(frozen=True)
class RunVariables:
    """What is the same for every host and task of a run.

    :ivar extra: ``-e``, above everything else.
    :ivar magic: playbook_dir, ansible_check_mode and so on.
    """

    inventory: Inventory
    states: Mapping[str, HostState]
    extra: Mapping[str, Any]
    magic: Mapping[str, Any]


class Scope:
    """The variables of one host at one task; see the module's paragraph.

    :param layers: mappings whose values are templates, strongest first (task vars, vars_files, play vars).
    :param item: loop variables: already rendered.
    """

    def __init__(
        self,
        run: RunVariables,
        state: HostState,
        layers: Sequence[Mapping[str, Any]] = (),
        item: Mapping[str, Any] | None = None,
        where: Where | None = None,
    ) -> None:
        self._run, self._state, self._layers = run, state, layers
        self._item = item or {}
        self._where = where or Where("variables", 1, 1)
        self._cache: dict[str, Any] = {}
        self._open: list[str] = []

    @property
    def folders(self) -> list[Path]:
        """Where relative names of files start from: the folder of the task's file, the playbook's."""
        playbook = Path(str(self._run.magic.get("playbook_dir", ".")))
        return list(dict.fromkeys([Path(self._where.file).resolve().parent, playbook]))

    def with_item(self, item: Mapping[str, Any]) -> Scope:
        """The same with loop variables or a result on top; nothing rendered before is reused."""
        return Scope(self._run, self._state, self._layers, {**self._item, **item}, self._where)

    def lookup(self, name: str) -> Any:
        """The value of a variable. :raises KeyError: when there is none.

        :raises NotYet: when a task under way will give it one.
        :raises LocatedError: when what it is made of cannot be rendered.
        """
        if name in self._cache:
            return self._cache[name]
        value, written = self._find(name)
        if written:
            value = self._render(name, value)
        self._cache[name] = value
        return value

    def _find(self, name: str) -> tuple[Any, bool]:
        """(value, whether it is a template); the order is Ansible's."""
        run, state = self._run, self._state
        if name in run.extra:
            return run.extra[name], True
        if name in run.magic:
            return run.magic[name], False
        if name == "hostvars":
            return HostVars(run), False
        if name == "omit":
            return template.OMIT, False
        if name == "ansible_facts":
            if name in state.pending:
                raise NotYet
            return state.facts, False
        magic = run.inventory.magic_vars(state.host.name)
        if name in magic:
            return magic[name], False
        if name in self._item:
            return self._item[name], False
        if name in state.pending:
            raise NotYet
        if name in state.results:
            return state.results[name], False
        for layer in self._layers:
            if name in layer:
                return layer[name], True
        if ANY_FACT in state.pending and name.startswith("ansible_") and name not in _NO_FACTS:
            raise NotYet
        if name.startswith("ansible_") and name[len("ansible_") :] in state.facts:
            return state.facts[name[len("ansible_") :]], False
        if name in state.host.vars:
            return state.host.vars[name], True
        if name == "ansible_managed":
            return "Ansible managed", False  # what Ansible says unless it is configured otherwise
        if name == "ansible_version":
            return dict(_VERSION), False
        if name == "ansible_playbook_python":
            return sys.executable, False
        if name == "play_hosts":
            return run.magic["ansible_play_batch"], False
        raise KeyError(name)

    def _render(self, name: str, value: Any) -> Any:
        if name in self._open:
            chain = " -> ".join([*self._open[self._open.index(name) :], name])
            raise where_of(value, self._where).error(f"the variable '{name}' is made of itself: {chain}")
        self._open.append(name)
        try:
            return template.render(value, self, where_of(value, self._where))
        finally:
            self._open.pop()

    def names(self) -> set[str]:
        """All names that have a value now."""
        run, state = self._run, self._state
        found = {*run.extra, *run.magic, "hostvars", "omit", "ansible_facts", *self._item, *state.results}
        found.update(*self._layers, state.host.vars, run.inventory.magic_vars(state.host.name))
        found.update(f"ansible_{name}" for name in state.facts)
        return found


class HostVars(Mapping[str, Mapping[str, Any]]):
    """``hostvars``: every host of the inventory, its variables rendered as its own."""

    def __init__(self, run: RunVariables) -> None:
        self._run = run

    def __getitem__(self, name: str) -> Mapping[str, Any]:
        if name not in self._run.inventory.hosts:
            raise KeyError(name)
        state = self._run.states.get(name) or HostState(self._run.inventory.hosts[name])
        return _View(Scope(self._run, state))

    def __iter__(self) -> Iterator[str]:
        return iter(self._run.inventory.hosts)

    def __len__(self) -> int:
        return len(self._run.inventory.hosts)


class _View(Mapping[str, Any]):
    """A scope as a mapping; gone through, it has no hostvars, as in Ansible, for those would have it again."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    def __getitem__(self, name: str) -> Any:
        return self._scope.lookup(name)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._scope.names() - {"hostvars", "omit"}))

    def __len__(self) -> int:
        return len(list(iter(self)))
