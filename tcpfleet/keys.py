"""Private keys that are encrypted: which are, and how each is unlocked once per command.

In: paths of private keys, and somebody to ask. Out: keys for Paramiko. Unlocking takes a good tenth of a second on
purpose, so a key is unlocked once and not once per host.
"""

from __future__ import annotations

import binascii
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tcpfleet.errors import Unreachable
from tcpfleet.secret import Secret

if TYPE_CHECKING:
    import paramiko

_MAGIC = b"openssh-key-v1\0"  # PROTOCOL.key of OpenSSH; the cipher's name follows


def is_encrypted(path: str) -> bool:
    """Whether a private key needs a passphrase; False also for what is no key or cannot be read."""
    try:
        data = Path(path).expanduser().read_bytes()
    except OSError:
        return False
    if b"BEGIN OPENSSH PRIVATE KEY" not in data:
        return b"Proc-Type: 4,ENCRYPTED" in data or b"BEGIN ENCRYPTED PRIVATE KEY" in data
    try:
        body = binascii.a2b_base64(b"".join(line for line in data.splitlines() if not line.startswith(b"-")))
    except binascii.Error:
        return False
    return body.startswith(_MAGIC) and not body.startswith(_MAGIC + b"\0\0\0\4none")


class Keyring:
    """The keys of one command; threads share it."""

    def __init__(self) -> None:
        self._keys: dict[str, paramiko.PKey | Unreachable] = {}
        self._lock = threading.Lock()

    def unlocked(self, path: str) -> paramiko.PKey | None:
        """The key, if it was unlocked before."""
        key = self._keys.get(path)
        return None if isinstance(key, Unreachable) else key

    def unlock(self, path: str, ask: Callable[[str], Secret]) -> None:
        """Ask for a key's passphrase, once, whoever comes first.

        :raises Unreachable: it is wrong, now or the first time, or nobody can be asked.
        """
        with self._lock:
            if path not in self._keys:
                try:
                    self._keys[path] = _decrypted(path, ask(f"passphrase for {path}: "))
                except EOFError:
                    self._keys[path] = Unreachable(
                        f"the private key {path} is encrypted: load it into ssh-agent, or run where its "
                        "passphrase can be asked for"
                    )
            key = self._keys[path]
        if isinstance(key, Unreachable):
            raise Unreachable(str(key))


def _decrypted(path: str, phrase: Secret) -> paramiko.PKey | Unreachable:
    import paramiko

    file = os.path.expanduser(path)
    for kind in (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey):
        try:
            key = kind.from_private_key_file(file, password=phrase.reveal())
        except (paramiko.SSHException, ValueError):
            continue  # of another kind, or wrong
        if os.path.isfile(file + "-cert.pub"):
            key.load_certificate(file + "-cert.pub")
        return key
    return Unreachable(f"the passphrase for {path} is wrong, or the key is damaged")
