"""Which files make up an inventory, in which order, and in which format each is written.

Ansible's rules: a directory is read in alphabetical order, its directories in turn; `group_vars`,
`host_vars`, hidden files and files with certain endings are passed over. `.yml`, `.yaml` and `.json` are
YAML; a name without ending is YAML if it reads as a mapping, else INI; everything else is INI.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import BadInput, LocatedError
from . import ini_source, yaml_source
from .document import parse, read_text
from .draft import Draft
from .vars_files import EXTENSIONS

# Ansible's INVENTORY_IGNORE_EXTS; `.ini` is not among them.
IGNORED_ENDINGS = (
    *(".pyc", ".pyo", ".swp", ".bak", "~", ".rpm", ".md", ".txt", ".rst"),
    *(".orig", ".cfg", ".retry"),
)
IGNORED_NAMES = ("group_vars", "host_vars", "vars_plugins")
MAX_FILES = 10_000
MAX_DEPTH = 8


def find(path: Path) -> list[Path]:
    """The inventory files at `path`: itself, or those in the directory.

    :raises BadInput: nothing is there.
    :raises LocatedError: too many files, directories too deep (a symbolic link to a parent).
    """
    try:
        exists = path.exists()
    except (OSError, ValueError):  # a name that is too long, or that holds NUL
        exists = False
    if not exists:
        hint = "; a list of hosts is not an inventory here: write a file" if "," in str(path) else ""
        raise BadInput(f"there is no inventory at {path}{hint}")
    if not path.is_dir():
        return [path]
    found: list[Path] = []
    _walk(path, found, 0)
    return found


def read(path: Path, draft: Draft) -> None:
    """Add what one inventory file says to `draft`.

    :raises LocatedError: the file cannot be read or has no meaning.
    """
    shown = str(path)
    text = read_text(path, shown)
    draft.source = os.path.abspath(path)
    if text.startswith("#!") and os.access(path, os.X_OK):
        raise LocatedError("this is a dynamic inventory script, which is not supported", shown, 1, 1)
    extension = path.suffix
    if extension == ".toml":
        raise LocatedError("TOML inventories are not supported: use YAML or INI", shown)
    if extension in EXTENSIONS or (not extension and _reads_as_yaml(text, shown)):
        root = parse(text, shown)
        if root is None:
            draft.warnings.append(f"{shown}: nothing is defined in this file")
        else:
            yaml_source.read(root, draft)
    else:
        ini_source.read(text, shown, draft)


def _walk(directory: Path, found: list[Path], depth: int) -> None:
    if depth > MAX_DEPTH:
        raise LocatedError(f"directories are nested deeper than {MAX_DEPTH} levels", str(directory))
    try:
        entries = sorted(os.listdir(directory))
    except OSError as error:
        raise LocatedError(f"cannot be read: {error.strerror}", str(directory)) from error
    for entry in entries:
        if entry.startswith(".") or entry in IGNORED_NAMES or entry.endswith(IGNORED_ENDINGS):
            continue
        path = directory / entry
        if path.is_dir():
            _walk(path, found, depth + 1)
            continue
        found.append(path)
        if len(found) > MAX_FILES:
            raise LocatedError(f"more than {MAX_FILES:,} inventory files", str(directory))


def _reads_as_yaml(text: str, shown: str) -> bool:
    """Of a file whose name does not say it: is it YAML?

    Broken YAML must not come back as a riddle about INI, so the first line with content decides then.
    """
    try:
        root = parse(text, shown)
    except LocatedError:
        lines = (line.strip() for line in text.split("\n"))
        first = next((line for line in lines if line and line[0] not in "#;"), "")
        return first == "---" or first.startswith("{") or (first.endswith(":") and not first.startswith("["))
    return root is None or root.kind == "map"
