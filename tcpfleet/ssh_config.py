"""ssh_config for Paramiko, which reads it but for Include.

In: the file of ``ssh -F``, or none: then the user's and the machine's. Out: Paramiko's SSHConfig of all of it.
"""

from __future__ import annotations

import functools
import glob
import io
import os
import re
import shlex
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from tcpfleet.errors import BadInput

if TYPE_CHECKING:
    import paramiko

DEEPEST = 16  # levels of Include, as in OpenSSH
_LINE = re.compile(r"\s*(include|host|match)(?:\s*=\s*|\s+)(.*)", re.IGNORECASE)
_EVERY = ("host *", "match all")

_lock = threading.Lock()


def load(path: str | None) -> paramiko.SSHConfig:
    """Read once per command and file, also when many threads ask; nobody changes what they get.

    :param path: of ``-F``; "none": of no file.
    :raises BadInput: a file cannot be read or has a line that is none.
    """
    with _lock:
        return _load(path)


@functools.lru_cache(maxsize=8)
def _load(path: str | None) -> paramiko.SSHConfig:
    import paramiko

    lines: list[str] = []
    if path is None:
        lines += _lines(os.path.expanduser("~/.ssh/config"), "~/.ssh", is_needed=False)
        lines += ["Host *", *_lines("/etc/ssh/ssh_config", "/etc/ssh", is_needed=False)]
    elif path != "none":
        lines += _lines(os.path.expanduser(path), "~/.ssh", is_needed=True)
    try:
        config = paramiko.SSHConfig.from_file(io.StringIO("\n".join(lines)))
    except (paramiko.ConfigParseError, ValueError) as error:
        raise BadInput(f"{path or 'ssh_config'}: {' '.join(str(error).split())}") from None
    # Paramiko would fill in a port and user that the inventory may give otherwise: `route` does it.
    # Its Match exec would read the user's terminal.
    vars(paramiko.config)["invoke"] = SimpleNamespace(run=_run_for_match)
    config.TOKENS_BY_CONFIG_KEY = {**config.TOKENS_BY_CONFIG_KEY, "proxycommand": []}
    return config


def _run_for_match(command: str, **_: object) -> SimpleNamespace:
    done = subprocess.run(
        ["/bin/sh", "-c", command], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False
    )
    return SimpleNamespace(ok=done.returncode == 0)


def _lines(path: str, base: str, *, is_needed: bool, depth: int = 0, block: str = "Host *") -> Iterator[str]:
    """The lines of a file, with those of what it includes in their place.

    :param base: the folder that included names are relative to.
    :param block: the Host or Match line that an including file has it under.
    """
    if depth > DEEPEST:
        raise BadInput(f"{path}: more than {DEEPEST} levels of Include")
    try:
        text = Path(path).read_text(errors="surrogateescape")
    except FileNotFoundError:
        if not is_needed:
            return
        raise BadInput(f"{path}: No such file or directory") from None
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    top = block
    for number, line in enumerate(text.splitlines(), 1):
        found = _LINE.match(line)
        if found is None:
            yield line
        elif found[1].lower() != "include":
            if depth and " ".join(top.lower().split()) not in _EVERY:
                # Both would have to hold, which cannot be said in one line.
                raise BadInput(f"{path}:{number}: {found[1]} in a file that is included under `{top.strip()}`")
            block = line
            yield line
        else:
            try:
                patterns = shlex.split(found[2], comments=True)
            except ValueError as error:
                raise BadInput(f"{path}:{number}: {error}") from None
            for pattern in patterns:
                for name in sorted(glob.glob(os.path.join(os.path.expanduser(base), os.path.expanduser(pattern)))):
                    yield from _lines(name, base, is_needed=True, depth=depth + 1, block=block)
                    yield block  # what follows is about it again
