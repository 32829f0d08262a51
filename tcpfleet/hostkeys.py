"""Which host keys are trusted: known_hosts files in OpenSSH's format, and what to do with an unknown key.

Fabric sets AutoAddPolicy and loads no known_hosts file, so without this every key would be accepted. Used by
`tcpfleet.link` on a connection's client, and on each of its gateways, before anything is opened.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import paramiko
from paramiko.hostkeys import HostKeyEntry

_appending = threading.Lock()


class UnknownHostKey(paramiko.SSHException):
    """The host's key is in no known_hosts file and the policy is strict; or the key is marked @revoked."""


class TrustPolicy(paramiko.MissingHostKeyPolicy):
    """Decides on a key that is in none of the loaded files.

    :param policy: strict (refuse), accept-new (take it and write it to `learn_into`) or off (take it).
    :param revoked: keys (base64) that no file's other line can make good.
    """

    def __init__(self, policy: str, learn_into: Path, revoked: frozenset[str]) -> None:
        self.policy, self.learn_into, self.revoked = policy, learn_into, revoked

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:
        fingerprint = key.fingerprint
        if key.get_base64() in self.revoked:
            raise UnknownHostKey(f"its host key {fingerprint} is marked @revoked")
        if self.policy == "strict":
            raise UnknownHostKey(
                f"its host key {fingerprint} is not in {self.learn_into} and the policy is strict; "
                "add it, or set StrictHostKeyChecking=accept-new"
            )
        if self.policy == "accept-new":
            line = f"{hostname} {key.get_name()} {key.get_base64()}\n"
            with _appending:
                self.learn_into.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                fd = os.open(self.learn_into, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
                with os.fdopen(fd, "a") as known:
                    known.write(line)


def trust(client: paramiko.SSHClient, policy: str, files: Sequence[Path]) -> None:
    """Load known_hosts files into `client` and set the policy for keys that are in none of them.

    Lines with @cert-authority are passed over (Paramiko checks no host certificates: such a host's key
    counts as unknown); a key marked @revoked is refused wherever it turns up.

    :param files: the first is where accept-new writes; files that do not exist are fine.
    """
    keys = client.get_host_keys()
    revoked = set()
    for file in files:
        try:
            lines = file.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            continue
        for number, line in enumerate(lines, 1):
            fields = line.split()
            if len(fields) >= 4 and fields[0] == "@revoked":
                revoked.add(fields[3])
            elif fields and not fields[0].startswith(("#", "@")):
                try:
                    entry = HostKeyEntry.from_line(" ".join(fields), number)
                except paramiko.SSHException:
                    continue  # one damaged line must not hide the rest, as with OpenSSH
                if entry is not None and entry.key is not None:
                    for name in entry.hostnames or ():
                        keys.add(name, entry.key.get_name(), entry.key)
    if revoked:
        for host in list(keys.keys()):
            if any(key.get_base64() in revoked for key in (keys.lookup(host) or {}).values()):
                del keys[host]
    client.set_missing_host_key_policy(TrustPolicy(policy, files[0], frozenset(revoked)))
