"""`windows-tuning`: what a Windows machine needs before it can open many connections, as two files to take there.

In: how many connections it is to open. Out: ``tcpfleet-windows.reg`` with the article's two registry values, and
``tcpfleet-windows.ps1``, which sets what today's Windows looks at (the dynamic port range), checks, and can undo.
Both are what Windows' own programs write: UTF-16 with BOM for the .reg, CRLF in both.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path

from tcpfleet.cli import ROOT, Answer, Options, number
from tcpfleet.errors import BadInput

REG, PS1 = "tcpfleet-windows.reg", "tcpfleet-windows.ps1"

# The article's values; its 65534 is also the end of the range below.
MAX_USER_PORT = 65534
TIMED_WAIT_DELAY = 30
FIRST_PORT = 1025
MOST_PORTS = MAX_USER_PORT - FIRST_PORT + 1
# What Windows has by itself since Vista, 49152-65535: fewer would be a step back.
DEFAULT_PORTS = 16384


@dataclass(frozen=True)
class WindowsTuning:
    """What the two files say.

    :ivar connections: wanted to one target; `addresses`: source addresses that they need.
    :ivar start, number: of the dynamic port range, as netsh names them.
    :ivar timed_wait_delay: seconds.
    """

    connections: int
    start: int
    number: int
    addresses: int
    max_user_port: int = MAX_USER_PORT
    timed_wait_delay: int = TIMED_WAIT_DELAY


def plan(connections: int = MOST_PORTS) -> WindowsTuning:
    """The port range for a number of connections, at the upper end of the ports, where fewest services are.

    >>> plan().start, plan().number
    (1025, 64510)
    >>> plan(30000).start, plan(30000).number
    (35535, 30000)
    >>> plan(200000).addresses
    4
    """
    ports = min(max(connections, DEFAULT_PORTS), MOST_PORTS)
    return WindowsTuning(connections, MAX_USER_PORT + 1 - ports, ports, -(-connections // MOST_PORTS))


def files(tuning: WindowsTuning) -> dict[str, bytes]:
    """File name -> content."""
    import jinja2

    environment = jinja2.Environment(  # noqa: S701 - neither file is HTML
        loader=jinja2.FileSystemLoader(ROOT / "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        newline_sequence="\r\n",
    )

    def text(template: str) -> str:
        return environment.get_template(template).render(asdict(tuning), reg_name=REG, ps1_name=PS1)

    # Windows PowerShell reads a file without BOM in the code page of the machine: ASCII is the same in all.
    return {
        REG: b"\xff\xfe" + text("windows-tuning.reg.j2").encode("utf-16-le"),
        PS1: text("windows-tuning.ps1.j2").encode("ascii"),
    }


def windows_tuning(options: Options, out: str, connections: str, *, force: bool) -> Answer:
    """Write both files.

    :param out: folder; made when it is not there.
    :param connections: as typed; empty for as many as one address can have.
    :param force: whether files of these names may be overwritten.
    :raises BadInput: for a bad number, or files that are there already; then nothing is written.
    """
    tuning = plan(number("--connections", connections, 1, 10**9) if connections else MOST_PORTS)
    folder = Path(out or ".")
    contents = files(tuning)
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"--out {folder} is not a folder")
    there = [name for name in contents if os.path.lexists(folder / name)]
    if there and not force:
        raise BadInput(f"{folder} has {' and '.join(there)} already: give another --out, or --force to overwrite")
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        part = folder / f".{name}.{os.getpid()}.part"
        try:
            part.write_bytes(content)
            part.replace(folder / name)
        finally:
            part.unlink(missing_ok=True)
        options.say(str(folder / name))
    options.say(
        f"dynamic ports {tuning.start}-{tuning.start + tuning.number - 1}: {tuning.number:,} connections from one "
        "address to one target"
    )
    if tuning.addresses > 1:
        options.say(f"{tuning.connections:,} connections to one target need {tuning.addresses} source addresses")
    options.say(f"on Windows, as administrator: powershell -ExecutionPolicy Bypass -File {PS1} -WhatIf")
    return Answer({"files": [str(folder / name) for name in contents], "windows": asdict(tuning)})
