"""The inventory: which hosts there are, in which groups, with which variables, and how to reach them.

Files in Ansible's own formats go in (`Inventory.load`), hosts come out (`Inventory.select`), each with its
merged variables and, on request, the `Connection` by which to reach it. Every error in a file is a
LocatedError: file, line and column.

Beyond Ansible, these are errors here, because ignoring them hides mistakes: unknown keys in a group, a key
given twice, a host called like a group, names that no pattern can select, connection variables that are
not supported, patterns that match nothing. Not supported: dynamic inventory (scripts, plugins), TOML,
Ansible Vault, `!unsafe`. There is no implicit `localhost`.
"""

from .connection import Connection, SshArgs, make_connection, parse_ssh_args
from .document import Place
from .model import Group, Host, Inventory
from .views import graph, to_json

__all__ = [
    "Connection",
    "Group",
    "Host",
    "Inventory",
    "Place",
    "SshArgs",
    "graph",
    "make_connection",
    "parse_ssh_args",
    "to_json",
]
