"""What tests need to run tasks the way a user does, and to look at the lab's hosts independently of the code."""

import contextlib
import json
import subprocess
import sys
import time
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

    def reboot(self, *hosts: str) -> None:
        """Powers hosts off and boots them again, with the disks that they had; returns when they answer."""
        down = {host.name: host.pid for host in lab.status().hosts if host.name in hosts}
        for host in hosts:
            # It may be gone before it has ended the connection, or end it with an error.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.ssh(host, "systemctl --no-block poweroff", check=False, timeout=10)
        deadline = time.monotonic() + 60
        while any(Path(f"/proc/{pid}").exists() for pid in down.values()):
            assert time.monotonic() < deadline, f"{hosts} do not end"
            time.sleep(0.05)
        Inv()("lab-up", code=None)  # 2 when one is degraded by what is on its disk
        for host in hosts:
            assert self.ssh(host, "systemctl is-system-running || true").strip() in ("running", "degraded")
