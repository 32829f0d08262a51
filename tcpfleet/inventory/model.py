"""The inventory as everything else sees it: hosts, groups, their merged variables, and questions to it.

Variables are merged in Ansible's order, later ones win: the group `all`; the other groups from the
outermost in, at equal depth by `ansible_group_priority`, then by name; `group_vars/all`; the other
`group_vars` in the same order; the host's own; `host_vars`. A value replaces the former one whole.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..errors import BadInput
from . import connection, patterns, sources
from .connection import Connection
from .document import Place
from .draft import Draft, DraftGroup, Setting, Settings
from .names import is_address
from .vars_files import VarsDirectory


@dataclass(frozen=True)
class Host:
    """One host. Two hosts are equal when their names are.

    :ivar vars: merged variables, templates not filled in, without magic variables.
    :ivar groups: every group it is in, sorted, without `all`: Ansible's group_names.
    """

    name: str
    vars: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    groups: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Group:
    """One group. Two groups are equal when their names are.

    :ivar hosts: names of all hosts in it and in its children, in Ansible's order, each once.
    :ivar children: names of the groups directly below it.
    :ivar own_hosts: names of the hosts that are directly in it.
    :ivar vars: what the inventory and group_vars set for it, without what it inherits.
    """

    name: str
    hosts: tuple[str, ...] = field(default=(), compare=False)
    children: tuple[str, ...] = field(default=(), compare=False)
    own_hosts: tuple[str, ...] = field(default=(), compare=False)
    vars: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)


class Inventory:
    """What `Inventory.load` read. It does not change.

    There is no implicit `localhost`: a host exists when the inventory names it.

    :ivar hosts: name -> Host, in the order in which the files name them.
    :ivar groups: name -> Group; always has `all` and `ungrouped`.
    :ivar warnings: sentences, with a place, about what is allowed but probably not meant.
    """

    def __init__(
        self,
        hosts: dict[str, Host],
        groups: dict[str, Group],
        warnings: tuple[str, ...],
        settings: Mapping[str, Settings],
        files: Mapping[str, str],
    ) -> None:
        self.hosts, self.groups, self.warnings = hosts, groups, warnings
        self._settings, self._files = settings, files
        self._members = {name: group.hosts for name, group in groups.items()}
        # One for all hosts: with 10,000 of them, a copy for each would be 10,000 x 10,000 names.
        self._groups_variable = {name: list(group.hosts) for name, group in groups.items()}

    @classmethod
    def load(cls, path: str | Path, playbook_dir: str | Path | None = None) -> Inventory:
        """Read an inventory.

        :param path: a file, or a directory of files that are merged in alphabetical order.
        :param playbook_dir: directory of a playbook whose group_vars/ and host_vars/ count as well,
            after those beside the inventory.
        :raises BadInput: nothing is there.
        :raises LocatedError: at the first thing that has no meaning.
        """
        path = Path(path)
        draft = Draft(str(path))
        for file in sources.find(path):
            sources.read(file, draft)
        draft.finish()
        directories = [path if path.is_dir() else path.parent]
        if playbook_dir is not None and os.path.realpath(playbook_dir) != os.path.realpath(directories[0]):
            directories.append(Path(playbook_dir))
        return _assemble(draft, directories)

    def select(self, pattern: str, *, allow_empty: bool = False, with_files: bool = False) -> list[Host]:
        """The hosts that an Ansible host pattern selects, each once, in Ansible's order.

        :param allow_empty: return [] when everything in the pattern exists but no host is left;
            otherwise that is an error too.
        :param with_files: a part ``@FILE`` stands for the lines of that file; for what users type.
        :raises BadInput: the pattern is malformed, names nothing that exists, or leaves no host.
        """
        names = patterns.select(pattern, list(self.hosts), self._members, with_files=with_files)
        if not names and not allow_empty:
            raise BadInput(f"the host pattern {pattern!r} selects no host")
        return [self.hosts[name] for name in names]

    def where(self, host: str, variable: str) -> Place | None:
        """The place of the value of `variable` that counts for `host`; None when it is not set."""
        setting = self._settings.get(host, {}).get(variable)
        return setting.place if setting else None

    def magic_vars(self, host: Host | str) -> dict[str, Any]:
        """Ansible's variables about the inventory itself, for one host.

        :returns: inventory_hostname, inventory_hostname_short, group_names, groups (name -> host names),
            inventory_file and inventory_dir (absolute paths of where the host is named first). The
            value of groups is shared by all calls: copy it before changing it.
        """
        found = self._host(host)
        file = self._files[found.name]
        return {
            "inventory_hostname": found.name,
            "inventory_hostname_short": found.name if is_address(found.name) else found.name.split(".")[0],
            "group_names": list(found.groups),
            "groups": self._groups_variable,
            "inventory_file": file,
            "inventory_dir": os.path.dirname(file),
        }

    def connection_vars(self, host: Host | str) -> dict[str, Any]:
        """The connection variables that are set for `host` (connection.SUPPORTED), templates filled in.

        :returns: name -> value as written or filled in, not yet checked; see connection().
        :raises LocatedError: a template that cannot be filled in.
        """
        found = self._host(host)
        own = {name: found.vars[name] for name in connection.SUPPORTED if name in found.vars}
        if any(connection.is_template(value) for value in own.values()):
            # Only here: importing Jinja2 takes longer than everything else together.
            from . import templates

            variables = {**found.vars, **self.magic_vars(found)}
            for name, value in own.items():
                try:
                    own[name] = templates.fill_in(value, variables, (name,))
                except ValueError as error:
                    place = self.where(found.name, name)
                    sentence = f"{name} of the host {found.name}: {error}"
                    raise place.error(sentence) if place else BadInput(sentence) from error
        return own

    def connection(self, host: Host | str) -> Connection:
        """How to reach `host`: its connection variables, filled in, checked and typed.

        :raises LocatedError: a template that cannot be filled in, or a value that is not supported.
        """
        found = self._host(host)
        return connection.make_connection(
            found.name, self.connection_vars(found), lambda variable: self.where(found.name, variable)
        )

    def _host(self, host: Host | str) -> Host:
        name = host if isinstance(host, str) else host.name
        if name not in self.hosts:
            raise BadInput(f"the inventory has no host {name!r}")
        return self.hosts[name]


def _assemble(draft: Draft, directories: list[Path]) -> Inventory:
    """Merge the variables of a finished draft and freeze everything."""
    group_files = [VarsDirectory(path / "group_vars", _shown(path, "group_vars"), draft) for path in directories]
    host_files = [VarsDirectory(path / "host_vars", _shown(path, "host_vars"), draft) for path in directories]
    from_files = {name: [files.settings(name) for files in group_files] for name in draft.groups}
    ancestors = _ancestors(draft)
    members: dict[str, list[str]] = {host: [] for host in draft.hosts}
    for group in draft.groups.values():
        for host in group.hosts:
            members[host].append(group.name)

    bases: dict[frozenset[str], Settings] = {}
    hosts: dict[str, Host] = {}
    settings: dict[str, Settings] = {}
    for host_name, drafted in draft.hosts.items():
        inside = frozenset().union(*(ancestors[group] for group in members[host_name]))
        if inside not in bases:
            bases[inside] = _group_settings([draft.groups[name] for name in inside], draft, from_files)
        merged = {**bases[inside], **drafted.settings}
        for files in host_files:
            merged.update(files.settings(host_name))
        settings[host_name] = merged
        values = MappingProxyType({name: setting.value for name, setting in merged.items()})
        hosts[host_name] = Host(host_name, values, tuple(sorted(inside - {"all"})))
    for files in group_files:
        files.warn_unused("group", draft.groups)
    for files in host_files:
        files.warn_unused("host", draft.hosts)
    return Inventory(
        hosts,
        {name: _freeze(group, draft, from_files[name]) for name, group in draft.groups.items()},
        tuple(dict.fromkeys(draft.warnings)),
        settings,
        {name: host.source for name, host in draft.hosts.items()},
    )


def _group_settings(inside: list[DraftGroup], draft: Draft, from_files: dict[str, list[Settings]]) -> Settings:
    """What the groups `inside` (with or without `all`) give to a host that is in exactly these."""
    ordered = sorted(
        (group for group in inside if group.name != "all"),
        key=lambda group: (group.depth, group.priority, group.name),
    )
    merged: Settings = dict(draft.groups["all"].settings)
    for group in ordered:
        merged.update(group.settings)
    for names in (["all"], [group.name for group in ordered]):
        for layer in range(len(from_files["all"])):
            for name in names:
                merged.update(from_files[name][layer])
    return merged


def _ancestors(draft: Draft) -> dict[str, frozenset[str]]:
    """Of every group: itself and every group above it."""
    found: dict[str, frozenset[str]] = {}
    for group in sorted(draft.groups.values(), key=lambda group: group.depth):
        found[group.name] = frozenset({group.name}).union(*(found[parent] for parent in group.parents))
    return found


def _freeze(group: DraftGroup, draft: Draft, from_files: list[Settings]) -> Group:
    # Level by level: a group's own hosts come before those of its children.
    level = [group.name]
    names = dict.fromkeys(level)
    while level:
        level = [child for name in level for child in draft.groups[name].children if child not in names]
        level = list(dict.fromkeys(level))
        names.update(dict.fromkeys(level))
    hosts = dict.fromkeys(host for name in names for host in draft.groups[name].hosts)
    merged = dict(group.settings)
    for layer in from_files:
        merged.update(layer)
    if group.priority != 1:
        merged["ansible_group_priority"] = Setting(group.priority, group.place)
    return Group(
        group.name,
        tuple(hosts),
        tuple(group.children),
        tuple(group.hosts),
        MappingProxyType({name: setting.value for name, setting in merged.items()}),
    )


def _shown(path: Path, below: str) -> str:
    return str(path / below)
