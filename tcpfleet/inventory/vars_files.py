"""`group_vars/` and `host_vars/` beside the inventory or the playbook: one mapping per group or host.

For the group `lab`, Ansible reads the first that exists of `group_vars/lab` (a file, or a directory of
files merged in alphabetical order), `lab.yml`, `lab.yaml`, `lab.json`. So does this.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ..errors import LocatedError
from .document import parse, read_text
from .draft import Draft, Setting, Settings

EXTENSIONS = (".yml", ".yaml", ".json")
MAX_FILES = 10_000
MAX_DEPTH = 8


class VarsDirectory:
    """The files of one `group_vars` or `host_vars` directory, which need not exist.

    :param directory: where it is.
    :param shown: the same path as the user would write it.
    :param draft: checks the names and keeps the warnings.
    :raises LocatedError: the directory is there and cannot be read.
    """

    def __init__(self, directory: Path, shown: str, draft: Draft) -> None:
        self.directory, self.shown, self.draft = directory, shown, draft
        try:
            self.entries = set(os.listdir(directory)) if directory.is_dir() else set()
        except OSError as error:
            raise LocatedError(f"cannot be read: {error.strerror}", shown) from error
        self._used: set[str] = set()

    def settings(self, name: str) -> Settings:
        """The variables for the group or host `name`; {} when nothing is there.

        :raises LocatedError: a file that is not a mapping of variables.
        """
        present = [name + extension for extension in ("", *EXTENSIONS) if name + extension in self.entries]
        self._used.update(present)
        if not present:
            return {}
        for shadowed in present[1:]:
            self.draft.warnings.append(
                f"{self.shown}/{shadowed}: never read, because {self.shown}/{present[0]} comes first"
            )
        path, shown = self.directory / present[0], f"{self.shown}/{present[0]}"
        files = _files_below(path, shown, 0) if path.is_dir() else [(path, shown)]
        found: Settings = {}
        for file, file_shown in files:
            found.update(_read(file, file_shown, self.draft))
        return found

    def warn_unused(self, what: str, known: Iterable[str]) -> None:
        """Add a warning for each file that belongs to no group or host.

        :param what: "group" or "host".
        """
        known = set(known)
        for entry in sorted(self.entries - self._used):
            stem, extension = os.path.splitext(entry)
            name = stem if extension in EXTENSIONS else entry
            if not entry.startswith(".") and not entry.endswith("~") and name not in known:
                self.draft.warnings.append(f"{self.shown}/{entry}: never read: no {what} is called {name!r}")


def _files_below(path: Path, shown: str, depth: int) -> list[tuple[Path, str]]:
    found: list[tuple[Path, str]] = []
    if depth > MAX_DEPTH:
        raise LocatedError(f"directories are nested deeper than {MAX_DEPTH} levels", shown)
    try:
        entries = sorted(os.listdir(path))
    except OSError as error:
        raise LocatedError(f"cannot be read: {error.strerror}", shown) from error
    for entry in entries:
        if entry.startswith(".") or entry.endswith("~"):
            continue
        extension = os.path.splitext(entry)[1]
        below, below_shown = path / entry, f"{shown}/{entry}"
        if below.is_dir():
            if not extension:
                found.extend(_files_below(below, below_shown, depth + 1))
        elif extension in ("", *EXTENSIONS):
            found.append((below, below_shown))
        if len(found) > MAX_FILES:
            raise LocatedError(f"more than {MAX_FILES:,} files of variables", shown)
    return found


def _read(path: Path, shown: str, draft: Draft) -> Settings:
    root = parse(read_text(path, shown), shown)
    if root is None:
        return {}
    if root.kind != "map":
        raise root.place.error("a file of variables is a mapping from names to values")
    found: Settings = {}
    for key, value in root.items():
        plain = value.plain()
        name = draft.check_variable(key.value, plain, key.place)
        if name == "ansible_group_priority":
            raise key.place.error("ansible_group_priority has no effect here: set it in the inventory file itself")
        found[name] = Setting(plain, key.place)
    return found
