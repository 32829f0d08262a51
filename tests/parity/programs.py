"""Runs a playbook with `inv play` and with `ansible-playbook`, and brings both answers into one shape.

In: a playbook, an inventory, options. Out: a `Run`: the recap, and per task and host a status and result fields.
Both programs run as a user would start them, in processes of their own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.running import ROOT

COLUMNS = ("ok", "changed", "unreachable", "failed", "skipped", "rescued", "ignored")
HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Step:
    """One task on one host.

    :ivar status: ok, changed, skipped, failed or unreachable; an ignored or rescued failure is a failure here, the
        recap tells them apart.
    """

    play: str
    task: str
    host: str
    status: str
    result: Mapping[str, Any]


@dataclass
class Run:
    """What one program said about one run.

    :ivar recap: host name -> column -> count.
    :ivar steps: in the order of each host; hosts one after the other.
    """

    code: int
    recap: dict[str, dict[str, int]]
    steps: list[Step]
    output: str = field(repr=False, default="")

    def changed(self) -> dict[str, list[str]]:
        """Host name -> the tasks that changed something."""
        found: dict[str, list[str]] = {name: [] for name in self.recap}
        for step in self.steps:
            if step.status == "changed":
                found[step.host].append(step.task)
        return found


@dataclass(frozen=True)
class Asked:
    """A run's options, in neither program's spelling.

    :ivar options: such as ``tags``, ``skip_tags``, ``limit``, ``start_at_task``.
    :ivar fetched: an extra variable of this name: a folder of this program's own on the controller. In results it
        is called FETCHED, so that they can be compared.
    :ivar task: for ours: a task of its own that runs the playbook on host `node`, such as ``tune``.
    """

    playbook: Path
    inventory: Path
    check: bool = False
    extra_vars: Sequence[str] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    fetched: Path | None = None
    task: str = ""


def run_ours(asked: Asked, *, timeout: float = 300) -> Run:
    """`inv play --json`, or the task that runs the playbook."""
    words = [asked.task, "--hosts", "node"] if asked.task else ["play", str(asked.playbook)]
    words += ["--json", "--inventory", str(asked.inventory)]
    words += ["--check"] if asked.check else []
    if not asked.task:
        words += [f"--extra-vars={one}" for one in _extra_vars(asked)]
        words += [f"--{key.replace('_', '-')}={value}" for key, value in asked.options.items()]
    done = subprocess.run(
        [sys.executable, "-m", "invoke", *words],
        cwd=ROOT, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    said = f"$ inv {' '.join(words)}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, said
    assert "\nerror: " not in f"\n{done.stderr}", f"nothing ran: {done.stderr}"
    try:
        data = json.loads(_neutral(done.stdout, asked))
    except ValueError:
        raise AssertionError(f"no JSON: {said}") from None
    steps = [
        Step(task["play"], task["task"], name, _plain_status(one["status"], one["result"]), one["result"])
        for task in data.get("tasks", ())
        for name, one in task["hosts"].items()
    ]
    recap = {name: {key: counts[key] for key in COLUMNS} for name, counts in data.get("hosts", {}).items()}
    return Run(done.returncode, recap, _by_host(steps), said)


def run_ansible(asked: Asked, peers: Path, home: Path, *, timeout: float = 600) -> Run:
    """`ansible-playbook`, with pipelining and its JSON output.

    :param peers: the venv it is installed in.
    :param home: a folder with a short path for its temporary files and SSH control sockets.
    """
    words = [str(asked.playbook), "-i", str(asked.inventory)]
    words += ["--check"] if asked.check else []
    words += [word for one in _extra_vars(asked) for word in ("-e", one)]
    words += [f"--{key.replace('_', '-')}={value}" for key, value in asked.options.items()]
    done = subprocess.run(
        [peers / "bin/ansible-playbook", *words],
        cwd=ROOT, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL,
        env=ansible_environment(home),
    )  # fmt: skip
    said = f"$ ansible-playbook {' '.join(words)}\n{done.stdout}\n{done.stderr}"
    try:
        data = json.loads(_neutral(done.stdout[done.stdout.index("{\n") :], asked))
    except ValueError:
        raise AssertionError(f"no JSON: {said}") from None
    steps = [
        Step(play["play"]["name"], task["task"]["name"], name, _status(result), result)
        for play in data["plays"]
        for task in play["tasks"]
        for name, result in task["hosts"].items()
    ]
    names = {"failed": "failures"}
    recap = {name: {key: one[names.get(key, key)] for key in COLUMNS} for name, one in data["stats"].items()}
    return Run(done.returncode, recap, _by_host(steps), said)


def ansible_environment(home: Path) -> dict[str, str]:
    """The environment for `ansible-playbook`: a configuration of the suite's own and nothing of the user's."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")}
    return kept | {
        "ANSIBLE_CONFIG": str(HERE / "ansible.cfg"),
        "ANSIBLE_HOME": str(home / "home"),
        "ANSIBLE_LOCAL_TEMP": str(home / "tmp"),
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(home / "cp"),
        # As invoke's own process has it; Ansible insists on a UTF-8 locale.
        "LC_ALL": "C.UTF-8",
        # A tool that a test runs must not put compiled files beside the libraries of another.
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONWARNINGS": "ignore",
    }


def close_connections(home: Path) -> None:
    """Ends the SSH masters that Ansible left running for its next call."""
    for socket in (home / "cp").glob("*"):
        subprocess.run(["ssh", "-o", f"ControlPath={socket}", "-O", "exit", "-"], capture_output=True)


def _extra_vars(asked: Asked) -> list[str]:
    return [*asked.extra_vars, *([f"fetched={asked.fetched}"] if asked.fetched else [])]


def _neutral(text: str, asked: Asked) -> str:
    return text.replace(str(asked.fetched), "FETCHED") if asked.fetched else text


def _by_host(steps: Sequence[Step]) -> list[Step]:
    return sorted(steps, key=lambda step: step.host)


def _plain_status(status: str, result: Mapping[str, Any]) -> str:
    return "failed" if status in ("ignored", "rescued") else status


def _status(result: Mapping[str, Any]) -> str:
    for flag in ("unreachable", "failed", "skipped", "changed"):
        if result.get(flag):
            return flag
    return "ok"
