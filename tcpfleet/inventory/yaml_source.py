"""Ansible's YAML inventory: groups at the top, each with `hosts`, `children` and `vars`.

    lab:
      vars: {ansible_user: root}
      children:
        server:
          hosts:
            s1: {ansible_host: 10.77.0.11}

Where Ansible skips a key with a warning, this raises: a misspelt `childern` must not lose hosts.
"""

from __future__ import annotations

from .document import Node, Place
from .draft import Draft

SECTIONS = ("hosts", "children", "vars")


def read(root: Node, draft: Draft) -> None:
    """Add what the inventory file with the document `root` says to `draft`.

    :raises LocatedError: at the first key or value that has no meaning.
    """
    if root.kind != "map":
        raise root.place.error("an inventory is a mapping from group names to groups")
    for key, body in root.items():
        if key.value == "plugin":
            raise key.place.error("this configures an Ansible inventory plugin, which is not supported")
        _read_group(key, body, draft)


def _read_group(key: Node, body: Node, draft: Draft) -> str:
    """Read one group and everything below it; the depth is bounded by document.MAX_DEPTH."""
    group = _name(key, "group")
    draft.add_group(group, key.place)
    if _is_empty(body):
        return group
    if body.kind != "map":
        raise body.place.error(f"the group {group!r} must be a mapping with {', '.join(SECTIONS)}")
    for section, content in body.items():
        if section.value not in SECTIONS:
            raise section.place.error(
                f"{section.value!r} has no meaning in the group {group!r}: only {', '.join(SECTIONS)}"
            )
        if section.value == "vars":
            for name, value in _entries(content, group, section):
                draft.set_group_variable(group, name.value, value.plain(), name.place)
        elif section.value == "children":
            for child, child_body in _entries(content, group, section):
                draft.add_child(group, _read_group(child, child_body, draft), child.place)
        else:
            for host, variables in _entries(content, group, section):
                _read_host(host, variables, group, draft)
    return group


def _read_host(key: Node, variables: Node, group: str, draft: Draft) -> None:
    hosts = draft.add_hosts(_name(key, "host"), group, key.place)
    if _is_empty(variables):
        return
    if variables.kind != "map":
        raise variables.place.error(f"the variables of the host {key.value!r} must be a mapping")
    for name, value in variables.items():
        for host in hosts:
            draft.set_host_variable(host, name.value, value.plain(), name.place)


def _entries(content: Node, group: str, section: Node) -> list[tuple[Node, Node]]:
    """The pairs of a section; a single name stands for itself without a body, as in Ansible."""
    if _is_empty(content):
        return []
    if content.kind == "map":
        return list(content.items())
    if content.kind == "scalar" and isinstance(content.value, str) and section.value != "vars":
        return [(content, _nothing(content.place))]
    hint = ": write `name:` instead of `- name`" if content.kind == "seq" else ""
    raise content.place.error(f"{section.value!r} of the group {group!r} must be a mapping{hint}")


def _name(key: Node, what: str) -> str:
    if isinstance(key.value, str):
        return key.value
    raise key.place.error(f"YAML reads this {what} name as {key.value!r}: put it in quotes")


def _is_empty(node: Node) -> bool:
    return node.kind == "scalar" and node.value is None


def _nothing(place: Place) -> Node:
    return Node("scalar", None, place)
