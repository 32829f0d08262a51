"""Where files that a playbook names are looked for on the controller; the order is Ansible's.

A task's file is searched beside the file that the task is written in (which an import may have put elsewhere than
the playbook), then beside the playbook; in each place first in the folder of its kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def places(source: str, kind: str, folders: Sequence[Path]) -> list[Path]:
    """All places where a file may be, in order.

    :param kind: ``files``, ``templates`` or ``vars``: the folder that is tried first.
    :param folders: where relative names start from: the task's folder, the playbook's.
    """
    given = Path(source).expanduser()
    if given.is_absolute():
        return [given]
    found: list[Path] = []
    for folder in folders:
        if given.parts[:1] != (kind,):
            found.append(folder / kind / given)
        found.append(folder / given)
    return list(dict.fromkeys(found))


def find(source: str, kind: str, folders: Sequence[Path]) -> Path | None:
    """The first of `places` that exists; None when none does."""
    return next((place for place in places(source, kind, folders) if place.exists()), None)


def template_folders(shown: str, folders: Sequence[Path]) -> list[Path]:
    """Where a template file's ``include``, ``import`` and ``extends`` look: also beside the file itself."""
    return list(dict.fromkeys([*folders, Path(shown).parent]))
