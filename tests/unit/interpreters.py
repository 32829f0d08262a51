"""The Python interpreters that payload/ is tested with."""

import os
import re
import sys
from pathlib import Path


def _find() -> list[Path]:
    """Return TCPFLEET_PYTHONS (os.pathsep between), else pyenv's of 3.6 or newer, else this one; sorted."""
    listed = os.environ.get("TCPFLEET_PYTHONS")
    if listed:
        return [Path(p) for p in listed.split(os.pathsep) if p]
    found = []
    for python in (Path.home() / ".pyenv/versions").glob("*/bin/python"):
        version = re.match(r"(\d+)\.(\d+)\.(\d+)$", python.parts[-3])
        if version and (key := tuple(map(int, version.groups()))) >= (3, 6):
            found.append((key, python))
    return [python for _, python in sorted(found)] or [Path(sys.executable)]


INTERPRETERS: list[Path] = _find()
