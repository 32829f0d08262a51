"""The tasks for people who work on tcpfleet itself: `test` and `lint`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tcpfleet.cli import ROOT, Answer

CHECKS = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("mypy",),
    ("vermin", "--no-tips", "--eval-annotations", "--violations", "--target=3.6-", "payload"),
)


def test(*, full: bool, only: str) -> Answer:
    """pytest over tests/, all three levels; its exit status decides."""
    command = [sys.executable, "-m", "pytest"]
    if full:
        command.append("--full")
    if only:
        command += ["-k", only]
    return _exit(subprocess.run(command, cwd=ROOT).returncode)


def lint() -> Answer:
    """Every check runs, so that one pass shows all there is to mend."""
    programs = Path(sys.executable).parent
    failed = [
        program for program, *words in CHECKS if subprocess.run([programs / program, *words], cwd=ROOT).returncode
    ]
    return _exit(1 if failed else 0)


def _exit(status: int) -> Answer:
    return Answer(code=1 if status else 0)
