"""`inv bench WHAT`: measurements beside other tools, and the tables of benchmarks/README.md that come of them.

In: a name from BENCHES. Out: the figures as data, and a table written between the two marks that
benchmarks/README.md has for it. What is measured is said in benchmarks/WHAT.py; here is what all of them need:
running a program to its end with its time and CPU time, medians, a description of the machine, tables.
"""

from __future__ import annotations

import importlib
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tcpfleet import __version__, lab
from tcpfleet.cli import ROOT, Answer, Options
from tcpfleet.errors import BadInput, HostFailed, Refused

RESULTS = ROOT / "benchmarks" / "README.md"
BENCHES = {
    "playbook": "tune.yml and thirty tasks on the lab, beside ansible-playbook and pyinfra",
    "stress": "the stress client on this machine, beside C, its rates, a million connections",
    "report": "collecting from the lab while its server holds 200,000 connections",
    "fleet": "ping of 50 hosts beside Fabric and Ansible; ping, facts, tune --check of 500",
}


@dataclass(frozen=True)
class Took:
    """What one run of a program cost.

    :ivar seconds: from its start to its end, on the clock.
    :ivar cpu: seconds of CPU of the program and of all its children that it waited for, on this machine.
    :ivar output: its stdout and stderr.
    :ivar memory: bytes, the most that it or a child of it had resident.
    """

    seconds: float
    cpu: float
    output: str
    memory: int


def run(options: Options, what: str, rounds: str, only: str) -> Answer:
    """One benchmark.

    :param what: a key of BENCHES.
    :param rounds: how often each measurement is repeated; the medians count.
    :param only: names of the parts to measure, comma separated; empty for all.
    :raises BadInput: there is no such benchmark or part.
    """
    from tcpfleet.cli import number

    if what not in BENCHES:
        known = "; ".join(f"{name}: {text}" for name, text in BENCHES.items())
        raise BadInput(f"there is no benchmark {what!r}; there are: {known}")
    times = number("--rounds", rounds, 1, 100)
    parts = [part.strip() for part in only.split(",") if part.strip()]
    measure = importlib.import_module(f"benchmarks.{what}").measure
    answer: Answer = measure(options, times, parts)
    return answer


def own_lab(parts: Sequence[str], known: Iterable[str]) -> dict[str, lab.LabHost]:
    """The hosts of this checkout's lab by name, for a benchmark that was asked for `parts` of those that it has.

    :raises BadInput: an unknown part.
    :raises Refused: the lab is not up, or another checkout's.
    """
    for part in parts:
        if part not in known:
            raise BadInput(f"--only {part!r}: there are {', '.join(known)}")
    status = lab.status()
    if status.owner != ROOT:
        raise Refused("this benchmark needs the lab of this checkout: inv lab-up")
    return {host.name: lab.LabHost(host.name, host.address) for host in status.hosts}


def timed(argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None, cwd: Path = ROOT) -> Took:
    """Run a program to its end.

    :param env: variables on top of this process's.
    :raises HostFailed: it ended with another status than 0; with its last lines.
    """
    command = [str(word) for word in argv]
    read_end, write_end = os.pipe()
    begun = time.monotonic()
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=write_end,
        stderr=write_end,
        cwd=cwd,
        env=_environment() | dict(env or {}),
    )
    os.close(write_end)
    parts: list[bytes] = []
    with open(read_end, "rb", buffering=0) as pipe:
        while part := pipe.read(65536):
            parts.append(part)
    # wait4 tells the CPU time of this very child and of what it waited for; getrusage would add up all children.
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.monotonic() - begun
    child.returncode = os.waitstatus_to_exitcode(status)
    output = b"".join(parts).decode(errors="replace")
    if child.returncode:
        tail = "\n".join(output.splitlines()[-25:])
        raise HostFailed(f"`{' '.join(command)}` ended with {child.returncode}:\n{tail}")
    return Took(seconds, usage.ru_utime + usage.ru_stime, output, usage.ru_maxrss * 1024)


def _environment() -> dict[str, str]:
    """This process's, without what makes Python compile everything at each start or write byte by byte."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED") and not name.startswith("ANSIBLE_")
    }


def median(values: Sequence[float]) -> float:
    """The middle value; of an even number, the mean of the two in the middle."""
    return statistics.median(values)


def machine() -> str:
    """This machine in half a sentence: processors, kernel, Python."""
    return (
        f"{os.cpu_count()} CPUs, {platform.system()} {platform.release()}, "
        f"CPython {platform.python_version()}, tcpfleet {__version__}"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table.

    >>> print(table(["a", "b"], [["1", "2"]]))
    | a | b |
    |---|---|
    | 1 | 2 |
    """
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("|" + "|".join(row) + "|" if row[0] == "---" else f"| {' | '.join(row)} |" for row in lines)


def between_marks(document: str, name: str, text: str) -> str:
    """The document with `text` in place of what stood between the two marks of `name`.

    :raises BadInput: the document does not have both, in order.

    >>> between_marks("a\\n<!-- x -->\\nold\\n<!-- end of x -->\\nb\\n", "x", "new")
    'a\\n<!-- x -->\\nnew\\n<!-- end of x -->\\nb\\n'
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    head, found, rest = document.partition(begin)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise BadInput(
            f"{RESULTS}: the lines {begin.strip()} and {end} are missing: that is where the table belongs"
        )
    return f"{head}{begin}{text.strip()}\n{end}{tail}"


def publish(name: str, text: str) -> None:
    """Write a benchmark's table into benchmarks/README.md."""
    RESULTS.write_text(between_marks(RESULTS.read_text(encoding="utf-8"), name, text), encoding="utf-8")


def own_program(name: str) -> Path:
    """A program of the environment that this process runs in, as a user starts it."""
    return Path(sys.executable).parent / name
