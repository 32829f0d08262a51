"""The tasks for people who work on tcpfleet itself: `test` and `lint`; and the peers that it is compared with."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from tcpfleet.cli import ROOT, Answer
from tcpfleet.errors import BadInput

CHECKS = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("mypy",),
    ("vermin", "--no-tips", "--eval-annotations", "--violations", "--target=3.6-", "payload"),
)


def test(*, full: bool, only: str) -> Answer:
    """pytest over tests/, all three levels; its exit status decides.

    An ordinary run has the lab's tests on one processor and the others beside them. With `full` they run one after
    the other: loads and the tuning of this very machine must not meet.
    """
    command = [sys.executable, "-m", "pytest"]
    if full:
        command.append("--full")
    if only:
        command += ["-k", only]
    if not full and not only:
        command += ["-n", "2"]
    return _exit(subprocess.run(command, cwd=ROOT).returncode)


def lint() -> Answer:
    """Every check runs, so that one pass shows all there is to mend."""
    programs = Path(sys.executable).parent
    failed = [
        program for program, *words in CHECKS if subprocess.run([programs / program, *words], cwd=ROOT).returncode
    ]
    return _exit(1 if failed else 0)


def peers() -> Path:
    """The venv with ansible-playbook and pyinfra, at the versions of requirements-peers.lock.

    `.peers/` of this checkout, made when it is first needed and again when the lock has changed: a copy of the
    lock in it says what it was made from, so that a half-made one is made anew. TCPFLEET_PEERS names a venv to
    use instead, as it is.

    :returns: its folder; the programs are in ``bin``.
    :raises BadInput: when it cannot be made, or TCPFLEET_PEERS has no ansible-playbook.
    """
    given = os.environ.get("TCPFLEET_PEERS")
    if given:
        if not (Path(given) / "bin/ansible-playbook").exists():
            raise BadInput(f"TCPFLEET_PEERS: there is no {given}/bin/ansible-playbook")
        return Path(given)
    lock, folder = ROOT / "requirements-peers.lock", ROOT / ".peers"
    stamp = folder / "made-from.lock"
    if stamp.exists() and stamp.read_bytes() == lock.read_bytes():
        return folder
    if sys.version_info < (3, 11):
        raise BadInput("ansible, which tcpfleet is compared with, needs Python 3.11 or newer")
    print("installing what tcpfleet is compared with into .peers (once) ...", file=sys.stderr)
    venv.create(folder, clear=True, with_pip=True)
    options = ("install", "--quiet", "--disable-pip-version-check", "--require-hashes", "-r")
    if subprocess.run([folder / "bin/pip", *options, lock]).returncode:
        raise BadInput(f"pip could not install what {lock.name} asks for")
    shutil.copyfile(lock, stamp)
    return folder


def _exit(status: int) -> Answer:
    return Answer(code=1 if status else 0)
