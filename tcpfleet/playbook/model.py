"""The typed records of a parsed playbook: what `parse` makes and `engine` runs.

Everything here is plain immutable data. Strings that hold Jinja are still unrendered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tcpfleet.playbook.catalogue import Module
from tcpfleet.playbook.source import Where

Part = Literal["block", "rescue", "always"]


@dataclass(frozen=True)
class Block:
    """One ``block``; its tasks carry it in their `Task.inside`.

    :ivar rescues: it has a ``rescue`` part.
    """

    number: int
    name: str
    rescues: bool


@dataclass(frozen=True)
class Loop:
    """``loop`` with its ``loop_control``.

    :ivar items: a list, or text whose rendering is one.
    :ivar label: template for what is shown of an item; None shows the item.
    """

    items: Any
    variable: str = "item"
    index: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class Task:
    """One task with everything it inherits from its blocks and play already merged in.

    :ivar when, changed_when, failed_when: conditions, all of which must hold; None where not given.
    :ivar until: conditions that end a retry loop; ``retries`` and ``delay`` (seconds) as in Ansible, whose
        defaults 3 and 5 apply where they are None.
    :ivar run_once, any_errors_fatal: flags, possibly templates.
    :ivar number: unique within the playbook, ascending in the order of the files.
    :ivar inside: enclosing blocks, outermost first, each with the part that the task stands in.
    :ivar listen: for a handler: the topics it answers to beside its name.
    :ivar deaf: a handler before it has the same name, and answers to that instead.
    :ivar called: the module's name as the task writes it.
    """

    name: str
    module: Module
    args: Mapping[str, Any]
    where: Where
    when: tuple[Any, ...] = ()
    vars: Mapping[str, Any] = field(default_factory=dict)
    loop: Loop | None = None
    register: str | None = None
    changed_when: tuple[Any, ...] | None = None
    failed_when: tuple[Any, ...] | None = None
    ignore_errors: Any = False
    until: tuple[Any, ...] | None = None
    retries: Any = None
    delay: Any = None
    run_once: Any = False
    any_errors_fatal: Any = False
    notify: tuple[str, ...] = ()
    listen: tuple[str, ...] = ()
    become: Any = None
    become_user: Any = None
    become_method: Any = None
    check_mode: Any = None
    no_log: Any = False
    environment: Mapping[str, Any] = field(default_factory=dict)
    tags: frozenset[str] = frozenset()
    inside: tuple[tuple[Block, Part], ...] = ()
    number: int = 0
    deaf: bool = False
    called: str = ""

    @property
    def title(self) -> str:
        """What the console calls it: its name, or its module's as it is written."""
        return self.name or self.called or self.module.full_name


@dataclass(frozen=True)
class Play:
    """One play.

    :ivar sections: ``pre_tasks``, ``tasks``, ``post_tasks``: handlers are flushed after each.
    :ivar vars_files: paths as written, possibly with Jinja in them.
    :ivar serial: sizes of batches of hosts, numbers or percentages; empty: all hosts at once.
    :ivar strategy: ``linear`` when the play says so: then every task is a barrier; else ''.
    :ivar gather_when: conditions of the import_playbook that brought it in; gathering facts depends on them too.
    :ivar folder: ``playbook_dir``, absolute: where the file of the play is.
    """

    name: str
    hosts: str
    where: Where
    hosts_where: Where
    sections: tuple[tuple[Task, ...], ...]
    handlers: tuple[Task, ...]
    gather_facts: bool
    gather_subset: tuple[str, ...]
    vars: Mapping[str, Any]
    vars_files: tuple[str, ...]
    become: Any = None
    become_user: Any = None
    become_method: Any = None
    environment: Mapping[str, Any] = field(default_factory=dict)
    tags: frozenset[str] = frozenset()
    serial: tuple[Any, ...] = ()
    any_errors_fatal: Any = False
    strategy: str = ""
    gather_when: tuple[Any, ...] = ()
    folder: Path = Path()

    @property
    def title(self) -> str:
        """What the console calls it: its name, or its host pattern."""
        return self.name or self.hosts

    @property
    def tasks(self) -> tuple[Task, ...]:
        """All tasks in order, handlers not included."""
        return tuple(task for section in self.sections for task in section)


@dataclass(frozen=True)
class Prepared:
    """A play together with what is known of it once its hosts are: made by `Playbook.prepare`.

    :ivar files: its ``vars_files``, read: host name -> mappings, weakest first.
    :ivar facts: names of the facts it must gather, for itself and for plays after it, without ``ansible_``;
        None: any may be used.
    :ivar barriers: numbers of tasks that all hosts must come to before one runs it, since it looks at what
        other hosts have (hostvars of others, ansible_play_hosts).
    """

    play: Play
    files: Mapping[str, Sequence[Mapping[str, Any]]]
    facts: frozenset[str] | None = None
    barriers: frozenset[int] = frozenset()
