"""Real sshds for tests: one on this machine for its own user, and a second one on a lab host.

OpenSSH tells what a client has sent, and names channels, only at LogLevel DEBUG, which no host should run at; so
these listen on ports of their own for as long as they are needed.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
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


class LocalSshd:
    """An sshd on this machine that lets its own user in with `key`; leave the context to end it.

    :param folder: for its files; the client's key lies there as `id`, host keys as `host_TYPE`.
    :param options: lines of sshd_config.
    :param kinds: of host keys.
    :ivar port: where it listens, on 127.0.0.1 and on ::1.
    """

    def __init__(self, folder: Path, *options: str, kinds: Sequence[str] = ("ed25519",)) -> None:
        self.folder, self._log = folder, folder / "sshd.log"
        folder.mkdir(exist_ok=True)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self.key = folder / "id"
        if not self.key.exists():
            keygen("-f", self.key)
        (folder / "authorized").write_text(self.key.with_suffix(".pub").read_text())
        for kind in kinds:
            if not (folder / f"host_{kind}").exists():
                keygen("-t", kind, "-f", folder / f"host_{kind}")
        self.config = folder / "sshd_config"
        lines = [f"HostKey {folder}/host_{kind}" for kind in kinds]
        lines += [f"ListenAddress 127.0.0.1:{self.port}", f"ListenAddress [::1]:{self.port}", "UsePAM no"]
        lines += [f"AuthorizedKeysFile {folder}/authorized", "StrictModes no", "PidFile none", "LogLevel DEBUG3"]
        self.config.write_text("\n".join([*options, *lines]) + "\n")

    def __enter__(self) -> LocalSshd:
        with contextlib.suppress(OSError):  # where it is missing, no sshd of this machine has been started yet
            os.mkdir("/run/sshd", 0o755)
        self._process = subprocess.Popen(["/usr/sbin/sshd", "-D", "-f", self.config, "-E", self._log])
        deadline = time.monotonic() + 10
        while "Server listening on ::1" not in self.log:
            assert self._process.poll() is None and time.monotonic() < deadline, self.log
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()

    @property
    def log(self) -> str:
        """What it has said since the start."""
        return self._log.read_text() if self._log.exists() else ""

    def known(self, kind: str = "ed25519", name: str = "") -> str:
        """The line of known_hosts for it."""
        return f"{name or f'[127.0.0.1]:{self.port}'} {public(self.folder / f'host_{kind}')}\n"


def keygen(*words: str | Path) -> None:
    """Make a key or a certificate; ed25519 without a passphrase unless `words` say otherwise."""
    given = [*map(str, words)]
    if "-s" not in given and "-N" not in given:
        given += ["-N", ""]
    kind = [] if {"-t", "-s"} & {*given} else ["-t", "ed25519"]
    subprocess.run(["ssh-keygen", "-q", *kind, *given], check=True, stdin=subprocess.DEVNULL)


def public(key: Path) -> str:
    """Type and base64 of a key's public half."""
    return " ".join(key.with_name(key.name + ".pub").read_text().split()[:2])


@contextlib.contextmanager
def stranger(listener: socket.socket, says: bytes, *, closes: bool = False) -> Iterator[list[socket.socket]]:
    """What takes every connection of a listener, says one thing and then nothing; yields those that it took."""
    held: list[socket.socket] = []

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                held.append(listener.accept()[0])
                held[-1].sendall(says)
                if closes:
                    held[-1].close()

    server = threading.Thread(target=serve, daemon=True)
    server.start()
    try:
        yield held
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        server.join()
        for one in held:
            one.close()
