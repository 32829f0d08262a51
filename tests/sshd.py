"""A second sshd on a lab host whose log tells how many connections and channels it was asked for.

OpenSSH names channels only at LogLevel DEBUG1, which no host should run at; so this one listens on a port of its
own, with the host's keys and settings, for as long as it is needed.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import NamedTuple

PORT = 2299
LOG = "/run/tcpfleet-test-sshd.log"
PID = "/run/tcpfleet-test-sshd.pid"


class Counted(NamedTuple):
    """What a counting sshd has seen: connections that were accepted, and channels opened in all of them."""

    connections: int
    channels: int


class CountingSshd:
    """Starts the sshd; leave the context to end it and delete its log.

    :param ssh: argv that runs a command, given as one more word, on the host as root.
    :ivar port: where it listens on the host.
    """

    def __init__(self, ssh: Sequence[str]) -> None:
        self._ssh = list(ssh)
        self.port = PORT

    def __enter__(self) -> CountingSshd:
        self._run(f"/usr/sbin/sshd -p {PORT} -E {LOG} -o LogLevel=DEBUG1 -o PidFile={PID}")
        return self

    def __exit__(self, *_: object) -> None:
        self._run(f"kill $(cat {PID}); rm -f {LOG}")

    def counted(self) -> Counted:
        """Connections and channels since the start."""
        log = self._run(f"cat {LOG}")
        return Counted(log.count("Connection from "), log.count("server_input_channel_open: ctype "))

    def _run(self, script: str) -> str:
        # sshd keeps what it inherits: without a stderr of its own the login that starts it would not end.
        command = [*self._ssh, f"{{ {script}; }} 2>&1 </dev/null"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=30, check=False)
        if done.returncode:
            raise RuntimeError(f"{script}: exit {done.returncode}: {done.stdout}")
        return done.stdout
