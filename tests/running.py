"""What tests need to run tasks the way a user does, and to look at the lab's hosts independently of the code."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tcpfleet import lab

ROOT = Path(__file__).resolve().parent.parent


class Inv:
    """Runs tasks the way a user does, in a process of their own, from the checkout."""

    def __call__(
        self, *words: str, code: int | None = 0, timeout: float = 180
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "invoke", *words],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )
        assert "Traceback" not in done.stderr, done.stderr
        if code is not None:
            assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def json(self, *words: str, code: int | None = 0, timeout: float = 180) -> dict[str, Any]:
        """The one object that --json prints, and nothing else may be on stdout."""
        done = self(*words, "--json", code=code, timeout=timeout)
        data: dict[str, Any] = json.loads(done.stdout)
        return data

    def start(self, *words: str) -> "subprocess.Popen[str]":
        """In the background, in its own process group, as a shell would."""
        return subprocess.Popen(
            [sys.executable, "-m", "invoke", *words],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )


class Lab:
    """The running lab: `ssh` runs a command on a host with OpenSSH, independently of the code under test."""

    def __init__(self, hosts: dict[str, lab.LabHost]) -> None:
        self.hosts = hosts

    def argv(self, host: str, *, user: str = "root") -> list[str]:
        command = lab.ssh_command(self.hosts[host], ROOT)
        return [*command[:-1], f"{user}@{self.hosts[host].address}"]

    def ssh(
        self,
        host: str,
        script: str,
        *,
        check: bool = True,
        user: str = "root",
        timeout: float = 60,
        stdin: str | None = None,
    ) -> str:
        done = subprocess.run(
            [*self.argv(host, user=user), script],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            input=stdin,
        )
        if check:
            assert done.returncode == 0, f"{host}: {script}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout
