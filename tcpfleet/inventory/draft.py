"""The inventory while its files are being read: groups and hosts that grow, and what they were told.

The two readers (`yaml_source`, `ini_source`) call the methods of `Draft` as they meet hosts, children
and variables; `Draft.finish` then applies the rules that hold over all files together: everything
belongs to `all`, hosts of no group to `ungrouped`, no group contains itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from . import connection, names
from .document import Place

MAX_GROUPS = 20_000
MAX_LINKS = 100_000
MAX_GROUP_DEPTH = 50


class Setting(NamedTuple):
    """The value of a variable and the place of its name."""

    value: Any
    place: Place


Settings = dict[str, Setting]


@dataclass
class DraftGroup:
    """A group as far as it has been read. `depth`, the longest way from `all`, is set by finish()."""

    name: str
    place: Place
    settings: Settings = field(default_factory=dict)
    hosts: dict[str, None] = field(default_factory=dict)
    children: dict[str, Place] = field(default_factory=dict)
    parents: list[str] = field(default_factory=list)
    priority: int = 1
    depth: int = 0


@dataclass
class DraftHost:
    """A host as far as it has been read. `source` is the file that named it first, as an absolute path."""

    name: str
    place: Place
    source: str
    settings: Settings = field(default_factory=dict)


class Draft:
    """Groups, hosts and warnings, filled by the readers.

    :ivar source: absolute path of the file being read, for hosts met for the first time.
    :ivar warnings: sentences about what is allowed but probably not meant.
    """

    def __init__(self, shown: str) -> None:
        nowhere = Place(shown, 1, 1)
        self.groups = {name: DraftGroup(name, nowhere) for name in ("all", "ungrouped")}
        self.hosts: dict[str, DraftHost] = {}
        self.warnings: list[str] = []
        self.source = ""
        self._links = 0
        self.add_child("all", "ungrouped", nowhere)

    def add_group(self, name: str, place: Place) -> None:
        """Know the group `name`; it may be known already."""
        if name in self.groups:
            return
        try:
            names.check_name(name, "group")
        except ValueError as error:
            raise place.error(str(error)) from error
        if name in self.hosts:
            raise place.error(f"{name!r} is a host already: a group needs another name")
        if len(self.groups) >= MAX_GROUPS:
            raise place.error(f"more than {MAX_GROUPS:,} groups")
        if not name.isidentifier():
            self.warnings.append(f"{_shown(place)}: the group name {name!r} is no identifier; Ansible warns too")
        self.groups[name] = DraftGroup(name, place)

    def add_hosts(self, expression: str, group: str, place: Place) -> list[str]:
        """Put the hosts that `expression` (name, range, with or without port) stands for into `group`.

        :returns: their names.
        """
        try:
            hosts, port = names.expand(expression)
        except ValueError as error:
            raise place.error(str(error)) from error
        for name in hosts:
            if name not in self.hosts:
                if name in self.groups:
                    raise place.error(f"{name!r} is a group already: a host needs another name")
                if len(self.hosts) >= names.MAX_HOSTS:
                    raise place.error(f"more than {names.MAX_HOSTS:,} hosts")
                self.hosts[name] = DraftHost(name, place, self.source)
                if port is not None:
                    self.hosts[name].settings["ansible_port"] = Setting(port, place)
            elif port is not None:
                # Ansible keeps the port of the first mention and drops this one without a word.
                known = self.hosts[name].settings.get("ansible_port")
                if known is None or known.value != port:
                    raise place.error(
                        f"the host {name!r} was named before without this port: set ansible_port instead"
                    )
            self._link(place)
            self.groups[group].hosts[name] = None
        return hosts

    def add_child(self, parent: str, child: str, place: Place) -> None:
        """Make the known group `child` a child of the known group `parent`."""
        if child == parent:
            raise place.error(f"the group {child!r} cannot be its own child")
        if child == "all":
            raise place.error("the group 'all' holds every group: it cannot be a child")
        if child not in self.groups[parent].children:
            self._link(place)
            self.groups[parent].children[child] = place
            self.groups[child].parents.append(parent)

    def set_group_variable(self, group: str, name: object, value: Any, place: Place) -> None:
        """A variable of a group; ansible_group_priority is no variable but orders the merge."""
        variable = self.check_variable(name, value, place)
        if variable == "ansible_group_priority":
            try:
                self.groups[group].priority = int(value)
            except (TypeError, ValueError) as error:
                raise place.error("ansible_group_priority must be a whole number") from error
        else:
            self.groups[group].settings[variable] = Setting(value, place)

    def set_host_variable(self, host: str, name: object, value: Any, place: Place) -> None:
        """A variable of a host."""
        self.hosts[host].settings[self.check_variable(name, value, place)] = Setting(value, place)

    def check_variable(self, name: object, value: Any, place: Place) -> str:
        """The name of a variable that may be set to `value`.

        :raises LocatedError: not a name; a connection variable or value that is not supported.
        """
        if not isinstance(name, str) or not name:
            raise place.error(f"{name!r} is not the name of a variable: quote it if it is")
        if not name.isidentifier():
            self.warnings.append(
                f"{_shown(place)}: templates cannot use the variable {name!r}: its name is no identifier"
            )
        try:
            hint = connection.check(name, value)
        except ValueError as error:
            raise place.error(str(error)) from error
        if hint:
            self.warnings.append(f"{_shown(place)}: {hint}")
        return name

    def finish(self) -> None:
        """Apply the rules over all files: `all`, `ungrouped`, no loops, the depth of each group.

        :raises LocatedError: at one of the children that close a loop.
        """
        for group in list(self.groups.values()):
            if group.name != "all" and not group.parents:
                self.add_child("all", group.name, group.place)
        self._set_depths()
        grouped = {host for name, group in self.groups.items() if name not in _IMPLICIT for host in group.hosts}
        ungrouped = self.groups["ungrouped"].hosts
        for host in grouped & ungrouped.keys():
            del ungrouped[host]
        ungrouped.update((host, None) for host in self.hosts if host not in grouped)

    def _set_depths(self) -> None:
        """Walk from `all` downwards, each group after all its parents; who is never reached is in a loop."""
        missing = {group.name: len(group.parents) for group in self.groups.values()}
        ready = ["all"]
        for name in ready:
            for child, place in self.groups[name].children.items():
                depth = self.groups[name].depth + 1
                self.groups[child].depth = max(self.groups[child].depth, depth)
                if depth > MAX_GROUP_DEPTH:
                    raise place.error(f"groups are nested deeper than {MAX_GROUP_DEPTH} levels")
                missing[child] -= 1
                if not missing[child]:
                    ready.append(child)
        stuck = {name for name, count in missing.items() if count}
        if stuck:
            self._raise_loop(stuck)

    def _raise_loop(self, stuck: set[str]) -> None:
        # Every stuck group has a stuck parent: walking up must come back to where it has been.
        path: list[str] = []
        name = min(stuck)
        while name not in path:
            path.append(name)
            name = next(parent for parent in self.groups[name].parents if parent in stuck)
        loop = path[path.index(name) :]
        chain = " > ".join([loop[0], *reversed(loop)][:12])
        child = loop[0]
        raise (self.groups[loop[1 % len(loop)]].children[child].error(f"these groups contain each other: {chain}"))

    def _link(self, place: Place) -> None:
        self._links += 1
        if self._links > MAX_LINKS:
            raise place.error(f"more than {MAX_LINKS:,} memberships of hosts and groups")


_IMPLICIT = ("all", "ungrouped")


def _shown(place: Place) -> str:
    return f"{place.file}:{place.line}:{place.column}"
